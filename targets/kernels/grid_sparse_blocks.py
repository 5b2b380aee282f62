"""Convolutions and linear layers on a GPU whose weights are zero in whole blocks.

As :mod:`targets.kernels.grid_gemm`, but a block of threads walks only those parts of the depth, 16
bytes each, in which some channel of its tile has a weight; four of them, from wherever they are,
make a slice. So the tile's width and 16 bytes are the blocks that zeros have to fill, wherever the
pattern of the weights comes from, and the products are those of the dense kernel. Weights are
stored for the present parts alone, and a list of these for each tile (as rows of blocks are in the
format BSR).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelPlan
from targets.kernels.conv import fold_zero_point
from targets.kernels.grid_gemm import (
    MMA_TILES,
    SIMT_TILES,
    SPLITS,
    gemm_refusal,
    packed,
    predicted,
    product_plan,
    product_seconds,
)
from targets.kernels.grid_gemm_code import PART, SLICE, Gemm, Layer, MmaGemm, SimtGemm, Tile
from targets.kernels.grid_machine import Machine, Unit
from targets.kernels.grid_sparse import weights_present
from targets.kernels.spec import SIZE, ConvSpec

_PARTS = SLICE // PART


@dataclass(frozen=True)
class BlocksTile(Tile):
    """How a layer is cut whose weights are zero in blocks."""

    @property
    def speedup(self) -> float:
        """Below 1: where a slice's parts are has to be read before they are."""
        return 0.9


MOST_PRESENT = 0.9
"""Part of the blocks above which the dense kernel, with its regular access, is not beaten."""

_NARROW = (BlocksTile(128, 16, (4, 1)), BlocksTile(64, 16, (4, 1)), BlocksTile(32, 16, (2, 1)))
"""For blocks of few rows; the dense kernel has no use for them."""


def _tiles(unit: Unit) -> tuple[BlocksTile, ...]:
    given = MMA_TILES if unit == "mma" else SIMT_TILES
    made = tuple(BlocksTile(tile.rows, tile.columns, tile.warps, tile.stages) for tile in given)
    return (*made, *_NARROW) if unit == "mma" else made


def _present(spec: ConvSpec, weights: np.ndarray, columns: int) -> np.ndarray:
    """Which parts of the depth tiles of so many channels need, bool ``[tiles, parts]``.

    ``weights``: as :func:`grid_blocks` has them, or numbers that are yet to be rounded.
    """
    each = PART // SIZE[spec.in_dtype]
    rows = weights_present(weights)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % each)))
    parts = np.logical_or.reduce(rows.reshape(len(rows), -1, each), axis=2)
    return np.logical_or.reduceat(parts, range(0, len(rows), columns))


def best_blocks(spec: ConvSpec, weights: np.ndarray, machine: Machine) -> tuple[float, BlocksTile]:
    """Predicted seconds, and the tile that takes them."""
    tiles, found = _tiles(machine.unit(spec.in_dtype)), {}
    for columns in dict.fromkeys(tile.columns for tile in tiles):
        slices = -(-_present(spec, weights, columns).sum(axis=1) // _PARTS)
        counts = float(slices.mean()), int(slices.max())
        for tile in tiles:
            if tile.columns != columns or tile.shared_bytes > machine.shared_bytes:
                continue
            for splits in SPLITS:
                if splits == 1 or counts[0] >= 3 * splits:
                    cut = replace(tile, splits=splits)
                    found[product_seconds(spec, cut, machine, counts)] = cut, counts
    tile, counts = found[min(found)]
    return predicted(spec, tile, machine, counts), tile


def blocks_refusal(spec: ConvSpec, weights: np.ndarray, machine: Machine) -> str:
    """Why a layer cannot be computed so, or need not; "" if it can."""
    if why := gemm_refusal(spec):
        return why
    narrowest = min(tile.columns for tile in _tiles(machine.unit(spec.in_dtype)))
    part = float(_present(spec, weights, narrowest).mean())
    if part > MOST_PRESENT:
        held = f"{100 * part:.0f} % of the blocks of {narrowest} channels and {PART} bytes"
        return f"{held} of the depth hold a weight"
    return ""


def grid_blocks(
    spec: ConvSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    ratio: np.ndarray | None,
    machine: Machine,
    tile: BlocksTile | None = None,
) -> KernelPlan:
    """The plan of a layer; arguments as :func:`targets.kernels.grid_gemm.grid_gemm` has them."""
    best, unit = tile or best_blocks(spec, weights, machine)[1], machine.unit(spec.in_dtype)

    def pack(layer: Layer) -> dict[str, np.ndarray]:
        rows = packed(weights, layer.slices * SLICE, best.columns)
        return packed_blocks(rows, _present(spec, weights, best.columns))

    def function(key: str, layer: Layer) -> Callable[[], Any]:
        made = _MmaBlocks if unit == "mma" else _SimtBlocks
        return lambda: made(key, layer, best).build()

    if spec.in_dtype == "u8":
        bias = fold_zero_point(bias, weights, spec.in_zero_point)
    stem, name = f"grid_blocks_{unit}", f"{machine.unit_name(spec.in_dtype)} of present parts"
    plan = product_plan(spec, best, stem, name, pack, function, bias, multiplier, ratio)
    return replace(plan, compressed=True)


def packed_blocks(rows: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    """The ``present`` parts, bool ``[tiles, parts]``, of bytes ``[tiles * columns, slices * 64]``.

    Returns:
        ``weight``: bytes ``[slices, columns, 64]``, tile by tile; ``parts``: int32, where in the
        depth each of a slice's four parts begins, and four more; ``starts``: int32 ``[tiles + 1]``,
        the slices of tile ``i`` are ``starts[i]`` to ``starts[i + 1] - 1``.
    """
    columns, content, parts, starts = len(rows) // len(present), [], [], [0]
    cut = rows.reshape(len(present), columns, -1, PART)
    for tile, needed in zip(cut, present, strict=True):
        found = np.flatnonzero(needed)
        slices = ceil(len(found) / _PARTS)
        filled = np.zeros((columns, slices * _PARTS, PART), np.uint8)
        filled[:, : len(found)] = tile[:, found]
        content.append(filled.reshape(columns, slices, SLICE).swapaxes(0, 1))
        # what fills up the last slice has weights of 0, and reads what is read anyway
        parts.append(np.pad(found, (0, -len(found) % _PARTS), mode="edge") if slices else found)
        starts.append(starts[-1] + slices)
    weight = np.concatenate(content) if starts[-1] else np.zeros((1, columns, SLICE), np.uint8)
    places = np.concatenate([*parts, np.zeros(_PARTS, np.int64)]) * PART
    return {
        "weight": np.ascontiguousarray(weight),
        "parts": places.astype(np.int32),
        "starts": np.array(starts, np.int32),
    }


class _Blocks(Gemm):
    """Walks the present parts of the tile's depth."""

    def _declare(self) -> None:
        self.parts = self.kb.pointer("parts", "int32")
        self.starts = self.kb.pointer("starts", "int32")

    def _span(self) -> tuple[Any, Any]:
        kb, tile = self.kb, self.tile
        column = kb.let(self.first_column // tile.columns, "column")
        first = kb.let(kb.load(self.starts, column), "first_slice")
        count = kb.let(kb.load(self.starts, column + 1) - first, "slices")
        if tile.splits > 1:
            each = kb.let((count + (tile.splits - 1)) // tile.splits, "each")
            skipped = kb.let(tir.tirx.min(self.split * each, count), "skipped")
            first = kb.let(first + skipped, "first_slice")
            count = kb.let(tir.tirx.min(count - skipped, each), "slices")
        # a slice ahead of the copies, which would wait for it
        self.following = kb.alloc("int32", 1, "following")
        kb.store(self.following, 0, kb.load(self.parts, first * _PARTS + self.part_number))
        return first, count

    def _load(self, index: Any, stage: Any) -> None:
        kb, tile = self.kb, self.tile
        depth = kb.let(kb.load(self.following, 0), "depth")
        following = kb.load(self.parts, (index + 1) * _PARTS + self.part_number)
        kb.store(self.following, 0, following)
        self._load_rows(depth, stage)
        start = kb.let(index * tile.weight_bytes + self.part_number * PART, "start")
        for i, copies in self._copies(tile.columns):
            to = kb.address(self.b, self._place(stage * tile.columns, i))
            source = kb.address(self.weight, start + (self.line + i * self.lines) * SLICE)
            with kb.when(copies):
                kb.call("dlcc_copy16", to, source)


class _MmaBlocks(_Blocks, MmaGemm):
    """With matrix instructions."""


class _SimtBlocks(_Blocks, SimtGemm):
    """With products by threads."""


__all__ = ["BlocksTile", "best_blocks", "blocks_refusal", "grid_blocks", "packed_blocks"]
