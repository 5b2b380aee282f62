"""The row of float32 layers whose weights are looked up by their codes into panels."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlcc.ir import Affine, Binary, Codebook, Node, Ternary, Value
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelPlan
from targets.kernels import conv
from targets.kernels.real_panel import ENTRIES, PERMUTE, RealCodes
from targets.rows import layers
from targets.rows.base import IsaRow

MOST_BITS = 4
"""Bits of a code: 16 numbers fill a vector of AVX-512."""


def _width(bits: int) -> int:
    """Bits of a code as it is stored: a power of two, so that words hold whole codes."""
    return 1 << (bits - 1).bit_length()


def width_of_places(weight: Value) -> int:
    """Bits of a code of :func:`real_codes`."""
    encoding = weight.type.encoding
    return 2 if isinstance(encoding, Ternary) else _width(getattr(encoding, "bits", 1))


def _tables(*rows: Array, bits: int) -> Array:
    """Tables as [tables, 2^bits], filled up with zeros."""
    made = np.zeros((len(rows), 1 << bits), np.float32)
    for table, row in zip(made, rows, strict=True):
        table[: len(row)] = row
    return made


def _factors(weight: Value, *scales: tuple[float, ...]) -> Array:
    shape = (len(scales), weight.type.shape[0])
    return np.broadcast_to(np.asarray(scales, np.float32), shape)


def _outline(weight: Value) -> RealCodes:
    """What :func:`real_codes` will be like: known before the weights are rounded to codes."""
    encoding, scaled = weight.type.encoding, 1
    bits = _width(getattr(encoding, "bits", 1))
    if isinstance(encoding, Ternary):
        bits, scaled = 2, 1 if encoding.positive == encoding.negative else 2
    factors = _factors(weight, *[(1.0,)] * scaled)
    tables = np.zeros((scaled, 1 << bits), np.float32)
    return RealCodes(bits, tables, None if isinstance(encoding, Codebook) else factors)


def real_codes(weight: Value) -> tuple[Array, RealCodes]:
    """Codes of a weight in its shape, uint8, and what they stand for."""
    encoding, constant, shape = weight.type.encoding, weight.constant, weight.type.shape
    assert constant is not None
    count = int(np.prod(shape))
    if isinstance(encoding, Codebook):
        width, book = _width(encoding.bits), np.asarray(constant.parts["codebook"])
        found = encoding.unpack(constant.parts, count)
        made = RealCodes(width, _tables(book, bits=width))
    elif isinstance(encoding, Affine):
        width, low = _width(encoding.bits), encoding.code_range[0] - int(encoding.narrow)
        found = constant.parts["values"].astype(np.int32) - low
        row = np.arange(1 << encoding.bits) + low - encoding.zero_points[0]
        made = RealCodes(width, _tables(row, bits=width), _factors(weight, encoding.scales))
    elif isinstance(encoding, Binary):
        found = encoding.unpack(constant.parts, count)
        row = np.array([1, -1])
        made = RealCodes(1, _tables(row, bits=1), _factors(weight, encoding.scales))
        found = found & 1
    else:
        assert isinstance(encoding, Ternary)
        found = encoding.unpack(constant.parts, count) + 1
        if encoding.positive == encoding.negative:
            row = np.array([-1, 0, 1])
            made = RealCodes(2, _tables(row, bits=2), _factors(weight, encoding.positive))
        else:
            signs = (np.array([0, 0, 1]), np.array([-1, 0, 0]))
            factors = _factors(weight, encoding.positive, encoding.negative)
            made = RealCodes(2, _tables(*signs, bits=2), factors)
    return found.reshape(shape).astype(np.uint8), made


class LookupGemmRow(IsaRow):
    """Convolutions and linear layers of float32 activations by weights of at most 4 bits.

    The dense kernel, whose weights are looked up right before their use.
    """

    name: ClassVar[str] = "lookup-gemm"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    encodings: ClassVar[tuple[str, ...]] = (Affine.name, Ternary.name, Binary.name, Codebook.name)

    def serves(self, node: Node) -> bool:
        """Not asked about codes that fill their bytes."""
        return super().serves(node) and layers.has_narrow_codes(node)

    def refuses(self, node: Node) -> str:
        """Wide codes, scales that are no factors of channels, other activations."""
        encoding = node.input(1).type.encoding
        bits = getattr(encoding, "bits", 1)
        if bits > MOST_BITS:
            return f"codes of {bits} bits exceed a table of {ENTRIES} numbers"
        if getattr(encoding, "axis", None) not in (None, 0):
            return "the scales belong to columns"
        if isinstance(encoding, Affine) and len(set(encoding.zero_points)) > 1:
            return "the channels' zero points differ"
        why = layers.refusal(node)
        if why:
            return why
        spec = layers.conv_spec(node)
        if spec.in_dtype != "f32":
            return "the activations are not float32"
        if self.isa.lanes not in PERMUTE:
            return "the instruction set does not permute 32-bit lanes"
        if conv.geometry(spec, self.isa).merged > 1:
            return f"{spec.groups} groups are computed together, with zeros between them"
        return ""

    def cost(self, node: Node) -> float:
        """The dense kernel's products, the look-ups, and the bytes of the codes."""
        return conv.conv_cost(layers.conv_spec(node), self.isa, codes=_outline(node.input(1)))

    def plan(self, node: Node) -> KernelPlan:
        """Staging where borders need it, then the GEMM with its epilogue."""
        spec, bias = layers.conv_spec(node), layers.float_bias(node)
        weights, codes = real_codes(node.input(1))
        shaped = weights.reshape(spec.oc, spec.c // spec.groups, spec.kh, spec.kw)
        return conv.conv2d(spec, self.isa, shaped, bias, codes=codes)
