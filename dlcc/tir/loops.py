"""The two loop annotations that scheduled kernels carry, and their rewrite.

``ITEMS`` marks the loop over work items: it becomes ``for i in [begin, end)`` on two new
parameters. ``VECTOR`` marks a loop whose iterations are independent and contiguous: it becomes
vector loops of that many lanes, and of halved lane counts for what is left, so that no guard is
needed.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from tvm import tirx

ITEMS = "dlcc.items"
VECTOR = "dlcc.vector"

STACK_BYTES = 128 * 1024
"""Most bytes of temporaries in one kernel: they live on the stack of a pool thread."""


def _int(value: int) -> Any:
    return tirx.IntImm("int32", value)


def items_loop(var: Any, begin: Any, end: Any, body: Any) -> Any:
    """The loop of ``var`` over the work items of a call."""
    return tirx.For(var, begin, end - begin, tirx.ForKind.SERIAL, body, None, {ITEMS: 1})


def _vector_loops(loop: Any, body: Any) -> Any:
    """``loop`` in pieces of 1 x lanes, 1 x lanes/2, ... iterations; each piece vectorised."""
    lanes, left, base = int(loop.annotations[VECTOR]), int(loop.extent), 0
    if lanes == 1:
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, body)
    pieces = []
    while left:
        while lanes > left:
            lanes //= 2
        count = left // lanes
        outer = tirx.Var(f"{loop.loop_var.name}_o", "int32")
        inner = tirx.Var(f"{loop.loop_var.name}_v", "int32")
        index = outer * lanes + inner + base
        step = tirx.SeqStmt([tirx.Bind(loop.loop_var, index), body])
        kind = tirx.ForKind.VECTORIZED if lanes > 1 else tirx.ForKind.SERIAL
        vector = tirx.For(inner, _int(0), _int(lanes), kind, step)
        pieces.append(tirx.For(outer, _int(0), _int(count), tirx.ForKind.SERIAL, vector))
        base += count * lanes
        left -= count * lanes
    return pieces[0] if len(pieces) == 1 else tirx.SeqStmt(pieces)


def _check_stack(buffer: Any) -> None:
    """Refuses a temporary that does not belong on a stack."""
    size = prod(int(dim) for dim in buffer.shape)
    if size > STACK_BYTES:  # elements: no dtype is smaller than a byte
        raise ValueError(f"temporary {buffer.name} of {size} elements is too large for the stack")


def rewrite_loops(stmt: Any, replace: Callable[[Any, Any], Any]) -> Any:
    """``stmt`` with ``replace(loop, its rewritten body)`` for each loop it gives something for."""
    if isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([rewrite_loops(child, replace) for child in stmt.seq])
    if isinstance(stmt, tirx.AttrStmt):
        body = rewrite_loops(stmt.body, replace)
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, body)
    if isinstance(stmt, tirx.IfThenElse):
        other = stmt.else_case
        other = None if other is None else rewrite_loops(other, replace)
        return tirx.IfThenElse(stmt.condition, rewrite_loops(stmt.then_case, replace), other)
    if isinstance(stmt, tirx.AllocBuffer):
        _check_stack(stmt.buffer)
    if not isinstance(stmt, tirx.For):
        return stmt
    body = rewrite_loops(stmt.body, replace)
    return replace(stmt, body) or _loop_of(stmt, stmt.loop_var, body)


def hide_loops(func: Any) -> Any:
    """``func`` with other variables for its loops, of which the old ones are values.

    FlattenBuffer simplifies an index as a map of the loops around it, and there takes an offset
    before a remainder or a quotient, as in ``(f % 8 + 2) % 4``, for one of ``f`` wherever that
    stands in the index. It does not look behind values.
    """

    def replace(loop: Any, body: Any) -> Any:
        twin = tirx.Var(loop.loop_var.name, loop.loop_var.ty)
        return _loop_of(loop, twin, tirx.SeqStmt([tirx.Bind(loop.loop_var, twin), body]))

    return _with_body(func, rewrite_loops(func.body, replace))


def show_loops(func: Any) -> Any:
    """What :func:`hide_loops` was given."""

    def replace(loop: Any, body: Any) -> Any:
        value, *rest = body.seq
        assert value.value.same_as(loop.loop_var)
        return _loop_of(loop, value.var, rest[0] if len(rest) == 1 else tirx.SeqStmt(rest))

    return _with_body(func, rewrite_loops(func.body, replace))


def _loop_of(loop: Any, variable: Any, body: Any) -> Any:
    """``loop`` with another variable and another body."""
    return tirx.For(
        variable,
        loop.min,
        loop.extent,
        loop.kind,
        body,
        loop.thread_binding,
        loop.annotations,
        loop.step,
    )


def _with_body(func: Any, body: Any) -> Any:
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)


def split_loops(func: Any) -> Any:
    """``func`` (flat buffers, no blocks) with ``begin`` and ``end`` parameters added.

    Raises:
        ValueError: no loop carries ``ITEMS``; the function would ignore its range.
    """
    begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
    if ITEMS not in str(func):
        raise ValueError(f"no loop is annotated {ITEMS!r}: which loop runs over work items?")

    def replace(loop: Any, body: Any) -> Any:
        if ITEMS in loop.annotations:
            return items_loop(loop.loop_var, begin, end, body)
        return _vector_loops(loop, body) if VECTOR in loop.annotations else None

    body = rewrite_loops(func.body, replace)
    return tirx.PrimFunc([*func.params, begin, end], body, func.ret_type, func.attrs)
