"""Fused activations, products, normalisations and embeddings of ``com.microsoft``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlcc.frontends.contrib.body import DOMAIN, Body, real, refuse_if, whole
from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import I32, Value
from dlcc.ops.cast import cast_to
from dlcc.ops.weights import as_weight, known, transposed

# -- operators that ONNX has too ---------------------------------------------------------------


def _as_onnx(node: OnnxNode) -> Sequence[Value]:
    body = Body(node)
    return body.onnx(node.op_type, node.inputs, attrs=node.attrs, outputs=node.output_count)


for _op_type in ("Gelu", "Trilu", "Pad", "GatherND", "GridSample", "Range"):
    onnx_op(_op_type, domain=DOMAIN)(_as_onnx)


@onnx_op("ExpandDims", domain=DOMAIN)
def _expand_dims(node: OnnxNode) -> Sequence[Value]:
    return Body(node).onnx("Unsqueeze", [node.input(0), node.input(1)])


@onnx_op("Unique", domain=DOMAIN)
def _unique(node: OnnxNode) -> Sequence[Value]:
    """The different numbers of a vector in the order in which they come, and where each is."""
    attrs = {"sorted": 0}
    numbers, _, places, counts = Body(node).onnx("Unique", [node.input(0)], "", attrs, 4)
    return [numbers, places, counts]


# -- activations -------------------------------------------------------------------------------


@onnx_op("FastGelu", domain=DOMAIN)
def _fast_gelu(node: OnnxNode) -> Sequence[Value]:
    body = Body(node)
    x = body.sum([node.input(0), node.optional(1)], ".biased")
    return [body("gelu", [x], approximate="tanh")]


@onnx_op("BiasGelu", domain=DOMAIN)
def _bias_gelu(node: OnnxNode) -> Sequence[Value]:
    body = Body(node)
    return [body("gelu", [body.sum([node.input(0), node.input(1)], ".biased")])]


@onnx_op("QuickGelu", domain=DOMAIN)
def _quick_gelu(node: OnnxNode) -> Sequence[Value]:
    """X * sigmoid(alpha * x)."""
    body, x = Body(node), node.input(0)
    alpha = real(node, "alpha", 1.702)
    if alpha == 1.0:
        return [body("silu", [x])]
    gate = body("sigmoid", [body.scaled(x, alpha, ".scaled")], ".gate")
    return [body("mul", [x, gate])]


@onnx_op("ScaledSiLU", domain=DOMAIN)
def _scaled_silu(node: OnnxNode) -> Sequence[Value]:
    """SiLU of x times an operand, or times ``alpha``."""
    body, x, factor = Body(node), node.input(0), node.optional(1)
    if factor is None:
        scaled = body.scaled(x, real(node, "alpha", 1.0), ".scaled")
    else:
        scaled = body("mul", [x, factor], ".scaled")
    return [body("silu", [scaled])]


@onnx_op("BiasAdd", domain=DOMAIN)
def _bias_add(node: OnnxNode) -> Sequence[Value]:
    return [Body(node).sum([node.input(0), node.input(1), node.input(2)])]


@onnx_op("BiasSplitGelu", domain=DOMAIN)
def _bias_split_gelu(node: OnnxNode) -> Sequence[Value]:
    """Left half times the GELU of the right half, of x + bias along the last axis."""
    body = Body(node)
    x = body.sum([node.input(0), node.input(1)], ".biased")
    axis, size = x.type.rank - 1, x.type.shape[-1]
    gate = body("gelu", [body.cut(x, axis, size // 2, size, ".right")], ".gate")
    return [body("mul", [body.cut(x, axis, 0, size // 2, ".left"), gate])]


@onnx_op("BiasSoftmax", domain=DOMAIN)
def _bias_softmax(node: OnnxNode) -> Sequence[Value]:
    """Softmax of x + bias over all axes from ``axis`` on."""
    body, x, bias = Body(node), node.input(0), node.input(1)
    rank, axis = x.type.rank, whole(node, "axis", 1) % x.type.rank
    if not whole(node, "is_inner_broadcast"):  # the bias repeats along outer axes: numpy's rule
        total = body.sum([x, bias], ".biased")
    else:
        lead = bias.type.shape[: bias.type.rank - (rank - axis)]
        ones = (1,) * (axis - len(lead))
        shape = (*lead, *ones, *bias.type.shape[len(lead) :])
        total = body.sum([x, body.reshape(bias, shape, ".bias")], ".biased")
    return (
        body.onnx("Softmax", [total], attrs={"axis": axis})
        if axis == rank - 1
        else _flat(body, total, axis)
    )


def _flat(body: Body, x: Value, axis: int) -> list[Value]:
    shape = x.type.shape
    flat = body.reshape(x, (*shape[:axis], int(np.prod(shape[axis:]))), ".flat")
    return [body.reshape(body("softmax", [flat], ".softmax", axis=axis), shape, "")]


_ACTIVATIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "": ("", ()),
    "Relu": ("relu", ()),
    "Tanh": ("tanh", ()),
    "Sigmoid": ("sigmoid", ()),
    "LeakyRelu": ("leaky_relu", ("alpha",)),
    "HardSigmoid": ("hard_sigmoid", ("alpha", "beta")),
    "Clip": ("clip", ("min", "max")),
    "HardSwish": ("hard_swish", ()),
    "Gelu": ("gelu", ()),
    "Elu": ("elu", ("alpha",)),
    "Selu": ("selu", ("alpha", "gamma")),
    "Softplus": ("softplus", ()),
    "Softsign": ("softsign", ()),
    "ThresholdedRelu": ("thresholded_relu", ("alpha",)),
}
"""Fused activations: the op, and what the given parameters are of it."""


def _activated(body: Body, x: Value, name: str, given: Sequence[float]) -> Value:
    """``x`` through the activation that a fused layer names."""
    if name not in _ACTIVATIONS:
        raise Unsupported(f"activation {name!r}")
    op, keys = _ACTIVATIONS[name]
    if not op:
        return x
    attrs: dict[str, Any] = {key: float(value) for key, value in zip(keys, given, strict=False)}
    return body(op, [x], **attrs)


# -- products ----------------------------------------------------------------------------------


def _operand(body: Body, value: Value, side: str) -> Value:
    """A factor of FusedMatMul with its axes in order."""
    attrs, rank, letter = body.node.attrs, value.type.rank, side.upper()
    order = list(range(rank))
    if attrs.get(f"transBatch{letter}", 0) and rank > 2:  # [M, batch..., K]
        order = [*order[1:-1], 0, order[-1]]
    if attrs.get(f"trans{letter}", 0) and rank > 1:
        order[-1], order[-2] = order[-2], order[-1]
    return body.transpose(value, order, f".{side}")


@onnx_op("FusedMatMul", domain=DOMAIN)
@onnx_op("TransposeMatMul", domain=DOMAIN)
@onnx_op("FusedMatMulActivation", domain=DOMAIN)
def _fused_matmul(node: OnnxNode) -> Sequence[Value]:
    """A @ B with either transposed, times alpha, through an activation."""
    body = Body(node)
    a, b = (_operand(body, node.input(k), side) for k, side in enumerate("ab"))
    alpha, activation = real(node, "alpha", 1.0), str(node.attrs.get("activation", ""))
    smaller = a if a.type.elements <= b.type.elements and not a.is_constant else b
    scaled = body.scaled(smaller, alpha, ".alpha")
    a, b = (scaled if v is smaller else v for v in (a, b))
    part = ".product" if activation else ""
    (made,) = body.onnx("MatMul", [a, b], part)
    return [_activated(body, made, activation, _parameters(node))]


def _parameters(node: OnnxNode) -> list[float]:
    keys = ("activation_alpha", "activation_beta", "activation_gamma")
    return [float(node.attrs[key]) for key in keys if key in node.attrs]


@onnx_op("FusedGemm", domain=DOMAIN)
def _fused_gemm(node: OnnxNode) -> Sequence[Value]:
    body, activation = Body(node), str(node.attrs.get("activation", ""))
    (made,) = body.onnx("Gemm", node.inputs, ".product" if activation else "", node.attrs)
    return [_activated(body, made, activation, _parameters(node))]


@onnx_op("GemmFastGelu", domain=DOMAIN)
def _gemm_fast_gelu(node: OnnxNode) -> Sequence[Value]:
    body = Body(node)
    (made,) = body.onnx("MatMul", [node.input(0), node.input(1)], ".product")
    biased = body.sum([made, node.optional(2)], ".biased")
    return [body("gelu", [biased], approximate="tanh")]


@onnx_op("FusedConv", domain=DOMAIN)
def _fused_conv(node: OnnxNode) -> Sequence[Value]:
    """act(conv(X, W) + B + Z)."""
    body, activation = Body(node), str(node.attrs.get("activation", ""))
    added, last = node.optional(3), ".sums" if activation else ""
    part = ".product" if added is not None else last
    (made,) = body.onnx("Conv", [node.input(0), node.input(1), node.optional(2)], part, node.attrs)
    made = body.sum([made, added], last)
    return [_activated(body, made, activation, node.attrs.get("activation_params", ()))]


@onnx_op("NhwcFusedConv", domain=DOMAIN)
@onnx_op("NhwcConv", domain=DOMAIN)
def _nhwc_conv(node: OnnxNode) -> Sequence[Value]:
    """FusedConv of images [N,...,C]; the weights are [O,...,I]."""
    body = Body(node)
    x = body.channels_first(node.input(0), ".first")
    weight = as_weight(node.graph, node.input(1), node.name)
    order = (0, weight.type.rank - 1, *range(1, weight.type.rank - 1))
    refuse_if(not known(weight), "weights that are only known at run time")
    weight = transposed(node.graph, weight, order, node.name)
    activation, added = str(node.attrs.get("activation", "")), node.optional(3)
    (made,) = body.onnx("Conv", [x, weight, node.optional(2)], ".product", node.attrs)
    if added is not None:
        made = body.sum([made, body.channels_first(added, ".added")], ".sums")
    made = _activated(body, made, activation, node.attrs.get("activation_params", ()))
    return [body.channels_last(made)]


@onnx_op("NhwcMaxPool", domain=DOMAIN)
def _nhwc_max_pool(node: OnnxNode) -> Sequence[Value]:
    body = Body(node)
    x = body.channels_first(node.input(0), ".first")
    return [body.channels_last(body.onnx("MaxPool", [x], ".pool", node.attrs)[0])]


# -- normalisations ----------------------------------------------------------------------------


def _skip_norm(node: OnnxNode, op: str, gamma: int, bias: int) -> Sequence[Value]:
    """A norm of input + skip + bias; the sum is the fourth result."""
    body = Body(node)
    total = body.sum([node.input(0), node.input(1), node.optional(bias)], ".added")
    parameters = [node.optional(k) for k in range(gamma, bias)]
    epsilon = real(node, "epsilon", 1e-12)
    normed = body(op, [total, *parameters], axis=-1, epsilon=epsilon)
    refuse_if(node.wants(1) or node.wants(2), "mean and deviation are results of training alone")
    return [normed, total, total, total]


@onnx_op("SkipLayerNormalization", domain=DOMAIN)
def _skip_layer_norm(node: OnnxNode) -> Sequence[Value]:
    return _skip_norm(node, "layer_norm", 2, 4)


@onnx_op("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def _skip_rms_norm(node: OnnxNode) -> Sequence[Value]:
    return _skip_norm(node, "rms_norm", 2, 3)


@onnx_op("GroupNorm", domain=DOMAIN)
@onnx_op("SkipGroupNorm", domain=DOMAIN)
def _group_norm(node: OnnxNode) -> Sequence[Value]:
    """Group norm of [N,H,W,C] (or [N,C,H,W]), with a skipped term and SiLU where asked for."""
    body, last, x = Body(node), bool(whole(node, "channels_last", 1)), node.input(0)
    if node.op_type == "SkipGroupNorm":
        skip, bias = node.input(3), node.optional(4)
        if skip.type.rank == 2:  # [N,C]
            n, c = skip.type.shape
            skip = body.reshape(skip, (n, 1, 1, c) if last else (n, c, 1, 1), ".skip")
        if bias is not None and not last:
            bias = body.reshape(bias, (bias.type.elements, 1, 1), ".bias")
        x = body.sum([x, skip, bias], ".added")
    total = x
    x = body.channels_first(x, ".first") if last else x
    attrs: dict[str, Any] = {
        "groups": whole(node, "groups"),
        "epsilon": real(node, "epsilon", 1e-5),
    }
    made = body("group_norm", [x, node.input(1), node.input(2)], ".norm", **attrs)
    made = body("silu", [made], ".silu") if whole(node, "activation") else made
    return [body.channels_last(made) if last else made, total]


# -- embeddings --------------------------------------------------------------------------------

Table = Callable[[int, Value, str], Value]
"""Rows of the embedding at an operand's number, by indices."""


def embedded(
    node: OnnxNode, rows: Table, segment: int | None, parameters: Sequence[Value], mask: int
) -> Sequence[Value]:
    """The sum of a token's, a place's and a segment's embeddings, normalised.

    Args:
        node: EmbedLayerNormalization or its quantised form; its operands 2 and 3 are the tables of
            words and places.
        rows: reads a table.
        segment: the operand that is the table of segments, None where there is none.
        parameters: scale and bias of the layer norm.
        mask: the operand that tells which tokens are real.
    """
    body, ids = Body(node), node.input(0)
    batch, length = ids.type.shape
    places = node.optional(8) if node.op_type == "EmbedLayerNormalization" else None
    if places is None:
        places = node.graph.add_constant(np.arange(length, dtype=np.int64)[None], name="places")
    terms = [rows(2, ids, ".words"), rows(3, places, ".places")]
    segments = node.optional(1)
    if segment is not None and segments is not None:
        terms.append(rows(segment, segments, ".segments"))
    total = body.sum(terms, ".sum")
    epsilon = real(node, "epsilon", 1e-12)
    results = [body("layer_norm", [total, *parameters], axis=-1, epsilon=epsilon)]
    if node.output_count > 1:
        told = node.optional(mask)
        if told is None:
            counted = node.graph.add_constant(np.zeros(batch, np.int32), name="mask_index")
        else:
            one = body("equal", [told, body.constant(1, told, "one")], ".real")
            numbers = cast_to(node, one, I32, ".numbers")
            counted = body("reduce_sum", [numbers], ".lengths", axes=(1,), keepdims=False)
        results += [counted, total]
    return results


@onnx_op("EmbedLayerNormalization", domain=DOMAIN)
def _embed_layer_norm(node: OnnxNode) -> Sequence[Value]:
    body = Body(node)

    def rows(table: int, indices: Value, part: str) -> Value:
        return body.onnx("Gather", [node.input(table), indices], part, {"axis": 0})[0]

    segment = 4 if node.optional(4) is not None else None
    return embedded(node, rows, segment, [node.input(5), node.input(6)], 7)


# -- signals and distances ---------------------------------------------------------------------


def _signal(node: OnnxNode) -> Body:
    refuse_if(
        whole(node, "signal_ndim", 1) != 1 or whole(node, "normalized"),
        "transforms of several axes and normalised ones are not defined by any runtime",
    )
    return Body(node)


@onnx_op("Rfft", domain=DOMAIN)
def _rfft(node: OnnxNode) -> Sequence[Value]:
    """The transform of real numbers along the last axis: [..., n] -> [..., n / 2 + 1, 2]."""
    body, x = _signal(node), node.input(0)
    flat = body.reshape(x, (1, *x.type.shape, 1), ".signal")
    attrs = {"onesided": whole(node, "onesided", 1)}
    (made,) = body.onnx("DFT", [flat, None, _last_axis(node)], ".dft", attrs)
    return [body.reshape(made, made.type.shape[1:], "")]


@onnx_op("Irfft", domain=DOMAIN)
def _irfft(node: OnnxNode) -> Sequence[Value]:
    """[..., n / 2 + 1, 2] -> [..., n] real numbers."""
    body, x = _signal(node), node.input(0)
    flat = body.reshape(x, (1, *x.type.shape), ".signal")
    attrs = {"onesided": 1, "inverse": 1}
    (made,) = body.onnx("DFT", [flat, None, _last_axis(node)], ".dft", attrs)
    return [body.reshape(made, made.type.shape[1:-1], "")]


def _last_axis(node: OnnxNode) -> Value:
    return node.graph.add_constant(np.asarray(-2, np.int64), name="axis")


@onnx_op("ComplexMul", domain=DOMAIN)
@onnx_op("ComplexMulConj", domain=DOMAIN)
def _complex_mul(node: OnnxNode) -> Sequence[Value]:
    """Products of complex numbers (re, im) along the last axis, of B's conjugates where asked."""
    body = Body(node)

    def parts(index: int, name: str) -> list[Value]:
        value = node.input(index)
        axis = value.type.rank - 1
        return [body.cut(value, axis, k, k + 1, f".{name}{k}") for k in (0, 1)]

    (ar, ai), (br, bi) = parts(0, "a"), parts(1, "b")
    product = {f"{p}{q}": body("mul", [u, v], f".{p}{q}")
               for p, u in (("r", ar), ("i", ai)) for q, v in (("r", br), ("i", bi))}  # fmt: skip
    one, other = ("add", "sub") if node.op_type == "ComplexMulConj" else ("sub", "add")
    first = body(one, [product["rr"], product["ii"]], ".real")
    second = body(other, [product["ir"], product["ri"]], ".imaginary")
    return [body("concat", [first, second], axis=first.type.rank - 1)]


@onnx_op("CDist", domain=DOMAIN)
def _cdist(node: OnnxNode) -> Sequence[Value]:
    """Distances of every row of A [M,K] to every row of B [N,K]."""
    body, a, b = Body(node), node.input(0), node.input(1)
    metric = str(node.attrs.get("metric", "sqeuclidean"))
    refuse_if(metric not in ("euclidean", "sqeuclidean"), f"metric {metric!r}")
    (m, k), n = a.type.shape, b.type.shape[0]
    left, right = body.reshape(a, (m, 1, k), ".a"), body.reshape(b, (1, n, k), ".b")
    apart = body("sub", [left, right], ".apart")
    root = metric == "euclidean"
    squares = body(
        "reduce_sum_square", [apart], ".squares" if root else "", axes=(2,), keepdims=False
    )
    return [body("sqrt", [squares]) if root else squares]


@onnx_op("UnfoldTensor", domain=DOMAIN)
def _unfold(node: OnnxNode) -> Sequence[Value]:
    """Windows of ``size`` by steps of ``step`` along ``dim``; they are the new last axis."""
    body, x = Body(node), node.input(0)
    size, step, rank = whole(node, "size"), whole(node, "step", 1), x.type.rank
    axis = whole(node, "dim", -1) % rank
    extent = x.type.shape[axis]
    refuse_if(not 0 < size <= extent or step < 1, f"windows of {size} by {step} in {extent}")
    places = np.arange((extent - size) // step + 1)[:, None] * step + np.arange(size)
    table = node.graph.add_constant(places.astype(np.int64), name="places")
    made = body("gather", [x, table], ".windows", axis=axis)
    order = [k for k in range(rank + 1) if k != axis + 1]
    return [body.transpose(made, (*order, axis + 1), "")]
