"""Rules of ``fold-batch-norm``: the map y = a x + b per channel, folded into a layer's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dlcc.ir import AttrValue, Node, Value
from dlcc.ir.encodings import Array
from passes.patterns import Match, Rule, any_, attr, const, op, users_text

LAYERS = ("conv2d", "conv_transpose2d", "linear")
_INF = float("inf")


@dataclass(frozen=True)
class ChannelMap:
    """y = a x + b with one a and b per channel, in float64."""

    a: Array
    b: Array

    def finite(self) -> bool:
        """True if a and b are numbers that float32 can hold."""
        with np.errstate(over="ignore"):
            return bool(np.all(np.isfinite(np.stack([self.a, self.b]).astype(np.float32))))


def norm_map(m: Match) -> ChannelMap | str:
    """Map of the batch_norm captured as "norm", or why it has none."""
    node = m.node("norm")
    parameters = [node.input(i) for i in range(1, 5)]
    for value in parameters:
        if not value.is_constant:
            return f"its parameter %{value.name} is not constant"
    scale, shift, mean, var = (v.decoded().astype(np.float64) for v in parameters)
    epsilon = attr(node, "epsilon")
    assert isinstance(epsilon, int | float)
    spread = var + epsilon
    if not np.all(spread > 0):
        worst = int(np.argmin(spread))
        return f"variance + epsilon is {spread[worst]:g} in channel {worst}, must be positive"
    a = scale / np.sqrt(spread)
    found = ChannelMap(a, shift - a * mean)
    return found if found.finite() else "its scale or shift is not a finite number"


def constant_map(m: Match, x: Value, axis: int) -> ChannelMap | str:
    """Map of the mul or add by constant "c" captured as "norm", over ``axis`` of ``x``."""
    node, array = m.node("norm"), m.array("c").astype(np.float64)
    shape = x.type.shape
    if node.output.type.shape != shape or not x.type.dtype.is_float:
        return ""
    padded = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if any(n != 1 for i, n in enumerate(padded.shape) if i != axis):
        return ""
    vector = np.broadcast_to(padded.reshape(-1), (shape[axis],))
    ones, zeros = np.ones(shape[axis]), np.zeros(shape[axis])
    found = ChannelMap(vector, zeros) if node.op == "mul" else ChannelMap(ones, vector)
    return found if found.finite() else "its constant is not finite"


def channel_axis(layer: Node, rank: int) -> int:
    """Axis of channels in the layer's input and output."""
    return rank - 1 if layer.op == "linear" else 1


def scaled_outputs(layer: Node, weight: Array, a: Array) -> Array:
    """The weight with output channel o multiplied by a[o]."""
    if layer.op != "conv_transpose2d":
        return np.asarray(weight * a.reshape(-1, *[1] * (weight.ndim - 1)))
    groups = _groups(layer)
    per_group = weight.reshape(groups, -1, *weight.shape[1:])  # [g, C/g, O/g, KH, KW]
    return np.asarray(per_group * a.reshape(groups, 1, -1, 1, 1)).reshape(weight.shape)


def per_input(layer: Node, weight: Array, vector: Array) -> Array:
    """``vector[input channel]`` in a shape that broadcasts against the weight."""
    if layer.op == "linear":
        return vector.reshape(1, -1)
    if layer.op == "conv_transpose2d":
        return vector.reshape(-1, 1, 1, 1)
    groups = _groups(layer)
    rows = np.repeat(vector.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return np.asarray(rows).reshape(weight.shape[0], -1, 1, 1)


def _groups(layer: Node) -> int:
    groups = attr(layer, "groups")
    assert isinstance(groups, int)
    return groups


def layer_constants(layer: Node) -> tuple[Array, Array | None] | str:
    """Weight and bias in float64, or why they cannot be changed."""
    weight, bias = layer.input(1), layer.optional_input(2)
    for value in (weight, bias):
        if value is None:
            continue
        if not value.is_constant:
            return f"operand %{value.name} of {layer!r} is not constant"
        if not value.type.is_dense:
            return f"%{value.name} of {layer!r} is stored as {value.type.encoding.name}"
    old = None if bias is None else bias.decoded().astype(np.float64)
    return weight.decoded().astype(np.float64), old


def clamp_of(node: Node) -> dict[str, AttrValue]:
    """The fused activation of a node, as attributes."""
    return {key: attr(node, key) for key in ("act_min", "act_max")}


def clamp_free(layer: Node) -> bool:
    """True if the node has no fused activation."""
    return attr(layer, "act_min") == -_INF and attr(layer, "act_max") == _INF


class _Fold(Rule):
    """Shared half of all folds: compute the new weight and bias, build the new layer."""

    def constants(self, m: Match) -> tuple[Array | None, Array | None] | str:
        """New weight (None: as it was) and bias in float64, or the reason against."""
        raise NotImplementedError

    def source(self, m: Match) -> Value:
        """What the new layer reads."""
        raise NotImplementedError

    def check(self, m: Match) -> str | None:
        found = self.constants(m)
        if isinstance(found, str):
            return found
        limit = np.finfo(m.node("layer").input(1).type.dtype.numpy).max
        if any(a is not None and not np.all(np.abs(a) <= limit) for a in found):
            return "a folded weight would overflow"
        return None

    def rewrite(self, m: Match) -> list[Value]:
        found, layer = self.constants(m), m.node("layer")
        assert not isinstance(found, str)
        weight, bias = layer.input(1), layer.optional_input(2)
        dtype = weight.type.dtype.numpy
        if found[0] is not None:
            weight = m.graph.add_constant(found[0].astype(dtype), name=weight.name)
        if found[1] is not None:
            name = bias.name if bias is not None else f"{weight.name}.bias"
            bias = m.graph.add_constant(found[1].astype(dtype), name=name)
        operands = [self.source(m), weight, bias, *layer.inputs[3:]]
        return m.build(layer.op, operands, {**layer.attrs, **self.clamp(m)}, loc=layer.loc)

    def clamp(self, m: Match) -> dict[str, AttrValue]:
        """The clamp that the new layer takes over from the root."""
        return clamp_of(m.root) if m.root.op == "add" else {}

    def describe(self, m: Match) -> str:
        weight = m.node("layer").input(1)
        text = f"folded {m.node('norm').op} into {m.node('layer')!r}"
        if len(weight.uses) > 1:
            others = users_text(m.graph, weight, m.node("layer"))
            text += f"; its weight, shared with {others}, was copied"
        return text


class _Backward(_Fold):
    def map(self, m: Match) -> ChannelMap | str:
        raise NotImplementedError

    def source(self, m: Match) -> Value:
        return m.node("layer").input(0)

    def constants(self, m: Match) -> tuple[Array | None, Array | None] | str:
        layer, found = m.node("layer"), self.map(m)
        if isinstance(found, str):
            return found
        if not clamp_free(layer):
            return f"{layer!r} has a fused activation"
        scales = bool(np.any(found.a != 1.0))
        if scales and layer.optional_input(3) is not None:
            return f"{layer!r} adds a residual, which cannot be scaled"
        old = layer_constants(layer)
        if isinstance(old, str):
            return old
        weight, bias = old
        shifted = found.b if bias is None else found.a * bias + found.b
        keep_none = bias is None and not np.any(found.b)
        return scaled_outputs(layer, weight, found.a) if scales else None, (
            None if keep_none else shifted
        )


class BackwardNorm(_Backward):
    """batch_norm(layer(x, w, bias)) -> layer(x, a w, a bias + b)."""

    pattern = op("batch_norm", op(LAYERS, capture="layer"), capture="norm")

    def map(self, m: Match) -> ChannelMap | str:
        out = m.node("layer").output.type
        if channel_axis(m.node("layer"), out.rank) != 1:
            return "it normalises another axis than the layer's output features"
        return norm_map(m)


class BackwardConstant(_Backward):
    """mul/add(layer(x, w, bias), c) -> layer(x, c w, c bias) / layer(x, w, bias + c)."""

    pattern = op(
        ("mul", "add"), op(LAYERS, capture="layer"), const("c"), capture="norm", commutative=True
    )

    def map(self, m: Match) -> ChannelMap | str:
        out = m.node("layer").output
        return constant_map(m, out, channel_axis(m.node("layer"), out.type.rank))


class BackwardThroughSum(BackwardConstant):
    """add(add(layer(x, w, bias), r), c) -> add(layer(x, w, bias + c), r)."""

    pattern = op(
        "add",
        op("add", op(LAYERS, capture="layer"), any_("r"), capture="sum"),
        const("c"),
        capture="norm",
        commutative=True,
    )

    def map(self, m: Match) -> ChannelMap | str:
        total = m.node("sum")
        if not clamp_free(total):
            return f"{total!r} has a fused activation"
        if total.output.type.shape != m.node("layer").output.type.shape:
            return ""
        return super().map(m)

    def clamp(self, m: Match) -> dict[str, AttrValue]:
        return {}

    def rewrite(self, m: Match) -> list[Value]:
        (layer,) = super().rewrite(m)
        return m.build("add", [layer, m.value("r")], clamp_of(m.root), loc=m.node("sum").loc)


class BackwardThroughSumSecond(BackwardThroughSum):
    """add(add(r, layer(x, w, bias)), c) -> add(layer(x, w, bias + c), r)."""

    pattern = op(
        "add",
        op("add", any_("r"), op(LAYERS, capture="layer"), capture="sum"),
        const("c"),
        capture="norm",
        commutative=True,
    )


class _Forward(_Fold):
    def map(self, m: Match) -> ChannelMap | str:
        raise NotImplementedError

    def source(self, m: Match) -> Value:
        return m.value("x")

    def constants(self, m: Match) -> tuple[Array | None, Array | None] | str:
        layer, found = m.node("layer"), self.map(m)
        if isinstance(found, str):
            return found
        shifts = bool(np.any(found.b))
        if shifts and layer.op == "conv_transpose2d":
            return f"a shift before {layer!r} is not the same at its borders"
        if shifts and layer.op == "conv2d" and attr(layer, "pads") != (0, 0, 0, 0):
            return f"{layer!r} pads with zeros, which the shift does not reach"
        old = layer_constants(layer)
        if isinstance(old, str):
            return old
        weight, bias = old
        if not shifts:
            return weight * per_input(layer, weight, found.a), bias
        term = weight * per_input(layer, weight, found.b)
        extra = term.reshape(weight.shape[0], -1).sum(axis=1)
        new = extra if bias is None else bias + extra
        return weight * per_input(layer, weight, found.a), new


class ForwardNorm(_Forward):
    """layer(batch_norm(x), w, bias) -> layer(x, w a, bias + w b)."""

    pattern = op(LAYERS, op("batch_norm", any_("x"), capture="norm"), capture="layer")

    def map(self, m: Match) -> ChannelMap | str:
        if channel_axis(m.node("layer"), m.value("x").type.rank) != 1:
            return "it normalises another axis than the layer's input features"
        return norm_map(m)


class ForwardConstant(_Forward):
    """layer(mul/add(x, c), w, bias) -> layer(x, w c, bias) / layer(x, w, bias + w c)."""

    pattern = op(
        LAYERS,
        op(("mul", "add"), any_("x"), const("c"), capture="norm", commutative=True),
        capture="layer",
    )

    def map(self, m: Match) -> ChannelMap | str:
        x = m.value("x")
        if m.node("norm").op == "add" and not clamp_free(m.node("norm")):
            return f"{m.node('norm')!r} has a fused activation"
        return constant_map(m, x, channel_axis(m.node("layer"), x.type.rank))


class NormToAffine(Rule):
    """batch_norm(x) -> add(mul(x, a), b)."""

    pattern: ClassVar = op("batch_norm", any_("x"), capture="norm")

    def check(self, m: Match) -> str | None:
        found = norm_map(m)
        return found if isinstance(found, str) else None

    def rewrite(self, m: Match) -> list[Value]:
        found, x = norm_map(m), m.value("x")
        assert not isinstance(found, str)
        shape = (1, -1, *[1] * (x.type.rank - 2))
        dtype = x.type.dtype.numpy
        scale = m.graph.add_constant(found.a.astype(dtype).reshape(shape), name="scale")
        shift = m.graph.add_constant(found.b.astype(dtype).reshape(shape), name="shift")
        (scaled,) = m.build("mul", [x, scale])
        return m.build("add", [scaled, shift])

    def describe(self, m: Match) -> str:
        return "no layer could take it; it became mul and add"
