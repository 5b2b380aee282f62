"""Row for scatters."""

from __future__ import annotations

from math import prod
from typing import ClassVar

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan
from dlcc.ops import op_of
from targets.kernels.scatter import Scatter, scatter
from targets.rows.base import IsaRow
from targets.rows.default import ELEMENTS_PER_SECOND
from targets.rows.regions import operands_of

_NUMBERS = ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
"""Types of numbers and of indices."""


class ScatterRow(IsaRow):
    """Scatters by one pass over the updates."""

    name: ClassVar[str] = "scatter"
    ops: ClassVar[tuple[str, ...]] = ("scatter_elements", "scatter_nd")

    def refuses(self, node: Node) -> str:
        """Codes, short floats and truth values."""
        types = [v.type for v in (*node.inputs, *node.outputs) if v is not None]
        plain = all(t.is_dense and str(t.storage.numpy) in _NUMBERS for t in types)
        return "" if plain and node.output.type.elements else "the numbers are not plain"

    def cost(self, node: Node) -> float:
        """One step for each number and each update."""
        touched = node.output.type.elements + node.input(2).type.elements
        return touched / ELEMENTS_PER_SECOND

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        operands, constants = operands_of(node)
        features = self.isa.vector_flags()
        step = scatter(_spec(node), operands)
        return KernelPlan((step,), constants, features=features, kernel="scatter")


def _spec(node: Node) -> Scatter:
    op, x, indices = op_of(node), node.input(0).type, node.input(1).type
    shape = x.shape
    strides = [prod(shape[k + 1 :]) for k in range(len(shape))]
    rows: tuple[tuple[int, int], ...]
    if node.op == "scatter_nd":
        depth = indices.shape[-1]
        rows = ((prod(indices.shape[:-1]), 0),)
        named = tuple(zip(shape[:depth], strides[:depth], strict=True))
        run = prod(shape[depth:])
    else:
        axis, run = int(op.get(node, "axis")), 1
        rows = tuple((d, strides[k] if k != axis else 0) for k, d in enumerate(indices.shape))
        named = ((shape[axis], strides[axis]),)
    kinds = str(x.storage.numpy), str(indices.storage.numpy)
    return Scatter(x.elements, rows, named, run, str(op.get(node, "reduction")), *kinds)
