"""How much memory and time a compilation may take.

Sizes come from files that nobody vouches for. They are computed in Python's unbounded integers and
held against the limit here, before anything of that size is allocated; what takes long asks here
whether there is time left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from dlcc.errors import DlccError, ExitCode

MEMORY = 4 << 30
"""Bytes that a compilation may ask for where nothing else is said."""

MOST_AXES = 64
"""Axes that a numpy array can have."""

_most: ContextVar[int] = ContextVar("max_memory", default=MEMORY)

Progress = Callable[[str, float], None]

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def _shown(size: int) -> str:
    """``size`` bytes in the largest unit that leaves a number of at least 1."""
    power = min(max(size.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    tenths = (size * 10) >> (10 * power)
    return f"{tenths // 10}.{tenths % 10} {_UNITS[power]}"


def memory_error(need: int, what: str, where: str = "") -> DlccError:
    """The refusal of ``need`` bytes for ``what``."""
    return DlccError(
        ExitCode.LIMIT,
        f"{what} needs more memory than a compilation may take",
        where=where,
        why=f"{_shown(need)} are more than {_shown(_most.get())}",
        fix="raise the limit with --max-memory (16G, say) if this is meant",
    )


def check_bytes(need: int, what: str, where: str = "") -> None:
    """Refuse ``need`` bytes if they are more than the compilation may ask for.

    Args:
        need: bytes.
        what: what they are for, as in "the graph".
        where: the node or file.

    Raises:
        DlccError: LIMIT, with both numbers.
    """
    if need > _most.get():
        raise memory_error(need, what, where)


def check_shape(shape: Sequence[int], itemsize: float, where: str = "") -> None:
    """Refuse a tensor that has no size, or too large a one.

    Args:
        shape: extents; not trusted.
        itemsize: bytes of an element.
        where: the node or the tensor.

    Raises:
        DlccError: MODEL for a negative extent, UNSUPPORTED for too many axes, LIMIT for the size.
    """
    shown = f"{list(shape[:8])}{'...' if len(shape) > 8 else ''}"
    if any(extent < 0 for extent in shape):
        raise DlccError(
            ExitCode.MODEL,
            f"a tensor cannot have the shape {shown}",
            where=where,
            why="an extent is negative",
            fix="the model is damaged; export it again",
        )
    if len(shape) > MOST_AXES:
        raise DlccError(
            ExitCode.UNSUPPORTED,
            f"a tensor has {len(shape)} axes",
            where=where,
            why=f"at most {MOST_AXES} are supported",
            fix="join axes with Reshape",
        )
    check_bytes(math.ceil(math.prod(map(int, shape)) * itemsize), f"a tensor of {shown}", where)


@contextmanager
def bounded(
    progress: Progress, timeout: float | None = None, max_memory: int | None = None
) -> Iterator[Progress]:
    """Within the block sizes are held against ``max_memory``; what it gives also keeps the time.

    Args:
        progress: called by what is given.
        timeout: seconds from now on; None: as long as it takes.
        max_memory: bytes; None: the limit that holds around the block.

    Yields:
        A progress function that raises LIMIT once the time is over.

    Raises:
        DlccError: USAGE, a limit is not positive; LIMIT, the system has no more memory.
    """
    for option, given in (("--timeout", timeout), ("--max-memory", max_memory)):
        if given is not None and not given > 0:
            raise DlccError(
                ExitCode.USAGE, f"{option} must be positive", where=option, why=f"given {given}"
            )
    end = None if timeout is None else time.monotonic() + timeout

    def told(phase: str, fraction: float) -> None:
        if end is not None and time.monotonic() > end:
            raise time_error(timeout or 0.0, phase)
        progress(phase, fraction)

    token = _most.set(max_memory or _most.get())
    try:
        yield told
    except MemoryError:
        raise DlccError(
            ExitCode.LIMIT,
            "there is not enough memory for the compilation",
            why="the system gives no more",
            fix="close other programs, or bound the shapes with --shape",
        ) from None
    finally:
        _most.reset(token)


def time_error(timeout: float, phase: str = "") -> DlccError:
    """The refusal to go on after ``timeout`` seconds."""
    return DlccError(
        ExitCode.LIMIT,
        f"the compilation took longer than {timeout:g} s",
        where=phase,
        why="--timeout says so; nothing was written",
        fix="give it more time, or bound the shapes with --shape",
    )


__all__ = [
    "MEMORY",
    "Progress",
    "bounded",
    "check_bytes",
    "check_shape",
    "memory_error",
    "time_error",
]
