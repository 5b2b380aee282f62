"""QDQ models: ``dequantize -> float op -> quantize`` becomes one op on integer codes.

ONNX Runtime, NNCF and Brevitas write quantised networks as float ops between DequantizeLinear and
QuantizeLinear nodes. :func:`fuse_qdq` merges each such sandwich into the op on affine types, which
computes the same numbers up to the rounding of the final requantisation (float summation and
division are replaced by exact integer sums and one multiplication).

Where the surroundings of an op do not allow that, it stays float between its dequantize and
quantize nodes. Nothing changes for models without such nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dlcc.errors import DlccError
from dlcc.frontends.qdq_codes import narrow_clips, unsigned_activations, widened_activations
from dlcc.frontends.registry import Unsupported
from dlcc.ir import DENSE, F32, Affine, Graph, Node, TensorType, Value
from dlcc.ir.encodings import Array, Encoding
from dlcc.ops.base import OPS, Quantised, build, op_of
from dlcc.ops.qlinear import Weight, centred_weight

_LAYERS = {"conv2d": 0, "linear": 0, "conv_transpose2d": 1}
"""Ops with a weight operand, and the weight's output-channel axis."""

_CLAMPED = (*_LAYERS, "matmul", "add")
"""Ops with a fused activation."""

_PAIRWISE = ("add", "sub", "mul", "matmul", "minimum", "maximum")

_HOISTED = ("reshape", "transpose", "max_pool2d", "slice", "reduce_max", "reduce_min")
"""Ops through which a quantize moves up: rounding commutes with them."""


def fuse_qdq(graph: Graph, remarks: list[str] | None = None) -> int:
    """Merge QDQ sandwiches; returns how many ops became integer ops.

    ``remarks`` gets one line per layer with a quantised weight that stays float, with the reason.

    Afterwards no activation has a signed 8-bit encoding, except graph inputs and outputs and where
    raw integers are needed; no dequantize of a constant is left.
    """
    if not any(isinstance(v.type.encoding, Affine) for v in graph.values()):
        return 0
    narrow_clips(graph)
    _sink(graph)
    _hoist(graph)
    count = 0
    for node in list(graph.nodes):
        if node in graph.nodes and _merge(graph, node):
            count += 1
    if remarks is not None:
        remarks += [line for node in graph.nodes if (line := _remark(node))]
    _tidy(graph)
    _fold_constants(graph)
    unsigned_activations(graph)
    widened_activations(graph)
    return count


# -- reading the surroundings of a node ----------------------------------------------------------


def source(value: Value | None) -> Value | None:
    """The codes behind a dequantize node (a constant or an activation), or None."""
    if value is None or value.producer is None or value.producer.op != "dequantize":
        return None
    return value.producer.input(0)


def _activation(value: Value | None, bits: int = 8) -> Value | None:
    """Per-tensor codes of up to ``bits`` bits behind a dequantize, or None."""
    codes = source(value)
    if codes is None or not isinstance(codes.type.encoding, Affine):
        return None
    encoding = codes.type.encoding
    return codes if encoding.axis is None and encoding.bits <= bits else None


def _limits(node: Node) -> tuple[float, float] | None:
    """What a clamp-like node lets through, or None."""
    if node.op == "relu":
        return 0.0, float("inf")
    if node.op == "clip":
        op = op_of(node)
        return float(op.get(node, "min")), float(op.get(node, "max"))
    return None


class Tail:
    """What follows an op: clamps, then quantize nodes of one encoding, or nothing of the kind.

    Attributes:
        clamps: relu and clip nodes, each the only reader of the one before.
        quantizes: the quantize nodes that read the end; empty where the op's result stays float.
    """

    def __init__(self, graph: Graph, node: Node, clampable: bool) -> None:
        self.clamps: list[Node] = []
        self.low, self.high = -float("inf"), float("inf")
        self.quantizes = self._quantizes(graph, node.output)
        value = node.output
        while clampable and not self.quantizes and graph.use_count(value) == 1 and value.uses:
            user = value.uses[0][0]
            limits = _limits(user)
            if limits is None:
                break
            self.clamps.append(user)
            self.low = min(max(self.low, limits[0]), limits[1])
            self.high = max(min(self.high, limits[1]), limits[0])
            value = user.output
            self.quantizes = self._quantizes(graph, value)

    @staticmethod
    def _quantizes(graph: Graph, value: Value) -> list[Node]:
        users = value.users
        if not users or graph.is_output(value) or any(u.op != "quantize" for u in users):
            return []
        encodings = {u.output.type.encoding for u in users}
        first = users[0].output.type.encoding
        fits = isinstance(first, Affine) and first.axis is None and first.bits <= 8
        return users if fits and len(encodings) == 1 else []

    @property
    def encoding(self) -> Encoding:
        """Encoding of the merged op's result."""
        return self.quantizes[0].output.type.encoding if self.quantizes else DENSE

    def replace(self, graph: Graph, old: Node, new: Node) -> None:
        """Let the readers of the tail's end read ``new``, and erase ``old`` and the tail."""
        if not self.quantizes:
            end = self.clamps[-1] if self.clamps else old
            graph.replace_all_uses(end.output, new.output)
        for node in self.quantizes:
            graph.replace(node, [new.output])
        for node in reversed(self.clamps):
            graph.erase(node)
        graph.erase(old)


# -- moving quantize and dequantize out of the way -----------------------------------------------


def _moves(node: Node) -> bool:
    """True for an op that only moves numbers of its first operand."""
    return OPS[node.op].quantised is Quantised.SAME and node.op not in ("concat", "relayout")


def _sink(graph: Graph) -> None:
    """Move dequantize nodes below ops that only move numbers, until none is left to move."""
    for node in list(graph.nodes):
        codes = _activation(node.optional_input(0), bits=16)
        if not _moves(node) or codes is None or codes.is_constant or len(node.outputs) != 1:
            continue
        if any(v is not None and v.type.dtype == F32 for v in node.inputs[1:]):
            continue
        type_ = node.output.type.with_(encoding=codes.type.encoding)
        operands = [codes, *node.inputs[1:]]
        moved = build(
            graph, node.op, operands, node.attrs, loc=node.loc, types=[type_],
            names=[node.output.name], before=node,
        )  # fmt: skip
        back = build(graph, "dequantize", [moved.output], loc=node.loc, after=moved)
        graph.replace(node, [back.output])


def _hoist(graph: Graph) -> None:
    """Move quantize nodes above ops that only move numbers, towards the op that computes them."""
    for node in reversed(list(graph.nodes)):
        if node.op != "quantize":
            continue
        mover = node.input(0).producer
        while (
            mover is not None
            and mover.op in _HOISTED
            and graph.use_count(mover.output) == 1
            and node.output.type.affine.axis is None
        ):
            encoding = node.output.type.affine
            inner = mover.input(0)
            type_ = inner.type.with_(encoding=encoding)
            codes = build(graph, "quantize", [inner], loc=node.loc, types=[type_], before=mover)
            mover.set_input(0, codes.output)
            mover.output.type = mover.output.type.with_(encoding=encoding)
            graph.replace(node, [mover.output])
            node, mover = codes, inner.producer


# -- merging -----------------------------------------------------------------------------------


def _merge(graph: Graph, node: Node) -> bool:
    """Turn one float op into an integer op. Returns False where its surroundings do not fit."""
    rule: Callable[[Graph, Node], bool] | None = None
    if node.op in _LAYERS:
        rule = _merge_layer
    elif node.op in _PAIRWISE:
        rule = _merge_pairwise
    elif node.op == "concat":
        rule = _merge_concat
    elif node.op in ("argmax", "argmin"):
        rule = _merge_arg
    elif node.op in OPS and OPS[node.op].quantised in (Quantised.TABLE, Quantised.INTEGER):
        rule = _merge_single
    return rule is not None and rule(graph, node)


def _build(
    graph: Graph,
    node: Node,
    operands: Sequence[Value | None],
    attrs: dict[str, float],
    encoding: Encoding,
) -> Node | None:
    """The integer twin of ``node``, or None where its reference refuses the encodings."""
    type_ = TensorType(node.output.type.shape, node.output.type.dtype, encoding)
    try:
        return build(
            graph, node.op, operands, {**node.attrs, **attrs}, loc=node.loc, types=[type_],
            names=[node.output.name], before=node,
        )  # fmt: skip
    except DlccError:
        return None


def _clamp(tail: Tail) -> dict[str, float]:
    return {"act_min": tail.low, "act_max": tail.high} if tail.clamps else {}


def _merge_layer(graph: Graph, node: Node) -> bool:
    x, weight_codes = _activation(node.input(0)), source(node.input(1))
    if x is None or x.is_constant or weight_codes is None or not weight_codes.is_constant:
        return False
    axis = _LAYERS[node.op]
    weight = _weight_of(weight_codes, axis)
    if weight is None or not weight.fits or (axis and int(node.attrs.get("groups", 1)) != 1):  # type: ignore[arg-type]
        return False
    bias = node.optional_input(2)
    real_bias = None if bias is None else _real(bias)
    if bias is not None and real_bias is None:
        return False
    tail = Tail(graph, node, clampable=True)
    codes = _bias(graph, bias, real_bias, x.type.affine, weight)
    constant = _weight_constant(graph, weight_codes, weight)
    new = _build(graph, node, [x, constant, codes], _clamp(tail), tail.encoding)
    if new is None:
        return False
    tail.replace(graph, node, new)
    return True


def _remark(node: Node) -> str:
    """Why a layer with a quantised weight stays float, or ""."""
    codes = source(node.input(1)) if node.op in _LAYERS else None
    if codes is None or not codes.is_constant:
        return ""
    axis = _LAYERS[node.op]
    weight = _weight_of(codes, axis)
    if _activation(node.input(0)) is None:
        why = "its input is not quantised to 8 bits with one scale"
    elif weight is None:
        why = f"its weight is not quantised to 8 bits with scales along axis {axis}"
    elif not weight.fits:
        why = "its weight has zero points, and codes without them do not fit int8"
    elif axis and node.attrs.get("groups", 1) != 1:
        why = "a grouped transposed convolution has no integer kernel"
    else:
        why = "its bias is not known at compile time"
    return f"qdq: {node.op} {node.loc!r} is computed in float: {why}"


def _weight_of(value: Value, axis: int) -> Weight | None:
    encoding = value.type.affine
    if encoding.bits > 8 or encoding.axis not in (None, axis):
        return None
    zeros = np.asarray(encoding.zero_points)
    try:
        return centred_weight(value.stored(), np.asarray(encoding.scales), zeros, axis)
    except Unsupported:
        return None


def _weight_constant(graph: Graph, value: Value, weight: Weight) -> Value:
    """The weight as signed codes with zero point 0, in the width it had."""
    zeros = (0,) * weight.scales.size
    bits = value.type.affine.bits if value.type.affine.signed else 8
    encoding = Affine(bits, True, tuple(weight.scales.tolist()), zeros, weight.axis)
    type_ = TensorType(value.type.shape, F32, encoding)
    return graph.add_stored({"values": weight.codes.astype(np.int8)}, type_, name=value.name)


def _real(value: Value) -> Array | None:
    """Contents of a constant, also behind a dequantize."""
    known = value if value.is_constant else source(value)
    return known.decoded() if known is not None and known.is_constant else None


def _bias(
    graph: Graph, bias: Value | None, real: Array | None, x: Affine, weight: Weight
) -> Value | None:
    """An int32 bias of scale sx * sw: the model's own codes where it has that scale already."""
    if bias is None or real is None:
        return None
    scales = np.float64(x.scale) * weight.scales.astype(np.float64)
    codes = source(bias)
    own = None if codes is None else codes.type.affine
    if codes is not None and own is not None and not any(own.zero_points):
        given = np.broadcast_to(np.asarray(own.scales, np.float64), scales.shape)
        if np.allclose(given, scales, rtol=1e-5, atol=0):
            return _bias_constant(graph, codes.stored().astype(np.int32), scales, codes.name)
    rounded = np.rint(real.astype(np.float64) / scales)
    limit = float(np.iinfo(np.int32).max)
    return _bias_constant(
        graph, np.clip(rounded, -limit, limit).astype(np.int32), scales, bias.name
    )


def _bias_constant(graph: Graph, codes: Array, scales: Array, name: str) -> Value:
    encoding = Affine(32, True, tuple(scales.tolist()), (0,) * scales.size, 0)
    flat = np.ascontiguousarray(np.broadcast_to(codes.reshape(-1), scales.shape))
    return graph.add_stored({"values": flat}, TensorType(scales.shape, F32, encoding), name=name)


def _merge_pairwise(graph: Graph, node: Node) -> bool:
    operands = [_activation(v) for v in node.inputs]
    if len(operands) != 2 or any(v is None for v in operands):
        return False
    if all(v is not None and v.is_constant for v in operands):
        return False
    tail = Tail(graph, node, clampable=node.op in _CLAMPED)
    if not tail.quantizes and node.op != "matmul":
        return False
    new = _build(graph, node, operands, _clamp(tail), tail.encoding)
    if new is None:
        return False
    tail.replace(graph, node, new)
    return True


def _merge_concat(graph: Graph, node: Node) -> bool:
    operands = [_activation(v) for v in node.inputs]
    tail = Tail(graph, node, clampable=False)
    if not tail.quantizes or any(v is None for v in operands):
        return False
    same: list[Value] = []
    for value in operands:
        assert value is not None
        if value.type.encoding != tail.encoding:
            type_ = value.type.with_(encoding=tail.encoding)
            value = build(
                graph, "requantize", [value], loc=node.loc, types=[type_], before=node
            ).output
        same.append(value)
    new = _build(graph, node, same, {}, tail.encoding)
    if new is None:
        return False
    tail.replace(graph, node, new)
    return True


def _merge_arg(graph: Graph, node: Node) -> bool:
    codes = _activation(node.input(0))
    if codes is None or codes.is_constant:
        return False
    node.set_input(0, codes)
    return True


_CONSTANT_PARAMETERS = ("layer_norm", "prelu")


def _merge_single(graph: Graph, node: Node) -> bool:
    """An op of one activation (and, for some, constant parameters)."""
    codes = _activation(node.optional_input(0))
    if codes is None or codes.is_constant or len(node.outputs) != 1:
        return False
    parameters: list[Value | None] = []
    for value in node.inputs[1:]:
        real = None if value is None else _real(value)
        if value is not None and (real is None or node.op not in _CONSTANT_PARAMETERS):
            return False
        parameters.append(None if real is None else graph.add_constant(real, name="parameter"))
    tail = Tail(graph, node, clampable=False)
    if not tail.quantizes or node.op in ("quantize", "dequantize", "requantize", "reinterpret"):
        return False
    new = _build(graph, node, [codes, *parameters], {}, tail.encoding)
    if new is None:
        return False
    tail.replace(graph, node, new)
    return True


# -- tidying -----------------------------------------------------------------------------------


def _tidy(graph: Graph) -> None:
    """``quantize(dequantize(x))`` is ``x``, or a requantize where the encodings differ."""
    for node in list(graph.nodes):
        codes = _activation(node.input(0)) if node.op == "quantize" else None
        if codes is None or codes.is_constant:
            continue
        out = node.output.type.affine
        if out == codes.type.encoding:
            graph.replace(node, [codes])
        elif out.axis is None and out.bits <= 8:
            new = build(
                graph, "requantize", [codes], loc=node.loc, types=[node.output.type], before=node
            )
            graph.replace(node, [new.output])
    for node in reversed(list(graph.nodes)):
        if node.op in ("dequantize", "quantize") and not graph.use_count(node.output):
            graph.erase(node)


def _fold_constants(graph: Graph) -> None:
    """Dequantize nodes of constants that found no integer op become float constants."""
    for node in list(graph.nodes):
        if node.op == "dequantize" and node.input(0).is_constant:
            value = graph.add_constant(node.input(0).decoded(), name=node.input(0).name)
            graph.replace(node, [value])


__all__ = ["fuse_qdq"]
