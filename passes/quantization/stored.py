"""Weights to which an earlier pass gave integer codes: an integer layer multiplies these."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dlcc.ir import Affine, Binary, Encoding, Node, Sparse, Ternary
from dlcc.ir.encodings import Array
from passes.quantization.structure import output_axis, weight_codes
from passes.quantization.weights import QuantisedWeights


def stored_weights(node: Node, floor: Array) -> QuantisedWeights | None:
    """Codes [O, K] of a weight that has some; None for one that has none.

    Args:
        node: the layer.
        floor: [O], smallest scale allowed. Channels below it get it, and their codes shrink.
    """
    axis = output_axis(node)
    weight = node.input(1)
    encoding = weight_codes(node)
    if encoding is None:
        return None
    rows = np.moveaxis(encoding.quantise(weight.decoded()), axis, 0)
    codes = rows.reshape(len(rows), -1).astype(np.float64)
    own = np.broadcast_to(np.asarray(encoding.scales, np.float64), (len(codes),))
    least = np.maximum(floor, own).astype(np.float32).astype(np.float64)
    scales = np.where(floor > own, least, own)
    if encoding.axis is None:
        scales = np.full_like(scales, scales.max(initial=0.0))
    exact = bool((scales == own).all())
    if not exact:
        codes = np.rint(codes * (own / scales)[:, None])
    return QuantisedWeights(codes.astype(np.int8), scales, exact)


def like(encoding: Encoding, codes: Affine) -> Encoding:
    """The encoding of codes with new scales, of the kind that the weight had."""
    if isinstance(encoding, Sparse):
        return replace(encoding, inner=like(encoding.inner, codes))
    if isinstance(encoding, Ternary | Binary):  # codes of a raised channel vanish: no signs alone
        return Ternary(codes.scales, codes.scales, codes.axis)
    return codes


__all__ = ["like", "stored_weights"]
