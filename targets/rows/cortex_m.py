"""Rows of kernel tables for Cortex-M: each adapts a kernel generator to IR nodes."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Affine, Binary, Node, Ternary
from dlcc.lowering.kernel import KernelPlan
from dlcc.ops import op_of
from dlcc.ops.pool import mean_multiplier
from targets.isa import Isa
from targets.kernels import dsp_conv, dsp_depthwise, dsp_packed
from targets.kernels.packed_bits import Codes
from targets.kernels.scalar_mean import ScalarMean, scalar_mean
from targets.kernels.spec import Epilogue, OutType
from targets.rows import layers
from targets.rows.base import IsaRow
from targets.rows.default import DefaultRow
from targets.rows.direct import DirectConvRow, DirectTransposedRow


class _CodesRow(IsaRow):
    """A layer of 8-bit activations."""

    def __init__(self, isa: Isa, clock: float, *, mve: bool = False) -> None:
        super().__init__(isa)
        self.clock, self.mve = clock, mve

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
        dot = dsp_conv.choose_dot(spec, None, self.mve, self._codes(node))
        return dsp_conv.instructions(dsp_conv.DspConv(spec, dot)) / self.clock

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        made = layers.layer_constants(node)
        assert made.multiplier is not None
        return dsp_conv.dsp_conv(
            layers.conv_spec(node),
            made.weights,
            made.bias,
            made.multiplier,
            made.ratio,
            mve=self.mve,
            codes=self._codes(node),
        )

    def _codes(self, node: Node) -> Codes | None:
        """What the weights are, if they stay packed."""
        return None


class PackedDspConvRow(DspConvRow):
    """The same over weights of at most four bits, which are unpacked in registers."""

    name: ClassVar[str] = "smlad-packed"
    encodings: ClassVar[tuple[str, ...]] = (Affine.name, Ternary.name, Binary.name)

    def serves(self, node: Node) -> bool:
        """Not asked about codes that fill their bytes."""
        return super().serves(node) and layers.has_narrow_codes(node)

    def refuses(self, node: Node) -> str:
        """Codes of five bits and more, and sums that could not be told apart."""
        why = super().refuses(node)
        if why:
            return why
        spec, codes = layers.conv_spec(node), layers.narrow_codes(node)
        if codes.bits > dsp_packed.WIDTHS[-1]:
            return f"codes of {codes.bits} bits exceed a digit of {dsp_packed.WIDTHS[-1]}"
        taps = spec.kh * spec.kw * spec.c
        if not dsp_packed.sums_fit(taps):
            return f"sums of {taps} products may not fit the bits that two channels share"
        return ""

    def _codes(self, node: Node) -> Codes | None:
        return layers.narrow_codes(node)


class MveConvRow(DspConvRow):
    """The same by sixteen products an instruction, where there are vectors."""

    name: ClassVar[str] = "vmladava"

    def __init__(self, isa: Isa, clock: float) -> None:
        super().__init__(isa, clock, mve=True)


class PackedMveConvRow(PackedDspConvRow):
    """Packed weights by sixteen products an instruction."""

    name: ClassVar[str] = "vmladava-packed"

    def __init__(self, isa: Isa, clock: float) -> None:
        super().__init__(isa, clock, mve=True)


class DspDepthwiseRow(_CodesRow):
    """Depthwise convolution, a channel at a time."""

    name: ClassVar[str] = "smlad-depthwise"
    ops: ClassVar[tuple[str, ...]] = ("conv2d",)
    packed: ClassVar[bool] = False

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
            layers.conv_spec(node),
            made.weights,
            made.bias,
            made.multiplier,
            made.ratio,
            packed=self.packed,
        )


class PackedDspDepthwiseRow(DspDepthwiseRow):
    """The same over weights of at most four bits, unpacked once for each channel."""

    name: ClassVar[str] = "smlad-depthwise-packed"
    encodings: ClassVar[tuple[str, ...]] = (Affine.name, Ternary.name, Binary.name)
    packed: ClassVar[bool] = True

    def serves(self, node: Node) -> bool:
        """Not asked about codes that fill their bytes."""
        return super().serves(node) and layers.has_narrow_codes(node)

    def refuses(self, node: Node) -> str:
        """Codes of five bits and more."""
        why = super().refuses(node)
        uniform = node.input(1).type.encoding.uniform
        if not why and uniform is not None and uniform.bits > 4:
            return f"codes of {uniform.bits} bits exceed four"
        return why


class MeanRow(IsaRow):
    """The mean over all pixels of NHWC codes."""

    name: ClassVar[str] = "scalar-mean"
    ops: ClassVar[tuple[str, ...]] = ("reduce_mean",)

    def __init__(self, isa: Isa, clock: float) -> None:
        super().__init__(isa)
        self.clock = clock

    def refuses(self, node: Node) -> str:
        """Other axes and types."""
        x, y = node.input(0).type, node.output.type
        axes = tuple(sorted(int(a) % x.rank for a in op_of(node).get(node, "axes")))
        if x.rank != 4 or axes != (2, 3) or x.layout != "nhwc" or not y.elements:
            return "it is no mean over the pixels of an NHWC image"
        for encoding in (x.encoding, y.encoding):
            if not isinstance(encoding, Affine) or encoding.bits > 8 or encoding.axis is not None:
                return "the numbers are not 8-bit codes with one scale"
        return "the input's codes are signed" if x.affine.signed else ""

    def cost(self, node: Node) -> float:
        """Two instructions a code."""
        return (2 * node.input(0).type.elements + 12 * node.output.type.elements) / self.clock

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        x, y = node.input(0).type, node.output.type
        images, channels, height, width = x.shape
        low, high = y.affine.code_range
        kind: OutType = "s8" if y.affine.signed else "u8"
        epilogue = Epilogue(kind, float(low), float(high), y.affine.zero_point)
        pixels = height * width
        layer = ScalarMean(images, pixels, channels, x.affine.zero_point, epilogue)
        return scalar_mean(layer, float(mean_multiplier(x.affine, y.affine, pixels).item()))


class PlainRow(DefaultRow):
    """Default TIR, at the rate of a core without vectors."""

    def __init__(self, isa: Isa, clock: float) -> None:
        super().__init__(isa)
        self.clock = clock

    def cost(self, node: Node) -> float:
        """Some instructions for each product, operand and result."""
        values = [v for v in (*node.inputs, *node.outputs) if v is not None]
        touched = sum(v.type.elements for v in values)
        return (4 * op_of(node).macs(node) + 12 * touched) / self.clock


PLAIN_MAC = 8
"""Instructions of a product in plain loops: two loads, addresses, the loop."""


class PlainConvRow(DirectConvRow):
    """Direct loops, for float layers and groups, at the rate of a core without vectors."""

    def __init__(self, isa: Isa, clock: float) -> None:
        super().__init__(isa)
        self.clock = clock

    def cost(self, node: Node) -> float:
        """By its products."""
        return PLAIN_MAC * layers.conv_spec(node).macs / self.clock


class PlainTransposedRow(DirectTransposedRow):
    """Transposed convolution in the same way."""

    def __init__(self, isa: Isa, clock: float) -> None:
        super().__init__(isa)
        self.clock = clock

    def cost(self, node: Node) -> float:
        """By its products."""
        return PLAIN_MAC * op_of(node).macs(node) / self.clock
