"""Idioms: decompositions that exporters write, recognised as the one op that they compute.

Each rule looks at one kind of node from which an idiom can be told (its anchor), finds the rest
around it, and replaces the idiom's last node. Whatever else reads an inner value keeps it: nodes
are only left without users, never changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from dlcc.ir import F64, Graph, Node, Value
from dlcc.ops.base import build
from dlcc.ops.float64 import KEPT

_CLOSE = 1e-3
"""Relative distance at which a constant still counts as the idiom's (exporters round them)."""

_CHAIN = 4
"""Multiplications between an idiom's anchor and its last node."""

Rule = Callable[[Graph, Node], bool]


def fuse_idioms(graph: Graph) -> int:
    """Replace decomposed GELU, SiLU, Mish, HardSigmoid, HardSwish, LayerNorm and RMSNorm.

    Returns:
        How many were replaced.
    """
    count = 0
    for rules in _ROUNDS:
        for node in list(graph.nodes):
            rule = rules.get(node.op)
            if rule is not None and any(graph.use_count(v) for v in node.outputs):
                count += rule(graph, node)
    return count


# -- looking around ----------------------------------------------------------------------------


def _number(value: Value | None) -> float | None:
    """The number of a scalar constant (or of one whose elements are all equal)."""
    if value is None or not value.is_constant or not value.type.elements:
        return None
    array = value.decoded()
    first = array.reshape(-1)[0]
    return float(first) if bool((array == first).all()) else None


def _near(number: float | None, wanted: float) -> bool:
    return number is not None and math.isclose(number, wanted, rel_tol=_CLOSE)


def _made_by(value: Value | None, op: str) -> Node | None:
    """The node that makes ``value``, if it is an ``op`` without a fused activation."""
    node = value.producer if value is not None else None
    return node if node is not None and node.op == op and "act_min" not in node.attrs else None


def _plus(value: Value) -> tuple[Value, float] | None:
    """(a, c) where ``value`` is a + c with a constant c."""
    node = _made_by(value, "add")
    if node is None:
        return None
    for k in (0, 1):
        number = _number(node.input(1 - k))
        if number is not None:
            return node.input(k), number
    return None


def _product(value: Value, stop: Sequence[Value], depth: int = _CHAIN) -> tuple[float, list[Value]]:
    """``value`` as a constant times factors; products are not opened at the values in ``stop``."""
    node = value.producer
    if node is None or not depth or any(value is s for s in stop):
        return 1.0, [value]
    if node.op == "mul":
        parts = [
            (number, list[Value]())
            if (number := _number(v)) is not None
            else _product(v, stop, depth - 1)
            for v in (node.input(0), node.input(1))
        ]
        return parts[0][0] * parts[1][0], parts[0][1] + parts[1][1]
    divisor = _number(node.input(1)) if node.op == "div" else None
    if divisor:
        constant, factors = _product(node.input(0), stop, depth - 1)
        return constant / divisor, factors
    return 1.0, [value]


def _same(found: Sequence[Value], wanted: Sequence[Value]) -> bool:
    """True if both hold the same values, each as often."""
    rest = list(found)
    for value in wanted:
        match = next((k for k, v in enumerate(rest) if v is value), None)
        if match is None:
            return False
        del rest[match]
    return not rest


def _products_of(value: Value) -> list[Value]:
    """Values that are products with ``value`` in them, nearest first."""
    found: list[Value] = []
    for _ in range(_CHAIN):
        nodes = [n for n in value.users if n.op in ("mul", "div")]
        if len(nodes) != 1 or len(value.users) != 1:
            break
        value = nodes[0].output
        found.append(value)
    return found


def _replace(
    graph: Graph, last: Value, op: str, inputs: Sequence[Value | None], attrs: dict[str, Any]
) -> bool:
    """Let ``op`` stand for the node that makes ``last``; False where the types differ."""
    node = last.producer
    assert node is not None
    if last.type.dtype == F64 and op not in KEPT:
        return False
    new = build(graph, op, inputs, attrs, loc=node.loc, names=[last.name], before=node)
    if (new.output.type.shape, new.output.type.dtype) != (last.type.shape, last.type.dtype):
        graph.erase(new)
        return False
    graph.replace(node, [new.output])
    return True


# -- activations -------------------------------------------------------------------------------


def _gelu_of(graph: Graph, gate: Node, x: Value, approximate: str) -> bool:
    """X / 2 * (1 + gate), in any order of the factors."""
    for node in gate.output.users:
        plus = _plus(node.output) if node.op == "add" else None
        if plus is None or not _near(plus[1], 1.0):
            continue
        for last in _products_of(node.output):
            constant, factors = _product(last, [x, node.output])
            if _near(constant, 0.5) and _same(factors, [x, node.output]):
                return _replace(graph, last, "gelu", [x], {"approximate": approximate})
    return False


def _erf(graph: Graph, node: Node) -> bool:
    """erf(x / sqrt(2)) opens GELU."""
    scaled = node.input(0).producer
    if scaled is None or scaled.op not in ("mul", "div"):
        return False
    for x in (v for v in scaled.inputs if v is not None and not v.is_constant):
        constant, factors = _product(node.input(0), [x])
        if _near(constant, math.sqrt(0.5)) and _same(factors, [x]):
            return _gelu_of(graph, node, x, "none")
    return False


def _tanh(graph: Graph, node: Node) -> bool:
    """tanh(sqrt(2/pi) (x + 0.044715 x^3)) opens GELU's approximation; else Mish."""
    softplus = _made_by(node.input(0), "softplus")
    if softplus is not None:
        return _gated(graph, node.output, softplus.input(0), "mish")
    constant, factors = _product(node.input(0), [])
    if not _near(constant, math.sqrt(2 / math.pi)):
        return False
    for total in factors:
        adder = _made_by(total, "add")
        if adder is None:
            continue
        rest = [f for f in factors if f is not total]
        terms = (adder.input(0), adder.input(1))
        if not rest:  # x + 0.044715 x^3
            for x, cubic in (terms, terms[::-1]):
                number, parts = _product(cubic, [x])
                if _near(number, 0.044715) and _same(parts, [x, x, x]):
                    return _gelu_of(graph, node, x, "tanh")
        elif len(rest) == 1:  # x (1 + 0.044715 x^2)
            (x,) = rest
            for one, quadratic in (terms, terms[::-1]):
                number, parts = _product(quadratic, [x])
                if _near(_number(one), 1.0) and _near(number, 0.044715) and _same(parts, [x, x]):
                    return _gelu_of(graph, node, x, "tanh")
    return False


def _gated(graph: Graph, gate: Value, x: Value, op: str) -> bool:
    """X * gate."""
    for node in gate.users:
        if node.op == "mul" and _same([node.input(0), node.input(1)], [x, gate]):
            return _replace(graph, node.output, op, [x], {})
    return False


def _sigmoid(graph: Graph, node: Node) -> bool:
    return _gated(graph, node.output, node.input(0), "silu")


def _hard_sigmoid(graph: Graph, node: Node) -> bool:
    alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
    if not _near(float(alpha), 1 / 6) or not _near(float(beta), 0.5):  # type: ignore[arg-type]
        return False
    return _gated(graph, node.output, node.input(0), "hard_swish")


def _clip(graph: Graph, node: Node) -> bool:
    """clip(x + 3, 0, 6) / 6 is HardSigmoid, times x HardSwish."""
    plus = _plus(node.input(0))
    ends = node.attrs.get("min"), node.attrs.get("max")
    if plus is None or ends != (0.0, 6.0) or not _near(plus[1], 3.0):
        return False
    x, gate = plus[0], node.output
    for last in reversed(_products_of(gate)):
        constant, factors = _product(last, [x, gate])
        if not _near(constant, 1 / 6):
            continue
        if _same(factors, [x, gate]):
            return _replace(graph, last, "hard_swish", [x], {})
        if _same(factors, [gate]):
            return _replace(graph, last, "hard_sigmoid", [x], {"alpha": 1 / 6, "beta": 0.5})
    return False


# -- normalisations ----------------------------------------------------------------------------


def _last_axes(node: Node) -> int | None:
    """The first reduced axis, if ``node`` reduces all axes from there on."""
    rank = node.input(0).type.rank
    axes: Any = node.attrs["axes"]
    wanted = tuple(range(rank - len(axes), rank))
    return rank - len(axes) if tuple(sorted(axes)) == wanted and axes else None


def _mean_of_square(node: Node) -> tuple[Value, int] | None:
    """(d, axis) where ``node`` is the mean of d * d over the axes from ``axis`` on."""
    square = _made_by(node.input(0), "mul")
    axis = _last_axes(node)
    if axis is None or square is None or square.input(0) is not square.input(1):
        return None
    return square.input(0), axis


def _normalised(variance: Node, x: Value) -> tuple[Value, float] | None:
    """(y, epsilon) where y = x / sqrt(variance + epsilon)."""
    for adder in variance.output.users:
        plus = _plus(adder.output) if adder.op == "add" else None
        roots = [n for n in adder.output.users if n.op == "sqrt"] if plus else []
        for root in roots:
            for node in root.output.users:
                if node.op == "div" and node.input(0) is x and node.input(1) is root.output:
                    return node.output, plus[1] if plus else 0.0
                if node.op != "reciprocal":
                    continue
                for product in node.output.users:
                    if product.op == "mul" and _same(
                        [product.input(0), product.input(1)], [x, node.output]
                    ):
                        return product.output, plus[1] if plus else 0.0
    return None


def _parameter(value: Value, op: str, axis: int) -> tuple[Value, Value] | None:
    """(parameter, result) where the only user of ``value`` is ``op`` with a constant."""
    if len(value.users) != 1 or value.users[0].op != op or "act_min" in value.users[0].attrs:
        return None
    node = value.users[0]
    rank = value.type.rank
    for k in (0, 1):
        other = node.input(k)
        if other is value or not other.is_constant or node.output.type.shape != value.type.shape:
            continue
        leading = other.type.shape[: max(0, other.type.rank - (rank - axis))]
        if all(d == 1 for d in leading):
            return other, node.output
    return None


def _mean(graph: Graph, node: Node) -> bool:
    """A mean of squares opens LayerNorm (of x - mean(x)) or RMSNorm."""
    square = _mean_of_square(node)
    if square is None or not node.attrs.get("keepdims", True):
        return False
    centred, axis = square
    normalised = _normalised(node, centred)
    if normalised is None:
        return False
    last, epsilon = normalised
    x, op = centred, "rms_norm"
    difference = _made_by(centred, "sub")
    if difference is not None:
        mean = _made_by(difference.input(1), "reduce_mean")
        if mean is not None and mean.input(0) is difference.input(0) and _last_axes(mean) == axis:
            x, op = difference.input(0), "layer_norm"
    operands: list[Value | None] = [x]
    for follow in ("mul", "add") if op == "layer_norm" else ("mul",):
        found = _parameter(last, follow, axis)
        operands.append(None if found is None else _flat(graph, found[0], x.type.rank - axis))
        last = last if found is None else found[1]
    return _replace(graph, last, op, operands, {"axis": axis - x.type.rank, "epsilon": epsilon})


def _flat(graph: Graph, parameter: Value, rank: int) -> Value:
    """A parameter without its leading axes of size 1."""
    if parameter.type.rank <= rank:
        return parameter
    values = parameter.decoded()
    return graph.add_constant(
        values.reshape(values.shape[values.ndim - rank :]), name=parameter.name
    )


# -- movement ----------------------------------------------------------------------------------


def _slice(graph: Graph, node: Node) -> bool:
    """A slice of a slice along other axes is one slice."""
    first = _made_by(node.input(0), "slice")
    if first is None or len(first.output.users) != 1 or graph.is_output(first.output):
        return False
    keys = ("axes", "starts", "ends", "steps")
    one, two = ([tuple[Any, ...](n.attrs[k]) for k in keys] for n in (first, node))  # type: ignore[arg-type]
    if set(one[0]) & set(two[0]):
        return False
    rows = sorted([*zip(*one, strict=True), *zip(*two, strict=True)])
    attrs = {key: tuple(row[k] for row in rows) for k, key in enumerate(keys)}
    return _replace(graph, node.output, "slice", [first.input(0)], attrs)


_ROUNDS: tuple[dict[str, Rule], ...] = (
    {"erf": _erf, "tanh": _tanh, "sigmoid": _sigmoid, "clip": _clip, "reduce_mean": _mean,
     "slice": _slice},
    {"hard_sigmoid": _hard_sigmoid},
)  # fmt: skip
"""Rules by the op of their anchor; later rounds build on what earlier ones made."""
