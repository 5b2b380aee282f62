"""The kernel of :mod:`targets.kernels.grid_sparse`: products on sparse tensor cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from targets.kernels.grid_gemm_code import PART, SLICE, Layer, MmaGemm, Tile
from targets.kernels.grid_results import Run
from targets.kernels.spec import SIZE

KEPT = SLICE // 2
"""Bytes of a channel's slice that are stored."""

_LANES = 32


@dataclass(frozen=True)
class SparseTile(Tile):
    """How a layer is cut whose weights keep 2 of every 4.

    ``columns`` of a warp, which are rows of its instructions, are a multiple of 32; ``rows``, which
    are their columns, one of 16.

    Attributes:
        places: bytes that say which weights of a channel's slice are kept.
    """

    places: int = 8

    @property
    def weight_bytes(self) -> int:
        """Of the weights of a slice, and of their places."""
        return self.columns * (KEPT + self.places)

    @property
    def speedup(self) -> float:
        """The instruction does twice the products of a dense one in its time. What libraries reach
        is 1.3 to 1.6 (Mishra et al. 2021, "Accelerating sparse deep neural networks", figure 3).
        """
        return 1.5


def places_bytes(in_dtype: str) -> int:
    """Bytes that say which weights of a channel's slice are kept: 4 bits for every 4 elements."""
    return SLICE // SIZE[in_dtype] // 8


def sparse_function(key: str, layer: Layer, tile: SparseTile) -> Callable[[], Any]:
    """What makes the kernel; its arguments are those of the dense one."""
    return lambda: _Sparse(key, layer, tile).build()


class _Sparse(MmaGemm):
    """Products by ``mma.sp``: 16 channels, 8 pixels, 64 bytes of the depth, of which 32 are stored.

    The sparse operand is the first, so an instruction's rows are channels and its columns pixels.
    Which pixels these are is free: column 2 t + n is pixel t + 4 n of eight, so that the lanes that
    leave sums in shared memory are in neighbouring rows.
    """

    tile: SparseTile

    @property
    def _counts(self) -> tuple[int, int]:
        """Instructions along the channels and along the pixels of a warp."""
        tile = self.tile
        return tile.columns // tile.warps[1] // 16, tile.rows // tile.warps[0] // 8

    def _load_columns(self, depth: Any, stage: Any) -> None:
        self._load_arranged(depth, stage)

    def _multiply(self, stage: Any) -> None:
        kb, tile, (down, across) = self.kb, self.tile, self._counts
        lane, first_pixel, first_channel = self._warp()
        a, b = kb.alloc("uint32", 4 * down, "a"), kb.alloc("uint32", 4, "b")
        short = self.layer.in_dtype != "u8"
        words = down // 2 if short else down
        places = kb.alloc("uint32", words, "places")
        weights = stage * tile.weight_bytes
        fragment = kb.let(weights + first_channel * KEPT + lane * PART, "fragment")
        for i in range(down):
            place = kb.address(self.b, fragment + i * _LANES * PART)
            kb.call("dlcc_load16", kb.address(a, 4 * i), place)
        word = weights + tile.columns * KEPT + first_channel * tile.places + lane * 4
        word = kb.let(word, "word")
        for i in range(words):
            place = kb.address(self.b, word + i * _LANES * 4)
            kb.call("dlcc_load4", kb.address(places, i), place)
        pixel = kb.let(first_pixel + lane % 8 // 2 + lane % 2 * 4, "pixel")
        # parts are exchanged by groups of 8 rows, so they are the same 8 pixels further down
        part = self._exchanged(pixel, lane // 8)
        operand = kb.let((stage * tile.rows + pixel) * SLICE + part * PART, "operand")
        for j in range(across):
            place = kb.address(self.a, operand + 8 * SLICE * j)
            kb.call("dlcc_ldmatrix4", kb.address(b, 0), place)
            for i in range(down):
                sums = kb.address(self.sums, 4 * (i * across + j))
                name = f"{self.layer.in_dtype}_{i % 2}" if short else "s8u8"
                held = kb.load(places, i // 2 if short else i)
                kb.call(f"dlcc_mma_sp_{name}", sums, kb.address(a, 4 * i), kb.address(b, 0), held)

    def _runs(self) -> Iterator[Run]:
        down, across = self._counts
        lane, _, first_channel = self._warp()
        group = self.kb.thread // 32 % self.tile.warps[0]
        for i, j, lower, n in product(range(down), range(across), range(2), range(2)):
            number = 4 * (i * across + j) + 2 * lower + n
            row = lane % 4 + (8 * (j % 2) + 4 * n)
            channel = first_channel + lane // 4 + (16 * i + 8 * lower)
            yield Run(number, 1, group, j // 2, row, channel)
