"""ONNX forms of single ops. Each function returns the name of the real-valued result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from dlcc.frontends.onnx_export import EXPORTERS, OPSETS, OnnxWriter, export_error, exports
from dlcc.ir import Affine, DType, Node
from dlcc.ops.base import op_of

_SAME_NAME: Final[Mapping[str, str]] = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "erf": "Erf", "exp": "Exp", "log": "Log",
    "sqrt": "Sqrt", "reciprocal": "Reciprocal", "neg": "Neg", "abs": "Abs", "floor": "Floor",
    "ceil": "Ceil", "round": "Round", "sign": "Sign", "hard_swish": "HardSwish",
    "softplus": "Softplus", "softsign": "Softsign", "sin": "Sin", "cos": "Cos", "tan": "Tan",
    "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh",
    "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "not": "Not", "sub": "Sub", "mul": "Mul",
    "div": "Div", "pow": "Pow", "minimum": "Min", "maximum": "Max", "prelu": "PRelu",
    "equal": "Equal", "less": "Less", "less_equal": "LessOrEqual", "greater": "Greater",
    "greater_equal": "GreaterOrEqual", "and": "And", "or": "Or", "xor": "Xor", "where": "Where",
    "is_nan": "IsNaN", "bit_and": "BitwiseAnd", "bit_or": "BitwiseOr", "bit_xor": "BitwiseXor",
}  # fmt: skip
"""Ops without attributes whose ONNX form takes the same operands."""

_ATTRIBUTES: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "hard_sigmoid": ("HardSigmoid", {"alpha": "alpha", "beta": "beta"}),
    "leaky_relu": ("LeakyRelu", {"alpha": "alpha"}),
    "elu": ("Elu", {"alpha": "alpha"}),
    "selu": ("Selu", {"alpha": "alpha", "gamma": "gamma"}),
    "celu": ("Celu", {"alpha": "alpha"}),
    "thresholded_relu": ("ThresholdedRelu", {"alpha": "alpha"}),
    "shrink": ("Shrink", {"bias": "bias", "lambd": "lambd"}),
    "softmax": ("Softmax", {"axis": "axis"}),
    "log_softmax": ("LogSoftmax", {"axis": "axis"}),
    "batch_norm": ("BatchNormalization", {"epsilon": "epsilon"}),
    "lrn": ("LRN", {"size": "size", "alpha": "alpha", "beta": "beta", "bias": "bias"}),
    "lp_norm": ("LpNormalization", {"axis": "axis", "p": "p"}),
    "transpose": ("Transpose", {"perm": "perm"}),
    "concat": ("Concat", {"axis": "axis"}),
    "gather": ("Gather", {"axis": "axis"}),
    "gather_elements": ("GatherElements", {"axis": "axis"}),
    "gather_nd": ("GatherND", {"batch_dims": "batch_dims"}),
    "scatter_elements": ("ScatterElements", {"axis": "axis", "reduction": "reduction"}),
    "scatter_nd": ("ScatterND", {"reduction": "reduction"}),
    "is_inf": ("IsInf", {"positive": "detect_positive", "negative": "detect_negative"}),
    "mod": ("Mod", {"fmod": "fmod"}),
    "argmax": ("ArgMax", {"axis": "axis", "keepdims": "keepdims",
                          "select_last_index": "select_last_index"}),
    "argmin": ("ArgMin", {"axis": "axis", "keepdims": "keepdims",
                          "select_last_index": "select_last_index"}),
}  # fmt: skip
"""Ops whose attributes go over one by one: ONNX op, IR attribute -> ONNX attribute."""

_REDUCTIONS: Final[Mapping[str, str]] = {
    "reduce_mean": "ReduceMean", "reduce_sum": "ReduceSum", "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin", "reduce_prod": "ReduceProd", "reduce_l1": "ReduceL1",
    "reduce_l2": "ReduceL2", "reduce_sum_square": "ReduceSumSquare",
    "reduce_log_sum_exp": "ReduceLogSumExp",
}  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, tuple):
        return [int(v) if isinstance(v, bool | np.integer) else v for v in value]
    return value


@exports(*_SAME_NAME)
def _same_name(writer: OnnxWriter, node: Node) -> str:
    if node.op.startswith("bit_") and writer.opset < 18:
        name = _SAME_NAME[node.op]
        raise export_error(node, f"{name} exists from opset 18 on", "export with --opset 18")
    return writer.emit(_SAME_NAME[node.op], writer.operands(node), node, writer.result_name(node))


@exports(*_ATTRIBUTES)
def _with_attributes(writer: OnnxWriter, node: Node) -> str:
    name, mapping = _ATTRIBUTES[node.op]
    op = op_of(node)
    attributes = {there: _plain(op.get(node, here)) for here, there in mapping.items()}
    return writer.emit(name, writer.operands(node), node, writer.result_name(node), **attributes)


@exports(*_REDUCTIONS)
def _reduction(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    axes = [int(a) for a in op.get(node, "axes")]
    attributes: dict[str, Any] = {"keepdims": int(op.get(node, "keepdims"))}
    operands = [writer.operand(node, 0)]
    if writer.opset >= 18 or node.op == "reduce_sum":
        operands.append(writer.integers(axes, "axes"))
    else:
        attributes["axes"] = axes
    return writer.emit(_REDUCTIONS[node.op], operands, node, writer.result_name(node), **attributes)


# -- layers with an epilogue -------------------------------------------------------------------


def _finish(writer: OnnxWriter, node: Node, raw: str, residual: int | None) -> str:
    """Add the residual operand and the clamp of a fused layer."""
    if residual is not None and node.optional_input(residual) is not None:
        inner = _inner_encoding(node, residual) if writer.integer_adds else None
        raw = raw if inner is None else writer.rounded(node, raw, inner)
        raw = writer.emit("Add", [raw, writer.operand(node, residual)], node)
    op = op_of(node)
    low, high = float(op.get(node, "act_min")), float(op.get(node, "act_max"))
    if math.isinf(low) and math.isinf(high):
        return _renamed(writer, node, raw)
    if low == 0.0 and math.isinf(high):
        return writer.emit("Relu", [raw], node, writer.result_name(node))
    type_ = node.output.type
    bounds = ["", ""]
    if not math.isinf(low):
        bounds[0] = writer.scalar(low, type_, "clip_min")
    if not math.isinf(high):
        bounds[1] = writer.scalar(high, type_, "clip_max")
    operands = [raw, *bounds]
    while not operands[-1]:
        operands.pop()
    return writer.emit("Clip", operands, node, writer.result_name(node))


def _inner_encoding(node: Node, residual: int) -> Affine | None:
    """8 bits over all that matters of a layer's result before the residual r is added.

    y = clamp(v + r): values of v beyond [y_min - r_max, y_max - r_min] end at the same bounds.
    """
    operands = (node.input(0), node.input(residual), node.output)
    encodings = [v.type.encoding for v in operands]
    if not all(isinstance(e, Affine) and e.axis is None and e.bits <= 8 for e in encodings):
        return None
    term, out = node.input(residual).type.affine, node.output.type.affine
    low = min(out.real_range[0] - term.real_range[1], 0.0)
    high = max(out.real_range[1] - term.real_range[0], 0.0)
    scale = float(np.float32((high - low) / 255))
    return Affine.per_tensor(8, out.signed, scale, round(-low / scale) - 128 * out.signed)


def _renamed(writer: OnnxWriter, node: Node, raw: str) -> str:
    """Let the node that made ``raw`` give the final name instead."""
    final = writer.result_name(node)
    for made in reversed(writer.nodes):
        if list(made.output) == [raw]:
            made.output[0] = final
            return final
    return writer.emit("Identity", [raw], node, final)


@exports("conv2d", "conv_transpose2d")
def _convolution(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    attributes = {
        "kernel_shape": list(node.input(1).type.shape[2:]),
        "strides": _plain(op.get(node, "strides")),
        "pads": _plain(op.get(node, "pads")),
        "dilations": _plain(op.get(node, "dilations")),
        "group": int(op.get(node, "groups")),
    }
    name = "Conv"
    if node.op == "conv_transpose2d":
        name = "ConvTranspose"
        attributes["output_padding"] = _plain(op.get(node, "output_padding"))
    operands = [writer.operand(node, 0), writer.operand(node, 1)]
    if node.optional_input(2) is not None:
        operands.append(writer.operand(node, 2))
    raw = writer.emit(name, operands, node, **attributes)
    return _finish(writer, node, raw, 3 if node.op == "conv2d" else None)


@exports("linear")
def _linear(writer: OnnxWriter, node: Node) -> str:
    x, bias = writer.operand(node, 0), writer.operand(node, 2)
    if node.input(0).type.rank == 2:
        operands = [x, writer.operand(node, 1)] + ([bias] if bias else [])
        raw = writer.emit("Gemm", operands, node, transB=1)
        return _finish(writer, node, raw, 3)
    weight = node.input(1)
    if weight.is_constant:
        turned = writer.dequantised_constant(weight, f"{weight.name}_t", (1, 0))
    else:
        turned = writer.emit("Transpose", [writer.real(weight)], node, perm=[1, 0])
    raw = writer.emit("MatMul", [x, turned], node)
    if bias:
        raw = writer.emit("Add", [raw, bias], node)
    return _finish(writer, node, raw, 3)


@exports("matmul")
def _matmul(writer: OnnxWriter, node: Node) -> str:
    a, b = writer.operand(node, 0), writer.operand(node, 1)
    if op_of(node).get(node, "transpose_b"):
        rank = node.input(1).type.rank
        perm = [*range(rank - 2), rank - 1, rank - 2]
        b = writer.emit("Transpose", [b], node, perm=perm)
    return _finish(writer, node, writer.emit("MatMul", [a, b], node), 2)


@exports("attention")
def _attention(writer: OnnxWriter, node: Node) -> str:
    """As products and a softmax: ``Attention`` is younger than the opsets that are written."""
    q, k, v = (writer.operand(node, index) for index in range(3))
    rank, scale = node.input(1).type.rank, float(op_of(node).get(node, "scale"))
    k = writer.emit("Transpose", [k], node, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = writer.emit("MatMul", [q, k], node)
    if scale != 1.0:
        factor = writer.constant(np.asarray(scale, np.float32), "scale")
        scores = writer.emit("Mul", [scores, factor], node)
    if node.optional_input(3) is not None:
        scores = writer.emit("Add", [scores, writer.operand(node, 3)], node)
    powers = writer.emit("Softmax", [scores], node, axis=-1)
    return writer.emit("MatMul", [powers, v], node)


@exports("add")
def _add(writer: OnnxWriter, node: Node) -> str:
    raw = writer.emit("Add", [writer.operand(node, 0), writer.operand(node, 1)], node)
    return _finish(writer, node, raw, None)


# -- pooling and normalisation -----------------------------------------------------------------


@exports("max_pool2d", "avg_pool2d")
def _pool(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    attributes = {
        "kernel_shape": _plain(op.get(node, "kernel")),
        "strides": _plain(op.get(node, "strides")),
        "pads": _plain(op.get(node, "pads")),
    }
    dilations = tuple(op.get(node, "dilations"))
    if node.op == "max_pool2d":
        attributes["dilations"] = _plain(dilations)
    else:
        attributes["count_include_pad"] = int(op.get(node, "count_include_pad"))
        if set(dilations) != {1}:
            if writer.opset < 19:
                raise export_error(
                    node, "AveragePool has dilations from opset 19 on", "export with --opset 19"
                )
            attributes["dilations"] = _plain(dilations)
    name = "MaxPool" if node.op == "max_pool2d" else "AveragePool"
    return writer.emit(
        name, [writer.operand(node, 0)], node, writer.result_name(node), **attributes
    )


def _parameter(
    writer: OnnxWriter, node: Node, index: int, shape: tuple[int, ...], fill: float
) -> str:
    """An operand, or a constant where ONNX wants what the IR leaves out."""
    if node.optional_input(index) is not None:
        return writer.operand(node, index)
    dtype = node.output.type.dtype.numpy
    return writer.constant(np.full(shape, fill, dtype), "ones" if fill else "zeros")


@exports("layer_norm")
def _layer_norm(writer: OnnxWriter, node: Node) -> str:
    op, x = op_of(node), node.input(0).type
    axis = int(op.get(node, "axis"))
    operands = [writer.operand(node, 0), _parameter(writer, node, 1, x.shape[axis:], 1.0)]
    if node.optional_input(2) is not None:
        operands.append(writer.operand(node, 2))
    epsilon = float(op.get(node, "epsilon"))
    return writer.emit(
        "LayerNormalization", operands, node, writer.result_name(node), axis=axis, epsilon=epsilon
    )


@exports("rms_norm")
def _rms_norm(writer: OnnxWriter, node: Node) -> str:
    op, x = op_of(node), node.input(0).type
    first = int(op.get(node, "axis")) % x.rank
    axes = list(range(first, x.rank))
    source = writer.operand(node, 0)
    squares = writer.emit("Mul", [source, source], node)
    if writer.opset >= 18:
        mean = writer.emit("ReduceMean", [squares, writer.integers(axes, "axes")], node, keepdims=1)
    else:
        mean = writer.emit("ReduceMean", [squares], node, axes=axes, keepdims=1)
    epsilon = writer.scalar(float(op.get(node, "epsilon")), x, "epsilon")
    root = writer.emit("Sqrt", [writer.emit("Add", [mean, epsilon], node)], node)
    if node.optional_input(1) is None:
        return writer.emit("Div", [source, root], node, writer.result_name(node))
    scaled = writer.emit("Div", [source, root], node)
    return writer.emit("Mul", [scaled, writer.operand(node, 1)], node, writer.result_name(node))


@exports("instance_norm")
def _instance_norm(writer: OnnxWriter, node: Node) -> str:
    channels = (node.input(0).type.shape[1],)
    operands = [
        writer.operand(node, 0),
        _parameter(writer, node, 1, channels, 1.0),
        _parameter(writer, node, 2, channels, 0.0),
    ]
    epsilon = float(op_of(node).get(node, "epsilon"))
    return writer.emit(
        "InstanceNormalization", operands, node, writer.result_name(node), epsilon=epsilon
    )


@exports("group_norm")
def _group_norm(writer: OnnxWriter, node: Node) -> str:
    """Groups become the channels of an InstanceNormalization."""
    op, x = op_of(node), node.input(0).type
    groups = int(op.get(node, "groups"))
    dtype = x.dtype.numpy
    shape = writer.integers((x.shape[0], groups, x.elements // (x.shape[0] * groups)), "grouped")
    flat = writer.emit("Reshape", [writer.operand(node, 0), shape], node)
    ones = writer.constant(np.ones(groups, dtype), "ones")
    zeros = writer.constant(np.zeros(groups, dtype), "zeros")
    epsilon = float(op.get(node, "epsilon"))
    normal = writer.emit("InstanceNormalization", [flat, ones, zeros], node, epsilon=epsilon)
    raw = writer.emit("Reshape", [normal, writer.integers(x.shape, "shape")], node)
    broadcast = writer.integers((x.shape[1], *(1 for _ in x.shape[2:])), "per_channel")
    for index, name in ((1, "Mul"), (2, "Add")):
        if node.optional_input(index) is not None:
            operand = writer.emit("Reshape", [writer.operand(node, index), broadcast], node)
            raw = writer.emit(name, [raw, operand], node)
    return _renamed(writer, node, raw)


# -- functions of one argument -----------------------------------------------------------------


@exports("clip")
def _clip(writer: OnnxWriter, node: Node) -> str:
    op, type_ = op_of(node), node.output.type
    bounds = []
    for key in ("min", "max"):
        bound = float(op.get(node, key))
        bounds.append("" if math.isinf(bound) else writer.scalar(bound, type_, f"clip_{key}"))
    operands = [writer.operand(node, 0), *bounds]
    while operands and not operands[-1]:
        operands.pop()
    return writer.emit("Clip", operands, node, writer.result_name(node))


@exports("silu")
def _silu(writer: OnnxWriter, node: Node) -> str:
    x = writer.operand(node, 0)
    gate = writer.emit("Sigmoid", [x], node)
    return writer.emit("Mul", [x, gate], node, writer.result_name(node))


@exports("mish")
def _mish(writer: OnnxWriter, node: Node) -> str:
    x = writer.operand(node, 0)
    gate = writer.emit("Tanh", [writer.emit("Softplus", [x], node)], node)
    return writer.emit("Mul", [x, gate], node, writer.result_name(node))


@exports("gelu")
def _gelu(writer: OnnxWriter, node: Node) -> str:
    """X * Phi(x); Phi by erf, or by the tanh approximation (Hendrycks and Gimpel 2016)."""
    x, type_ = writer.operand(node, 0), node.input(0).type
    approximate = str(op_of(node).get(node, "approximate"))
    if writer.opset >= 20:
        return writer.emit("Gelu", [x], node, writer.result_name(node), approximate=approximate)
    if approximate == "none":
        root = writer.scalar(math.sqrt(0.5), type_, "sqrt_half")
        curve = writer.emit("Erf", [writer.emit("Mul", [x, root], node)], node)
    else:
        cube = writer.emit("Mul", [x, writer.emit("Mul", [x, x], node)], node)
        cubic = writer.emit("Mul", [cube, writer.scalar(0.044715, type_, "gelu_cubic")], node)
        root = writer.scalar(math.sqrt(2 / math.pi), type_, "sqrt_2_over_pi")
        inner = writer.emit("Mul", [writer.emit("Add", [x, cubic], node), root], node)
        curve = writer.emit("Tanh", [inner], node)
    one, half = writer.scalar(1.0, type_, "one"), writer.scalar(0.5, type_, "half")
    gate = writer.emit("Mul", [writer.emit("Add", [curve, one], node), half], node)
    return writer.emit("Mul", [x, gate], node, writer.result_name(node))


@exports("cast")
def _cast(writer: OnnxWriter, node: Node) -> str:
    from onnx import helper

    to = DType.parse(str(op_of(node).get(node, "to"))).numpy
    element = helper.np_dtype_to_tensor_dtype(to)
    return writer.emit(
        "Cast", [writer.operand(node, 0)], node, writer.result_name(node), to=element
    )


# -- movement ----------------------------------------------------------------------------------


@exports("reshape", "expand")
def _reshape(writer: OnnxWriter, node: Node) -> str:
    name = "Reshape" if node.op == "reshape" else "Expand"
    shape = writer.integers(node.output.type.shape, "shape")
    attributes = {"allowzero": 1} if name == "Reshape" and 0 in node.output.type.shape else {}
    operands = [writer.operand(node, 0), shape]
    return writer.emit(name, operands, node, writer.result_name(node), **attributes)


@exports("tile")
def _tile(writer: OnnxWriter, node: Node) -> str:
    repeats = writer.integers(op_of(node).get(node, "repeats"), "repeats")
    return writer.emit("Tile", [writer.operand(node, 0), repeats], node, writer.result_name(node))


@exports("slice")
def _slice(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    starts, ends, axes, steps = (
        [int(v) for v in op.get(node, key)] for key in ("starts", "ends", "axes", "steps")
    )
    # An end of -1 means "before place 0" here, but "the last place" in ONNX.
    ends = [-(2**31) if e < 0 and s < 0 else e for e, s in zip(ends, steps, strict=True)]
    operands = [
        writer.operand(node, 0),
        *(
            writer.integers(values, hint)
            for values, hint in (
                (starts, "starts"),
                (ends, "ends"),
                (axes, "axes"),
                (steps, "steps"),
            )
        ),
    ]
    return writer.emit("Slice", operands, node, writer.result_name(node))


@exports("pad")
def _pad(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    mode = str(op.get(node, "mode"))
    if mode == "wrap" and writer.opset < 19:
        raise export_error(node, "Pad wraps from opset 19 on", "export with --opset 19")
    operands = [writer.operand(node, 0), writer.integers(op.get(node, "pads"), "pads")]
    if mode == "constant":
        operands.append(writer.scalar(float(op.get(node, "value")), node.output.type, "pad_value"))
    return writer.emit("Pad", operands, node, writer.result_name(node), mode=mode)


@exports("resize2d")
def _resize(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    scales = tuple(op.get(node, "scales"))
    attributes: dict[str, Any] = {
        "mode": str(op.get(node, "mode")),
        "coordinate_transformation_mode": str(op.get(node, "coordinate")),
        "nearest_mode": str(op.get(node, "nearest_mode")),
        "cubic_coeff_a": float(op.get(node, "cubic_coeff")),
        "exclude_outside": int(op.get(node, "exclude_outside")),
        "antialias": int(op.get(node, "antialias")),
    }
    coordinate = attributes["coordinate_transformation_mode"]
    if coordinate == "tf_half_pixel_for_nn" or (
        coordinate == "half_pixel_symmetric" and writer.opset < 19
    ):
        raise export_error(node, f"Resize of opset {writer.opset} has no mode {coordinate!r}")
    if attributes.pop("antialias", 0):
        if writer.opset < 18:
            raise export_error(node, "Resize has antialias from opset 18 on", "use --opset 18")
        attributes["antialias"] = 1
    roi = ""
    if coordinate == "tf_crop_and_resize":
        (top, left, bottom, right) = (float(v) for v in op.get(node, "roi"))
        region = (0.0, 0.0, top, left, 1.0, 1.0, bottom, right)
        roi = writer.constant(np.asarray(region, np.float32), "roi")
        attributes["extrapolation_value"] = float(op.get(node, "extrapolation"))
        scales = ()
    source = writer.operand(node, 0)
    if scales:
        factors = writer.constant(np.asarray((1.0, 1.0, *scales), np.float32), "scales")
        operands = [source, "", factors]
        _check_scaled_size(node, scales)
    else:
        operands = [source, roi, "", writer.integers(node.output.type.shape, "sizes")]
    return writer.emit("Resize", operands, node, writer.result_name(node), **attributes)


def _check_scaled_size(node: Node, scales: tuple[float, ...]) -> None:
    """ONNX takes sizes or scales, not both: the scales must give the sizes."""
    source, out = node.input(0).type.shape[2:], node.output.type.shape[2:]
    made = tuple(math.floor(d * np.float32(s)) for d, s in zip(source, scales, strict=True))
    if made != tuple(out):
        raise export_error(node, f"scales {scales} of {source} give {made}, not {tuple(out)}")


@exports("trilu")
def _trilu(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    diagonal = writer.constant(np.asarray(int(op.get(node, "k")), np.int64), "diagonal")
    operands = [writer.operand(node, 0), diagonal]
    upper = int(op.get(node, "upper"))
    return writer.emit("Trilu", operands, node, writer.result_name(node), upper=upper)


@exports("cum_sum")
def _cum_sum(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    axis = writer.constant(np.asarray(int(op.get(node, "axis")), np.int64), "axis")
    attributes = {key: int(op.get(node, key)) for key in ("exclusive", "reverse")}
    operands = [writer.operand(node, 0), axis]
    return writer.emit("CumSum", operands, node, writer.result_name(node), **attributes)


@exports("cum_prod", "bitcast")
def _newer(writer: OnnxWriter, node: Node) -> str:
    name = {"cum_prod": "CumProd", "bitcast": "BitCast"}[node.op]
    raise export_error(
        node, f"{name} exists from opset 26 on, and the newest written is {OPSETS[1]}"
    )


@exports("one_hot")
def _one_hot(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    depth = writer.constant(np.asarray(int(op.get(node, "depth")), np.int64), "depth")
    operands = [writer.operand(node, 0), depth, writer.operand(node, 1)]
    axis = int(op.get(node, "axis"))
    return writer.emit("OneHot", operands, node, writer.result_name(node), axis=axis)


@exports("top_k")
def _top_k(writer: OnnxWriter, node: Node) -> str:
    op = op_of(node)
    operands = [writer.operand(node, 0), writer.integers([int(op.get(node, "k"))], "k")]
    attributes = {"axis": int(op.get(node, "axis")), "largest": int(op.get(node, "largest"))}
    writer.define_several(node, "TopK", operands, sorted=1, **attributes)
    return ""


@exports("shift_left", "shift_right")
def _shift(writer: OnnxWriter, node: Node) -> str:
    if node.input(0).type.dtype.kind != "uint":
        raise export_error(node, "BitShift takes unsigned integers only")
    direction = "LEFT" if node.op == "shift_left" else "RIGHT"
    return writer.emit(
        "BitShift", writer.operands(node), node, writer.result_name(node), direction=direction
    )


# -- quantisation ------------------------------------------------------------------------------


@exports("quantize", "dequantize", "requantize", "relayout")
def _identity(writer: OnnxWriter, node: Node) -> str:
    """The same real numbers; the pair behind the result (if any) does the rounding."""
    source = writer.operand(node, 0)
    if isinstance(node.output.type.encoding, Affine):
        return source
    return writer.emit("Identity", [source], node, writer.result_name(node))


@exports("reinterpret")
def _reinterpret(writer: OnnxWriter, node: Node) -> str:
    """The same codes under another type."""
    source, value = node.input(0), node.output
    affine = isinstance(source.type.encoding, Affine)
    codes = writer.codes(source) if affine else writer.real(source)
    if isinstance(value.type.encoding, Affine):
        writer.define_codes(value, writer.emit("Identity", [codes], node, writer.code_name(value)))
        return ""
    return writer.emit("Identity", [codes], node, writer.result_name(node))


__all__ = ["EXPORTERS"]
