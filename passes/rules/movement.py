"""Canonical forms of ops that move numbers: reshape, transpose, concat, slice, pad, pooling.

These are rules of ``canonicalize``. Moving numbers does not care how they are stored, so most of
them hold for quantised values too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dlcc.ir import F32, AttrValue, Graph, TensorType, Value
from dlcc.ops.base import build
from passes.patterns import Match, Rule, any_, attr, const, op


def ints(m: Match, capture: str, key: str) -> tuple[int, ...]:
    """A list-of-integers attribute of a captured node."""
    value = attr(m.node(capture), key)
    assert not isinstance(value, Graph)
    return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)


def permutation(m: Match, capture: str) -> tuple[int, ...]:
    """The ``perm`` of a captured transpose."""
    return ints(m, capture, "perm")


class Move(Rule):
    """Base of rules whose result is a movement op, whatever the encoding."""

    any_encoding = True
    quiet = True

    def moved(
        self, m: Match, name: str, inputs: Sequence[Value], attrs: dict[str, tuple[int, ...]]
    ) -> list[Value]:
        """A movement op whose result has exactly the root's type (encoding included)."""
        node = build(
            m.graph,
            name,
            inputs,
            attrs,
            loc=m.root.loc,
            types=[m.root.output.type],
            names=[m.root.output.name],
            before=m.root,
        )
        return [node.output]


class DropIdentity(Move):
    """reshape, transpose, slice, pad, expand, tile, cast, relayout that change nothing -> x.

    A concat of one operand is one of them; so is a requantize to the encoding that x has.
    """

    pattern = op(
        (
            "reshape",
            "slice",
            "pad",
            "expand",
            "tile",
            "cast",
            "relayout",
            "concat",
            "transpose",
            "requantize",
        ),
        any_("x"),
        capture="move",
    )

    def check(self, m: Match) -> str | None:
        node = m.node("move")
        if node.op == "concat" and len(node.inputs) != 1:
            return "it joins several tensors"
        if node.op == "transpose" and not _is_identity(permutation(m, "move")):
            return "it moves axes"
        if node.op == "slice" and any(s < 0 for s in ints(m, "move", "steps")):
            return "it reverses an axis"
        if node.op == "relayout" and attr(node, "copy"):
            return "it is a copy that was asked for"
        return None if m.value("x").type == node.output.type else "it changes the type"

    def rewrite(self, m: Match) -> list[Value]:
        return [m.value("x")]


def _is_identity(perm: tuple[int, ...]) -> bool:
    return perm == tuple(range(len(perm)))


class ReshapeChain(Move):
    """reshape(reshape(x)) -> reshape(x)."""

    pattern = op("reshape", op("reshape", any_("x"), shared=True))

    def rewrite(self, m: Match) -> list[Value]:
        return self.moved(m, "reshape", [m.value("x")], {"shape": m.root.output.type.shape})


class TransposeChain(Move):
    """transpose(transpose(x, p), q) -> transpose(x, p[q])."""

    pattern = op(
        "transpose", op("transpose", any_("x"), capture="inner", shared=True), capture="outer"
    )

    def rewrite(self, m: Match) -> list[Value]:
        inner, outer = permutation(m, "inner"), permutation(m, "outer")
        perm = tuple(inner[axis] for axis in outer)
        return self.moved(m, "transpose", [m.value("x")], {"perm": perm})


class RelayoutChain(Move):
    """relayout(relayout(x)) -> relayout(x)."""

    pattern = op("relayout", op("relayout", any_("x"), shared=True), capture="outer")

    def check(self, m: Match) -> str | None:
        return "it is a copy that was asked for" if attr(m.node("outer"), "copy") else None

    def rewrite(self, m: Match) -> list[Value]:
        return self.moved(m, "relayout", [m.value("x")], {})


class ConcatChain(Move):
    """concat(..., concat(a, b), ...) over one axis -> concat(..., a, b, ...), a whole tree at once.

    Only the last concat of a tree is rewritten: one after the other, a chain of n of them would be
    n rewrites of up to n operands each.
    """

    pattern = op("concat", capture="concat")

    def check(self, m: Match) -> str | None:
        made, axis = m.root.output, m.root.attrs["axis"]
        if not m.graph.use_count(made):
            return "nobody reads it"
        if not any(_absorbed(m.graph, v, axis) for v in m.root.inputs):
            return "no operand is a concat over the same axis"
        readers = [user for user in made.users if user.op == "concat"]
        if readers and _absorbed(m.graph, made, readers[0].attrs["axis"]):
            return "the concat that reads it takes its operands"
        return None

    def rewrite(self, m: Match) -> list[Value]:
        axis = attr(m.node("concat"), "axis")
        assert isinstance(axis, int)
        ahead, operands = list(reversed(m.root.inputs)), list[Value]()
        while ahead:
            value = ahead.pop()
            assert value is not None
            if _absorbed(m.graph, value, axis):
                assert value.producer is not None
                ahead += reversed(value.producer.inputs)
            else:
                operands.append(value)
        node = build(
            m.graph,
            "concat",
            operands,
            {"axis": axis},
            loc=m.root.loc,
            types=[m.root.output.type],
            names=[m.root.output.name],
            before=m.root,
        )
        return [node.output]


def _absorbed(graph: Graph, value: Value | None, axis: AttrValue) -> bool:
    """Whether ``value`` is a concat over ``axis`` that has one reader, which can be that too."""
    if value is None or value.producer is None or value.producer.op != "concat":
        return False
    return value.producer.attrs["axis"] == axis and graph.use_count(value) == 1


class GlobalAveragePool(Rule):
    """avg_pool2d over the whole image -> reduce_mean over axes 2 and 3."""

    pattern = op("avg_pool2d", any_("x"), capture="pool")
    quiet = True

    def check(self, m: Match) -> str | None:
        if ints(m, "pool", "kernel") != m.value("x").type.shape[2:]:
            return "the kernel does not cover the image"
        if any(ints(m, "pool", "pads")) or any(d != 1 for d in ints(m, "pool", "dilations")):
            return "it is padded or dilated"
        return None if m.root.output.type.shape[2:] == (1, 1) else "it gives more than one number"

    def rewrite(self, m: Match) -> list[Value]:
        return m.build("reduce_mean", [m.value("x")], {"axes": (2, 3), "keepdims": True})


class ReduceUnitAxes(Rule):
    """reduce_mean/sum/max/min over axes of length 1 -> reshape."""

    pattern = op(("reduce_mean", "reduce_sum", "reduce_max", "reduce_min"), any_("x"))
    quiet = True

    def check(self, m: Match) -> str | None:
        same = math.prod(m.root.output.type.shape) == m.value("x").type.elements
        return None if same and m.value("x").type.elements else "it reduces more than one number"

    def rewrite(self, m: Match) -> list[Value]:
        return m.build("reshape", [m.value("x")], {"shape": m.root.output.type.shape})


class MatmulToLinear(Rule):
    """matmul(a, constant matrix) -> linear(a, constant)."""

    pattern = op("matmul", any_("a"), const("b"), capture="matmul")
    quiet = True

    def check(self, m: Match) -> str | None:
        if m.value("b").type.rank != 2 or m.value("a").type.rank < 2:
            return "the constant is not one matrix"
        if m.value("a").type.dtype != F32:
            return "it does not multiply float32 numbers"
        return "both operands are constant" if m.value("a").is_constant else None

    def rewrite(self, m: Match) -> list[Value]:
        node = m.node("matmul")
        weight = m.array("b") if attr(node, "transpose_b") else m.array("b").T.copy()
        clamp = {k: attr(node, k) for k in ("act_min", "act_max")}
        operands = [m.value("a"), m.graph.add_constant(weight), None, node.optional_input(2)]
        return m.build("linear", operands, clamp)


class QuantizeOfDequantize(Rule):
    """quantize(dequantize(q)) to the encoding q has -> q."""

    pattern = op("quantize", op("dequantize", any_("q"), shared=True))
    any_encoding = True
    quiet = True

    def check(self, m: Match) -> str | None:
        q, out = m.value("q").type, m.root.output.type
        return None if _same_codes(q, out) else "the encodings differ"

    def rewrite(self, m: Match) -> list[Value]:
        return [m.value("q")]


def _same_codes(a: TensorType, b: TensorType) -> bool:
    return a == b and not a.is_dense and a.affine.bits <= 16


MOVEMENT: tuple[type[Rule], ...] = (
    DropIdentity,
    ReshapeChain,
    TransposeChain,
    RelayoutChain,
    ConcatChain,
    GlobalAveragePool,
    ReduceUnitAxes,
    MatmulToLinear,
    QuantizeOfDequantize,
)
