"""Rows for layers without products: they change, select or move 8-bit codes."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import numpy as np

from dlcc.ir import Affine, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelPlan, KernelStep, name_key
from dlcc.ops import op_of
from dlcc.ops.base import Quantised
from targets.isa import CLOCK
from targets.kernels import lookup, quantise
from targets.rows.base import IsaRow


def is_u8(type_: TensorType) -> bool:
    """Whether numbers of this type are stored as unsigned bytes with one scale."""
    encoding = type_.encoding
    return isinstance(encoding, Affine) and encoding.axis is None and _byte(type_) == "uint8"


def _byte(type_: TensorType) -> str:
    return str(type_.storage.numpy)


class _CodesRow(IsaRow):
    """A row made for one instruction set."""

    def _plan(self, step: KernelStep, constants: dict[str, Array], kernel: str) -> KernelPlan:
        """A plan of one step, on the vector unit."""
        return KernelPlan((step,), constants, features=self.isa.vector_flags(), kernel=kernel)


READ_BANDWIDTH = 26e9
"""Bytes per second of the caller's image, from the third-level cache."""

NEAR_IMAGE = 128 << 10
"""Bytes of an image up to which it lies in a nearer cache."""

CODES_BANDWIDTH = 75e9
"""Bytes per second of codes from and to the second-level cache."""

PLANES = 4
"""Most channels that are interleaved from planes."""

QUANTISE_PIXELS = 1 << 11
"""Pixels of a work item of quantisation."""

ITEM_BYTES = 1 << 14
"""Bytes of a work item of an elementwise kernel: about a microsecond."""


class TableRow(_CodesRow):
    """Functions of one quantised operand: a table with one entry per code."""

    name: ClassVar[str] = "table"
    ops: ClassVar[tuple[str, ...]] = ("*",)

    def refuses(self, node: Node) -> str:
        """Everything but a function from u8 codes to 8-bit codes in the same order."""
        if op_of(node).quantised is not Quantised.TABLE or not is_u8(node.input(0).type):
            return "it is no function of one u8 operand"
        x, y = node.input(0).type, node.output.type
        if _byte(y) not in ("uint8", "int8") or x.permutation != y.permutation:
            return "the output is not stored as bytes in the operand's order"
        if x.shape != y.shape or not x.elements:
            return "the shapes differ, or there are no elements"
        return ""

    def cost(self, node: Node) -> float:
        """Instructions per vector over the ports that take them."""
        elements = node.output.type.elements
        cycles = elements / (4 * self.isa.lanes) * (3.0 if self.isa.byte_permute else 24.0)
        return max(cycles / CLOCK, 2 * elements / CODES_BANDWIDTH)

    def plan(self, node: Node) -> KernelPlan:
        """One step over the flat codes."""
        elements = node.output.type.elements
        table = np.zeros(256, np.uint8)
        low, high = node.input(0).type.affine.code_range
        table[low : high + 1] = op_of(node).table(node).view(np.uint8)
        key = name_key("table", elements, ITEM_BYTES, self.isa)
        step = KernelStep(
            key,
            partial(lookup.lookup_function, key, elements, ITEM_BYTES, self.isa),
            (("in", 0), ("const", "table"), ("out", 0)),
            -(-elements // ITEM_BYTES),
        )
        constants = {"table": lookup.table_constant(table, self.isa)}
        return self._plan(step, constants, f"table {node.op}")


class QuantizeRow(_CodesRow):
    """Float numbers to codes, with the channels of few planes brought side by side."""

    name: ClassVar[str] = "quantise"
    ops: ClassVar[tuple[str, ...]] = ("quantize",)

    def refuses(self, node: Node) -> str:
        """Codes other than u8, orders other than the operand's or few planes to NHWC."""
        x, y = node.input(0).type, node.output.type
        if not x.is_dense or str(x.dtype) != "f32" or not is_u8(y):
            return "the numbers are not float32, or the codes not unsigned bytes with one scale"
        shape = planes_of(x, y)
        if shape is None:
            return "the order changes otherwise than from a few planes to NHWC"
        if shape[2] < quantise.NARROW:
            return f"fewer than {quantise.NARROW} numbers"
        return ""

    def cost(self, node: Node) -> float:
        """Instructions of a vector of floats, its share of the packs, and reading from memory."""
        elements = node.output.type.elements
        cycles = elements / self.isa.lanes * (4.0 if self._spec(node).divide else 2.5)
        seconds = (cycles + elements / 16) / CLOCK
        read = 4 * elements
        return max(seconds, read / READ_BANDWIDTH) if read > NEAR_IMAGE else seconds

    def _spec(self, node: Node) -> quantise.Quantise:
        encoding = node.output.type.affine
        shape = planes_of(node.input(0).type, node.output.type)
        assert shape is not None
        low, high = (code - encoding.zero_point for code in encoding.code_range)
        exact = self.isa.fma and quantise.reciprocal(encoding.scale, low, high) is not None
        return quantise.Quantise(*shape, divide=not exact, item=QUANTISE_PIXELS)

    def plan(self, node: Node) -> KernelPlan:
        """One step over chunks of pixels."""
        spec, encoding = self._spec(node), node.output.type.affine
        key = name_key("quantise", spec, self.isa)
        step = KernelStep(
            key,
            partial(quantise.quantise_function, key, spec, self.isa),
            (("in", 0), ("const", "terms"), ("out", 0)),
            spec.images * spec.chunks,
        )
        low, high = encoding.code_range
        terms = quantise.parameters(encoding.scale, encoding.zero_point, low, high)
        return self._plan(step, {"terms": terms}, f"quantise {spec.channels} planes")


def planes_of(x: TensorType, y: TensorType) -> tuple[int, int, int] | None:
    """(images, channels, pixels) of a change of encoding from ``x`` to ``y``, if it is one."""

    def order(type_: TensorType) -> list[int]:
        return [axis for axis in type_.permutation if type_.shape[axis] != 1]

    if order(x) == order(y):
        return 1, 1, y.elements
    if x.layout or y.layout != "nhwc" or y.shape[1] > PLANES:
        return None
    return y.shape[0], y.shape[1], y.shape[2] * y.shape[3]
