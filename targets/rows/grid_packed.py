"""Rows of layers of many rows on a GPU whose weights of a few bits stay packed."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlcc.ir import Affine, Binary, Codebook, Node, Ternary
from dlcc.lowering.kernel import KernelPlan
from targets.kernels.grid_gemm import predicted
from targets.kernels.grid_packed import best_packed_tile, grid_packed, packed_refusal, width_of
from targets.kernels.grid_table import best_table_tile, grid_table, table_refusal
from targets.rows import layers
from targets.rows.grid import MachineRow
from targets.rows.looked_up import real_codes, width_of_places

MOST_BITS = 8
"""Of a place in a table."""


class GridPackedGemmRow(MachineRow):
    """Convolutions and linear layers of 8-bit activations by weights of at most 4 bits."""

    name: ClassVar[str] = "grid-packed-gemm"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    encodings: ClassVar[tuple[str, ...]] = (Affine.name, Ternary.name, Binary.name)

    def serves(self, node: Node) -> bool:
        """Not asked about codes that fill their bytes."""
        return super().serves(node) and layers.has_narrow_codes(node)

    def refuses(self, node: Node) -> str:
        """Float activations, groups, wider codes, architectures without matrix instructions."""
        if why := layers.refusal(node):
            return why
        return packed_refusal(layers.conv_spec(node), layers.narrow_codes(node), self.machine)

    def cost(self, node: Node) -> float:
        """Of the best tile."""
        spec, bits = layers.conv_spec(node), width_of(layers.narrow_codes(node))
        return predicted(spec, best_packed_tile(spec, bits, self.machine), self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """A copy of the input where pixels are too narrow, the products, and a sum of parts."""
        made, spec = layers.layer_constants(node), layers.conv_spec(node)
        assert made.multiplier is not None
        parts = made.weights, made.bias, made.multiplier, made.ratio
        return grid_packed(spec, *parts, self.machine, layers.narrow_codes(node))


class GridTableGemmRow(MachineRow):
    """Convolutions and linear layers of float32 by codes, and by codebooks, of at most 8 bits."""

    name: ClassVar[str] = "grid-table-gemm"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    encodings: ClassVar[tuple[str, ...]] = (
        Affine.name,
        Ternary.name,
        Binary.name,
        Codebook.name,
    )

    def serves(self, node: Node) -> bool:
        """Not asked about layers of quantised activations."""
        return super().serves(node) and not isinstance(node.input(0).type.encoding, Affine)

    def refuses(self, node: Node) -> str:
        """Wide codes, scales that are no factors of channels, other activations, groups."""
        encoding = node.input(1).type.encoding
        bits = getattr(encoding, "bits", 1)
        if bits > MOST_BITS:
            return f"codes of {bits} bits; up to {MOST_BITS} are looked up"
        if getattr(encoding, "axis", None) not in (None, 0):
            return "the scales belong to columns"
        if isinstance(encoding, Affine) and len(set(encoding.zero_points)) > 1:
            return "the channels' zero points differ"
        if isinstance(encoding, Ternary) and encoding.positive != encoding.negative:
            return "its two values are no multiples of one"
        return layers.refusal(node) or table_refusal(layers.conv_spec(node), self.machine)

    def cost(self, node: Node) -> float:
        """Of the best tile."""
        spec, weight = layers.conv_spec(node), node.input(1)
        scaled = not isinstance(weight.type.encoding, Codebook)
        tile = best_table_tile(spec, width_of_places(weight), scaled, self.machine)
        return predicted(spec, tile, self.machine)

    def plan(self, node: Node) -> KernelPlan:
        """A copy of the input where pixels are too narrow, the products, and a sum of parts."""
        spec, bias = layers.conv_spec(node), layers.float_bias(node)
        places, codes = real_codes(node.input(1))
        shaped = places.reshape(spec.oc, spec.c, spec.kh, spec.kw)
        factors = None if codes.factors is None else np.asarray(codes.factors[0])
        return grid_table(spec, shaped, codes.tables[0], factors, bias, self.machine)
