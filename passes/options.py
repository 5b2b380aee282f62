"""Options of passes: typed dataclass fields, their text form and their checks.

A field's type is one of ``bool``, ``int``, ``float``, ``str``, a ``Literal`` of strings, a
``tuple[T, ...]`` of these, or one of them ``| None``. Range, unit and help stand in the field's
metadata (:func:`option`). The same check serves pipeline text and Python keyword arguments.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from dlcc.errors import DlccError, ExitCode

_BARE = re.compile(r"[A-Za-z0-9_.:/*?+-]+")

Raw = str | tuple[Any, ...]
"""An option's value as the grammar reads it: an atom or a list of atoms."""


class Quoted(str):
    """An atom that stood in quotes: always a string, never a keyword."""

    __slots__ = ()


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    by_layer: str = "",
) -> Any:
    """A dataclass field that is an option of a pass.

    Args:
        default: its default; a tuple for lists.
        help: one phrase, without a full stop.
        unit: unit of a number ("bits", "fraction of weights", ...).
        minimum: smallest value allowed, of the number or of each element.
        maximum: largest value allowed.
        by_layer: the option holds NAME:VALUE items for layers; of other layers this option tells
            the value. In a recipe a layer gives its value alone.
    """
    metadata = {"help": help, "unit": unit, "minimum": minimum, "maximum": maximum}
    metadata["by_layer"] = by_layer
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """One option of a pass.

    Attributes:
        field: name of the dataclass field.
        base: ``bool``, ``int``, ``float`` or ``str``; of each element where ``many``.
        choices: the strings allowed, empty if any.
        many: a list.
        optional: may be None (text ``none``).
        default: the default, or ``dataclasses.MISSING`` where the option must be given.
        help: one phrase.
        unit: unit of the number.
        minimum: smallest value allowed.
        maximum: largest value allowed.
        by_layer: option with the value of layers that are not named; "" if this names none.
    """

    field: str
    base: type
    choices: tuple[str, ...]
    many: bool
    optional: bool
    default: Any
    help: str
    unit: str
    minimum: float | None
    maximum: float | None
    by_layer: str = ""

    @property
    def name(self) -> str:
        """Kebab-case name in pipeline text."""
        return self.field.replace("_", "-")

    @property
    def required(self) -> bool:
        """Must be given."""
        return self.default is dataclasses.MISSING

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        else:
            text = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[
                self.base
            ]
        if self.minimum is not None and self.maximum is not None:
            text += f" from {self.minimum:g} to {self.maximum:g}"
        elif self.minimum is not None:
            text += f" of at least {self.minimum:g}"
        elif self.maximum is not None:
            text += f" of at most {self.maximum:g}"
        if self.unit:
            text += f" ({self.unit})"
        if self.many:
            text = f"a list in [], each {text}"
        return text + (" or none" if self.optional else "")

    def check(self, value: Any, where: str) -> None:
        """Check a Python value.

        Raises:
            DlccError: it is not what the option takes.
        """
        if value is None and self.optional:
            return
        if self.many != isinstance(value, tuple):
            raise self.error(value, where)
        for item in value if self.many else (value,):
            if not self._fits(item):
                raise self.error(value, where)

    def _fits(self, value: Any) -> bool:
        if isinstance(value, bool) or self.base is bool:
            return self.base is bool and isinstance(value, bool)
        if isinstance(value, str) or self.base is str:
            known = not self.choices or value in self.choices
            return self.base is str and isinstance(value, str) and known
        if not isinstance(value, int | float) or (self.base is int and not isinstance(value, int)):
            return False
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        return low <= value <= high  # False for NaN

    def error(self, value: object, where: str) -> DlccError:
        """The error of a value that does not fit."""
        shown = format_value(self, value) if not isinstance(value, Quoted) else repr(str(value))
        return DlccError(
            ExitCode.USAGE,
            f"option {self.name}={shown} is not valid",
            where=where,
            why=f"{self.name} ({self.help}) must be {self.expected}",
        )

    def read(self, raw: Raw, where: str) -> Any:
        """Value of an option from its text.

        Raises:
            DlccError: it is not what the option takes.
        """
        if raw == "none" and not isinstance(raw, Quoted) and self.optional:
            return None
        try:
            if self.many:
                items = raw if isinstance(raw, tuple) else (raw,)
                value: Any = tuple(self._read_atom(item) for item in items)
            elif isinstance(raw, tuple):
                raise ValueError
            else:
                value = self._read_atom(raw)
        except ValueError:
            raise self.error(raw, where) from None
        self.check(value, where)
        return value

    def _read_atom(self, raw: Raw) -> Any:
        if isinstance(raw, tuple):
            raise ValueError
        if self.base is str:
            return str(raw)
        if isinstance(raw, Quoted):
            raise ValueError
        if self.base is bool:
            if raw not in ("true", "false"):
                raise ValueError
            return raw == "true"
        return self.base(raw)

    def describe(self) -> dict[str, Any]:
        """The option as JSON data."""
        return {
            "name": self.name,
            "type": self.expected,
            "default": None if self.required else format_value(self, self.default),
            "required": self.required,
            "help": self.help,
            "unit": self.unit,
        }


def format_value(item: Option, value: object) -> str:
    """Text of a value, which :meth:`Option.read` reads back."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "[" + ",".join(format_value(item, v) for v in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) or (item.base is float and isinstance(value, int)):
        return repr(float(value)).removesuffix(".0")
    if isinstance(value, str):
        plain = _BARE.fullmatch(value) and not (value == "none" and item.optional)
        if plain:
            return value
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


@functools.cache
def options_of(cls: type[Any]) -> tuple[Option, ...]:
    """The options of a pass class, in order of declaration.

    Raises:
        TypeError: a field has a type that options cannot have (a mistake in the pass).
    """
    hints = typing.get_type_hints(cls)
    return tuple(_option(cls, f, hints[f.name]) for f in dataclasses.fields(cls))


def _option(cls: type[Any], f: dataclasses.Field[Any], hint: Any) -> Option:
    optional = many = False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        members = [m for m in typing.get_args(hint) if m is not type(None)]
        optional = len(members) < len(typing.get_args(hint))
        hint = members[0] if len(members) == 1 else hint
    if typing.get_origin(hint) is tuple:
        args = typing.get_args(hint)
        many, hint = True, args[0] if len(args) == 2 and args[1] is Ellipsis else hint
    choices: tuple[str, ...] = ()
    if typing.get_origin(hint) is Literal:
        choices, hint = typing.get_args(hint), str
    if hint not in (bool, int, float, str):
        raise TypeError(f"{cls.__name__}.{f.name}: {hint} cannot be the type of an option")
    meta = f.metadata
    return Option(
        field=f.name,
        base=hint,
        choices=choices,
        many=many,
        optional=optional,
        default=f.default,
        help=meta.get("help", ""),
        unit=meta.get("unit", ""),
        minimum=meta.get("minimum"),
        maximum=meta.get("maximum"),
        by_layer=meta.get("by_layer", ""),
    )
