"""Measuring :class:`dlcc.limits.Limits` by a small C program, once for each machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dlcc.artifact.toolchain import Toolchain
from dlcc.bench import cpu_description
from dlcc.errors import DlccError, ExitCode
from dlcc.limits import NEEDS, Limits
from dlcc.wholefile import write_whole

WINDOW_SECONDS = 0.006
"""Short, and the best of a dozen counts: a peak must not suffer from what else the machine does."""
READ_SIZES = tuple(n << 10 for n in (24, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10))
"""Bytes; from a first-level cache to beyond every cache but the largest."""
_SECONDS = 120.0
_READERS = (("avx512f", "read512"), ("avx2", "read256"))
_SOURCE = Path(__file__).with_name("limits.c")


def limits_for(threads: int, file: Path | None = None) -> Limits:
    """The limits of this machine, measured now if they are not yet known.

    Args:
        threads: threads that run at once; no more than the process has CPUs count.
        file: where limits are kept, from any machine; None for the user's cache.

    Raises:
        DlccError: DATA for a file that is not one of limits, OUTPUT if it cannot be written.
    """
    threads = min(threads, len(os.sched_getaffinity(0)))
    path = file or default_file()
    known = _read(path, strict=file is not None)
    key = _key(threads)
    if key not in known:
        known[key] = measure(threads)
        _write(path, known, strict=file is not None)
    return known[key]


def default_file() -> Path:
    """The file of limits in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlcc" / "limits.json"


def measure(threads: int) -> Limits:
    """Measure with threads on the first CPUs of this process; takes a few seconds.

    Raises:
        DlccError: INTERNAL if the program does not run.
    """
    cpus = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:threads])
    flags = _cpu_flags()
    loops = [loop for loop, needs in NEEDS.items() if set(needs) <= flags]
    reader = next((name for flag, name in _READERS if flag in flags), "read128")
    tasks = [*loops, *(f"{reader}:{size}" for size in READ_SIZES)]
    with tempfile.TemporaryDirectory(prefix="dlcc-limits-") as name:
        tools = Toolchain("x86_64-unknown-linux-gnu", Path(name))
        tools.link_program([str(_SOURCE)], "limits", ["-lpthread"])
        command = [str(Path(name) / "limits"), cpus, str(WINDOW_SECONDS), *tasks]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode != 0:
        raise DlccError(
            ExitCode.INTERNAL,
            "the limits of this machine cannot be measured",
            why=done.stderr.strip() or f"the program ended with code {done.returncode}",
            fix="give limits measured before by --limits",
        )
    rates = {task: float(rate) for task, rate in map(str.split, done.stdout.splitlines())}
    reads = {int(t.partition(":")[2]): rate for t, rate in rates.items() if ":" in t}
    peaks = {loop: rates[loop] for loop in loops}
    return Limits(cpu_description()[0], threads, peaks, without_dips(reads))


def without_dips(reads: Mapping[int, float]) -> dict[int, float]:
    """Rates by size where none is below that of a larger size: smaller data is never slower."""
    best, found = 0.0, {}
    for size in sorted(reads, reverse=True):
        best = max(best, reads[size])
        found[size] = best
    return dict(sorted(found.items()))


def _cpu_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _key(threads: int) -> str:
    """Changes with the CPU and with the way of measuring."""
    source = hashlib.sha256(_SOURCE.read_bytes() + repr((READ_SIZES, NEEDS)).encode()).hexdigest()
    return f"{cpu_description()[0]}, {os.cpu_count()} CPUs, {threads} threads, {source[:12]}"


def _read(path: Path, strict: bool) -> dict[str, Limits]:
    try:
        data = json.loads(path.read_text())
        return {str(key): Limits.from_json(value) for key, value in data.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if not strict:  # the cache is only a cache
            return {}
        raise DlccError(
            ExitCode.DATA,
            "the limits cannot be read",
            where=str(path),
            why=f"{type(error).__name__}: {error}",
            fix="give a file that --limits has written, or one that does not exist yet",
        ) from None


def _write(path: Path, known: dict[str, Limits], strict: bool) -> None:
    text = json.dumps({key: limits.to_json() for key, limits in known.items()}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole({path: text.encode()})
    except OSError as error:
        if not strict:
            return
        raise DlccError(
            ExitCode.OUTPUT,
            "the limits cannot be written",
            where=str(path),
            why=error.strerror or str(error),
            fix="choose another file with --limits",
        ) from None


__all__ = ["READ_SIZES", "default_file", "limits_for", "measure", "without_dips"]
