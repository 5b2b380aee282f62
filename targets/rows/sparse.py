"""Rows of the kernel table that run ``Sparse`` weights from their compressed form.

The weight of such a layer is a constant encoded as ``Sparse(pattern, Dense)`` for float32
activations (:mod:`targets.rows.sparse_codes` has those of few values), or for 8-bit ones as
``Sparse`` of any encoding with integer codes. What a row stores follows from where the
zeros are, not from the pattern's name: each cuts the matrix into entries that suit its
instructions, and its cost counts them.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from dlcc.ir import Affine, Dense, Node, Sparse
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow
from targets.isa import Isa
from targets.kernels import (
    sparse_conv,
    sparse_gather,
    sparse_gemv,
    sparse_mask,
    sparse_panel,
    sparse_tiles,
)
from targets.kernels.sparse_layer import Layer
from targets.kernels.spec import SHORT_FLOATS, ConvSpec
from targets.rows import layers
from targets.rows.base import IsaRow


class _SparseRow(IsaRow):
    """A row made for one instruction set."""

    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    encodings: ClassVar[tuple[str, ...]] = (Sparse.name,)

    def refuses(self, node: Node) -> str:
        """Inner encodings of other kernels, 16-bit floats, groups."""
        encoding = node.input(1).type.encoding
        assert isinstance(encoding, Sparse)
        why = layers.refusal(node)
        if why:
            return why
        spec = layers.conv_spec(node)
        codes = spec.in_dtype == "u8" and encoding.uniform is not None
        if not isinstance(encoding.inner, Dense | Affine) and not codes:
            return f"the stored weights are {encoding.inner.name}"
        if spec.in_dtype in SHORT_FLOATS:
            return "the activations are floats of 16 bits"
        if spec.groups != 1:
            return f"the convolution has {spec.groups} groups"
        return self._refuses(spec)

    def cost(self, node: Node) -> float:
        """Products and bytes of the stored entries, and staging."""
        weights = layers.layer_constants(node).weights
        return self._cost(layers.conv_spec(node), weights)

    def plan(self, node: Node) -> KernelPlan:
        """Staging where the kernel needs it, then the product."""
        made = layers.layer_constants(node)
        return self._plan(
            Layer(layers.conv_spec(node), made.weights, made.bias, made.multiplier, made.ratio)
        )

    @abstractmethod
    def _refuses(self, spec: ConvSpec) -> str:
        """Why the kernel cannot take the layer; "" if it can."""

    @abstractmethod
    def _cost(self, spec: ConvSpec, weights: Array) -> float:
        """Predicted seconds."""

    @abstractmethod
    def _plan(self, layer: Layer) -> KernelPlan:
        """The kernel's plan."""


class SparseGemvRow(_SparseRow):
    """Linear layers of one row of activations, outputs along the lanes."""

    name: ClassVar[str] = "sparse-gemv"
    ops: ClassVar[tuple[str, ...]] = ("linear",)

    def _refuses(self, spec: ConvSpec) -> str:
        return sparse_gemv.refusal(spec)

    def _cost(self, spec: ConvSpec, weights: Array) -> float:
        return sparse_gemv.sparse_gemv_cost(spec, self.isa, weights)

    def _plan(self, layer: Layer) -> KernelPlan:
        return sparse_gemv.sparse_gemv(layer, self.isa)


class SparseGatherRow(_SparseRow):
    """Linear layers of one row of activations and weights with scattered zeros."""

    name: ClassVar[str] = "sparse-gather"
    ops: ClassVar[tuple[str, ...]] = ("linear",)

    def _refuses(self, spec: ConvSpec) -> str:
        return sparse_gather.refusal(spec, self.isa)

    def _cost(self, spec: ConvSpec, weights: Array) -> float:
        return sparse_gather.sparse_gather_cost(spec, self.isa, weights)

    def _plan(self, layer: Layer) -> KernelPlan:
        return sparse_gather.sparse_gather(layer, self.isa)


class SparseMaskRow(_SparseRow):
    """Linear layers of one row of activations and weights of which many are left."""

    name: ClassVar[str] = "sparse-mask"
    ops: ClassVar[tuple[str, ...]] = ("linear",)

    def _refuses(self, spec: ConvSpec) -> str:
        return sparse_mask.refusal(spec, self.isa)

    def _cost(self, spec: ConvSpec, weights: Array) -> float:
        return sparse_mask.sparse_mask_cost(spec, self.isa, weights)

    def _plan(self, layer: Layer) -> KernelPlan:
        return sparse_mask.sparse_mask(layer, self.isa)


MOST_OCCUPIED = 0.9
"""Part of the blocks above which the dense kernel, with its regular access, is not beaten."""


class SparseConvRow(_SparseRow):
    """Convolution and linear layers as implicit GEMM over the stored blocks of channels."""

    name: ClassVar[str] = "sparse-gemm"

    def refuses(self, node: Node) -> str:
        """Also zeros that leave no block of outputs empty."""
        if why := super().refuses(node):
            return why
        weights = layers.layer_constants(node).weights
        part = sparse_conv.occupied(layers.conv_spec(node), self.isa, weights)
        if part > MOST_OCCUPIED:
            return f"{100 * part:.0f} % of the blocks of {self.isa.lanes} outputs hold a weight"
        return ""

    def _refuses(self, spec: ConvSpec) -> str:
        return sparse_conv.refusal(spec, self.isa)

    def _cost(self, spec: ConvSpec, weights: Array) -> float:
        return sparse_conv.sparse_conv_cost(spec, self.isa, weights)

    def _plan(self, layer: Layer) -> KernelPlan:
        return sparse_conv.sparse_conv(layer, self.isa)


class SparsePanelRow(_SparseRow):
    """Convolution and linear layers of scattered weights, pixels along the lanes."""

    name: ClassVar[str] = "sparse-panel"

    def _refuses(self, spec: ConvSpec) -> str:
        if spec.n * spec.oh * spec.ow < self.isa.lanes:
            return f"fewer than {self.isa.lanes} pixels"
        return sparse_panel.refusal(spec, self.isa)

    def _cost(self, spec: ConvSpec, weights: Array) -> float:
        return sparse_panel.sparse_panel_cost(spec, self.isa, weights)

    def _plan(self, layer: Layer) -> KernelPlan:
        return sparse_panel.sparse_panel(layer, self.isa)


class SparseTilesRow(_SparseRow):
    """Convolution and linear layers of codes on AMX tiles, filled by gathering."""

    name: ClassVar[str] = "sparse-gemm-amx"

    def _refuses(self, spec: ConvSpec) -> str:
        return sparse_tiles.refusal(spec)

    def _cost(self, spec: ConvSpec, weights: Array) -> float:
        return sparse_tiles.sparse_tiles_cost(spec, self.isa, weights)

    def _plan(self, layer: Layer) -> KernelPlan:
        return sparse_tiles.sparse_tiles(layer, self.isa)


def sparse_rows(isa: Isa) -> list[KernelRow]:
    """All rows for sparse weights that this feature level can run."""
    if isa.arch != "x86":
        return [SparseGemvRow(isa), SparseConvRow(isa), SparsePanelRow(isa)]
    rows: list[KernelRow] = [
        SparseGemvRow(isa),
        SparseGatherRow(isa),
        SparseMaskRow(isa),
        SparseConvRow(isa),
        SparsePanelRow(isa),
    ]
    return [*rows, SparseTilesRow(isa)] if isa.dot == "amx" else rows
