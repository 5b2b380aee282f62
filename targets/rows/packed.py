"""Rows of the kernel table that run weights of a few bits from their packed codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlcc.ir import Affine, Binary, Codebook, Encoding, Node, ProductCodebook, Ternary, Value
from dlcc.ir.encodings import Array
from dlcc.ir.packing import unpack_bits
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow
from targets.isa import Isa
from targets.kernels import conv, lookup_gemv, packed_gemv
from targets.kernels.lookup_gemv import Coded, sign_book, sign_codes
from targets.kernels.pairs import PairSums
from targets.kernels.sparse_layer import Layer
from targets.rows import layers, proofs
from targets.rows.base import IsaRow
from targets.rows.grouped import GroupedGemvRow
from targets.rows.looked_up import LookupGemmRow
from targets.rows.output_runs import InputRunsRow, OutputRunsRow


class PackedGemvRow(IsaRow):
    """Linear layers of one row of 8-bit activations by weights of at most 7 bits."""

    name: ClassVar[str] = "packed-gemv"
    ops: ClassVar[tuple[str, ...]] = ("linear",)
    encodings: ClassVar[tuple[str, ...]] = (Affine.name, Ternary.name, Binary.name)

    def serves(self, node: Node) -> bool:
        """Not asked about codes that fill their bytes."""
        return super().serves(node) and layers.has_narrow_codes(node)

    def refuses(self, node: Node) -> str:
        """Float activations, several rows, codes that are not signed."""
        return layers.refusal(node) or packed_gemv.refusal(layers.conv_spec(node))

    def cost(self, node: Node) -> float:
        """Products and bytes of the packed codes."""
        return packed_gemv.packed_gemv_cost(
            layers.conv_spec(node), self.isa, layers.narrow_codes(node)
        )

    def plan(self, node: Node) -> KernelPlan:
        """A copy of an input that may not be read past its end, then the product."""
        made = layers.layer_constants(node)
        layer = Layer(layers.conv_spec(node), made.weights, made.bias, made.multiplier, made.ratio)
        return packed_gemv.packed_gemv(layer, self.isa, layers.narrow_codes(node))


class PackedGemmRow(IsaRow):
    """Convolutions and linear layers of 8-bit activations by weights of at most 7 bits.

    The dense kernel of the vector unit, whose weights are unpacked right before their use.
    """

    name: ClassVar[str] = "packed-gemm"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    encodings: ClassVar[tuple[str, ...]] = (Affine.name, Ternary.name, Binary.name)
    amx: ClassVar[bool] = False

    def serves(self, node: Node) -> bool:
        """Not asked about codes that fill their bytes."""
        return super().serves(node) and layers.has_narrow_codes(node)

    def refuses(self, node: Node) -> str:
        """Float activations, groups that are computed together."""
        why = layers.refusal(node)
        if why:
            return why
        spec = layers.conv_spec(node)
        if spec.in_dtype != "u8":
            return "the activations are not quantised"
        if conv.geometry(spec, self.isa, amx=self.amx).merged > 1:
            return f"{spec.groups} groups are computed together, with zeros between them"
        return ""

    def _pairs(self, node: Node) -> PairSums | None:
        """How products are summed in 16 bits; None if they are not."""
        if self.isa.dot != "madd" or not layers.known_codes(node):
            return None
        sums = proofs.pair_sums(node, self.isa)
        return None if sums.extra else sums

    def cost(self, node: Node) -> float:
        """The dense kernel's products, the unpacking, and the bytes of the packed codes."""
        spec, pairs = layers.conv_spec(node), self._pairs(node)
        return conv.conv_cost(
            spec, self.isa, amx=self.amx, codes=layers.narrow_codes(node), pairs=pairs
        )

    def plan(self, node: Node) -> KernelPlan:
        """Staging where borders need it, then the GEMM with its epilogue."""
        pairs = self._pairs(node)
        return layers.planned(
            node, self.isa, amx=self.amx, pairs=pairs, codes=layers.narrow_codes(node)
        )


class AmxPackedGemmRow(PackedGemmRow):
    """The same on AMX tiles."""

    name: ClassVar[str] = "packed-gemm-amx"
    amx: ClassVar[bool] = True


def _along(numbers: Sequence[float], outputs: int) -> Array:
    return np.broadcast_to(np.asarray(numbers, np.float64), (outputs,))


def _planes(weight: Value) -> Coded:
    """Weights of a few bits as planes of signs s: a bit b is (1 + s) / 2."""
    encoding, constant, shape = weight.type.encoding, weight.constant, weight.type.shape
    assert constant is not None
    count, n = shape[0] * shape[1], shape[0]
    if isinstance(encoding, Affine):
        low = encoding.code_range[0] - int(encoding.narrow)
        u = constant.parts["values"].reshape(shape).astype(np.int32) - low
        scales, zeros = _along(encoding.scales, n), _along(encoding.zero_points, n)
        bits: list[Array] = [u >> j & 1 for j in range(encoding.bits)]
        factors = [scales * 2.0 ** (j - 1) for j in range(encoding.bits)]
        offset = scales * (((1 << encoding.bits) - 1) / 2 + low - zeros)
    elif isinstance(encoding, Ternary):
        codes = encoding.unpack(constant.parts, count).reshape(shape)
        up, down = _along(encoding.positive, n) / 2, _along(encoding.negative, n) / 2
        bits, factors, offset = [codes > 0, codes < 0], [up, -down], up - down
    else:
        assert isinstance(encoding, Binary)
        codes = encoding.unpack(constant.parts, count).reshape(shape)
        bits, factors, offset = [codes == 0], [_along(encoding.scales, n)], np.zeros(n)
    rows = np.stack([*factors, offset]).astype(np.float32)
    return Coded(sign_codes(np.stack(bits)), sign_book(), rows)


def _entries(weight: Value, encoding: Affine) -> Coded:
    """Codes of four bits: the table holds them centred, which keeps small weights small."""
    assert weight.constant is not None
    n, k = weight.type.shape
    low = encoding.code_range[0] - int(encoding.narrow)
    u = weight.constant.parts["values"].reshape(1, n, k).astype(np.int32) - low
    book = (np.arange(16, dtype=np.float32) + np.float32(low)).reshape(1, 1, 16)
    scales, zeros = _along(encoding.scales, n), _along(encoding.zero_points, n)
    return Coded(u.astype(np.uint8), book, np.stack([scales, -scales * zeros]).astype(np.float32))


def _form(encoding: Encoding) -> tuple[int, int]:
    """Columns that a code of :func:`_looked_up` stands for, and planes."""
    if isinstance(encoding, ProductCodebook):
        return encoding.length, 1
    if isinstance(encoding, Codebook):
        return 1, 1
    if isinstance(encoding, Affine):
        return (1, 1) if encoding.bits == 4 else (4, encoding.bits)
    return 4, 2 if isinstance(encoding, Ternary) else 1


def _looked_up(weight: Value) -> Coded:
    """Any weight that four-bit codes hold."""
    encoding, constant, (n, k) = weight.type.encoding, weight.constant, weight.type.shape
    assert constant is not None
    parts = constant.parts
    if isinstance(encoding, Codebook):
        codes = encoding.unpack(parts, n * k).reshape(1, n, k).astype(np.uint8)
        return Coded(codes, _book(np.asarray(parts["codebook"])[None, :, None]))
    if isinstance(encoding, ProductCodebook):
        runs = k // encoding.length
        codes = unpack_bits(parts["values"], n * runs, encoding.bits).reshape(1, n, runs)
        return Coded(codes.astype(np.uint8), _book(np.asarray(parts["codebook"])))
    if isinstance(encoding, Affine) and encoding.bits == 4:
        return _entries(weight, encoding)
    return _planes(weight)


def _book(entries: Array) -> Array:
    """[books, entries, length] as [books, length, 16]."""
    books, count, length = entries.shape
    made = np.zeros((books, length, 16), np.float32)
    made[:, :, :count] = entries.transpose(0, 2, 1)
    return made


class LookupGemvRow(IsaRow):
    """Linear layers of one row of float32 activations by weights of at most 4 bits."""

    name: ClassVar[str] = "lookup-gemv"
    ops: ClassVar[tuple[str, ...]] = ("linear",)
    encodings: ClassVar[tuple[str, ...]] = (
        Affine.name,
        Ternary.name,
        Binary.name,
        Codebook.name,
        ProductCodebook.name,
    )

    def serves(self, node: Node) -> bool:
        """Not asked about codes that fill their bytes."""
        return super().serves(node) and layers.has_narrow_codes(node)

    def refuses(self, node: Node) -> str:
        """Codes of more than 4 bits, quantised activations, several rows, scales per column."""
        encoding = node.input(1).type.encoding
        bits = getattr(encoding, "bits", 1)
        if bits > 4:
            return f"codes of {bits} bits exceed a table of 16 numbers"
        if isinstance(encoding, ProductCodebook) and encoding.along == "output":
            return "its runs lie along the outputs"
        if isinstance(encoding, ProductCodebook) and encoding.length == 1:
            return "runs of one column have a table each"
        if getattr(encoding, "axis", None) not in (None, 0):
            return "the scales belong to columns"
        return layers.refusal(node) or lookup_gemv.refusal(layers.conv_spec(node), self.isa)

    def cost(self, node: Node) -> float:
        """Look-ups, bytes of codes, and the making of tables."""
        length, planes = _form(node.input(1).type.encoding)
        return lookup_gemv.lookup_gemv_cost(layers.conv_spec(node), self.isa, length, planes)

    def plan(self, node: Node) -> KernelPlan:
        """Tables of the activations where codes stand for runs, then the look-ups."""
        spec, bias = layers.conv_spec(node), layers.float_bias(node)
        return lookup_gemv.lookup_gemv(spec, self.isa, _looked_up(node.input(1)), bias)


def packed_rows(isa: Isa) -> list[KernelRow]:
    """All rows for packed weights that this feature level can run."""
    if isa.arch != "x86":
        codes: list[KernelRow] = [PackedGemvRow(isa), PackedGemmRow(isa)]
        codes += [OutputRunsRow(isa), InputRunsRow(isa)]
        return codes + ([LookupGemvRow(isa), GroupedGemvRow(isa)] if isa.arch == "aarch64" else [])
    rows: list[KernelRow] = [PackedGemvRow(isa), LookupGemvRow(isa), PackedGemmRow(isa)]
    rows += [GroupedGemvRow(isa), OutputRunsRow(isa), LookupGemmRow(isa)]
    return [*rows, AmxPackedGemmRow(isa)] if isa.dot == "amx" else rows
