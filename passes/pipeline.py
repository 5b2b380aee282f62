r"""Pipelines as text: one grammar for the command line, configuration files and Python.

::

    pipeline := [ item { "," item } ]
    item     := NAME [ "{" { option } "}" ]
    option   := KEY [ "=" value ]            # a bare key is a flag: KEY=true
    value    := atom | "[" [ atom { "," atom } ] "]"
    atom     := WORD | '"' text '"'          # in quotes, a backslash stands before \" and \\

Example: ``fold-batch-norm,prune{sparsity=0.8 pattern=block4x4},quantize{bits=8 per-channel}``.
White space is free. What an atom means (number, flag, text) is decided by the option's type, so
:func:`print_pipeline` and :func:`parse_pipeline` are inverse to each other.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dlcc.errors import DlccError, ExitCode
from passes.base import Pass, registered_passes
from passes.options import Option, Quoted, Raw, format_value, options_of

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"[^\s,{}\[\]=\"]+")
_STRING = re.compile(r'"((?:[^"\\]|\\["\\])*)"')


class _Reader:
    """Recursive descent over one pipeline text; every error names the column."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self._skip()

    def where(self, position: int | None = None) -> str:
        at = self.position if position is None else position
        return f"pipeline, column {at + 1}"

    def fail(self, why: str) -> DlccError:
        return DlccError(
            ExitCode.USAGE,
            "the pipeline cannot be read",
            where=self.where(),
            why=f"{why}\n  {self.text}\n  {' ' * self.position}^",
            fix="write name{option=value flag ...},name,...",
        )

    def _skip(self) -> None:
        match = _SPACE.match(self.text, self.position)
        assert match is not None
        self.position = match.end()

    def accept(self, mark: str) -> bool:
        if not self.text.startswith(mark, self.position):
            return False
        self.position += len(mark)
        self._skip()
        return True

    def at_end(self) -> bool:
        return self.position == len(self.text)

    def word(self, what: str) -> str:
        match = _WORD.match(self.text, self.position)
        if match is None:
            found = repr(self.text[self.position]) if not self.at_end() else "the end"
            raise self.fail(f"expected {what}, found {found}")
        self.position = match.end()
        self._skip()
        return match.group()

    def atom(self) -> str:
        if not self.text.startswith('"', self.position):
            return self.word("a value")
        match = _STRING.match(self.text, self.position)
        if match is None:
            raise self.fail("the quotes are not closed")
        self.position = match.end()
        self._skip()
        return Quoted(re.sub(r'\\(["\\])', r"\1", match.group(1)))

    def value(self) -> Raw:
        if not self.accept("["):
            return self.atom()
        items: list[str] = []
        while not self.accept("]"):
            if items and not self.accept(","):
                raise self.fail("expected ',' or ']'")
            items.append(self.atom())
        return tuple(items)

    def item(self) -> Pass:
        start = self.position
        cls = self._pass_class(self.word("the name of a pass"), start)
        by_name = {o.name: o for o in options_of(cls)}
        given: dict[str, Any] = {}
        if self.accept("{"):
            while not self.accept("}"):
                key_at = self.position
                item = self._option(cls, by_name, self.word("an option or '}'"), key_at)
                if item.field in given:
                    raise self.fail(f"option {item.name} of {cls.name} is given twice")
                raw: Raw = self.value() if self.accept("=") else "true"
                where = f"{self.where(key_at)}, pass {cls.name!r}"
                given[item.field] = item.read(raw, where)
        self._check_required(cls, by_name.values(), given, start)
        return cls(**given)

    def _pass_class(self, name: str, start: int) -> type[Pass]:
        known = registered_passes()
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise DlccError(
            ExitCode.USAGE,
            f"there is no pass named {name!r}",
            where=self.where(start),
            fix=(f"did you mean {near[0]!r}? " if near else "") + "`dlcc passes` lists all passes",
        )

    def _option(self, cls: type[Pass], known: dict[str, Option], key: str, position: int) -> Option:
        item = known.get(key.replace("_", "-"))
        if item is not None:
            return item
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        raise DlccError(
            ExitCode.USAGE,
            f"pass {cls.name!r} has no option {key!r}",
            where=self.where(position),
            why=f"its options are: {', '.join(known)}" if known else "it takes no options",
            fix=f"did you mean {near[0]!r}?" if near else "",
        )

    def _check_required(
        self, cls: type[Pass], options: Iterable[Option], given: dict[str, Any], start: int
    ) -> None:
        missing = [o.name for o in options if o.required and o.field not in given]
        if missing:
            raise DlccError(
                ExitCode.USAGE,
                f"pass {cls.name!r} needs option {', '.join(missing)}",
                where=self.where(start),
                fix=f"write {cls.name}{{{' '.join(f'{m}=...' for m in missing)}}}",
            )


def parse_pipeline(text: str) -> list[Pass]:
    """Passes of a pipeline text.

    Raises:
        DlccError: (USAGE) syntax, unknown pass or option, or a value out of range, with the column.
    """
    reader = _Reader(text)
    passes: list[Pass] = []
    while not reader.at_end():
        if passes and not reader.accept(","):
            raise reader.fail("expected ',' or the end")
        passes.append(reader.item())
    return passes


def print_pass(step: Pass) -> str:
    """Text of one pass; options at their default are left out."""
    parts = []
    for item in options_of(type(step)):
        value = getattr(step, item.field)
        if value == item.default and type(value) is type(item.default):
            continue
        parts.append(item.name if value is True else f"{item.name}={format_value(item, value)}")
    return f"{step.name}{{{' '.join(parts)}}}" if parts else step.name


def print_pipeline(passes: Sequence[Pass]) -> str:
    """Text of a pipeline, which :func:`parse_pipeline` reads back to equal passes."""
    return ",".join(print_pass(step) for step in passes)


def as_passes(pipeline: str | Sequence[Pass | str]) -> list[Pass]:
    """Passes of a pipeline given as text, as passes, or as a mixed list of both."""
    if isinstance(pipeline, str):
        return parse_pipeline(pipeline)
    passes: list[Pass] = []
    for item in pipeline:
        passes += parse_pipeline(item) if isinstance(item, str) else [item]
    return passes
