"""Row of the kernel table for pruned weights that are ternary, binary or out of a codebook."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np

from dlcc.ir import Binary, Codebook, Constant, Node, Sparse, TensorType, Ternary
from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelPlan
from targets.kernels import sparse_codes
from targets.kernels.sparse_codes import PAIR_BITS, FewValues, code_bits
from targets.kernels.sparse_layer import Layer
from targets.rows import layers
from targets.rows.base import IsaRow


@lru_cache(maxsize=1)
def _values(constant: Constant, type_: TensorType) -> Array:
    """The numbers other than 0 that a weight holds, rising."""
    stored = type_.encoding.decode(constant.parts, type_.shape)
    return np.unique(stored[stored != 0])


def _two_of_each(node: Node) -> bool:
    """Whether outputs have values of their own."""
    inner = _inner(node)
    return isinstance(inner, Ternary | Binary) and inner.axis == 0


def _inner(node: Node) -> Ternary | Binary | Codebook:
    encoding = node.input(1).type.encoding
    assert isinstance(encoding, Sparse)
    assert isinstance(encoding.inner, Ternary | Binary | Codebook)
    return encoding.inner


def _code_bits(node: Node) -> int:
    if _two_of_each(node):
        return PAIR_BITS
    constant = node.input(1).constant
    assert constant is not None
    return code_bits(_values(constant, node.input(1).type).size)


def _few_values(node: Node, matrix: Array) -> FewValues:
    """``matrix``: the weight's numbers."""
    if _two_of_each(node):
        inner, outputs = _inner(node), len(matrix)
        assert isinstance(inner, Ternary | Binary)
        if isinstance(inner, Ternary):
            up, down = inner.positive, inner.negative
        else:
            up = down = inner.scales
        table = np.stack([np.asarray(up, np.float32), -np.asarray(down, np.float32)])
        assert table.shape == (2, outputs)
        return FewValues(np.where(matrix > 0, 1, np.where(matrix < 0, 2, 0)), table)
    constant = node.input(1).constant
    assert constant is not None
    table = _values(constant, node.input(1).type)
    codes = np.zeros(matrix.shape, np.int64)
    kept = matrix != 0
    codes[kept] = np.searchsorted(table, matrix[kept]) + 1
    return FewValues(codes, table)


class SparseCodesRow(IsaRow):
    """Linear layers of one row of float32 activations by pruned weights of few values."""

    name: ClassVar[str] = "sparse-codes"
    ops: ClassVar[tuple[str, ...]] = ("linear",)
    encodings: ClassVar[tuple[str, ...]] = (Sparse.name,)

    def serves(self, node: Node) -> bool:
        """Asked about few values alone."""
        if not super().serves(node):
            return False
        encoding = node.input(1).type.encoding
        return isinstance(encoding, Sparse) and isinstance(
            encoding.inner, Ternary | Binary | Codebook
        )

    def refuses(self, node: Node) -> str:
        """Quantised activations, several rows, too many values."""
        why = layers.refusal(node)
        if why:
            return why
        inner = _inner(node)
        if isinstance(inner, Codebook) and inner.bits > 8:
            return f"codes of {inner.bits} bits exceed {sparse_codes.MOST_VALUES} values"
        if isinstance(inner, Ternary | Binary) and inner.axis not in (None, 0):
            return "the scales belong to columns"
        return sparse_codes.refusal(layers.conv_spec(node), self.isa)

    def cost(self, node: Node) -> float:
        """Gathers, look-ups and bytes of the stored weights."""
        weights = layers.layer_constants(node).weights
        pairs, bits = _two_of_each(node), _code_bits(node)
        return sparse_codes.sparse_codes_cost(
            layers.conv_spec(node), self.isa, weights, bits, pairs
        )

    def plan(self, node: Node) -> KernelPlan:
        """One step."""
        made, spec = layers.layer_constants(node), layers.conv_spec(node)
        matrix = made.weights.reshape(spec.oc, spec.c)
        layer = Layer(spec, made.weights, made.bias)
        return sparse_codes.sparse_codes(layer, self.isa, _few_values(node, matrix))
