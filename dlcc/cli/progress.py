"""Progress of long work: a rich bar per phase on a terminal, plain lines elsewhere.

Both show the fractions that the work itself reports, per phase; there is no overall bar, because
nobody knows beforehand how long calibration will take compared with code generation.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LONG_SECONDS = 1.0
"""A phase that takes longer than this gets a plain line at its end, too."""

REPEAT_SECONDS = 5.0
"""A phase that takes longer than this gets further plain lines, one per so many seconds."""


class PhaseProgress:
    """A callable ``(phase, fraction)`` to give to the driver; use it as a context manager.

    Args:
        quiet: show nothing.

    Attributes:
        seconds: what each phase took so far, in the order in which they came.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._rich: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}
        self._spoken = 0.0
        self.seconds: dict[str, float] = {}
        self._told = time.perf_counter()

    def __enter__(self) -> Self:
        self._told = time.perf_counter()
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
            from rich.progress import TimeElapsedColumn as Elapsed

            self._rich = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(bar_width=30),
                TaskProgressColumn(),
                Elapsed(),
                console=RichConsole(stderr=True),
                transient=True,
            )
            self._rich.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None

    def __call__(self, phase: str, fraction: float) -> None:
        """Told by the work: ``fraction`` (0 to 1) of ``phase`` is done."""
        now, before = time.perf_counter(), self.seconds.get(phase, 0.0)
        self.seconds[phase] = before + now - self._told
        self._told = now
        if self._quiet:
            return
        fraction = min(max(fraction, 0.0), 1.0)
        if self._rich is not None:
            self._show_bar(self._rich, phase, fraction)
        else:
            self._say(phase, fraction, before)

    def _show_bar(self, rich: RichProgress, phase: str, fraction: float) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = rich.add_task(phase, total=1.0)
        rich.update(self._tasks[phase], completed=fraction)

    def _say(self, phase: str, fraction: float, before: float) -> None:
        now, first = self._told, phase not in self._begun
        taken = self.seconds[phase] - self._begun.setdefault(phase, before)
        if first:
            sys.stderr.write(f"{phase}\n")
        if fraction >= 1.0:
            del self._begun[phase]
            if taken < LONG_SECONDS:
                return
            sys.stderr.write(f"{phase}: done after {taken:.1f} s\n")
        elif not first:
            if now - self._spoken < REPEAT_SECONDS:
                return
            sys.stderr.write(f"{phase}: {100 * fraction:.0f} %\n")
        self._spoken = now
        sys.stderr.flush()
