"""Rows of the kernel table that run ``Sparse`` weights from their compressed form.

The weight of such a layer is a constant encoded as ``Sparse(pattern, Dense)`` for float32
activations, or ``Sparse(pattern, Affine)`` for 8-bit ones. What a row stores follows from where the
zeros are, not from the pattern's name: each cuts the matrix into entries that suit its
instructions, and its cost counts them.
"""

from __future__ import annotations

from typing import ClassVar

from dlcc.ir import Affine, Dense, Node, Sparse
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow
from targets.cpu import layers
from targets.cpu.isa import Isa
from targets.cpu.kernels import sparse_gemv
from targets.cpu.kernels.spec import ConvSpec


class _SparseRow(KernelRow):
    """A row made for one instruction set."""

    ops: ClassVar[tuple[str, ...]] = ("conv2d", "linear")
    encodings: ClassVar[tuple[str, ...]] = (Sparse.name,)

    def __init__(self, isa: Isa) -> None:
        self.isa = isa

    def refuses(self, node: Node) -> str:
        """Inner encodings of other kernels, bfloat16, groups."""
        encoding = node.input(1).type.encoding
        assert isinstance(encoding, Sparse)
        if not isinstance(encoding.inner, Dense | Affine):
            return f"the stored weights are {encoding.inner.name}"
        why = layers.refusal(node)
        if why:
            return why
        spec = layers.conv_spec(node)
        if spec.in_dtype == "bf16":
            return "the activations are bfloat16"
        if spec.groups != 1:
            return f"the convolution has {spec.groups} groups"
        return self._refuses(spec)

    def _refuses(self, spec: ConvSpec) -> str:
        raise NotImplementedError


class SparseGemvRow(_SparseRow):
    """Linear layers of one row of activations, outputs along the lanes."""

    name: ClassVar[str] = "sparse-gemv"
    ops: ClassVar[tuple[str, ...]] = ("linear",)

    def _refuses(self, spec: ConvSpec) -> str:
        return sparse_gemv.refusal(spec)

    def cost(self, node: Node) -> float:
        """Bytes of the stored entries, or the instructions they take."""
        weights = layers.layer_constants(node).weights
        return sparse_gemv.sparse_gemv_cost(layers.conv_spec(node), self.isa, weights)

    def plan(self, node: Node) -> KernelPlan:
        """Staging where the instruction set needs it, then the product."""
        made = layers.layer_constants(node)
        return sparse_gemv.sparse_gemv(
            layers.conv_spec(node),
            self.isa,
            made.weights,
            made.bias,
            made.multiplier,
            made.ratio,
        )


def sparse_rows(isa: Isa) -> list[KernelRow]:
    """All rows for sparse weights that this feature level can run."""
    return [SparseGemvRow(isa)]
