"""Scaled dot-product attention as one op, which the lowering makes of its products and softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from dlcc.ir import Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.ops.base import Interval, Op, type_error
from dlcc.ops.integer import filled, float_dtype


class Attention(Op):
    """softmax(scale * q @ k^T + mask) @ v over the last axis of the scores.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1. q f32[...,M,H], k f32[...,N,H],
    v f32[...,N,D] with equal leading axes -> f32[...,M,D]; the mask is broadcast to [...,M,N].
    Scores and probabilities are not rounded, whatever the operands are stored as. No importer makes
    this op: passes see the products and the softmax (:mod:`dlcc.lowering.attention`).
    """

    name = "attention"
    operands = ("q", "k", "v", "mask?")
    attributes: ClassVar[Mapping[str, Any]] = {"scale": 1.0}
    multiplied = (0, 1)

    def infer(self, node: Node) -> list[TensorType]:
        """[...,M,H], [...,N,H], [...,N,D] -> [...,M,D]."""
        q, k, v = (node.input(index).type for index in range(3))
        if q.rank < 2 or (k.rank, v.rank) != (q.rank, q.rank):
            raise type_error(node, "q, k and v need one rank of at least 2")
        lead = q.shape[:-2]
        if k.shape[:-2] != lead or v.shape[:-2] != lead:
            raise type_error(node, "the leading axes of q, k and v differ")
        if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
            raise type_error(node, "rows of q and k, or the numbers of keys and values, differ")
        mask = node.optional_input(3)
        scores = (*lead, q.shape[-2], k.shape[-2])
        try:
            fits = mask is None or np.broadcast_shapes(mask.type.shape, scores) == scores
        except ValueError:
            fits = False
        if not fits:
            raise type_error(node, f"the mask cannot be broadcast to {list(scores)}")
        return [TensorType((*lead, q.shape[-2], v.shape[-1]), q.dtype)]

    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """In float32; a row that is masked as a whole is NaN, as its softmax is."""
        q, k, v, mask = filled(xs, 4)
        assert q is not None
        assert k is not None
        assert v is not None
        dtype = float_dtype(q, k, v)
        keys = k.astype(dtype, copy=False).swapaxes(-1, -2)
        scores = np.matmul(q.astype(dtype, copy=False), keys)
        scores *= dtype(self.get(node, "scale"))
        if mask is not None:
            scores = scores + mask.astype(dtype, copy=False)
        with np.errstate(invalid="ignore"):
            powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        powers /= powers.sum(axis=-1, keepdims=True, dtype=dtype)
        return [np.matmul(powers, v.astype(dtype, copy=False)).astype(q.dtype)]

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Results are means of rows of v."""
        assert xs[2] is not None
        return [xs[2]]

    def macs(self, node: Node) -> int:
        """Of both products."""
        q, k, v = (node.input(index).type for index in range(3))
        scores = q.elements // max(q.shape[-1], 1) * k.shape[-2]
        return int(scores * (q.shape[-1] + v.shape[-1]))
