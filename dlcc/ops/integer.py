"""What integer layers share: exact accumulation, scales of operands, the epilogue.

Accumulators are int32 and wrap modulo 2^32. The sums run through floating-point BLAS where every
partial sum is provably an exact integer (below 2^24 in float32, 2^53 in float64).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dlcc import numerics
from dlcc.ir import F32, Affine, Binary, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import activations, type_error

if TYPE_CHECKING:
    from dlcc.ops.base import Op


def filled(xs: Sequence[Array | None], count: int) -> list[Array | None]:
    """Operands with the trailing absent ones as None."""
    return [*xs, *[None] * (count - len(xs))]


def float_dtype(*arrays: Array | None) -> Any:
    """The dtype a float reference computes in: float64 where an operand is, else float32."""
    wide = any(a is not None and a.dtype == np.float64 for a in arrays)
    return np.float64 if wide else np.float32


def exact_dtype(largest: float) -> Any:
    """A float dtype in which integers up to ``largest`` in magnitude are exact."""
    return np.float32 if largest < 1 << 24 else np.float64


def to_int32(sums: Array) -> Array:
    """Exact float sums -> int32, modulo 2^32."""
    if sums.dtype == np.float32:
        return sums.astype(np.int32)
    return sums.astype(np.int64).astype(np.int32)


def magnitude(array: Array) -> float:
    """Largest absolute value, 0 for an empty array."""
    if not array.size:
        return 0.0
    return float(max(abs(float(array.max())), abs(float(array.min()))))


def affine_of(value: Value) -> Affine | None:
    """The codes that ``value`` is computed with: its own, or those that its encoding stands for."""
    return value.type.encoding.uniform


def codes_of(value: Value, array: Array) -> Array:
    """Integer codes of an operand; a compressed constant arrives decoded and is encoded again."""
    encoding = affine_of(value)
    assert encoding is not None
    return array if isinstance(value.type.encoding, Affine) else encoding.quantise(array)


def real_of(value: Value, array: Array) -> Array:
    """Real values of an operand of a reference: codes decoded, anything else as it is."""
    encoding = value.type.encoding
    return encoding.dequantise(array) if isinstance(encoding, Affine) else array


def quantise_real(values: Array, encoding: Affine) -> Array:
    """The ``quantize`` op: clamp(rint(x / scale) + zero_point) with float32 division.

    NaN becomes the lowest code, as a float minimum and maximum in C leave it undefined otherwise.
    """
    shape = [1] * values.ndim
    if encoding.axis is not None:
        shape[encoding.axis] = -1
    scales = np.asarray(encoding.scales, np.float32)
    zeros = np.asarray(encoding.zero_points, np.float32)
    if encoding.axis is None:
        scale, zero = scales[0], zeros[0]
    else:
        scale, zero = scales.reshape(shape), zeros.reshape(shape)
    low, high = encoding.code_range
    with np.errstate(all="ignore"):
        codes = np.rint(values.astype(np.float32) / scale) + zero
    codes = np.where(np.isnan(codes), np.float32(low), codes)
    clamped = np.clip(codes.astype(np.float64), low, high)
    return clamped.astype(np.int64).astype(encoding.storage(F32).numpy)


def evaluate_mixed(op: Op, node: Node, xs: Sequence[Array | None]) -> list[Array]:
    """Float reference of a node with some quantised operands (weight-only quantisation)."""
    real = [
        None if a is None or v is None else real_of(v, a)
        for v, a in zip(node.inputs, xs, strict=True)
    ]
    results = op.evaluate(node, real)
    return [
        quantise_real(array, value.type.encoding)
        if isinstance(value.type.encoding, Affine)
        else array
        for value, array in zip(node.outputs, results, strict=True)
    ]


def weight_scales(encoding: Affine, channels: int) -> Array:
    """float64 scale of each output channel of a weight."""
    scales = np.asarray(encoding.scales, np.float64)
    return np.broadcast_to(scales, (channels,)) if scales.size == 1 else scales


def signs_of(values: Array, encoding: Binary) -> Array:
    """Real values of a binary activation: -s below 0, else s (0 and NaN too), in float32."""
    scale = np.float32(encoding.scales[0])
    return np.where(values < 0, -scale, scale)


def check_binary(node: Node) -> None:
    """Check the types of a layer of binary activations.

    Raises:
        DlccError: several scales, or codes among what is added or made.
    """
    for value in activations(node):
        encoding = value.type.encoding
        if isinstance(encoding, Binary) and (encoding.axis is not None or not encoding.scales[0]):
            raise type_error(node, "binary activations need one positive scale for all of them")
    rest = [node.optional_input(2), node.optional_input(3)]
    if any(v is not None and not v.type.is_dense for v in rest):
        raise type_error(node, "a layer of binary activations adds float32 numbers")
    out = node.output.type
    if not (out.is_dense or out.is_binary):
        raise type_error(node, "a layer of binary activations gives float32 numbers or signs")


def finish_binary(
    node: Node,
    acc: Array,
    acc_scales: Array,
    bias: Array | None,
    residual: Array | None,
    act_min: float,
    act_max: float,
) -> Array:
    """Epilogue of a layer of binary activations, in separate float32 operations.

    clamp(f32(acc) * m + bias + residual), and its sign where the output is binary.

    Args:
        node: the layer, with one output.
        acc: int32 sums of products of signs and codes.
        acc_scales: float64 real value of one accumulator unit, broadcastable to ``acc``.
        bias: float32, broadcastable to ``acc``.
        residual: float32, of the shape of ``acc``.
        act_min: smallest real result.
        act_max: largest real result.
    """
    real = numerics.dequantise(acc, numerics.multiplier(acc_scales))
    for term in (bias, residual):
        real = real if term is None else real + term.astype(np.float32)
    real = np.clip(real, np.float32(act_min), np.float32(act_max))
    out = node.output.type.encoding
    return signs_of(real, out) if isinstance(out, Binary) else real


def finish(
    node: Node,
    acc: Array,
    acc_scales: Array,
    residual: tuple[Value, Array] | None,
    act_min: float,
    act_max: float,
) -> Array:
    """Epilogue of an integer layer: residual, requantisation (or float output), clamp.

    Args:
        node: the layer, with one output.
        acc: int32 accumulators, bias included.
        acc_scales: float64 real value of one accumulator unit, broadcastable to ``acc``.
        residual: a quantised operand to add, with its codes.
        act_min: smallest real result.
        act_max: largest real result.
    """
    if residual is not None:
        value, codes = residual
        encoding = value.type.affine
        ratio = numerics.multiplier(encoding.scale / acc_scales)
        term = numerics.residual_term(codes, encoding, ratio)
        acc = (acc.astype(np.int64) + term).astype(np.int32)
    out = node.output.type.encoding
    if isinstance(out, Affine):
        mult = numerics.multiplier(acc_scales, out.scale)
        low, high = numerics.activation_codes(out, act_min, act_max)
        return numerics.requantise(acc, mult, out, low, high)
    real = numerics.dequantise(acc, numerics.multiplier(acc_scales))
    return np.clip(real, np.float32(act_min), np.float32(act_max))
