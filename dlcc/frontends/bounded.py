"""Values whose size the data decide: as large as they can be, with the number of real places.

All shapes of the IR are fixed. What ``NonZero``, ``Compress`` or ``NonMaxSuppression`` give is as
large as it can be at most; its first places along one axis hold the results, and a value of the run
time says how many they are (:class:`dlcc.frontends.registry.Padded`). Ops that treat these places
independently of each other pass that on. An op that would let padding into a result, as a sum over
the axis would, is refused. At the border the padding is overwritten by -1 (0 where the type has no
sign), and the count is an output of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np

from dlcc.frontends.fold import fold_nodes
from dlcc.frontends.registry import Importer, OnnxNode, Padded, Unsupported
from dlcc.ir import Graph, Value
from dlcc.ops.base import Interval, build, op_of
from dlcc.ops.shape import Movement, axis_of, integers, reshaped

Rule = Callable[[OnnxNode, Mapping[int, Padded], Sequence[Value]], int]
"""The axis of the results that the padding lies along, from the operands' by their places."""


def followed(node: OnnxNode, importer: Importer) -> Sequence[Value]:
    """The results of ``importer``; those of padded operands are noted as padded.

    Raises:
        Unsupported: the op would mix results and padding.
    """
    given = {
        k: node.padded[v] for k, v in enumerate(node.inputs) if v is not None and v in node.padded
    }
    if not given:
        return importer(node)
    counts = list(dict.fromkeys(mark.count for mark in given.values()))
    if node.op_type == "Shape" and not node.domain:
        return _shape(node, given[0])
    if node.op_type == "Size" and not node.domain:
        return _size(node, given[0])
    rule = None if node.domain else _RULES.get(node.op_type)
    if rule is None:
        raise _mixes(node, given)
    if len(counts) > 1:
        raise Unsupported("the sizes of two operands depend on different data")
    results = importer(node)
    axis = rule(node, given, results)
    for value in results:
        node.bounded(value, axis, counts[0])
    return results


def _mixes(node: OnnxNode, given: Mapping[int, Padded]) -> Unsupported:
    index, mark = next(iter(given.items()))
    return Unsupported(
        f"the size of input {index} along axis {mark.axis} depends on the data, and this would mix "
        "its results with what fills it up; end the model before it (make that input its output)"
    )


def settled(
    graph: Graph, start: int, results: Sequence[Value], padded: dict[Value, Padded]
) -> list[Value]:
    """``results`` with what is known folded; what is known is cut to its true size."""
    marks = [padded.get(value) for value in results]
    counts = [mark.count for mark in marks if mark is not None]
    new = fold_nodes(graph, start, [*results, *counts])
    values, counts = new[: len(results)], new[len(results) :]
    for k, mark in enumerate(marks):
        if mark is None:
            continue
        count = counts.pop(0)
        if count.is_constant and values[k].is_constant:
            rows = np.arange(int(count.decoded()))
            cut = np.take(values[k].decoded(), rows, axis=mark.axis)
            values[k] = graph.add_constant(cut, name=values[k].name)
        else:
            padded[values[k]] = Padded(mark.axis, count)
    return values


# -- rules -------------------------------------------------------------------------------------


def _elementwise(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    """Broadcasting: the same axis of all, counted from the last; others have size 1 there."""
    ends = {node.input(k).type.rank - mark.axis for k, mark in given.items()}
    if len(ends) > 1:
        raise _mixes(node, given)
    (end,) = ends
    for k, value in enumerate(node.inputs):
        if k in given or value is None or value.type.rank < end:
            continue
        if value.type.shape[-end] != 1:
            raise Unsupported(
                f"input {k} has {value.type.shape[-end]} places along an axis whose size depends "
                "on the data"
            )
    return results[0].type.rank - end


def _gather(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    axis = axis_of(node.attrs.get("axis", 0), node.input(0).type.rank)
    if set(given) == {1}:
        return axis + given[1].axis
    if set(given) != {0} or given[0].axis == axis:
        raise _mixes(node, given)
    before = given[0].axis < axis
    return given[0].axis if before else given[0].axis + node.input(1).type.rank - 1


def _gather_nd(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    last = node.input(1).type.rank - 1
    if set(given) != {1} or given[1].axis == last or node.attrs.get("batch_dims", 0):
        raise _mixes(node, given)
    return given[1].axis


def _transpose(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    rank = node.input(0).type.rank
    return integers(np.asarray(node.attrs.get("perm", range(rank)[::-1]))).index(given[0].axis)


def _axes(node: OnnxNode, rank: int) -> set[int] | None:
    """Axes by attribute or operand; None where there are none."""
    axes = node.attrs.get("axes")
    if axes is None:
        constant = node.optional_constant(1, "the axes")
        axes = None if constant is None or not constant.size else integers(constant)
    return None if axes is None else {axis_of(a, rank) for a in axes}


def _unsqueeze(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    new = _axes(node, results[0].type.rank) or set()
    return [k for k in range(results[0].type.rank) if k not in new][given[0].axis]


def _without(node: OnnxNode, given: Mapping[int, Padded], gone: set[int] | None) -> int:
    """The axis after those in ``gone`` have gone."""
    if gone is None or given[0].axis in gone:
        raise _mixes(node, given)
    return given[0].axis - sum(axis < given[0].axis for axis in gone)


def _squeeze(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    shape = node.input(0).type.shape
    axes = _axes(node, len(shape))
    return _without(node, given, axes or {k for k, size in enumerate(shape) if size == 1})


def _reduced(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    """Reductions over other axes."""
    rank = node.input(0).type.rank
    if node.op_type.startswith("Arg"):
        gone: set[int] | None = {axis_of(node.attrs.get("axis", 0), rank)}
    else:
        gone = _axes(node, rank)
    left = _without(node, given, gone)
    return given[0].axis if node.attrs.get("keepdims", 1) else left


def _other_axis(default: int) -> Rule:
    """Ops that work along one axis, and leave the others alone."""

    def rule(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
        axis = axis_of(node.attrs.get("axis", default), node.input(0).type.rank)
        if set(given) != {0} or given[0].axis == axis:
            raise _mixes(node, given)
        return given[0].axis

    return rule


def _concat(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    axis = axis_of(node.attrs.get("axis", 1), node.input(0).type.rank)
    places = {mark.axis for mark in given.values()}
    if len(given) != len(node.inputs) or len(places) > 1 or axis in places:
        raise _mixes(node, given)
    return places.pop()


def _slice(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    starts = node.attrs.get("starts")
    if starts is None:
        starts = integers(node.constant(1, "the starts"))
    axes = node.attrs.get("axes")
    if axes is None:
        constant = node.optional_constant(3, "the axes")
        axes = range(len(starts)) if constant is None else integers(constant)
    cut = {axis_of(axis, node.input(0).type.rank) for axis in axes}
    if set(given) != {0} or given[0].axis in cut:
        raise _mixes(node, given)
    return given[0].axis


def _reshape(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    """The axis must stay an axis: as many numbers before it, and as many after it."""
    old, new, axis = node.input(0).type.shape, results[0].type.shape, given[0].axis
    same = [
        k for k, size in enumerate(new) if size == old[axis] and prod(new[:k]) == prod(old[:axis])
    ]
    if set(given) != {0} or len(same) != 1:
        raise _mixes(node, given)
    return same[0]


def _matmul(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    """Rows of the first operand times one matrix."""
    last = node.input(0).type.rank - 1
    if set(given) != {0} or given[0].axis == last or node.input(1).type.rank != 2:
        raise _mixes(node, given)
    return given[0].axis


def _regions(node: OnnxNode, given: Mapping[int, Padded], results: Sequence[Value]) -> int:
    """Regions and the numbers of their images."""
    if set(given) != {1, 2} or any(mark.axis for mark in given.values()):
        raise _mixes(node, given)
    return 0


_ELEMENTWISE = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
Cast Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or
PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum
Swish Tan Tanh ThresholdedRelu Where Xor
"""

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **{f"Reduce{kind}": _reduced for kind in _REDUCTIONS},
    "ArgMax": _reduced,
    "ArgMin": _reduced,
    "Concat": _concat,
    "Flatten": _reshape,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "RoiAlign": _regions,
    "Slice": _slice,
    "Split": _other_axis(0),
    "Squeeze": _squeeze,
    "TopK": _other_axis(-1),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Ops that treat the places of an axis alike, each by itself."""


# -- sizes of the run time ---------------------------------------------------------------------


def _shape(node: OnnxNode, mark: Padded) -> Sequence[Value]:
    """The shape, whose entry for the padded axis is the count."""
    shape = node.input(0).type.shape
    places = range(len(shape))[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))]
    parts = []
    for axis in places:
        if axis == mark.axis:
            parts.append(reshaped(node, mark.count, (1,), "/count"))
        else:
            size = np.asarray([shape[axis]], np.int64)
            parts.append(node.graph.add_constant(size, name="size"))
    if not parts:
        return [node.graph.add_constant(np.zeros(0, np.int64), name=node.name)]
    return parts if len(parts) == 1 else node.build("concat", parts, {"axis": 0})


def _size(node: OnnxNode, mark: Padded) -> Sequence[Value]:
    shape = node.input(0).type.shape
    others = prod(size for axis, size in enumerate(shape) if axis != mark.axis)
    factor = node.graph.add_constant(np.asarray(others, np.int64), name="size")
    return node.build("mul", [mark.count, factor])


def largest(value: Value) -> float:
    """What the numbers of ``value`` are at most, by the intervals of what they are made from."""
    known: dict[Value, Interval] = {}
    waiting = [value]
    while waiting:
        here = waiting[-1]
        if here in known:
            waiting.pop()
        elif here.is_constant:
            known[here] = Interval.of(here.decoded())
        elif here.producer is None:
            known[here] = _of_type(here)
        else:
            operands = [v for v in here.producer.inputs if v is not None]
            missing = [v for v in operands if v not in known]
            waiting += missing
            if not missing:
                given = [None if v is None else known[v] for v in here.producer.inputs]
                found = op_of(here.producer).interval(here.producer, given)
                for result, interval in zip(here.producer.outputs, found, strict=True):
                    known[result] = _unwrapped(result, interval)
    return known[value].high


def _unwrapped(value: Value, interval: Interval) -> Interval:
    """``interval``, or all of the type where integers may have wrapped round."""
    node, whole = value.producer, _of_type(value)
    assert node is not None
    if whole.low <= interval.low and interval.high <= whole.high and value.type.dtype.is_integer:
        finite = all(abs(end) < 2.0**63 for end in (interval.low, interval.high))
        selects = node.op in ("minimum", "maximum", "clip", "where")
        if finite or selects or isinstance(op_of(node), Movement):
            return interval
    return whole if value.type.dtype.is_integer else interval


def _of_type(value: Value) -> Interval:
    """What its type can hold; integers of 64 bits, whose ends no float has, are unbounded."""
    dtype = value.type.dtype.numpy
    if dtype == np.bool_:
        return Interval(0.0, 1.0)
    if not np.issubdtype(dtype, np.integer) or dtype.itemsize == 8:
        return Interval(-np.inf, np.inf)
    return Interval(float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))


# -- the border --------------------------------------------------------------------------------


def filled(graph: Graph, name: str, value: Value, mark: Padded) -> Value:
    """Output ``name`` with -1 (0 where the type has no sign) in the places that hold no result."""
    shape = value.type.shape
    rows = np.arange(shape[mark.axis], dtype=np.int64)
    column = rows.reshape(-1, *(1 for _ in shape[mark.axis + 1 :]))
    places = graph.add_constant(column, name="places")
    kept = build(graph, "less", [places, mark.count], loc=f"{name}/kept").output
    dtype = value.type.dtype
    signed = dtype.is_float or np.issubdtype(dtype.numpy, np.signedinteger)
    fill = np.asarray(-1 if signed else 0, dtype.numpy)
    padding = graph.add_constant(fill, name="padding")
    return build(graph, "where", [kept, value, padding], loc=f"{name}/filled").output


__all__ = ["filled", "followed", "largest", "settled"]
