"""From IR nodes to kernel specs: what a GEMM-like layer is, and its constants as kernels want them.

Scales become float32 multipliers here; the input's zero point is folded into the bias by the kernel
generators (``acc = sum(xq * wq) + bias - zx * sum(wq)``; borders are padded with ``zx``).

Weights may be encoded. :func:`layer_constants` decodes them for the kernels that want them dense: a
float layer's to float32, whatever the encoding, an integer layer's to the codes that its encoding
stands for (:attr:`dlcc.ir.Encoding.uniform`). Rows that run an encoding from its compressed form
take the constant themselves and compete with those by cost; lowering's report says which of both it
was (``KernelPlan.compressed``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from dlcc import numerics
from dlcc.ir import (
    Affine,
    Binary,
    Constant,
    Dense,
    Encoding,
    Node,
    ShortFloat,
    Sparse,
    TensorType,
    Value,
)
from dlcc.ir.dtypes import F32
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.views import root
from dlcc.ops import op_of
from dlcc.ops.integer import affine_of, weight_scales
from targets.isa import Isa
from targets.kernels import conv
from targets.kernels.packed_bits import Codes
from targets.kernels.pairs import PairSums
from targets.kernels.softmax import SoftmaxSpec
from targets.kernels.spec import (
    NUMPY,
    ConvSpec,
    ConvTransposeSpec,
    Epilogue,
    InType,
    MatmulSpec,
    OutType,
    RealType,
)


@dataclass(frozen=True)
class Constants:
    """Constants of a layer, not yet packed.

    ``weights`` as in the IR (codes, float32, float16, or bits of bfloat16), a linear layer's as
    [N,K,1,1]; ``bias`` int32 or float32 [channels]; ``multiplier`` and ``ratio`` (of the residual)
    float32 [channels] (integer layers, else None).
    """

    weights: Array
    bias: Array
    multiplier: Array | None = None
    ratio: Array | None = None


def refusal(node: Node) -> str:
    """Why no GEMM-family kernel can take the types of ``node``; "" if they can."""
    activations = [v for v in node.inputs if v is not None and not v.is_constant]
    for value in (*activations, node.output):
        why = _activation_refusal(value.type)
        if why:
            return f"%{value.name} {why}"
    if node.op == "matmul":
        return _matmul_refusal(node)
    weight = node.input(1)
    if not weight.is_constant:
        return "the weight is not known at compile time"
    if not prod(weight.type.shape) or not node.output.type.elements:
        return "a tensor has no elements"
    quantised = isinstance(node.input(0).type.encoding, Affine)
    return _weight_refusal(weight, quantised) or _residual_refusal(node, quantised)


def _activation_refusal(type_: TensorType) -> str:
    if type_.is_binary:
        return "is binary; these kernels take numbers of 8 bits and more"
    if type_.dtype != F32:
        return f"is {type_.dtype}; these kernels take f32, bf16, f16 and 8-bit activations"
    encoding = type_.encoding
    if isinstance(encoding, Affine) and (encoding.bits > 8 or encoding.axis is not None):
        return "is quantised, but not to at most 8 bits with one scale"
    return ""


def _weight_refusal(weight: Value, quantised: bool) -> str:
    encoding = weight.type.encoding
    if not quantised:
        return ""
    codes = encoding.uniform
    if codes is None or codes.bits > 8:
        return "an integer layer needs weights of at most 8 bits"
    if not codes.signed or any(codes.zero_points):
        return "the weights are not signed with zero point 0"
    return ""


def _residual_refusal(node: Node, quantised: bool) -> str:
    residual = node.optional_input(3)
    if residual is None:
        return ""
    integer = isinstance(residual.type.encoding, Affine)
    if residual.is_constant or integer != quantised:
        return "the residual operand is not an activation of the layer's own kind"
    if quantised and not isinstance(node.output.type.encoding, Affine):
        return "a quantised residual needs a quantised output"
    return ""


def _matmul_refusal(node: Node) -> str:
    a, b = node.input(0), node.input(1)
    if node.optional_input(2) is not None:
        return "matmul kernels add no residual"
    if a.is_constant or b.is_constant:
        return "one operand is a constant"
    if a.type.shape[:-2] != b.type.shape[:-2]:
        return "the leading axes differ"
    if isinstance(a.type.encoding, Affine) != isinstance(b.type.encoding, Affine):
        return "one operand is quantised and the other is not"
    if not node.output.type.elements:
        return "the output has no elements"
    return ""


def _memory_dtype(type_: TensorType) -> InType:
    if isinstance(type_.encoding, Affine):
        return "u8"
    return real_dtype(type_.encoding)


_SHORT: dict[str, RealType] = {"bfloat16": "bf16", "float16": "f16"}


def real_dtype(encoding: Encoding) -> RealType:
    """Short name of what real numbers are stored as."""
    return _SHORT.get(encoding.name, "f32")


def epilogue_dtype(encoding: Encoding) -> OutType:
    """Short name of what results are stored as."""
    if isinstance(encoding, Affine):
        return "s8" if encoding.signed else "u8"
    return real_dtype(encoding)


def in_dtype(node: Node) -> InType:
    """What is multiplied: 16-bit floats where any operand is."""
    short = op_of(node).rounds_factors(node)
    return _memory_dtype(node.input(0).type) if short is None else real_dtype(short)


def _zero_point(type_: TensorType) -> int:
    return type_.encoding.zero_point if isinstance(type_.encoding, Affine) else 0


def _has_slack(value: Value) -> bool:
    """False where the bytes are the caller's own buffer."""
    return root(value).producer is not None


def epilogue(node: Node) -> Epilogue:
    """Output dtype, clamp and residual of a layer."""
    op = op_of(node)
    low, high = float(op.get(node, "act_min")), float(op.get(node, "act_max"))
    residual = node.optional_input(3) if node.op in ("conv2d", "linear") else None
    kind: InType | None = None if residual is None else _memory_dtype(residual.type)
    zero = 0 if residual is None else _zero_point(residual.type)
    out = node.output.type.encoding
    name = epilogue_dtype(out)
    if not isinstance(out, Affine):
        return Epilogue(name, low, high, 0, kind, zero)
    code_low, code_high = numerics.activation_codes(out, low, high)
    return Epilogue(name, float(code_low), float(code_high), out.zero_point, kind, zero)


def conv_spec(node: Node) -> ConvSpec:
    """Spec of a ``conv2d`` or ``linear`` node."""
    x, weight = node.input(0), node.input(1)
    if node.op == "linear":
        return ConvSpec(
            1,
            1,
            prod(x.type.shape[:-1]),
            x.type.shape[-1],
            weight.type.shape[0],
            in_dtype=in_dtype(node),
            in_zero_point=_zero_point(x.type),
            epilogue=epilogue(node),
            input_slack=_has_slack(x),
            stored=_memory_dtype(x.type),
        )
    n, c, h, w = x.type.shape
    op = op_of(node)
    return ConvSpec(
        n,
        h,
        w,
        c,
        weight.type.shape[0],
        weight.type.shape[2],
        weight.type.shape[3],
        stride=op.get(node, "strides"),
        dilation=op.get(node, "dilations"),
        pads=op.get(node, "pads"),
        groups=op.get(node, "groups"),
        in_dtype=in_dtype(node),
        in_zero_point=_zero_point(x.type),
        epilogue=epilogue(node),
        input_slack=_has_slack(x),
        stored=_memory_dtype(x.type),
    )


def planned(
    node: Node,
    isa: Isa,
    *,
    amx: bool = True,
    columns: bool = False,
    pairs: PairSums | None = None,
    block: tuple[int, int, int] | None = None,
    codes: Codes | None = None,
) -> KernelPlan:
    """The plan of :func:`targets.kernels.conv.conv2d` for a node's own constants."""
    made = layer_constants(node)
    return conv.conv2d(
        conv_spec(node),
        isa,
        made.weights,
        made.bias,
        made.multiplier,
        made.ratio,
        amx=amx,
        columns=columns,
        pairs=pairs,
        block=block,
        codes=codes,
    )


def conv_transpose_spec(node: Node) -> ConvTransposeSpec:
    """Spec of a ``conv_transpose2d`` node."""
    n, c, h, w = node.input(0).type.shape
    _, per_group, kh, kw = node.input(1).type.shape
    op = op_of(node)
    groups = int(op.get(node, "groups"))
    return ConvTransposeSpec(
        n,
        h,
        w,
        c,
        per_group * groups,
        kh,
        kw,
        stride=op.get(node, "strides"),
        dilation=op.get(node, "dilations"),
        pads=op.get(node, "pads"),
        output_padding=op.get(node, "output_padding"),
        groups=groups,
        in_dtype=in_dtype(node),
        in_zero_point=_zero_point(node.input(0).type),
        epilogue=epilogue(node),
        stored=_memory_dtype(node.input(0).type),
    )


def matmul_spec(node: Node) -> MatmulSpec:
    """Spec of a ``matmul`` node with equal leading axes."""
    a, b = node.input(0), node.input(1)
    *lead, m, k = a.type.shape
    return MatmulSpec(
        prod(lead),
        m,
        k,
        node.output.type.shape[-1],
        in_dtype=in_dtype(node),
        a_zero_point=_zero_point(a.type),
        b_zero_point=_zero_point(b.type),
        transpose_b=bool(op_of(node).get(node, "transpose_b")),
        epilogue=epilogue(node),
        a_slack=_has_slack(a),
        b_slack=_has_slack(b),
        a_stored=_memory_dtype(a.type),
        b_stored=_memory_dtype(b.type),
    )


def matmul_multiplier(node: Node) -> float:
    """The one multiplier of an integer matmul (1 for a float one)."""
    a, b, out = (v.type.encoding for v in (node.input(0), node.input(1), node.output))
    if not isinstance(a, Affine) or not isinstance(b, Affine):
        return 1.0
    scales = np.float64(a.scale) * np.float64(b.scale)
    denominator = out.scale if isinstance(out, Affine) else 1.0
    return float(numerics.multiplier(np.asarray(scales), denominator))


def weight_array(node: Node) -> Array:
    """The dense weight of a layer: codes (int8) for quantised activations, else real numbers."""
    weight = node.input(1)
    coded = isinstance(node.input(0).type.encoding, Affine)
    assert weight.constant is not None
    if not coded and isinstance(weight.type.encoding, Dense | Affine):
        return weight.decoded()
    return stored_weight(weight.constant, weight.type, coded)


def known_codes(node: Node) -> bool:
    """Whether the weight's codes are there: a cost may be asked for before anything is rounded."""
    constant = node.input(1).constant
    values = None if constant is None else constant.parts.get("values")
    return values is not None and values.dtype.kind in "iu"


def stored_weight(constant: Constant, type_: TensorType, codes: bool) -> Array:
    """A weight as it is stored if that is dense; else its codes, or (``codes`` false) decoded."""
    if isinstance(type_.encoding, Dense | Affine | ShortFloat):
        return constant.parts["values"].reshape(type_.shape)
    return _spread(constant, type_, codes)


@lru_cache(maxsize=1)
def _spread(constant: Constant, type_: TensorType, codes: bool) -> Array:
    """A compressed weight in full; kept, as each row of the kernel table asks for it."""
    encoding = type_.encoding
    if codes and isinstance(encoding, Sparse) and isinstance(encoding.inner, Affine):
        return encoding.codes(constant.parts, type_.shape)
    real = encoding.decode(constant.parts, type_.shape)
    if not codes:
        return real
    assert encoding.uniform is not None
    return encoding.uniform.quantise(real)


def float_bias(node: Node) -> Array:
    """Bias of a product layer of float activations, float32; zeros where it has none."""
    given = node.optional_input(2)
    if given is None:
        return np.zeros(node.output.type.shape[-1 if node.op == "linear" else 1], np.float32)
    return np.asarray(given.decoded())


def has_narrow_codes(node: Node) -> bool:
    """Whether the weight's codes leave bits of their bytes empty."""
    uniform = node.input(1).type.encoding.uniform
    return uniform is None or uniform.bits < 8


def narrow_codes(node: Node) -> Codes:
    """What the codes of an integer layer's weight stand for."""
    encoding = node.input(1).type.encoding
    if isinstance(encoding, Binary) and weight_array(node).all():
        return Codes.signs()
    assert encoding.uniform is not None
    return Codes.signed(encoding.uniform.bits)


def layer_constants(node: Node) -> Constants:
    """Weights, bias and multipliers of a conv2d, conv_transpose2d or linear node."""
    x, weight = node.input(0), node.input(1)
    channels = node.output.type.shape[-1 if node.op == "linear" else 1]
    given = node.optional_input(2)
    stored = weight_array(node)
    if node.op == "linear":
        stored = stored.reshape(*stored.shape, 1, 1)
    source = x.type.encoding
    if not isinstance(source, Affine):
        bias = float_bias(node)
        short = op_of(node).rounds_factors(node)
        if short is None:
            return Constants(stored.astype(np.float32), bias.astype(np.float32))
        return Constants(short.encode(stored)["values"].view(NUMPY[real_dtype(short)]), bias)
    bias = np.zeros(channels, np.int32) if given is None else given.stored()
    encoding = affine_of(weight)
    assert encoding is not None
    scales = source.scale * weight_scales(encoding, channels)
    out = node.output.type.encoding
    mult = numerics.multiplier(scales, out.scale if isinstance(out, Affine) else 1.0)
    residual = node.optional_input(3) if node.op != "conv_transpose2d" else None
    ratio = None
    if residual is not None:
        ratio = numerics.multiplier(residual.type.affine.scale / scales)
    return Constants(stored, bias, mult, ratio)


def softmax_refusal(node: Node, *, any_axis: bool = False) -> str:
    """Why the row kernel of softmax cannot take ``node``; "" if it can.

    ``any_axis``: its rows may lie in memory in any way.
    """
    x = node.input(0)
    for value in (x, node.output):
        why = _activation_refusal(value.type)
        if why:
            return f"%{value.name} {why}"
    axis = int(op_of(node).get(node, "axis")) % x.type.rank
    apart = not any_axis and x.type.permutation[-1] != axis
    if apart or node.output.type.permutation != x.type.permutation:
        return "the elements of a row are not neighbours in memory"
    if not node.output.type.elements:
        return "the output has no elements"
    source, out = x.type.encoding, node.output.type.encoding
    if isinstance(out, Affine) and not isinstance(source, Affine):
        return "the output is quantised and the input is not"
    if isinstance(source, Affine) and source.signed:
        return "the input's codes are signed"
    return ""


def softmax_spec(node: Node) -> SoftmaxSpec:
    """Spec of a ``softmax`` node along the last axis in memory."""
    type_ = node.input(0).type
    length = type_.physical_shape[-1]
    out = epilogue_dtype(node.output.type.encoding)
    return SoftmaxSpec(type_.elements // length, length, _memory_dtype(type_), out)
