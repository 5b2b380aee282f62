"""Det: the determinant of square matrices."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from dlcc.frontends.registry import OnnxNode, onnx_op
from dlcc.ir import F32, Node, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Op, type_error
from dlcc.ops.pointwise import present


class Determinant(Op):
    """determinant(x): of f32[..., N, N], the determinants f32[...].

    Gaussian elimination with partial pivoting (Golub and Van Loan, "Matrix Computations", section
    3.4), each step rounded to float32: the product of the pivots, negated once for each exchange of
    rows. Of equal pivots the first is taken. The loops depend on data, so there is no default TIR.
    """

    name = "determinant"

    def infer(self, node: Node) -> list[TensorType]:
        """The operand's shape without the last two axes."""
        x = node.input(0).type
        if x.rank < 2 or x.shape[-1] != x.shape[-2] or x.dtype != F32:
            raise type_error(node, "the operand must be square float32 matrices")
        return [TensorType(x.shape[:-2], F32)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Matrix by matrix."""
        x = present(xs[0])
        size = x.shape[-1]
        with np.errstate(all="ignore"):
            matrices = x.reshape(prod(x.shape[:-2]), size, size).astype(np.float32)
            found = [_eliminated(m) for m in matrices]
        return [np.asarray(found, np.float32).reshape(x.shape[:-2])]


def _eliminated(matrix: Array) -> Any:
    left, result = matrix.copy(), np.float32(1)
    for k in range(len(left)):
        best = k + int(np.argmax(np.nan_to_num(np.abs(left[k:, k]), nan=-1.0, posinf=np.inf)))
        if best != k:
            left[[k, best]] = left[[best, k]]
            result = -result
        pivot = left[k, k]
        if pivot == 0 or result == 0:
            return np.float32(0)
        result = result * pivot
        factors = left[k + 1 :, k] / pivot
        left[k + 1 :, k + 1 :] -= factors[:, None] * left[k, k + 1 :]
    return result


@onnx_op("Det", since=11)
def import_det(node: OnnxNode) -> Sequence[Value]:
    """Det."""
    return node.build("determinant", [node.input(0)])
