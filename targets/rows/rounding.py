"""Row for float32 tensors that are rounded to bfloat16 on their way to the first layer."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan, KernelStep, name_key
from targets.isa import CLOCK
from targets.kernels.round_planes import STEP, RoundPlanes, round_planes_function
from targets.rows.base import IsaRow
from targets.rows.codes import NEAR_IMAGE, READ_BANDWIDTH, planes_of

_ITEM = 1 << 11


class RoundPlanesRow(IsaRow):
    """float32 to bfloat16, with the channels of few planes brought side by side."""

    name: ClassVar[str] = "round-planes"
    ops: ClassVar[tuple[str, ...]] = ("relayout",)

    def refuses(self, node: Node) -> str:
        """Other types, other orders, and CPUs without AVX-512."""
        x, y = node.input(0).type, node.output.type
        if self.isa.lanes != 16:
            return "the instruction set has no registers of 32 words"
        if not x.is_dense or str(x.dtype) != "f32" or not y.is_bfloat16:
            return "it does not round float32 to bfloat16"
        shape = planes_of(x, y)
        if shape is None:
            return "the order changes otherwise than from a few planes to NHWC"
        return "" if shape[2] >= STEP else f"fewer than {STEP} numbers"

    def cost(self, node: Node) -> float:
        """Reading the planes, and the instructions per register."""
        elements = node.output.type.elements
        seconds = elements / STEP * 10.0 / CLOCK
        read = 4 * elements
        return max(seconds, read / READ_BANDWIDTH) if read > NEAR_IMAGE else seconds

    def plan(self, node: Node) -> KernelPlan:
        """One step over chunks of pixels."""
        shape = planes_of(node.input(0).type, node.output.type)
        assert shape is not None
        spec = RoundPlanes(*shape, item=_ITEM, native=self.isa.bfloat16 != "widen")
        key = name_key("round_planes", spec)
        step = KernelStep(
            key,
            partial(round_planes_function, key, spec),
            (("in", 0), ("out", 0)),
            spec.images * spec.chunks,
        )
        return KernelPlan(
            (step,),
            features=self.isa.vector_flags(bfloat16=spec.native),
            kernel=f"round {spec.channels} planes",
        )
