"""Pass ``share-weights``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dlcc.ir import Codebook
from dlcc.ir.clustering import cluster_scalars
from dlcc.ir.encodings import Array
from passes.base import PassContext, option
from passes.compression.layers import WeightLayer
from passes.compression.weight_only import Form, is_pruned_layer
from passes.compression.with_data import RoundedWeights


@dataclass(frozen=True)
class ShareWeights(RoundedWeights):
    """Let the weights of a layer share a few values, found by k-means.

    Each weight is stored as an index into the layer's codebook (Han et al. 2016, "Deep
    compression", section 3); with calibration data, values and indices are chosen by the error of
    the layer's result. Zeros of pruned layers stay zeros; their places are stored beside the
    indices of the others where that is smaller.

    ::

        %y = conv2d(%x, @w, @b)    // @w: f32[64,32,3,3]
        ->
        %y = conv2d(%x, @w, @b)    // @w: f32[64,32,3,3]!codebook<bits=4>
    """

    name: ClassVar[str] = "share-weights"

    values: int = option(16, "values that a layer may have", minimum=2, maximum=256)
    start: Literal["linear", "density", "random"] = option(
        "linear",
        "where k-means starts: evenly spaced values; density: with equally many weights between "
        "them; random: some of the weights",
    )

    def form(self, layer: WeightLayer, context: PassContext) -> Form:
        """Cluster the weights."""
        encoding = Codebook((self.values - 1).bit_length())
        shared = self._shared(layer, context)
        count = len(np.unique(shared))
        words = f"{count} shared values"
        return Form(encoding, encoding.encode(shared), words)

    def _shared(self, layer: WeightLayer, context: PassContext) -> Array:
        rng = context.rng(f"share-weights {layer.loc}")
        weight = layer.values
        if not is_pruned_layer(layer):
            entries, index = cluster_scalars(weight, self.values, self.start, rng)
            return np.asarray(entries[index])
        kept = weight != 0
        entries, index = cluster_scalars(weight[kept], self.values - 1, self.start, rng)
        out = np.zeros_like(weight)
        out[kept] = entries[index]
        return out
