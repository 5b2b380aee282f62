"""The command line: one file per group of verbs, thin; the work is done in library modules."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; ``argv`` without the program's name, None for the process's own.

    Returns:
        The exit code, a value of :class:`dlcc.errors.ExitCode` (130 after Ctrl-C).
    """
    from dlcc.cli.app import run_command_line

    return run_command_line(argv)


__all__ = ["main"]
