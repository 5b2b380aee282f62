"""What the command line prints: tables and lines, or one JSON object with ``--json``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlcc.errors import DlccError

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; columns whose heading starts with ``>`` are right-aligned."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    title: str = ""

    def plain(self) -> str:
        """Columns padded with blanks, for pipes and log files."""
        grid = [[c.lstrip(">") for c in self.columns]]
        grid += [[text_of(cell) for cell in row] for row in self.rows]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.columns))]
        lines = [self.title] if self.title else []
        for row in grid:
            cells = [
                cell.rjust(width) if head.startswith(">") else cell.ljust(width)
                for cell, width, head in zip(row, widths, self.columns, strict=True)
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def markdown(self) -> str:
        """The table in Markdown."""
        rule = ["---:" if c.startswith(">") else "---" for c in self.columns]
        grid = [[c.lstrip(">") for c in self.columns], rule]
        grid += [[text_of(cell).replace("|", "\\|") for cell in row] for row in self.rows]
        return "\n".join("| " + " | ".join(row) + " |" for row in grid)


class Console:
    """Standard output for results, standard error for everything else.

    Args:
        as_json: print one JSON object and nothing else on standard output.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    def line(self, text: str = "") -> None:
        """One line of a result."""
        if not self.as_json:
            sys.stdout.write(text + "\n")

    def note(self, text: str) -> None:
        """One line that is not part of the result."""
        sys.stderr.write(text + "\n")

    def table(self, table: Table) -> None:
        """A table: with rules on a terminal, plain otherwise."""
        if self.as_json:
            return
        if not sys.stdout.isatty():
            sys.stdout.write(table.plain() + "\n")
            return
        from rich import box
        from rich.console import Console as RichConsole
        from rich.table import Table as RichTable
        from rich.text import Text

        shown = RichTable(title=table.title or None, box=box.SIMPLE_HEAD, title_justify="left")
        for column in table.columns:
            right = column.startswith(">")
            shown.add_column(Text(column.lstrip(">")), justify="right" if right else "left")
        for row in table.rows:
            shown.add_row(*(Text(text_of(cell)) for cell in row))
        RichConsole().print(shown)

    def json(self, payload: Mapping[str, Any]) -> None:
        """The result as JSON; nothing without ``--json``."""
        if self.as_json:
            sys.stdout.write(json.dumps(jsonable(payload), indent=1, ensure_ascii=False) + "\n")

    def error(self, error: DlccError) -> None:
        """A failure: in words on standard error, with ``--json`` also as JSON."""
        self.json(error.to_json())
        sys.stderr.write(f"error: {error}\n")


def jsonable(value: Any) -> Any:
    """``value`` in JSON's own types; numbers JSON lacks become "inf", "-inf" and "nan"."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and not isinstance(value, str):  # numpy scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def text_of(cell: Cell) -> str:
    """A table's cell as text."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)


def bytes_text(count: int) -> str:
    """A number of bytes for people: exact below 10 kB, else with three digits or more."""
    if count < 10_000:
        return f"{count} B"
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"


def count_text(count: int) -> str:
    """A large number for people, e.g. 568.7 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def seconds_text(seconds: float) -> str:
    """A time for people, in s, ms or us."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3f} ms"
    return f"{seconds * 1e6:.1f} us"
