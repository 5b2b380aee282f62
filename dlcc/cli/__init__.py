"""The command line: one file per group of verbs, thin; the work is done in library modules."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; ``argv`` without the program's name, None for the process's own.

    Returns:
        The exit code, a value of :class:`dlcc.errors.ExitCode` (130 after Ctrl-C).
    """
    if argv is None:
        # The process is ours. TVM imports torch where it is installed, which no verb needs and
        # which takes longer than all the rest of a small compilation.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from dlcc.cli.app import run_command_line

    return run_command_line(argv)


__all__ = ["main"]
