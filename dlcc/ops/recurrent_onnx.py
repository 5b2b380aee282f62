"""ONNX importers of LSTM, GRU and RNN.

Both directions are layers of their own. The input projection of all time steps is a ``linear``
node; of a single step (a model that is fed a frame at a time) the recurrent products are another
one, so that all weights are those of ordinary layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcc.frontends.fold import fold_nodes
from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import I32, Value
from dlcc.ops.base import OPS
from dlcc.ops.cast import cast_to
from dlcc.ops.movement import sliced
from dlcc.ops.recurrent import ACTIVATIONS, Recurrent
from dlcc.ops.shape import reshaped
from dlcc.ops.weights import as_weight, known

_SPELLED = {name.replace("_", ""): name for name in ACTIVATIONS}
"""ONNX's names in small letters, and ours."""


@dataclass(frozen=True)
class _Layer:
    """A recurrent node: builds its parts, folding what is known.

    Attributes:
        node: the node.
        op: what it becomes.
        directions: 1, or 2 where it runs both ways.
    """

    node: OnnxNode
    op: Recurrent
    directions: int

    def make(
        self, op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any], part: str
    ) -> Value:
        """A node with one result."""
        start = len(self.node.graph.nodes)
        return fold_nodes(
            self.node.graph, start, self.node.build(op, inputs, dict(attrs), suffix=part)
        )[0]

    def cut(self, value: Value, axis: int, start: int, end: int, part: str) -> Value:
        """A part along an axis."""
        first = len(self.node.graph.nodes)
        made = sliced(self.node, value, [start], [end], [axis], [1], part)
        return fold_nodes(self.node.graph, first, [made])[0]

    def of(self, value: Value | None, direction: int, part: str) -> Value | None:
        """What belongs to one direction; the axis of directions, the first one, goes."""
        if value is None:
            return None
        if value.type.rank < 2 or value.type.shape[0] != self.directions:
            raise Unsupported(f"{self.directions} directions, and {part} is {value.type.shape}")
        start = len(self.node.graph.nodes)
        cut = self.cut(value, 0, direction, direction + 1, f"{part}.cut")
        made = reshaped(self.node, cut, value.type.shape[1:], part)
        (made,) = fold_nodes(self.node.graph, start, [made])
        return as_weight(self.node.graph, made, self.node.name)

    def state(self, index: int) -> Value | None:
        """An initial state [D,B,H]; None where it is 0."""
        value = self.node.optional(index)
        if value is None or (value.is_constant and not value.decoded().any()):
            return None
        return self.batch_second(value)

    def batch_second(self, value: Value) -> Value:
        """[B,D,...] of layout 1 as [D,B,...]."""
        if not self.node.attrs.get("layout", 0):
            return value
        return self.make("transpose", [value], {"perm": (1, 0, 2)}, "/major")

    def lengths(self, steps: int) -> Value | None:
        """The sequences' lengths; None where all are ``steps``."""
        value = self.node.optional(4)
        if value is None or (value.is_constant and bool((value.decoded() >= steps).all())):
            return None
        start = len(self.node.graph.nodes)
        return fold_nodes(self.node.graph, start, [cast_to(self.node, value, I32, "/lengths")])[0]

    def product(self, x: Value, weight: Value, bias: Value | None, part: str) -> Value:
        """X @ weight.T plus a bias [N]."""
        if known(weight):
            return self.make("linear", [x, weight, bias], {}, part)
        made = self.make("matmul", [x, weight], {"transpose_b": True}, part)
        return made if bias is None else self.make("add", [made, bias], {}, f"{part}.bias")

    def attributes(self, direction: int) -> dict[str, Any]:
        """Activations and clip of one direction."""
        count, attrs = len(self.op.functions), self.node.attrs
        given = attrs.get("activations") or self.op.functions
        names = []
        for text in given:
            name = _SPELLED.get(text.replace("_", "").lower())
            if name is None:
                raise Unsupported(f"activation {text!r}")
            names.append(name)
        if len(names) not in (count, count * self.directions):
            raise Unsupported(f"{len(names)} activations instead of {count * self.directions}")
        names = names * (count * self.directions // len(names))
        values: list[list[float]] = [[], []]
        for kind, key in enumerate(("activation_alpha", "activation_beta")):
            left = list(attrs.get(key, ()))
            for name in names:  # only functions that have the parameter take one from the list
                default = ACTIVATIONS[name][kind]
                value = 0.0 if default is None else left.pop(0) if left else default
                values[kind].append(float(value))
        part = slice(direction * count, (direction + 1) * count)
        made: dict[str, Any] = {"activations": tuple(names[part])}
        for key, column in zip(("alpha", "beta"), values, strict=True):
            if any(column[part]):
                made[key] = tuple(column[part])
        if attrs.get("clip") is not None:
            made["clip"] = float(attrs["clip"])
        return made


def _recurrent(node: OnnxNode, name: str) -> Sequence[Value]:
    op = OPS[name]
    assert isinstance(op, Recurrent)
    direction = node.attrs.get("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise Unsupported(f"direction {direction!r}")
    layer = _Layer(node, op, 2 if direction == "bidirectional" else 1)
    x = layer.batch_second(node.input(0))
    lengths = layer.lengths(x.type.shape[0])
    states = [layer.state(5), layer.state(6) if name == "lstm" else None]
    results = []
    for index in range(layer.directions):
        part = ("/forward", "/backward")[index] if layer.directions == 2 else ""
        attrs = layer.attributes(index)
        attrs["reverse"] = direction == "reverse" or index == 1
        own = [layer.of(s, index, f"{part}/{k}0") for s, k in zip(states, "hc", strict=True)]
        results.append(_direction(layer, index, x, own, lengths, attrs, part))
    return [_joined(layer, column, k) for k, column in enumerate(zip(*results, strict=True))]


def _joined(layer: _Layer, parts: Sequence[Value], index: int) -> Value:
    """[T,B,H] of each direction as [T,D,B,H], or [B,H] as [D,B,H]; with the batch first."""
    axis = 1 - min(index, 1)
    shape = parts[0].type.shape
    lifted = (*shape[:axis], 1, *shape[axis:])
    names = [f"/out.{index}.{k}" for k in range(len(parts))]
    columns = [reshaped(layer.node, v, lifted, name) for v, name in zip(parts, names, strict=True)]
    made = columns[0]
    if len(columns) > 1:
        made = layer.make("concat", columns, {"axis": axis}, f"/out.{index}")
    if not layer.node.attrs.get("layout", 0):
        return made
    perm = (1, 0, 2) if index else (2, 0, 1, 3)
    return layer.make("transpose", [made], {"perm": perm}, f"/out.{index}.major")


def _direction(
    layer: _Layer,
    index: int,
    x: Value,
    states: Sequence[Value | None],
    lengths: Value | None,
    attrs: dict[str, Any],
    part: str,
) -> list[Value]:
    """Projection and recurrence of one direction; Y [T,B,H] and the last states [B,H]."""
    node, name = layer.node, layer.op.name
    weight = layer.of(node.input(1), index, f"{part}/w")
    recurrent = layer.of(node.input(2), index, f"{part}/r")
    assert weight is not None
    assert recurrent is not None
    after = name == "gru" and bool(node.attrs.get("linear_before_reset", 0))
    bias, own = _biases(layer, index, recurrent.type.shape[-1], after, part)
    given: dict[str, Value | None] = {
        "gates": layer.product(x, weight, bias, f"{part}/input"),
        "recurrent": recurrent, "bias": own, "h0": states[0], "c0": states[1], "lengths": lengths,
    }  # fmt: skip
    if name == "lstm":
        attrs["input_forget"] = bool(node.attrs.get("input_forget", 0))
        peephole = node.optional(7)
        if peephole is not None:
            given["peephole"] = layer.of(peephole, index, f"{part}/peephole")
    if after:
        attrs["reset_after"] = True
    if x.type.shape[0] == 1 and lengths is None:
        _one_step(layer, given, after, part)
    operands = [given.get(o.rstrip("?")) for o in layer.op.operands]
    return node.build(name, operands, attrs, outputs=1 + layer.op.states, suffix=part)


def _biases(
    layer: _Layer, index: int, units: int, after: bool, part: str
) -> tuple[Value | None, Value | None]:
    """The bias of the projection, and the one that stays with the recurrence."""
    both = layer.of(layer.node.optional(3), index, f"{part}/b")
    if both is None:
        return None, None
    size = layer.op.gates * units
    mine = layer.cut(both, 0, 0, size, f"{part}/b.input")
    other = layer.cut(both, 0, size, 2 * size, f"{part}/b.state")
    own = None
    if after:
        own = layer.cut(other, 0, 2 * units, size, f"{part}/b.candidate")
        zeros = layer.node.graph.add_constant(np.zeros(units, own.type.dtype.numpy), name="zeros")
        first = layer.cut(other, 0, 0, 2 * units, f"{part}/b.gates")
        other = layer.make("concat", [first, zeros], {"axis": 0}, f"{part}/b.first")
    return layer.make("add", [mine, other], {}, f"{part}/b.sum"), own


def _one_step(layer: _Layer, given: dict[str, Value | None], after: bool, part: str) -> None:
    """Take the recurrent product of a single step out of the recurrence, where it comes first."""
    recurrent, h = given["recurrent"], given["h0"]
    assert recurrent is not None
    if h is None:
        given["recurrent"] = None
        return
    if layer.op.name == "gru" and not after:
        return  # the reset gate comes before the product
    before = layer.make("reshape", [h], {"shape": (1, *h.type.shape)}, f"{part}/h0.step")
    own = given["bias"]
    if own is not None:
        zeros = np.zeros(2 * own.type.elements, own.type.dtype.numpy)
        lead = layer.node.graph.add_constant(zeros, name="zeros")
        own = layer.make("concat", [lead, own], {"axis": 0}, f"{part}/b.product")
    given["products"] = layer.product(before, recurrent, own, f"{part}/state")
    given["recurrent"] = given["bias"] = None


@onnx_op("LSTM", since=7)
def _lstm(node: OnnxNode) -> Sequence[Value]:
    return _recurrent(node, "lstm")


@onnx_op("GRU", since=7)
def _gru(node: OnnxNode) -> Sequence[Value]:
    return _recurrent(node, "gru")


@onnx_op("RNN", since=7)
def _rnn(node: OnnxNode) -> Sequence[Value]:
    return _recurrent(node, "rnn")
