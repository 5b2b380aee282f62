"""Rows of a GPU for pruned weights, which keep them in a form without their zeros."""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Node, Sparse
from targets.kernels.grid_gemm import predicted
from targets.kernels.grid_gemv import Form, gemv_refusal
from targets.kernels.grid_sparse import best_sparse_tile, grid_sparse, sparse_refusal
from targets.kernels.grid_sparse_blocks import best_blocks, blocks_refusal, grid_blocks
from targets.kernels.grid_sparse_rows import grid_scattered, scattered_cost
from targets.rows import layers
from targets.rows.grid import LayerRow


class GridSparseRow(LayerRow):
    """Layers of which 2 of every 4 neighbouring weights are kept, on sparse tensor cores."""

    name: ClassVar[str] = "grid-gemm-2:4"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    encodings: ClassVar[tuple[str, ...]] = (Sparse.name,)
    generate = staticmethod(grid_sparse)

    def refuses(self, node: Node) -> str:
        """Types without such instructions, groups, and zeros elsewhere."""
        if why := layers.refusal(node):
            return why
        weights = layers.layer_constants(node).weights
        return sparse_refusal(layers.conv_spec(node), weights, self.machine)

    def cost(self, node: Node) -> float:
        """Of the best tile."""
        spec = layers.conv_spec(node)
        return predicted(spec, best_sparse_tile(spec, self.machine), self.machine)


class GridBlocksRow(LayerRow):
    """Layers whose weights are zero in whole blocks of channels and depth, which are skipped."""

    name: ClassVar[str] = "grid-gemm-blocks"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    encodings: ClassVar[tuple[str, ...]] = (Sparse.name,)
    generate = staticmethod(grid_blocks)

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family, groups, and zeros that fill no block."""
        if why := layers.refusal(node):
            return why
        weights = layers.layer_constants(node).weights
        return blocks_refusal(layers.conv_spec(node), weights, self.machine)

    def cost(self, node: Node) -> float:
        """Of the best tile: the parts of the depth that its columns need."""
        weights = layers.layer_constants(node).weights
        return best_blocks(layers.conv_spec(node), weights, self.machine)[0]


class GridScatteredRow(LayerRow):
    """Linear layers of few rows by the weights that are left, wherever these are."""

    name: ClassVar[str] = "grid-gemv-csr"
    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    encodings: ClassVar[tuple[str, ...]] = (Sparse.name,)
    generate = staticmethod(grid_scattered)

    def refuses(self, node: Node) -> str:
        """Types outside the GEMM family, windows, groups, more rows."""
        if why := layers.refusal(node):
            return why
        spec = layers.conv_spec(node)
        return gemv_refusal(spec, Form.dense(spec.in_dtype))

    def cost(self, node: Node) -> float:
        """Bytes of the weights that are left and of their columns, and gathering activations."""
        weights = layers.layer_constants(node).weights
        return scattered_cost(layers.conv_spec(node), weights, self.machine)
