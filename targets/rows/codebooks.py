"""Row of the kernel table that runs weights out of large or several codebooks from their codes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlcc.ir import Codebook, Encoding, Node, ProductCodebook, ResidualCodebook, Value
from dlcc.ir.packing import unpack_bits
from dlcc.lowering.kernel import KernelPlan
from targets.kernels import lookup_gemv, wide_lookup
from targets.kernels.wide_lookup import WideCodes
from targets.rows import layers
from targets.rows.base import IsaRow

_Books = Codebook | ProductCodebook | ResidualCodebook


def _encoding(node: Node) -> _Books:
    encoding: Encoding = node.input(1).type.encoding
    assert isinstance(encoding, _Books)
    return encoding


def _form(weight: Value) -> tuple[int, int, int]:
    """Columns of a run, stages and codebooks."""
    encoding, (_, k) = weight.type.encoding, weight.type.shape
    if isinstance(encoding, ResidualCodebook):
        return encoding.length, encoding.stages, encoding.stages
    if isinstance(encoding, ProductCodebook):
        return encoding.length, 1, 1 if encoding.shared else k // encoding.length
    return 1, 1, 1


def _codes(weight: Value) -> WideCodes:
    encoding, constant, (n, k) = weight.type.encoding, weight.constant, weight.type.shape
    assert constant is not None
    assert isinstance(encoding, _Books)
    length, stages, _ = _form(weight)
    count = stages * n * (k // length)
    codes = unpack_bits(constant.parts["values"], count, encoding.bits)
    book = np.asarray(constant.parts["codebook"], np.float32)
    book = book[None, :, None] if isinstance(encoding, Codebook) else book
    sides = codes.reshape(stages, n, k // length).swapaxes(0, 1).reshape(n, -1)
    return WideCodes(sides, book.swapaxes(1, 2), stages)


class WideLookupRow(IsaRow):
    """Linear layers of one row of float32 activations by codes of up to 8 bits, or sums of them."""

    name: ClassVar[str] = "wide-lookup-gemv"
    ops: ClassVar[tuple[str, ...]] = ("linear",)
    encodings: ClassVar[tuple[str, ...]] = (
        Codebook.name,
        ProductCodebook.name,
        ResidualCodebook.name,
    )

    def serves(self, node: Node) -> bool:
        """Not asked about what tables of 16 numbers hold."""
        if not super().serves(node):
            return False
        encoding = _encoding(node)
        return isinstance(encoding, ResidualCodebook) or 1 << encoding.bits > lookup_gemv.ENTRIES

    def refuses(self, node: Node) -> str:
        """Codes of more than 8 bits, quantised activations, several rows, other runs."""
        encoding = _encoding(node)
        if encoding.bits > wide_lookup.MOST_BITS:
            return f"codes of {encoding.bits} bits exceed a table of 256 numbers"
        if not isinstance(encoding, Codebook):
            if getattr(encoding, "along", "input") == "output":
                return "its runs lie along the outputs"
            if encoding.length == 1:
                return "runs of one column have a table each"
        return layers.refusal(node) or wide_lookup.refusal(layers.conv_spec(node), self.isa)

    def cost(self, node: Node) -> float:
        """Look-ups, bytes of codes, and the making of tables."""
        form, bits = _form(node.input(1)), _encoding(node).bits
        return wide_lookup.wide_lookup_cost(layers.conv_spec(node), self.isa, *form, bits)

    def plan(self, node: Node) -> KernelPlan:
        """Tables of the activations where codes stand for runs, then the look-ups."""
        spec, bias = layers.conv_spec(node), layers.float_bias(node)
        codes, bits = _codes(node.input(1)), _encoding(node).bits
        return wide_lookup.wide_lookup(spec, self.isa, codes, bits, bias)
