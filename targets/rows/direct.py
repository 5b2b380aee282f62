"""Rows of direct loops: what runs without vectors, and reads well as C."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Node
from dlcc.lowering.kernel import KernelPlan
from dlcc.ops import op_of
from targets.kernels import direct
from targets.kernels.spec import SHORT_FLOATS, ConvSpec, ConvTransposeSpec
from targets.rows import layers
from targets.rows.base import IsaRow

SECONDS_PER_MAC = 1e-9
"""Nominal, as for default TIR; only ranks rows, of which these always come first."""


def _refusal(node: Node, spec: ConvSpec | ConvTransposeSpec, channel_axis: int) -> str:
    """Floats of 16 bits, and sums that may leave 32 bits."""
    if SHORT_FLOATS & {spec.in_dtype, spec.stored, spec.epilogue.out, spec.epilogue.residual}:
        return "it takes no floats of 16 bits"
    if spec.in_dtype == "u8" and layers.known_codes(node):
        made = layers.layer_constants(node)
        if not direct.sums_fit(made.weights.swapaxes(0, channel_axis), made.bias):
            return "partial sums may leave 32 bits"
    return ""


class DirectConvRow(IsaRow):
    """Convolution, depthwise ones included, and linear layers."""

    name: ClassVar[str] = "direct"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family, floats of 16 bits, and sums that may leave 32 bits."""
        return layers.refusal(node) or _refusal(node, layers.conv_spec(node), 0)

    def cost(self, node: Node) -> float:
        """Products at a nominal rate."""
        return layers.conv_spec(node).macs * SECONDS_PER_MAC / 2

    def plan(self, node: Node) -> KernelPlan:
        """One step. Weights of up to 4 bits stay packed: flash is scarcer than time."""
        made, spec = layers.layer_constants(node), layers.conv_spec(node)
        narrow = spec.in_dtype == "u8" and layers.has_narrow_codes(node)
        return direct.conv2d(
            spec,
            made.weights,
            made.bias,
            made.multiplier,
            made.ratio,
            bits=direct.weight_bits(made.weights) if narrow else 8,
        )


class DirectTransposedRow(IsaRow):
    """Transposed convolution."""

    name: ClassVar[str] = "direct-transposed"
    ops: ClassVar[tuple[str, ...]] = ("conv_transpose2d",)

    def refuses(self, node: Node) -> str:
        """As for convolutions."""
        return layers.refusal(node) or _refusal(node, layers.conv_transpose_spec(node), 1)

    def cost(self, node: Node) -> float:
        """Products at a nominal rate."""
        return op_of(node).macs(node) * SECONDS_PER_MAC

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        made = layers.layer_constants(node)
        spec = layers.conv_transpose_spec(node)
        return direct.conv2d_transpose(spec, made.weights, made.bias, made.multiplier)
