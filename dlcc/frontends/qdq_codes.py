"""Encodings of QDQ models in dlcc's own forms: clipped codes, unsigned activations."""

from __future__ import annotations

from dataclasses import replace

from dlcc.ir import Affine, Graph, Node, Value
from dlcc.ops.base import Quantised, build, op_of

_WEIGHTED = ("conv2d", "conv_transpose2d", "linear")


def narrow_clips(graph: Graph) -> None:
    """Quantize, clip of the raw codes, dequantize (Brevitas' QCDQ) as a narrower quantize.

    ``quantize(x) -> clip(codes, lo, hi)`` becomes ``quantize(clip(x))`` with the fewest bits that
    hold lo..hi; the clip of real numbers is exact at its ends and can be fused further.
    """
    for node in list(graph.nodes):
        if node.op != "reinterpret" or not isinstance(node.output.type.encoding, Affine):
            continue
        chain = _clip_chain(node)
        encoding = node.output.type.affine
        if chain is None or encoding.axis is not None:
            continue
        quantize, low, high = chain
        given = quantize.output.type.affine
        if replace(given, narrow=False) != replace(encoding, narrow=False):
            continue
        low, high = max(low, given.code_range[0]), min(high, given.code_range[1])
        if low >= high:
            continue
        _replace_chain(graph, node, quantize, low, high)


def _clip_chain(node: Node) -> tuple[Node, int, int] | None:
    """The quantize behind ``reinterpret(clip(reinterpret(quantize)))`` and the clip's ends."""
    clip = node.input(0).producer
    if clip is None or clip.op != "clip":
        return None
    raw = clip.input(0).producer
    quantize = None if raw is None or raw.op != "reinterpret" else raw.input(0).producer
    if (
        quantize is None
        or quantize.op != "quantize"
        or quantize.output.type.affine.axis is not None
    ):
        return None
    low, high = quantize.output.type.affine.code_range
    op = op_of(clip)
    return (
        quantize,
        int(max(float(op.get(clip, "min")), low)),
        int(min(float(op.get(clip, "max")), high)),
    )


def _bits_for(low: int, high: int, signed: bool) -> int:
    bits = 2
    while not (
        (-(1 << (bits - 1)) <= low and high < 1 << (bits - 1)) if signed else high < 1 << bits
    ):
        bits += 1
    return bits


def _replace_chain(graph: Graph, node: Node, quantize: Node, low: int, high: int) -> None:
    encoding = quantize.output.type.affine
    zero, scale = encoding.zero_point, encoding.scale
    bits = _bits_for(min(low, zero), max(high, zero), encoding.signed)
    narrow = replace(encoding, bits=bits, narrow=False)
    value = quantize.input(0)
    if (low, high) != narrow.code_range:
        ends = {"min": (low - zero) * scale, "max": (high - zero) * scale}
        value = build(graph, "clip", [value], ends, loc=quantize.loc, before=quantize).output
    type_ = quantize.output.type.with_(encoding=narrow)
    new = build(graph, "quantize", [value], loc=node.loc, types=[type_], before=quantize)
    graph.replace(node, [new.output])
    _erase_dead(graph)


def _erase_dead(graph: Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op in ("reinterpret", "clip", "quantize") and not graph.use_count(node.output):
            graph.erase(node)


def _unsigned(encoding: Affine) -> Affine:
    """The same real values under unsigned codes (all codes shifted by half their range)."""
    shift = 1 << (encoding.bits - 1)
    return replace(
        encoding,
        signed=False,
        narrow=False,
        zero_points=tuple(z + shift for z in encoding.zero_points),
    )


def _is_signed(value: Value) -> bool:
    encoding = value.type.encoding
    return (
        isinstance(encoding, Affine)
        and encoding.signed
        and encoding.bits <= 8
        and encoding.axis is None
    )


def unsigned_activations(graph: Graph) -> None:
    """Give every activation of signed 8-bit codes the unsigned codes that kernels are made for.

    The border of the graph and raw integers (``reinterpret``) keep their signed codes behind a
    requantize, which shifts them exactly.
    """
    for value in [*graph.inputs, *(v for n in graph.nodes for v in n.outputs)]:
        if not _is_signed(value):
            continue
        if value.producer is None or value.producer.op == "reinterpret":
            _shift_readers(graph, value)
        else:
            _shift_value(graph, value)
    for node in graph.nodes:
        for index, operand in enumerate(node.inputs):
            weight = node.op in _WEIGHTED and index > 0
            if operand is not None and operand.is_constant and _is_signed(operand) and not weight:
                node.set_input(index, _shifted_constant(graph, operand))


def _shift_readers(graph: Graph, value: Value) -> None:
    """All readers but raw ones get ``value`` through a requantize."""
    uses = [(n, i) for n, i in value.uses if n.op != "reinterpret"]
    if not uses:
        return
    type_ = value.type.with_(encoding=_unsigned(value.type.affine))
    first = min((n for n, _ in uses), key=graph.nodes.index)
    shifted = build(
        graph, "requantize", [value], loc=first.loc + ".unsigned", types=[type_], before=first
    )
    for node, index in uses:
        node.set_input(index, shifted.output)


def _shift_value(graph: Graph, value: Value) -> None:
    """``value`` itself becomes unsigned; raw readers and the graph's outputs get it back signed."""
    signed = value.type
    producer = value.producer
    assert producer is not None
    value.type = signed.with_(encoding=_unsigned(signed.affine))
    raw = [(n, i) for n, i in value.uses if n.op == "reinterpret"]
    if not raw and not graph.is_output(value):
        return
    back = build(
        graph, "requantize", [value], loc=producer.loc + ".signed", types=[signed], after=producer
    )
    for node, index in raw:
        node.set_input(index, back.output)
    outputs = [back.output if v is value else v for v in graph.outputs]
    graph.set_outputs(outputs, graph.output_names)


def widened_activations(graph: Graph) -> None:
    """Give activations of fewer than 8 bits 8-bit encodings, which is what kernels are made for.

    Scale and zero point stay; the narrower range becomes the producer's fused clamp, or a clip.
    """
    for node in list(graph.nodes):
        for value in node.outputs:
            encoding = value.type.encoding
            if isinstance(encoding, Affine) and encoding.axis is None and encoding.bits < 8:
                _widen(graph, node, value, encoding)


def _widen(graph: Graph, node: Node, value: Value, encoding: Affine) -> None:
    wide = replace(encoding, bits=8, narrow=False)
    low, high = encoding.real_range
    value.type = value.type.with_(encoding=wide)
    op = op_of(node)
    if op.quantised is Quantised.SAME:
        return  # its operands are widened alike
    if "act_min" in op.attributes:
        node.attrs["act_min"] = max(float(op.get(node, "act_min")), low)
        node.attrs["act_max"] = min(float(op.get(node, "act_max")), high)
        return
    ends = {"min": low, "max": high}
    if node.op == "quantize":
        inner = build(graph, "clip", [node.input(0)], ends, loc=node.loc + ".range", before=node)
        node.set_input(0, inner.output)
        return
    users = list(value.uses)
    loc = node.loc + ".range"
    clip = build(graph, "clip", [value], ends, loc=loc, types=[value.type], after=node)
    for user, index in users:
        user.set_input(index, clip.output)
    outputs = [clip.output if v is value else v for v in graph.outputs]
    graph.set_outputs(outputs, graph.output_names)


def _shifted_constant(graph: Graph, value: Value) -> Value:
    encoding = _unsigned(value.type.affine)
    codes = value.stored().astype("int32") + (1 << (encoding.bits - 1))
    type_ = value.type.with_(encoding=encoding)
    return graph.add_stored({"values": codes.astype(type_.storage.numpy)}, type_, name=value.name)
