"""The row that serves every op by its default TIR, scheduled for this CPU's vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from dlcc.ir import Affine, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ir.text import type_text
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from dlcc.ops import Op, op_of
from dlcc.ops.base import Quantised, activations
from targets.isa import Isa
from targets.rows.base import IsaRow

BYTES_PER_SECOND = 16e9
"""Nominal rate of memory-bound kernels; only ranks rows."""

MACS_PER_SECOND = 1e9
"""Nominal rate of plain loops, so that a kernel made for products always ranks before them."""


ELEMENTS_PER_SECOND = 1.5e9
"""Nominal rate of results of plain loops on codes, which conversions and selects bound."""

CODES_PER_SECOND = 3.75e9
"""Codes moved or compared per second and lane of a vector, by loops that convert none."""


def physical(value: Value) -> Array:
    """Stored array of a constant in memory order, at least one axis."""
    stored = np.transpose(value.stored(), value.type.permutation)
    return np.ascontiguousarray(stored).reshape(stored.shape or (1,))


@dataclass(frozen=True)
class _Kernel:
    build: Callable[[], Any]
    work_items: int


class DefaultRow(IsaRow):
    """Default TIR: elementwise, pooling, reductions, normalisation, data movement."""

    name: ClassVar[str] = "default-tir"
    ops: ClassVar[tuple[str, ...]] = ("*",)

    def __init__(self, isa: Isa) -> None:
        super().__init__(isa)
        self._kernels: dict[str, _Kernel] = {}

    def refuses(self, node: Node) -> str:
        """Ops without default TIR have kernels of their own."""
        if any(v.type.is_binary for v in activations(node)):
            return "it packs no signs"
        if type(op_of(node)).compute is Op.compute:
            return f"{node.op} has no default TIR"
        if not all(v.type.elements for v in node.outputs):
            return "the output has no elements"
        return ""

    def cost(self, node: Node) -> float:
        """Bytes moved, codes made and products summed at nominal rates."""
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        op = op_of(node)
        coded = all(isinstance(v.type.encoding, Affine) for v in values)
        if op.quantised is Quantised.SAME and coded:
            taps = prod(op.get(node, "kernel")) if "kernel" in op.attributes else 1
            compared = taps * sum(v.type.elements for v in node.outputs)
            passed = max(compared, sum(v.type.bytes for v in values))
            return passed / (CODES_PER_SECOND * self.isa.lanes) + 1e-7
        macs = op.macs(node)
        codes = sum(v.type.elements for v in node.outputs if not v.type.is_dense)
        moved = sum(v.type.bytes for v in values) / BYTES_PER_SECOND
        looked_at = max(codes, op.scanned(node))
        return max(moved, looked_at / ELEMENTS_PER_SECOND) + macs / MACS_PER_SECOND + 1e-7

    def plan(self, node: Node) -> KernelPlan:
        """One step; constants are passed in memory order."""
        from dlcc.tir.access import TirContext

        context = TirContext(node)
        op_of(node).compute(node, context)
        constants: dict[str, Array] = {}
        args: list[KernelArg] = []
        placeholders = []
        activations = 0
        for index, (value, tensor) in enumerate(zip(node.inputs, context.operands, strict=True)):
            if value is None:
                continue
            placeholders.append(tensor)
            if value.is_constant:
                name = op_of(node).operands[min(index, len(op_of(node).operands) - 1)].rstrip("?*")
                name = name if name not in constants else f"{name}{index}"
                constants[name] = physical(value)
                args.append(("const", name))
            else:
                args.append(("in", activations))
                activations += 1
        for index, (array, tensor) in enumerate(context.constants):
            constants[f"table{index}"] = array
            placeholders.append(tensor)
            args.append(("const", f"table{index}"))
        args += [("out", i) for i in range(len(node.outputs))]
        key = self._key(node, context)
        if key not in self._kernels:
            self._kernels[key] = self._schedule(key, context, placeholders)
        kernel = self._kernels[key]
        step = KernelStep(key, kernel.build, tuple(args), kernel.work_items)
        features = self.isa.vector_flags()
        return KernelPlan((step,), constants, features=features, kernel=f"te {node.op}")

    def _key(self, node: Node, context: Any) -> str:
        types = [
            "-" if v is None else f"{type_text(v.type)}{v.is_constant}" for v in node.inputs
        ] + [type_text(v.type) for v in node.outputs]
        shapes = [(a.shape, str(a.dtype)) for a, _ in context.constants]
        attrs = sorted((k, repr(v)) for k, v in node.attrs.items())
        return name_key(f"te_{node.op}", types, shapes, attrs, context.item_axes, self.isa)

    def _schedule(self, key: str, context: Any, placeholders: list[Any]) -> _Kernel:
        from dlcc import tir

        func, items = tir.elementwise_like(
            key,
            placeholders,
            context.results,
            self.isa.lanes,
            item_axes=context.item_axes,
            item_elements=self.isa.item_elements,
        )
        return _Kernel(lambda: func, items)
