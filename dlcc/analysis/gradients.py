"""Reverse mode for the numpy reference: gradients with respect to the weights of layers.

Only ops with a rule here let gradients through; functions of one number (clip, sigmoid, ...) are
differentiated by central differences of their reference in float64, and ops that only move numbers
by moving indices instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from dlcc.analysis.blas import single_threaded_blas
from dlcc.analysis.execute import constant_array
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Quantised, op_of
from dlcc.ops.conv import window_of
from dlcc.ops.pool import AvgPool2d, MaxPool2d
from dlcc.ops.reduce import Reduction
from dlcc.ops.unfold import Unfold
from dlcc.ops.windows import Window

Rule = Callable[[Node, list[Array], Array, Array], Sequence[Array | None]]
"""(node, operands, result, gradient of the result) -> gradients of the operands."""

_MOVING = ("reshape", "transpose", "slice", "expand", "tile")


def squared_weight_gradients(
    graph: Graph,
    live: Mapping[Value, Array],
    seeds: Mapping[Value, Array],
    layers: Collection[Node],
) -> dict[Node, Array]:
    """Sums over the samples of the squares of each one's gradient with respect to weights.

    Args:
        graph: a float network whose values have the samples along their first axis.
        live: every value that is not constant, as the reference computes it.
        seeds: gradient of the loss with respect to outputs.
        layers: conv2d and linear nodes.

    Returns:
        For each layer float64 in the shape of its weight.

    Raises:
        DlccError: an op between a layer and the outputs has no gradient.
    """
    reached: set[Value] = set()
    for node in graph.nodes:
        if node in layers or any(v in reached for v in node.inputs):
            reached.update(node.outputs)
    gradients: dict[Value, Array] = {}
    for value, seed in seeds.items():
        _add(gradients, value, seed)
    out = {node: np.zeros(node.input(1).type.shape) for node in layers}
    with single_threaded_blas():
        for node in reversed(graph.nodes):
            found = [gradients.pop(v, None) for v in node.outputs]
            if not any(v in reached for v in node.outputs) or all(g is None for g in found):
                continue
            gradient = _only(node, found)
            if node in layers:
                samples = graph.inputs[0].type.shape[0]
                out[node] += _squares(node, live, _through_clamp(node, live, gradient), samples)
            if not any(v in reached for v in node.inputs):
                continue
            xs = [constant_array(v) if v.is_constant else live[v] for v in node.inputs if v]
            rule = _rule(node)
            parts = rule(node, xs, live[node.output], gradient)
            for value, part in zip([v for v in node.inputs if v], parts, strict=False):
                if part is not None and value in reached:
                    _add(gradients, value, part)
    return out


def _add(gradients: dict[Value, Array], value: Value, part: Array) -> None:
    gradients[value] = gradients[value] + part if value in gradients else part


def _only(node: Node, found: Sequence[Array | None]) -> Array:
    if len(found) != 1 or found[0] is None:
        raise _no_gradient(node, "it has several results")
    return found[0]


def _no_gradient(node: Node, why: str) -> DlccError:
    return DlccError(
        ExitCode.UNSUPPORTED,
        f"there is no gradient of {node.op}",
        where=node.loc,
        why=why,
        fix="choose a saliency that needs none: obd, wanda or magnitude",
    )


def _rule(node: Node) -> Rule:
    op = op_of(node)
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    if any(v.type.dtype.is_float and not v.type.is_dense for v in values if not v.is_constant):
        raise _no_gradient(node, "it works on codes")
    if node.op in RULES:
        return RULES[node.op]
    if node.op in _MOVING:
        return _moved
    if op.quantised is Quantised.TABLE:
        return _unary
    raise _no_gradient(node, "no rule is known")


# -- layers ------------------------------------------------------------------------------------


def _through_clamp(node: Node, live: Mapping[Value, Array], gradient: Array) -> Array:
    """The gradient of a layer's result before its fused clamp."""
    y, op = live[node.output], op_of(node)
    inside = (y > op.get(node, "act_min")) & (y < op.get(node, "act_max"))
    return np.asarray(gradient * inside)


def _squares(node: Node, live: Mapping[Value, Array], gradient: Array, samples: int) -> Array:
    """Of each sample; one may be several images of a conv2d: the slices of a volume."""
    x, shape = live[node.input(0)], node.input(1).type.shape
    out = np.zeros(shape)
    if node.op == "linear":
        if x.ndim == 2:  # outer products
            return np.asarray(np.square(gradient.astype(np.float64)).T @ np.square(x))
        for sample in range(len(x)):
            rows, wanted = x[sample].reshape(-1, shape[1]), gradient[sample].reshape(-1, shape[0])
            out += np.square(wanted.T @ rows, dtype=np.float64)
        return out
    if node.op != "conv2d":
        raise _no_gradient(node, "its weights have no rule")
    window, groups = window_of(node), int(op_of(node).get(node, "groups"))
    images = max(1, len(x) // samples)
    for first in range(0, len(x), images):
        total = np.zeros(shape, gradient.dtype)
        for image in range(first, first + images):
            taps = window.view(window.pad(x[image : image + 1], 0))
            columns = np.ascontiguousarray(taps).reshape(groups, -1, gradient[0, 0].size)
            wanted = gradient[image].reshape(groups, shape[0] // groups, -1)
            total += (wanted @ columns.transpose(0, 2, 1)).reshape(shape)
        out += np.square(total, dtype=np.float64)
    return out


def _conv2d(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array | None]:
    before = _through_clamp(node, {node.output: y}, gradient)
    x, weight = xs[:2]
    window, groups = window_of(node), int(op_of(node).get(node, "groups"))
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1)
    out = np.empty_like(x)
    for sample in range(len(x)):
        wanted = before[sample].reshape(groups, weight.shape[0] // groups, -1)
        columns = (kernels @ wanted).reshape(1, x.shape[1], *window.kernel, *window.output)
        out[sample] = _spread(window, _taps_of(columns))[0]
    slot = 3 if node.optional_input(2) is not None else 2
    extra: list[Array | None] = [None] * (slot - 1) + [before]
    return [out, *extra]


def _taps_of(columns: Array) -> Callable[[int, int], Array]:
    return lambda i, j: columns[:, :, i, j]


def _linear(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array | None]:
    before = _through_clamp(node, {node.output: y}, gradient)
    slot = 3 if node.optional_input(2) is not None else 2
    return [before @ xs[1], *[None] * (slot - 1), before]


def _spread(window: Window, tap: Callable[[int, int], Array]) -> Array:
    """The sum of what every tap gives back to the input [N, C, H, W]."""
    first = tap(0, 0)
    padded = np.zeros((*first.shape[:2], *window.padded), first.dtype)
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            place = window.tap(padded, i, j)
            place += tap(i, j)
    (top, left, _, _), (h, w) = window.pads, window.size
    out = np.zeros((*first.shape[:2], h, w), first.dtype)
    rows = range(max(0, -top), min(h, window.padded[0] - top))
    columns = range(max(0, -left), min(w, window.padded[1] - left))
    if len(rows) and len(columns):
        a, b = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        moved = (slice(a.start + top, a.stop + top), slice(b.start + left, b.stop + left))
        out[:, :, a, b] = padded[:, :, moved[0], moved[1]]
    return out


# -- other ops ---------------------------------------------------------------------------------


def _max_pool2d(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    """To the first of equal elements."""
    op = op_of(node)
    assert isinstance(op, MaxPool2d)
    window = op.window(node)
    padded = window.pad(xs[0], -np.inf)
    undecided = np.ones(y.shape, np.bool_)
    taps = {}
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            equal = window.tap(padded, i, j) == y
            taps[i, j] = np.where(undecided & equal, gradient, 0)
            undecided &= ~equal
    return [_spread(window, lambda i, j: taps[i, j])]


def _avg_pool2d(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    op = op_of(node)
    assert isinstance(op, AvgPool2d)
    share = gradient / op.counts(node).astype(gradient.dtype)
    return [_spread(op.window(node), lambda i, j: share)]


def _reduced(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    op, shape = op_of(node), xs[0].shape
    assert isinstance(op, Reduction)
    kept = [1 if a in op.axes(node) else n for a, n in enumerate(shape)]
    count = op.count(node) if node.op == "reduce_mean" else 1
    return [np.broadcast_to(gradient.reshape(kept) / gradient.dtype.type(count), shape)]


def _add_rule(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    op = op_of(node)
    low, high = op.get(node, "act_min"), op.get(node, "act_max")
    inside = gradient * ((y > low) & (y < high))
    return [_unbroadcast(inside, x.shape) for x in xs]


def _sub(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    return [_unbroadcast(gradient, xs[0].shape), _unbroadcast(-gradient, xs[1].shape)]


def _mul(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    a, b = xs
    return [_unbroadcast(gradient * b, a.shape), _unbroadcast(gradient * a, b.shape)]


def _unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an operand of ``shape`` was repeated."""
    extra = gradient.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        extra + a for a, n in enumerate(shape) if n == 1 and gradient.shape[extra + a] != 1
    )
    return np.asarray(gradient.sum(axis=axes)).reshape(shape)


def _concat(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    axis = int(op_of(node).get(node, "axis"))
    return list(np.split(gradient, np.cumsum([x.shape[axis] for x in xs])[:-1], axis=axis))


def _pad(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    op = op_of(node)
    if op.get(node, "mode") != "constant":
        return _moved(node, xs, y, gradient)
    before = tuple(op.get(node, "pads"))[: xs[0].ndim]
    return [gradient[tuple(slice(b, b + n) for b, n in zip(before, xs[0].shape, strict=True))]]


def _unfold(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    """Every tap added to where it came from; those in the border came from nowhere."""
    op = op_of(node)
    assert isinstance(op, Unfold)
    axis, places = int(op.get(node, "axis")), op.places(node)
    inside = (places >= 0) & (places < xs[0].shape[axis])
    taps = np.moveaxis(np.moveaxis(gradient, -2, 0), axis + 1, 1)  # [taps, windows, ...]
    out = np.zeros((xs[0].shape[axis], *taps.shape[2:]), gradient.dtype)
    for tap in range(len(taps)):
        kept = inside[:, tap]
        np.add.at(out, places[kept, tap], taps[tap][kept])
    return [np.moveaxis(out, 0, axis)]


def _batch_norm(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    _, scale, _, _, var = xs
    factor = scale / np.sqrt(var + op_of(node).get(node, "epsilon"))
    return [gradient * factor.reshape(-1, *[1] * (gradient.ndim - 2)).astype(gradient.dtype)]


def _softmax(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    axis = int(op_of(node).get(node, "axis"))
    return [y * (gradient - (gradient * y).sum(axis=axis, keepdims=True))]


def _moved(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    """An op that moves numbers moves their indices too, which says where each came from."""
    indices = np.arange(xs[0].size, dtype=np.float64).reshape(xs[0].shape)
    (sources,) = op_of(node).evaluate(node, [indices, *xs[1:]])
    flat = sources.reshape(-1).astype(np.int64)
    sums = np.bincount(flat, gradient.reshape(-1), minlength=xs[0].size)
    return [sums.reshape(xs[0].shape).astype(gradient.dtype)]


def _unary(node: Node, xs: list[Array], y: Array, gradient: Array) -> list[Array]:
    """Central differences in float64."""
    x, rest = xs[0].astype(np.float64), xs[1:]
    step = 1e-6 * np.maximum(1.0, np.abs(x))
    (above,) = op_of(node).evaluate(node, [x + step, *rest])
    (below,) = op_of(node).evaluate(node, [x - step, *rest])
    return [gradient * ((above - below) / (2 * step)).astype(gradient.dtype)]


RULES: dict[str, Rule] = {
    "add": _add_rule,
    "avg_pool2d": _avg_pool2d,
    "batch_norm": _batch_norm,
    "concat": _concat,
    "conv2d": _conv2d,
    "linear": _linear,
    "max_pool2d": _max_pool2d,
    "mul": _mul,
    "pad": _pad,
    "reduce_mean": _reduced,
    "reduce_sum": _reduced,
    "softmax": _softmax,
    "sub": _sub,
    "unfold": _unfold,
}
"""Ops with a rule of their own."""

__all__ = ["RULES", "squared_weight_gradients"]
