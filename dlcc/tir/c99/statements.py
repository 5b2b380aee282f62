"""TIR statements as C: loops, stores, and the declarations of what they use."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, TypeVar

from dlcc.tir.c99.expressions import TIMES, Expressions, Unprintable, dtype_of
from dlcc.tir.c99.names import TYPES, Names


def children(stmt: Any) -> Iterator[Any]:
    """The statements that ``stmt`` consists of."""
    yield from getattr(stmt, "seq", ())
    for part in ("body", "then_case", "else_case"):
        child = getattr(stmt, part, None)
        if child is not None:
            yield child


def stored_buffers(stmt: Any) -> set[Any]:
    """Buffers that ``stmt`` stores to."""
    found = {stmt.buffer} if type(stmt).__name__ == "BufferStore" else set()
    for child in children(stmt):
        found |= stored_buffers(child)
    return found


def bound_variables(stmt: Any) -> list[Any]:
    """Variables that ``stmt`` gives a value."""
    found = [stmt.var] if type(stmt).__name__ == "Bind" else []
    return found + [var for child in children(stmt) for var in bound_variables(child)]


class Function:
    """Prints the body of one function.

    Args:
        params: buffers and variables, in order.
        body: the statement.
        skip: variables whose declarations nobody reads.
    """

    expressions_of: type[Expressions] = Expressions
    """What prints its expressions."""

    def __init__(self, params: list[Any], body: Any, skip: frozenset[Any] = frozenset()) -> None:
        self.names = Names()
        self._skip = skip
        self._roots: dict[Any, Any] = {}
        self._scalars: set[Any] = set()
        self.expressions = self.expressions_of(self.names, self._element)
        self.used = self.expressions.used
        self.parameters = [self.names.give(param) for param in params]
        self._declare_aliases(body)
        self.stored = {self._root(buffer) for buffer in stored_buffers(body)}
        with self.names.block():
            self.lines = [f"  {line}" for line in self._print(body)]

    def _declare_aliases(self, stmt: Any) -> None:
        if type(stmt).__name__ == "DeclBuffer":
            data = stmt.data
            owner = data.args[0] if type(data).__name__ == "Call" else data
            self._roots[stmt.buffer] = owner
        for child in children(stmt):
            self._declare_aliases(child)

    def _root(self, buffer: Any) -> Any:
        while buffer in self._roots:
            buffer = self._roots[buffer]
        return buffer

    def _element(self, buffer: Any, indices: Any) -> str:
        root = self._root(buffer)
        if not self.names.knows(root):
            raise Unprintable(f"buffers as {buffer.name}, which no parameter or array is")
        if str(buffer.dtype) != str(root.dtype):
            raise Unprintable("a buffer that is read as two types")
        self.used.add(root)
        name = self.names.of(root)
        if root in self._scalars:
            return name
        if len(indices) != 1:
            raise Unprintable("buffers with several axes")
        return f"{name}[{self.expressions.text(indices[0])}]"

    def _statement(self, text: str) -> list[str]:
        """What the expressions in ``text`` needed before it, and ``text``."""
        lines = [*self.expressions.lines, text]
        self.expressions.lines = []
        return lines

    def _print(self, stmt: Any) -> list[str]:
        kind = type(stmt).__name__
        method = getattr(self, f"_{kind.lower()}", None)
        if method is None:
            raise Unprintable(f"statements of kind {kind}")
        made: list[str] = method(stmt)
        return made

    def _block(self, stmt: Any) -> list[str]:
        with self.names.block():
            return [f"  {line}" for line in self._print(stmt)]

    def _seqstmt(self, stmt: Any) -> list[str]:
        lines: list[str] = []
        for child in stmt.seq:
            made = self._print(child)
            declared = lines[-1].removesuffix(";").split(" ") if lines else []
            is_scalar = len(declared) == 2 and declared[0] in TYPES.values()
            if is_scalar and len(made) == 1 and made[0].startswith(f"{declared[1]} = "):
                lines.pop()  # a scalar that is declared just before it gets its value
                made = [f"{declared[0]} {made[0]}"]
            lines += made
        return lines

    def _attrstmt(self, stmt: Any) -> list[str]:
        if str(stmt.attr_key).startswith("pragma_import"):
            raise Unprintable("code that is written in LLVM's language")
        return self._print(stmt.body)

    def _declbuffer(self, stmt: Any) -> list[str]:
        return self._print(stmt.body) if getattr(stmt, "body", None) is not None else []

    def _allocbuffer(self, stmt: Any) -> list[str]:
        buffer = stmt.buffer
        dtype, size = str(buffer.dtype), prod(int(d) for d in buffer.shape)
        if dtype not in TYPES:
            raise Unprintable(f"values of type {dtype}")
        name = self.names.give(buffer)
        if size == 1:
            self._scalars.add(buffer)
            return [f"{TYPES[dtype]} {name};"]
        return [f"{TYPES[dtype]} {name}[{size}];"]

    def _bind(self, stmt: Any) -> list[str]:
        if stmt.var in self._skip:
            return []
        value = self.expressions.text(stmt.value)
        lines = self.expressions.lines
        self.expressions.lines = []
        name = self.names.give(stmt.var)
        return [*lines, f"const {TYPES[dtype_of(stmt.value)]} {name} = {value};"]

    def _bufferstore(self, stmt: Any) -> list[str]:
        place, value = self._element(stmt.buffer, stmt.indices), stmt.value
        if type(value).__name__ == "Add" and dtype_of(value) in ("int32", "float32", "float64"):
            old = value.a
            if (
                type(old).__name__ == "TensorLoad"
                and self._element(old.source, old.indices) == place
            ):
                return self._statement(f"{place} += {self.expressions.text(value.b)};")
        return self._statement(f"{place} = {self.expressions.text(value)};")

    def _for(self, stmt: Any) -> list[str]:
        low, extent = self.expressions.text(stmt.min), stmt.extent
        begins = getattr(extent, "b", None)  # of an extent of the form ``end - begin``
        if type(extent).__name__ == "Sub" and self.expressions.text(begins, TIMES) == low:
            high = self.expressions.text(extent.a)
        else:
            high = self.expressions.text(stmt.min + extent)
        before = self.expressions.lines
        self.expressions.lines = []
        with self.names.block():
            name = self.names.give(stmt.loop_var)
            kind = TYPES[dtype_of(stmt.loop_var)]
            step = 1 if stmt.step is None else int(stmt.step)
            advance = f"{name}++" if step == 1 else f"{name} += {step}"
            head = f"for ({kind} {name} = {low}; {name} < {high}; {advance}) {{"
            body = self._block(stmt.body)
        return [*before, head, *body, "}"]

    def _ifthenelse(self, stmt: Any) -> list[str]:
        lines = self._statement(f"if ({self.expressions.text(stmt.condition)}) {{")
        lines += self._block(stmt.then_case)
        if stmt.else_case is not None:
            lines += ["} else {", *self._block(stmt.else_case)]
        return [*lines, "}"]

    def _evaluate(self, stmt: Any) -> list[str]:
        if type(stmt.value).__name__ == "IntImm":
            return []
        raise Unprintable("calls for their effect")


Printed = TypeVar("Printed", bound=Function)


def printed(kind: type[Printed], params: list[Any], body: Any) -> Printed:
    """``body`` printed by ``kind`` without the variables that nothing uses, in the end."""
    skip: frozenset[Any] = frozenset()
    while True:  # what only unused ones use is unused
        made = kind(params, body, skip)
        unused = frozenset(v for v in bound_variables(body) if v not in made.used)
        if unused == skip:
            return made
        skip = unused
