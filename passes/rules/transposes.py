"""Rules of ``fold-transposes``: transposes sink towards the outputs until they cancel or fold."""

from __future__ import annotations

import math

import numpy as np

from dlcc.ir import AttrValue, Value
from dlcc.ops import OPS, Quantised
from passes.patterns import Match, Rule, any_, attr, const, op
from passes.rules.movement import DropIdentity, Move, TransposeChain, ints, permutation

ELEMENTWISE = tuple(
    name
    for name, definition in OPS.items()
    if definition.quantised is Quantised.TABLE and definition.operands == ("x",)
)
BINARY = ("add", "sub", "mul", "div", "pow", "minimum", "maximum")
REDUCTIONS = ("reduce_mean", "reduce_sum", "reduce_max", "reduce_min")


def inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes ``perm``."""
    return tuple(int(i) for i in np.argsort(perm))


class _Sink(Rule):
    """op(transpose(x)) -> transpose(op(x))."""

    quiet = True

    def transposed(self, m: Match, value: Value, perm: tuple[int, ...]) -> list[Value]:
        return m.build("transpose", [value], {"perm": perm})

    def describe(self, m: Match) -> str:
        return f"moved a transpose behind {m.root.op}"


class TransposeToReshape(Move):
    """A transpose that only moves axes of length 1 -> reshape."""

    pattern = op("transpose", any_("x"), capture="transpose")

    def check(self, m: Match) -> str | None:
        shape = m.value("x").type.shape
        moved = [axis for axis in permutation(m, "transpose") if shape[axis] != 1]
        return None if moved == sorted(moved) else "it moves numbers"

    def rewrite(self, m: Match) -> list[Value]:
        return self.moved(m, "reshape", [m.value("x")], {"shape": m.root.output.type.shape})


class SinkElementwise(_Sink):
    """f(transpose(x)) -> transpose(f(x)) for a function f of one number."""

    pattern = op(ELEMENTWISE, op("transpose", any_("x"), capture="transpose"))

    def rewrite(self, m: Match) -> list[Value]:
        (inner,) = m.build(m.root.op, [m.value("x")], m.root.attrs)
        return self.transposed(m, inner, permutation(m, "transpose"))


class SinkBinary(_Sink):
    """f(transpose(x, p), transpose(y, p)) -> transpose(f(x, y), p)."""

    pattern = op(
        BINARY,
        op("transpose", any_("x"), capture="first"),
        op("transpose", any_("y"), capture="second"),
    )

    def check(self, m: Match) -> str | None:
        if permutation(m, "first") != permutation(m, "second"):
            return "the operands are transposed differently"
        return None

    def rewrite(self, m: Match) -> list[Value]:
        (inner,) = m.build(m.root.op, [m.value("x"), m.value("y")], m.root.attrs)
        return self.transposed(m, inner, permutation(m, "first"))


class SinkBinaryConstant(_Sink):
    """f(transpose(x, p), c) -> transpose(f(x, c'), p), where c' is c transposed back."""

    pattern = op(BINARY, op("transpose", any_("x"), capture="transpose"), const("c"))

    def check(self, m: Match) -> str | None:
        wide = m.root.output.type.rank != m.value("x").type.rank
        return "the constant has more axes" if wide else None

    def constant(self, m: Match) -> Value:
        array, perm = m.array("c"), permutation(m, "transpose")
        padded = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
        if padded.size == 1:
            return m.value("c")
        moved = np.ascontiguousarray(padded.transpose(inverse(perm)))
        return m.graph.add_constant(moved, name=m.value("c").name)

    def rewrite(self, m: Match) -> list[Value]:
        operands = [m.value("x"), self.constant(m)]
        (inner,) = m.build(m.root.op, operands, m.root.attrs)
        return self.transposed(m, inner, permutation(m, "transpose"))


class SinkBinaryConstantFirst(SinkBinaryConstant):
    """f(c, transpose(x, p)) -> transpose(f(c', x), p)."""

    pattern = op(BINARY, const("c"), op("transpose", any_("x"), capture="transpose"))

    def rewrite(self, m: Match) -> list[Value]:
        operands = [self.constant(m), m.value("x")]
        (inner,) = m.build(m.root.op, operands, m.root.attrs)
        return self.transposed(m, inner, permutation(m, "transpose"))


class SinkReduction(_Sink):
    """reduce(transpose(x, p), axes) -> transpose(reduce(x, p[axes]), p')."""

    pattern = op(REDUCTIONS, op("transpose", any_("x"), capture="transpose"), capture="reduce")

    def rewrite(self, m: Match) -> list[Value]:
        perm, reduce = permutation(m, "transpose"), m.node("reduce")
        rank = len(perm)
        axes = tuple(sorted(perm[axis % rank] for axis in ints(m, "reduce", "axes")))
        (inner,) = m.build(reduce.op, [m.value("x")], {**reduce.attrs, "axes": axes})
        if attr(reduce, "keepdims"):
            return self.transposed(m, inner, perm)
        left = [axis for axis in perm if axis not in axes]
        return self.transposed(m, inner, tuple(sorted(left).index(axis) for axis in left))


class SinkAxis(_Sink):
    """softmax(transpose(x, p), axis) -> transpose(softmax(x, p[axis]), p)."""

    pattern = op(
        ("softmax", "log_softmax"),
        op("transpose", any_("x"), capture="transpose"),
        capture="softmax",
    )

    def rewrite(self, m: Match) -> list[Value]:
        perm = permutation(m, "transpose")
        axis = perm[ints(m, "softmax", "axis")[0] % len(perm)]
        (inner,) = m.build(m.root.op, [m.value("x")], {**m.root.attrs, "axis": axis})
        return self.transposed(m, inner, perm)


class SinkPad(_Sink):
    """pad(transpose(x, p)) -> transpose(pad(x), p)."""

    pattern = op("pad", op("transpose", any_("x"), capture="transpose"), capture="pad")

    def rewrite(self, m: Match) -> list[Value]:
        perm, pads = permutation(m, "transpose"), ints(m, "pad", "pads")
        rank, back = len(perm), inverse(permutation(m, "transpose"))
        moved = (*(pads[i] for i in back), *(pads[rank + i] for i in back))
        attrs: dict[str, AttrValue] = {**m.root.attrs, "pads": moved}
        (inner,) = m.build("pad", [m.value("x")], attrs)
        return self.transposed(m, inner, perm)


class SinkConcat(_Sink):
    """concat(transpose(x, p), transpose(y, p), ...) -> transpose(concat(x, y, ...), p)."""

    pattern = op("concat", op("transpose", any_("x"), capture="transpose"), capture="concat")

    def check(self, m: Match) -> str | None:
        perm = permutation(m, "transpose")
        for value in m.node("concat").inputs:
            producer = None if value is None else value.producer
            if value is None or producer is None or producer.op != "transpose":
                return "not every operand is transposed"
            if attr(producer, "perm") != perm:
                return "the operands are transposed differently"
            if m.graph.use_count(value) != 1:
                return "an operand has other readers"
        return None

    def rewrite(self, m: Match) -> list[Value]:
        perm, sources = permutation(m, "transpose"), []
        for value in m.node("concat").inputs:
            assert value is not None
            assert value.producer is not None
            sources.append(value.producer.input(0))
            if value.producer not in m.nodes:
                m.nodes.append(value.producer)
        axis = perm[ints(m, "concat", "axis")[0] % len(perm)]
        (inner,) = m.build("concat", sources, {"axis": axis})
        return self.transposed(m, inner, perm)


class TransposeIntoMatmul(Rule):
    """matmul(a, transpose(b) of the last two axes) -> matmul(a, b) with transpose_b flipped."""

    pattern = op(
        "matmul", any_("a"), op("transpose", any_("b"), capture="transpose"), capture="matmul"
    )

    def check(self, m: Match) -> str | None:
        perm = permutation(m, "transpose")
        rank = len(perm)
        if rank < 2 or perm != (*range(rank - 2), rank - 1, rank - 2):
            return "it moves other axes than the last two"
        return None

    def rewrite(self, m: Match) -> list[Value]:
        node = m.node("matmul")
        attrs = {**node.attrs, "transpose_b": not attr(node, "transpose_b")}
        return m.build("matmul", [m.value("a"), m.value("b"), *node.inputs[2:]], attrs)

    def describe(self, m: Match) -> str:
        return "folded a transpose into matmul"


class TransposeIntoLinear(Rule):
    """linear(flatten(transpose(x)), w) -> linear(flatten(x), w with permuted columns).

    This is how channels-last networks flatten an image before their classifier.
    """

    pattern = op(
        "linear",
        op(
            "reshape",
            op("transpose", any_("x"), capture="transpose"),
            capture="reshape",
        ),
        const("w"),
        capture="linear",
    )

    def check(self, m: Match) -> str | None:
        perm, flat = permutation(m, "transpose"), m.node("reshape").output.type.shape
        if perm[0] != 0:
            return "it moves the batch axis"
        if flat != (m.value("x").type.shape[0], math.prod(m.value("x").type.shape[1:])):
            return "the reshape does not flatten all axes but the first"
        return None

    def rewrite(self, m: Match) -> list[Value]:
        x, perm, linear = m.value("x"), permutation(m, "transpose"), m.node("linear")
        weight = m.array("w")
        moved = [x.type.shape[axis] for axis in perm[1:]]
        back = inverse(perm)[1:]
        columns = weight.reshape(-1, *moved).transpose(0, *back).reshape(weight.shape)
        name = m.value("w").name
        new = m.graph.add_constant(np.ascontiguousarray(columns), name=name)
        (flat,) = m.build("reshape", [x], {"shape": m.node("reshape").output.type.shape})
        return m.build("linear", [flat, new, *linear.inputs[2:]], linear.attrs)

    def describe(self, m: Match) -> str:
        return f"folded a transpose into the weight of {m.root!r}"


TRANSPOSES: tuple[type[Rule], ...] = (
    DropIdentity,
    TransposeChain,
    TransposeToReshape,
    TransposeIntoMatmul,
    TransposeIntoLinear,
    SinkElementwise,
    SinkBinary,
    SinkBinaryConstant,
    SinkBinaryConstantFirst,
    SinkReduction,
    SinkAxis,
    SinkPad,
    SinkConcat,
)
