"""Names and types of C for what TIR calls otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TYPES = {
    "int8": "int8_t",
    "int16": "int16_t",
    "int32": "int32_t",
    "int64": "int64_t",
    "uint8": "uint8_t",
    "uint16": "uint16_t",
    "uint32": "uint32_t",
    "uint64": "uint64_t",
    "float16": "uint16_t",
    "float32": "float",
    "float64": "double",
    "bool": "uint8_t",
}
"""C types of TIR's scalar types; of 16-bit floats it is their bits."""

SHORT = {
    "float32": "f32",
    "float64": "f64",
    "int32": "i32",
    "int64": "i64",
    "uint32": "u32",
    "uint64": "u64",
}
"""Suffixes of the functions in arithmetic.c."""

# of C, and of C++, which the kernels of GPUs are written in
_KEYWORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int
long register restrict return short signed sizeof static struct switch typedef union unsigned void
volatile while
alignas alignof and and_eq asm bitand bitor bool catch char8_t char16_t char32_t class co_await
co_return co_yield compl concept const_cast consteval constexpr constinit decltype delete
dynamic_cast explicit export false friend mutable namespace new noexcept not not_eq nullptr operator
or or_eq private protected public reinterpret_cast requires static_assert static_cast template this
thread_local throw true try typeid typename using virtual wchar_t xor xor_eq
"""
_LOOP_LETTERS = "ijklmnpqrs"


def _stem(name: str) -> str:
    """``name`` without the numbers that make it unique; "" where it says nothing to a reader."""
    if name.startswith("cse_v"):
        return "at"
    if re.fullmatch(r"(i|ax)\d+(_.*)?", name):
        return ""
    stem = re.sub(r"\W", "_", re.sub(r"(_\d+)+$", "", name)).strip("_")
    return stem or "value"


class Names:
    """C names of a function's variables: a name is free again where its block ends."""

    def __init__(self) -> None:
        self._given: dict[Any, str] = {}
        self._scopes: list[set[str]] = [set(_KEYWORDS.split())]

    @contextmanager
    def block(self) -> Iterator[None]:
        """Names given inside end with it."""
        self._scopes.append(set())
        yield
        self._scopes.pop()

    def _taken(self, name: str) -> bool:
        return any(name in scope for scope in self._scopes)

    def give(self, var: Any) -> str:
        """A new name for ``var``: what it is called in TIR where that says something."""
        self._given[var] = self.fresh(_stem(str(var.name)))
        return self._given[var]

    def fresh(self, stem: str) -> str:
        """A name that starts with ``stem``; a letter where that is empty."""
        candidates = iter([stem] if stem else _LOOP_LETTERS)
        name, count = next(candidates), 2
        while self._taken(name):
            name = next(candidates, f"{stem or 'i'}{count}")
            count += not name[-1:].isalpha()
        self._scopes[-1].add(name)
        return name

    def of(self, var: Any) -> str:
        """The name of ``var``."""
        return self._given[var]

    def knows(self, var: Any) -> bool:
        """Whether ``var`` has a name."""
        return var in self._given
