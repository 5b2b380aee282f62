"""Row of the kernel table that runs weights with scales per group from their packed codes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlcc.ir import Grouped, Node, Value
from dlcc.lowering.kernel import KernelPlan
from targets.kernels import lookup_gemv, lookup_groups
from targets.kernels.lookup_groups import GroupedCodes
from targets.rows import layers
from targets.rows.base import IsaRow


def _grouped(node: Node) -> Grouped:
    encoding = node.input(1).type.encoding
    assert isinstance(encoding, Grouped)
    return encoding


def _form(bits: int) -> tuple[int, int]:
    """Columns that a code stands for, and planes."""
    return (1, 1) if bits == 4 else (4, bits)


def _coded(weight: Value, encoding: Grouped) -> GroupedCodes:
    """Codes that are looked up: of four bits as they are, of fewer as planes of signs."""
    constant = weight.constant
    assert constant is not None
    half = 1 << (encoding.bits - 1)
    u = encoding.codes(constant.parts, weight.type.shape).astype(np.int32) + half
    scales = np.asarray(constant.parts["scales"])
    if encoding.bits == 4:
        book = np.arange(16, dtype=np.float32) - half
        return GroupedCodes(u[None].astype(np.uint8), book[None, None], scales, encoding.group)
    planes = np.stack([u >> j & 1 for j in range(encoding.bits)])
    codes = lookup_gemv.sign_codes(planes)
    return GroupedCodes(codes, lookup_gemv.sign_book(), scales, encoding.group)


class GroupedGemvRow(IsaRow):
    """Linear layers of one row of float32 activations by weights of at most 4 bits."""

    name: ClassVar[str] = "grouped-gemv"
    ops: ClassVar[tuple[str, ...]] = ("linear",)
    encodings: ClassVar[tuple[str, ...]] = (Grouped.name,)

    def refuses(self, node: Node) -> str:
        """Codes of more than 4 bits, short groups, quantised activations, several rows."""
        encoding = _grouped(node)
        if encoding.bits > 4:
            return f"codes of {encoding.bits} bits exceed a table of 16 numbers"
        return (
            lookup_groups.refusal(encoding.group, _form(encoding.bits)[0])
            or layers.refusal(node)
            or lookup_gemv.refusal(layers.conv_spec(node), self.isa)
        )

    def cost(self, node: Node) -> float:
        """Look-ups, bytes of codes and scales, and the making of tables."""
        encoding = _grouped(node)
        spec = layers.conv_spec(node)
        return lookup_groups.grouped_gemv_cost(
            spec, self.isa, *_form(encoding.bits), encoding.group
        )

    def plan(self, node: Node) -> KernelPlan:
        """Tables of the activations where codes stand for runs, then the look-ups."""
        spec, bias = layers.conv_spec(node), layers.float_bias(node)
        coded = _coded(node.input(1), _grouped(node))
        return lookup_groups.grouped_gemv(spec, self.isa, coded, bias)
