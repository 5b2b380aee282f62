"""Rows of kernel tables for dense layers: each adapts a kernel generator to IR nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from dlcc.ir import Affine, Node
from dlcc.lowering.kernel import KernelPlan
from dlcc.ops.softmax import Softmax
from targets.kernels import conv, winograd
from targets.kernels.blocking import ranked_blocks
from targets.kernels.columns import columns_refusal
from targets.kernels.depthwise import (
    SHORT,
    depthwise,
    depthwise_cost,
    is_depthwise,
    result_bits,
)
from targets.kernels.matmul import matmul, matmul_cost
from targets.kernels.matmul_short import matmul_short, matmul_short_cost
from targets.kernels.softmax import softmax, softmax_cost
from targets.kernels.spec import SHORT_FLOATS
from targets.kernels.winograd_code import Winograd
from targets.rows import layers, proofs
from targets.rows.base import IsaRow

MOST_BLOCKS = 8
"""Register blocks beside the predicted best that may be measured."""

_UNPROVEN = "nothing is proven of weights that have no codes yet"


class _Row(IsaRow):
    """A row made for one instruction set; refuses what no kernel of the family takes.

    ``amx``: whether tiles are used where the instruction set has them.
    """

    amx: ClassVar[bool] = False

    def refuses(self, node: Node) -> str:
        """Types and shapes outside the GEMM family."""
        why = layers.refusal(node)
        coded = isinstance(node.input(0).type.encoding, Affine)
        if not why and self.amx and not (coded or layers.in_dtype(node) == "bf16"):
            why = "AMX tiles take 8-bit or bfloat16 activations"
        return why


class ConvRow(_Row):
    """Convolution and linear layers as implicit GEMM on the vector unit."""

    name: ClassVar[str] = "implicit-gemm"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    columns: ClassVar[bool] = False

    def cost(self, node: Node) -> float:
        """By the blocking's cycles and the bytes of weights and staging."""
        spec = layers.conv_spec(node)
        return conv.conv_cost(spec, self.isa, amx=self.amx, columns=self.columns)

    def plan(self, node: Node) -> KernelPlan:
        """Staging where borders need it, then the GEMM with its epilogue."""
        return self._planned(node, None)

    def variants(self, node: Node) -> list[str]:
        """Other register blocks, as ``rows x columns x channel blocks``."""
        geo = self._geometry(node)
        return [_block_text(b) for b in ranked_blocks(geo.gemm, geo.unit)[1 : 1 + MOST_BLOCKS]]

    def plan_variant(self, node: Node, variant: str) -> KernelPlan:
        """The same with another register block."""
        geo = self._geometry(node)
        for block in ranked_blocks(geo.gemm, geo.unit):
            if _block_text(block) == variant:
                return self._planned(node, block)
        return super().plan_variant(node, variant)

    def _geometry(self, node: Node) -> conv.Geometry:
        spec = layers.conv_spec(node)
        return conv.geometry(spec, self.isa, amx=self.amx, columns=self.columns)

    def _planned(self, node: Node, block: tuple[int, int, int] | None) -> KernelPlan:
        return layers.planned(node, self.isa, amx=self.amx, columns=self.columns, block=block)


def _block_text(block: tuple[int, int, int]) -> str:
    return "x".join(map(str, block))


class SveConvRow(ConvRow):
    """The same in vectors of SVE, on ARM."""

    name: ClassVar[str] = "implicit-gemm-sve"

    def refuses(self, node: Node) -> str:
        """What NEON's rows do better: floats of 16 bits, and depthwise layers, most of whose
        products would be by zeros.
        """
        why = super().refuses(node)
        if not why and layers.in_dtype(node) in SHORT_FLOATS:
            why = "the operands are floats of 16 bits"
        if not why and is_depthwise(layers.conv_spec(node)):
            why = "the layer is depthwise"
        return why


class AmxConvRow(ConvRow):
    """The same on AMX tiles."""

    name: ClassVar[str] = "implicit-gemm-amx"
    amx: ClassVar[bool] = True


class PairConvRow(ConvRow):
    """The same with products summed in 16 bits, where the weights prove that they fit."""

    name: ClassVar[str] = "implicit-gemm-16"

    def refuses(self, node: Node) -> str:
        """Float activations."""
        why = super().refuses(node)
        if not why and not isinstance(node.input(0).type.encoding, Affine):
            why = "the activations are not codes"
        return why or ("" if layers.known_codes(node) else _UNPROVEN)

    def cost(self, node: Node) -> float:
        """By the blocking's cycles, the extra steps and the bytes of weights and staging."""
        pairs = proofs.pair_sums(node, self.isa)
        return conv.conv_cost(layers.conv_spec(node), self.isa, pairs=pairs)

    def _geometry(self, node: Node) -> conv.Geometry:
        pairs = proofs.pair_sums(node, self.isa)
        return conv.geometry(layers.conv_spec(node), self.isa, pairs=pairs)

    def _planned(self, node: Node, block: tuple[int, int, int] | None) -> KernelPlan:
        return layers.planned(node, self.isa, pairs=proofs.pair_sums(node, self.isa), block=block)


class WinogradRow(_Row):
    """3x3 convolution of stride 1 in float32 by Winograd's minimal filtering."""

    name: ClassVar[str] = "winograd"
    ops: ClassVar[tuple[str, ...]] = ("conv2d",)

    def refuses(self, node: Node) -> str:
        """Everything but 3x3 kernels of stride 1 without groups, in float32."""
        return super().refuses(node) or winograd.refusal(layers.conv_spec(node))

    def cost(self, node: Node) -> float:
        """Products, transforms and the weights' stream of the best arrangement."""
        return winograd.winograd_cost(layers.conv_spec(node), self.isa)

    def plan(self, node: Node) -> KernelPlan:
        """The best arrangement: one step in bands of tiles, or three over all tiles."""
        return self._planned(node, None)

    def variants(self, node: Node) -> list[str]:
        """Other tile sizes and bands."""
        shapes = winograd.arrangements(layers.conv_spec(node), self.isa)
        return [winograd.shape_text(shape) for shape in shapes[1 : 1 + MOST_BLOCKS]]

    def plan_variant(self, node: Node, variant: str) -> KernelPlan:
        """The same in another arrangement."""
        for shape in winograd.arrangements(layers.conv_spec(node), self.isa):
            if winograd.shape_text(shape) == variant:
                return self._planned(node, shape)
        return super().plan_variant(node, variant)

    def _planned(self, node: Node, shape: Winograd | None) -> KernelPlan:
        made = layers.layer_constants(node)
        return winograd.winograd(layers.conv_spec(node), self.isa, made.weights, made.bias, shape)


class ColumnsConvRow(ConvRow):
    """Convolutions of few channels over a copy with kernel rows side by side."""

    name: ClassVar[str] = "implicit-gemm-columns"
    ops: ClassVar[tuple[str, ...]] = ("conv2d",)
    columns: ClassVar[bool] = True

    def refuses(self, node: Node) -> str:
        """As for other convolutions, and what the copy is not made for."""
        return super().refuses(node) or columns_refusal(layers.conv_spec(node), self.isa)


class AmxColumnsConvRow(ColumnsConvRow):
    """The same on AMX tiles."""

    name: ClassVar[str] = "implicit-gemm-columns-amx"
    amx: ClassVar[bool] = True


class ConvTransposeRow(_Row):
    """Transposed convolution: zero insertion, then the vector unit's implicit GEMM."""

    name: ClassVar[str] = "implicit-gemm-transposed"
    ops: ClassVar[tuple[str, ...]] = ("conv_transpose2d",)

    def refuses(self, node: Node) -> str:
        """As for convolutions, and padding within the kernel's reach."""
        why = layers.refusal(node)
        if why:
            return why
        spec = layers.conv_transpose_spec(node)
        reach = (spec.dilation[0] * (spec.kh - 1), spec.dilation[1] * (spec.kw - 1))
        top, left, bottom, right = spec.pads
        if max(top, bottom) > reach[0] or max(left, right) > reach[1]:
            return f"padding {spec.pads} is larger than the kernel's reach {reach}"
        return ""

    def cost(self, node: Node) -> float:
        """The spreading copy and the convolution over it."""
        return conv.conv_transpose_cost(layers.conv_transpose_spec(node), self.isa, amx=False)

    def plan(self, node: Node) -> KernelPlan:
        """Two steps: spread, multiply."""
        made = layers.layer_constants(node)
        return conv.conv2d_transpose(
            layers.conv_transpose_spec(node),
            self.isa,
            made.weights,
            made.bias,
            made.multiplier,
            made.ratio,
            amx=False,
        )


class DepthwiseRow(_Row):
    """Depthwise convolution, vectorised over channels."""

    name: ClassVar[str] = "depthwise"
    ops: ClassVar[tuple[str, ...]] = ("conv2d",)

    def refuses(self, node: Node) -> str:
        """Other groupings than one channel each."""
        why = layers.refusal(node)
        if why:
            return why
        spec = layers.conv_spec(node)
        if spec.in_dtype in SHORT_FLOATS and spec.stored != spec.in_dtype:
            return "the input is float32, to be rounded to 16 bits"
        if not spec.groups == spec.c == spec.oc:
            return f"{spec.groups} groups of {spec.c} channels to {spec.oc} are not depthwise"
        return ""

    def cost(self, node: Node) -> float:
        """Vector operations per output vector."""
        return depthwise_cost(layers.conv_spec(node), self.isa)

    def plan(self, node: Node) -> KernelPlan:
        """A padded copy where borders need it, then the taps."""
        made = layers.layer_constants(node)
        return depthwise(
            layers.conv_spec(node), self.isa, made.weights, made.bias, made.multiplier, made.ratio
        )


class ShortDepthwiseRow(DepthwiseRow):
    """The same in 16 bits, where they are proven to hold every result."""

    name: ClassVar[str] = "depthwise-16"

    def refuses(self, node: Node) -> str:
        """As for other depthwise convolutions, and results of more bits."""
        why = super().refuses(node)
        if why or not isinstance(node.input(0).type.encoding, Affine):
            return why or "the activations are not codes"
        if not layers.known_codes(node):
            return _UNPROVEN
        made, data = layers.layer_constants(node), proofs.code_bounds(node.input(0))
        bits = result_bits(layers.conv_spec(node), made.weights, made.bias, data)
        return f"its sums take {bits} bits" if bits > SHORT else ""

    def cost(self, node: Node) -> float:
        """Vector operations per output vector."""
        return depthwise_cost(layers.conv_spec(node), self.isa, short=True)

    def plan(self, node: Node) -> KernelPlan:
        """As the other row does it, twice as many channels at a time."""
        made, data = layers.layer_constants(node), proofs.code_bounds(node.input(0))
        constants = (made.weights, made.bias, made.multiplier, made.ratio)
        plan = depthwise(layers.conv_spec(node), self.isa, *constants, short=data)
        return replace(plan, sum_bits=SHORT)


class MatmulRow(_Row):
    """Batched product of two activations on the vector unit."""

    name: ClassVar[str] = "batched-matmul"
    ops: ClassVar[tuple[str, ...]] = ("matmul",)

    def cost(self, node: Node) -> float:
        """Packing of the second operand and the product."""
        spec = layers.matmul_spec(node)
        cost = matmul_short_cost if spec.in_dtype in SHORT_FLOATS else matmul_cost
        return cost(spec, self.isa, amx=self.amx)

    def plan(self, node: Node) -> KernelPlan:
        """Pack, then the GEMM."""
        spec = layers.matmul_spec(node)
        if spec.in_dtype in SHORT_FLOATS:
            return matmul_short(spec, self.isa, amx=self.amx)
        multiplier = layers.matmul_multiplier(node) if spec.in_dtype == "u8" else None
        return matmul(spec, self.isa, multiplier, amx=self.amx)


class AmxMatmulRow(MatmulRow):
    """The same on AMX tiles."""

    name: ClassVar[str] = "batched-matmul-amx"
    amx: ClassVar[bool] = True


class SoftmaxRow(_Row):
    """Softmax over neighbouring elements."""

    name: ClassVar[str] = "softmax-rows"
    ops: ClassVar[tuple[str, ...]] = ("softmax",)

    def refuses(self, node: Node) -> str:
        """Other axes and dtypes."""
        return layers.softmax_refusal(node)

    def cost(self, node: Node) -> float:
        """Cycles per vector."""
        return softmax_cost(layers.softmax_spec(node), self.isa)

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        spec = layers.softmax_spec(node)
        if spec.in_dtype != "u8":
            return softmax(spec, self.isa)
        op, out = Softmax(), node.output.type.encoding
        tables, unit = op.factors(node), float(op.factor(out))
        if not isinstance(out, Affine):
            return softmax(spec, self.isa, tables, unit)
        return softmax(spec, self.isa, tables, unit, out.zero_point, out.code_range[1])
