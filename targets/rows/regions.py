"""Rows for pooling of regions of interest."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Node
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelArg, KernelPlan
from dlcc.ops import op_of
from targets.kernels.regions import Regions, regions
from targets.rows.base import IsaRow
from targets.rows.default import MACS_PER_SECOND, physical


class RegionsRow(IsaRow):
    """RoiAlign and MaxRoiPool of float32 images."""

    name: ClassVar[str] = "regions"
    ops: ClassVar[tuple[str, ...]] = ("roi_align", "max_roi_pool")

    def refuses(self, node: Node) -> str:
        """Codes."""
        values = (*node.inputs, *node.outputs)
        coded = any(v is not None and not v.type.is_dense for v in values)
        return "the numbers are not plain" if coded else ""

    def cost(self, node: Node) -> float:
        """Four samples of four pixels for each result."""
        return 16 * node.output.type.elements / (MACS_PER_SECOND * self.isa.lanes)

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        op = op_of(node)
        n, h, w, c = node.input(0).type.shape
        count, height, width, _ = node.output.type.shape
        aligned = node.op == "roi_align"
        extra = {k: op.get(node, k) for k in ("sampling", "half_pixel", "maximum") if aligned}
        scale = float(op.get(node, "scale"))
        layer = Regions((n, h, w, c), (count, height, width), scale, aligned=aligned, **extra)
        operands, constants = operands_of(node)
        step = regions(layer, self.isa.lanes, operands)
        features = self.isa.vector_flags()
        return KernelPlan((step,), constants, features=features, kernel=node.op.replace("_", " "))


def operands_of(node: Node) -> tuple[list[KernelArg], dict[str, Array]]:
    """Arguments for all operands in order, and the constants among them."""
    args: list[KernelArg] = []
    constants: dict[str, Array] = {}
    for name, value in zip(op_of(node).operands, node.inputs, strict=True):
        assert value is not None
        if value.is_constant:
            constants[name] = physical(value)
            args.append(("const", name))
        else:
            args.append(("in", sum(kind == "in" for kind, _ in args)))
    return args, constants
