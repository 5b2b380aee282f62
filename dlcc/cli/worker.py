"""Work in a process of its own, which can be stopped and cannot take more memory than it may."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dlcc.bounds import bounded, memory_error, time_error
from dlcc.errors import DlccError, ExitCode

_STEP = 0.02
"""Seconds between two looks at the worker."""

_SPARE = 256 << 20
"""Bytes beyond the limit for the interpreter and the compiler themselves."""


def run_bounded(
    work: Callable[[], None], output: Path, timeout: float | None, max_memory: int | None
) -> None:
    """Call ``work`` in a forked process within limits, or as it is where there are none.

    Args:
        work: writes ``output``, aside first and put in place at the end.
        output: where it writes; what it leaves beside it when it is stopped is removed.
        timeout: seconds; then it and all that it started are killed.
        max_memory: bytes of private memory, besides what this program needs itself.

    Raises:
        DlccError: what ``work`` raised, or LIMIT.
    """
    if timeout is None and max_memory is None:
        work()
        return
    with bounded(lambda _phase, _fraction: None, timeout, max_memory):
        scratch = Path(tempfile.mkdtemp(prefix="dlcc-"))
        try:
            _supervised(work, output, timeout, max_memory, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _supervised(
    work: Callable[[], None],
    output: Path,
    timeout: float | None,
    max_memory: int | None,
    scratch: Path,
) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    place = Path(os.path.realpath(output)).parent
    before = set(os.listdir(place)) if place.is_dir() else set()
    report = scratch / "error"
    child = os.fork()
    if not child:
        _work(work, max_memory, scratch, report)
    try:
        status = _wait(child, timeout)
    except BaseException:
        _stop(child)
        raise
    finally:
        _remove_half_written(place, output, before)
    if status is None:
        raise time_error(timeout or 0.0)
    if report.exists():
        fields = json.loads(report.read_text())
        raise DlccError(ExitCode(fields.pop("code")), fields.pop("what"), **fields)
    if status:
        raise _died(status, max_memory)


def _work(work: Callable[[], None], max_memory: int | None, scratch: Path, report: Path) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        os.setsid()  # so that linkers that it starts are stopped with it
        tempfile.tempdir = str(scratch)
        if max_memory is not None:
            most = max_memory + _SPARE
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        try:
            work()
            code = 0
        except MemoryError:
            raise _out_of_memory(max_memory) from None
        except DlccError:
            raise
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            why = f"{type(error).__name__}: {first}".rstrip(": ")
            raise DlccError(
                ExitCode.INTERNAL, "dlcc failed in a way it should not", why=why,
                fix="run again without --timeout and --max-memory and report what happens",
            ) from error  # fmt: skip
    except DlccError as error:
        fields = {k: getattr(error, k) for k in ("what", "where", "why", "fix")}
        report.write_text(json.dumps({"code": int(error.code), **fields}))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int, timeout: float | None) -> int | None:
    """The worker's status; None if it was killed because the time is over."""
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        done, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if done:
            return status
        if end is not None and time.monotonic() > end:
            _stop(child)
            return None
        time.sleep(_STEP)


def _stop(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # it has not made its group yet
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _remove_half_written(place: Path, output: Path, before: set[str]) -> None:
    """Remove the folder in which a stopped worker had begun the artifact."""
    if not place.is_dir():
        return
    start = f".{Path(os.path.realpath(output)).name[:100]}."
    for name in set(os.listdir(place)) - before:
        if name.startswith(start):
            shutil.rmtree(place / name, ignore_errors=True)


def _out_of_memory(max_memory: int | None) -> DlccError:
    if max_memory is None:
        return DlccError(ExitCode.LIMIT, "out of memory", fix="close other programs")
    return memory_error(max_memory + 1, "the compilation")


def _died(status: int, max_memory: int | None) -> DlccError:
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if max_memory is not None and number in (signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV):
        return _out_of_memory(max_memory)  # LLVM and the system do not raise, they end
    return DlccError(
        ExitCode.INTERNAL,
        "the compilation ended unexpectedly",
        why=f"it was stopped by signal {number}" if number else f"with status {status >> 8}",
        fix="report this with the model",
    )


__all__ = ["run_bounded"]
