"""Rows of kernel tables for Cortex-M: each adapts a kernel generator to IR nodes."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Affine, Node
from dlcc.lowering.kernel import KernelPlan
from targets.isa import Isa
from targets.kernels import dsp_conv, dsp_depthwise
from targets.rows import layers
from targets.rows.base import IsaRow


class _CodesRow(IsaRow):
    """A layer of 8-bit activations."""

    def __init__(self, isa: Isa, clock: float) -> None:
        super().__init__(isa)
        self.clock = clock

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family, and float activations."""
        why = layers.refusal(node)
        if not why and not isinstance(node.input(0).type.encoding, Affine):
            why = "the activations are not codes"
        return why


class DspConvRow(_CodesRow):
    """Convolution without groups and linear layers, by two products an instruction."""

    name: ClassVar[str] = "smlad"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")

    def refuses(self, node: Node) -> str:
        """Groups."""
        why = super().refuses(node)
        if why:
            return why
        groups = layers.conv_spec(node).groups
        return f"it has {groups} groups" if groups > 1 else ""

    def cost(self, node: Node) -> float:
        """Instructions."""
        spec = layers.conv_spec(node)
        dot = dsp_conv.choose_dot(spec, None)
        return dsp_conv.instructions(dsp_conv.DspConv(spec, dot)) / self.clock

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        made = layers.layer_constants(node)
        assert made.multiplier is not None
        return dsp_conv.dsp_conv(
            layers.conv_spec(node), made.weights, made.bias, made.multiplier, made.ratio
        )


class DspDepthwiseRow(_CodesRow):
    """Depthwise convolution, a channel at a time."""

    name: ClassVar[str] = "smlad-depthwise"
    ops: ClassVar[tuple[str, ...]] = ("conv2d",)

    def refuses(self, node: Node) -> str:
        """Other groupings than one channel each."""
        why = super().refuses(node)
        if why:
            return why
        spec = layers.conv_spec(node)
        if not spec.groups == spec.c == spec.oc or spec.c == 1:
            return f"{spec.groups} groups of {spec.c} channels to {spec.oc} are not depthwise"
        return ""

    def cost(self, node: Node) -> float:
        """Instructions."""
        layer = dsp_depthwise.DspDepthwise(layers.conv_spec(node))
        return dsp_depthwise.instructions(layer) / self.clock

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        made = layers.layer_constants(node)
        assert made.multiplier is not None
        return dsp_depthwise.dsp_depthwise(
            layers.conv_spec(node), made.weights, made.bias, made.multiplier, made.ratio
        )
