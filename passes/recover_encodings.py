"""Pass ``recover-encodings``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dlcc.ir import Codebook, Encoding, Sparse
from dlcc.ir.encodings import Array
from passes.base import PassContext
from passes.compression.layers import WeightLayer
from passes.compression.weight_only import Form, WeightOnly

MOST_VALUES = 256
"""Entries of a code book at most: those of an index of 8 bits."""


@dataclass(frozen=True)
class RecoverEncodings(WeightOnly):
    """Find pruned and shared weights among dense ones, and store them as such.

    A network that was pruned or clustered elsewhere (Han et al. 2016, "Deep compression") comes as
    float32 numbers, of which many are zero or few are different. Such a layer gets the encoding of
    the fewest bytes that holds every number exactly: the non-zero weights and their places, indices
    into a code book, or both. Negative zeros count as zeros.

    ::

        %y = conv2d(%x, @w, @b)    // @w: f32[64,32,3,3]
        ->
        %y = conv2d(%x, @w, @b)    // @w: f32[64,32,3,3]!sparse<pattern="unstructured",
                                   //     inner=codebook<bits=8>>
    """

    name: ClassVar[str] = "recover-encodings"
    lossy: ClassVar[bool] = False

    def form(self, layer: WeightLayer, context: PassContext) -> Form:
        """The smallest of the exact encodings."""
        encoding = layer.weight.type.encoding
        if not layer.weight.type.is_dense:
            raise ValueError(f"it is stored as {encoding.name} already")
        made = [_stored(found, layer.values) for found in _exact(layer.values)]
        if not made:
            raise ValueError(
                f"none of its weights is 0, and {np.unique(layer.values).size} different ones "
                f"exceed a code book of {MOST_VALUES}"
            )
        return min(made, key=lambda form: form.bytes)


def _exact(values: Array) -> Iterator[Encoding]:
    """Encodings that lose nothing of ``values``."""
    distinct = np.unique(values)
    zero = bool(np.any(distinct == 0))
    count = distinct.size
    if count <= MOST_VALUES:
        yield _book(count)
    if zero:
        yield Sparse("unstructured")
    if zero and count - 1 <= MOST_VALUES:
        yield Sparse("unstructured", _book(count - 1))


def _book(values: int) -> Codebook:
    return Codebook(max(1, (values - 1).bit_length()))


def _stored(encoding: Encoding, values: Array) -> Form:
    kept = np.count_nonzero(values)
    inner = encoding.inner if isinstance(encoding, Sparse) else encoding
    words = [f"{kept} of {values.size} weights"] if isinstance(encoding, Sparse) else []
    words += [f"indices of {inner.bits} bits"] if isinstance(inner, Codebook) else []
    return Form(encoding, encoding.encode(values), ", ".join(words))
