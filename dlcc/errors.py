"""Errors a user can act on.

Every mistake a user can make ends in a :class:`DlccError`: what went wrong, at which node, which
constraint and which numbers, and the option that mends it. The command line prints the five fields
and exits with the class's code; a traceback is a bug in dlcc.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line, one per class of failure (documented in docs/cli.md)."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    INPUT_FILE = 3
    MODEL = 4
    UNSUPPORTED = 5
    DATA = 6
    PASS = 7
    TARGET = 8
    ARTIFACT = 9
    OUTPUT = 10
    VERIFICATION = 11
    REMOTE = 12
    LIMIT = 13


class DlccError(Exception):
    """A failure that the user can understand and mend.

    Args:
        code: the class of failure, which is also the exit code.
        what: one sentence: what could not be done.
        where: the node, file or option it concerns ("" if it concerns the whole run).
        why: the constraint that was not met, with the numbers.
        fix: the option or change that mends it.
    """

    def __init__(
        self, code: ExitCode, what: str, *, where: str = "", why: str = "", fix: str = ""
    ) -> None:
        self.code = code
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.why:
            parts.append(f"why: {self.why}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "\n  ".join(parts)

    def to_json(self) -> dict[str, object]:
        """The fields as a JSON object, for ``--json``."""
        return {
            "error": self.code.name.lower(),
            "exit_code": int(self.code),
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "fix": self.fix,
        }
