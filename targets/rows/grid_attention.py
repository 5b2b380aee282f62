"""Row of a GPU for attention."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlcc.ir import F32, Node
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelPlan
from dlcc.ops import op_of
from dlcc.ops.integer import real_of
from targets.kernels.grid_attention import (
    AttentionSpec,
    attention_cost,
    attention_refusal,
    grid_attention,
)
from targets.kernels.spec import SHORT_FLOATS
from targets.rows import layers
from targets.rows.grid import MachineRow


class GridAttentionRow(MachineRow):
    """Attention of 16-bit floats, scores in registers."""

    name: ClassVar[str] = "grid-attention"
    ops: ClassVar[tuple[str, ...]] = ("attention",)

    def refuses(self, node: Node) -> str:
        """Other types and layouts, and heads that are too large."""
        values = [v for v in (*node.inputs, node.output) if v is not None]
        for value in values:
            type_ = value.type
            if type_.dtype != F32 or not (type_.is_dense or type_.short_float):
                return "it takes real numbers of 16 bits, and masks and results of up to 32"
            if type_.permutation != tuple(range(type_.rank)):
                return f"%{value.name} is not in row-major order"
        stored = {layers.real_dtype(value.type.encoding) for value in values[:3]}
        if len(stored) != 1 or not stored <= SHORT_FLOATS:
            return "q, k and v are not of one type of 16-bit floats"
        if layers.real_dtype(node.output.type.encoding) not in {*stored, "f32"}:
            return "results are of the other type of 16-bit floats"
        if any(value.is_constant for value in values[:3]):
            return "one of q, k and v is a constant"
        return attention_refusal(_spec(node), self.machine)

    def cost(self, node: Node) -> float:
        """Of both products and the exponentials."""
        return attention_cost(_spec(node), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        mask: Array | None = None
        known = node.optional_input(3)
        if known is not None and known.is_constant:
            mask = np.ascontiguousarray(real_of(known, known.stored()), np.float32)
        return grid_attention(_spec(node), float(op_of(node).get(node, "scale")), mask)


def _spec(node: Node) -> AttentionSpec:
    """Of an ``attention`` node; a mask that is known is stored as float32."""
    q, k, v = (node.input(index).type for index in range(3))
    mask, dtype = node.optional_input(3), layers.real_dtype(q.encoding)
    shape: tuple[int, ...] = ()
    if mask is not None:
        shape = (1,) * (q.rank - mask.type.rank) + mask.type.shape
        dtype = "f32" if mask.is_constant else layers.real_dtype(mask.type.encoding)
    return AttentionSpec(
        q.shape[:-2],
        q.shape[-2],
        k.shape[-2],
        q.shape[-1],
        v.shape[-1],
        layers.real_dtype(q.encoding),
        layers.real_dtype(node.output.type.encoding),
        shape,
        dtype,
    )
