"""Rows of direct loops: what runs without vectors, and reads well as C."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan
from targets.kernels import direct
from targets.rows import layers
from targets.rows.base import IsaRow

SECONDS_PER_MAC = 1e-9
"""Nominal, as for default TIR; only ranks rows, of which these always come first."""


class DirectConvRow(IsaRow):
    """Convolution, depthwise ones included, and linear layers."""

    name: ClassVar[str] = "direct"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")

    def refuses(self, node: Node) -> str:
        """bfloat16, and sums that may leave 32 bits."""
        why = layers.refusal(node)
        if why:
            return why
        spec = layers.conv_spec(node)
        if "bf16" in (spec.in_dtype, spec.stored, spec.epilogue.out, spec.epilogue.residual):
            return "it takes no bfloat16"
        if spec.in_dtype == "u8" and layers.known_codes(node):
            made = layers.layer_constants(node)
            if not direct.sums_fit(made.weights, made.bias):
                return "partial sums may leave 32 bits"
        return ""

    def cost(self, node: Node) -> float:
        """Products at a nominal rate."""
        return layers.conv_spec(node).macs * SECONDS_PER_MAC / 2

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        made = layers.layer_constants(node)
        return direct.conv2d(
            layers.conv_spec(node), made.weights, made.bias, made.multiplier, made.ratio
        )
