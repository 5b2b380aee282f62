"""Rows for layers without products: they change, select or move 8-bit codes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlcc.ir import Affine, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelPlan, KernelStep, name_key
from dlcc.lowering.target import KernelRow
from dlcc.ops import op_of
from dlcc.ops.base import Quantised
from targets.cpu.isa import Isa
from targets.cpu.kernels import lookup

CLOCK = 3.5e9
"""Cycles per second of the predicted core."""


def is_u8(type_: TensorType) -> bool:
    """Whether numbers of this type are stored as unsigned bytes with one scale."""
    encoding = type_.encoding
    return isinstance(encoding, Affine) and encoding.axis is None and _byte(type_) == "uint8"


def _byte(type_: TensorType) -> str:
    return str(type_.storage.numpy)


class _CodesRow(KernelRow):
    """A row made for one instruction set."""

    def __init__(self, isa: Isa) -> None:
        self.isa = isa

    def _plan(self, step: KernelStep, constants: dict[str, Array], kernel: str) -> KernelPlan:
        """A plan of one step, on the vector unit."""
        return KernelPlan((step,), constants, features=self.isa.without_amx().flags, kernel=kernel)


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
        vectors = node.output.type.elements / (4 * self.isa.lanes)
        return vectors * (3.0 if self.isa.byte_permute else 24.0) / CLOCK

    def plan(self, node: Node) -> KernelPlan:
        """One step over the flat codes."""
        elements = node.output.type.elements
        table = np.zeros(256, np.uint8)
        low, high = node.input(0).type.affine.code_range
        table[low : high + 1] = op_of(node).table(node).view(np.uint8)
        key = name_key("table", elements, ITEM_BYTES, self.isa)
        step = KernelStep(
            key,
            lambda: lookup.lookup_function(key, elements, ITEM_BYTES, self.isa),
            (("in", 0), ("const", "table"), ("out", 0)),
            -(-elements // ITEM_BYTES),
        )
        constants = {"table": lookup.table_constant(table, self.isa)}
        return self._plan(step, constants, f"table {node.op}")
