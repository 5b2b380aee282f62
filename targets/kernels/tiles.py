"""How an implicit GEMM is cut into AMX tiles, and what that costs.

Cycles are of the vector unit's clock. A core that multiplies tiles without pause runs at a lower
one (measured: 2.9 against 3.5 GHz), which :data:`_SLOWER` accounts for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, gcd

from targets.kernels.gemm import LINE, TILE, Blocking, Gemm, Unit, bundles
from targets.kernels.spec import SIZE

L1_BYTES = 48 << 10
"""First-level data cache: what exceeds half of it streams from the second level."""

_SLOWER = 1.2
_TILE_DRAIN = 64.0
"""Cycles that the tile unit waits if accumulators are stored right after their last product."""

_BUNDLE_CYCLES = {1: 4.6, 2: 3.6, 4: 3.0}
"""Cycles of the epilogue per vector of 16 channels, by the bundle they are requantised in."""

_RESIDUAL_CYCLES = 2.5

_ONCE = 40.0
"""Cycles that a tile of weights takes to arrive if one pixel is all that it is used for."""

_SPLIT_CYCLES = 2.0
"""Cycles that a row of a tile load takes longer if it crosses the end of a cache line."""


@dataclass(frozen=True)
class TileShape:
    """A block: ``strips`` tiles of ``rows`` pixels, ``turn`` channel blocks at a time.

    Its pixels are ``height`` rows of ``width``; strips are rows, or pieces of the only row.
    """

    height: int
    width: int
    strips: int
    rows: int
    turn: int

    def alternates(self, channel_blocks: int) -> bool:
        """Whether consecutive turns of so many channel blocks have accumulators of their own."""
        return channel_blocks % (2 * self.turn) == 0 and 2 * self.strips * self.turn <= 6

    @property
    def accumulators(self) -> int:
        """Tile registers set aside for accumulators."""
        most = self.strips * self.turn
        return 2 * most if 2 * most <= 6 else most


def strips_of(width: int) -> int:
    """Tiles that a row of ``width`` pixels takes."""
    return ceil(width / TILE)


def _window_bytes(gemm: Gemm, height: int, width: int) -> int:
    """Bytes of A that a block of pixels reads."""
    return gemm.runs * (width * gemm.a_col + gemm.run) * height * SIZE[gemm.a_dtype]


def _turn(gemm: Gemm, height: int, width: int, channel_blocks: int) -> int:
    """Channel blocks of a turn: two where A would be read again from the second-level cache."""
    strips = height if height > 1 else strips_of(width)
    deep = _window_bytes(gemm, height, width) > L1_BYTES // 2
    few = strips == 1 and channel_blocks % 4 == 0
    return 2 if channel_blocks % 2 == 0 and ((deep and strips == 2) or few) else 1


def tile_shape(gemm: Gemm, blocking: Blocking) -> TileShape:
    """The shape of the blocks of ``blocking``."""
    height, width = blocking.rows.first[1], blocking.cols.first[1]
    strips = height if height > 1 else strips_of(width)
    rows = width if height > 1 else width // strips
    return TileShape(
        height, width, strips, rows, _turn(gemm, height, width, blocking.channels.first[1])
    )


def block_grid(gemm: Gemm, blocking: Blocking) -> tuple[int, int]:
    """Blocks down and across an image."""
    height, width = blocking.rows.first[1], blocking.cols.first[1]
    return ceil(gemm.rows / height), ceil(gemm.cols / width)


def tile_blocks(gemm: Gemm) -> list[tuple[int, int, int]]:
    """Blocks worth looking at: (rows, columns, channel blocks)."""
    blocks = ceil(gemm.n / TILE)
    pixels = set()
    for strips in (1, 2, 3):
        groups = ceil(gemm.cols / (strips * TILE))
        width = strips * ceil(gemm.cols / (strips * groups))
        if width <= gemm.cols and strips_of(width) == strips:
            pixels.add((1, width))
        if gemm.cols <= TILE and strips <= gemm.rows:
            pixels.add((strips, gemm.cols))
    return [(*size, nr) for size in sorted(pixels) for nr in (4, 2, 1) if nr <= blocks]


def tile_cycles(gemm: Gemm, unit: Unit, height: int, width: int, channel_blocks: int) -> float:
    """Predicted cycles of one group of one image in such blocks."""
    blocks, done, cycles = ceil(gemm.n / TILE), 0, 0.0
    count = ceil(gemm.rows / height) * ceil(gemm.cols / width)
    while done < blocks:
        size = min(channel_blocks, blocks - done)
        cycles += count * _block_cycles(gemm, unit, height, width, size, channel_blocks)
        done += size
    return cycles


def _row_cycles(gemm: Gemm, unit: Unit) -> float:
    """Cycles of loading one row of a tile of A."""
    size = SIZE[gemm.a_dtype]
    grain = gcd(LINE, gemm.a_col * size, *(distance * size for _, distance in gemm.loops))
    if gemm.run > unit.k:
        grain = gcd(grain, unit.k * size)
    splits = sum(at + unit.k * size > LINE for at in range(0, LINE, grain))
    return 0.5 + _SPLIT_CYCLES * splits * grain / LINE


def _block_cycles(gemm: Gemm, unit: Unit, height: int, width: int, size: int, most: int) -> float:
    """Cycles of one block of ``size`` channel blocks, of at most ``most``."""
    strips = height if height > 1 else strips_of(width)
    rows = width if height > 1 else width // strips
    shape = TileShape(height, width, strips, rows, _turn(gemm, height, width, most))
    steps = gemm.runs * ceil(gemm.run / unit.k)
    turns = ceil(size / shape.turn)
    product = (6.0 + 0.625 * rows) * _SLOWER
    loads = unit.k * SIZE[gemm.a_dtype] / 8 * size + _row_cycles(gemm, unit) * rows * strips * turns
    if _window_bytes(gemm, height, width) > L1_BYTES // 2:
        loads += 0.5 * rows * strips * turns  # of A, from the second level
    if gemm.rows == gemm.cols == 1:
        loads += _ONCE * size
    elif steps * most * 1024 > L1_BYTES // 2:
        loads += 8.0 * size
    multiply = steps * max(strips * size * product, loads * _SLOWER)
    if not shape.alternates(size):
        multiply += _TILE_DRAIN * turns
    vectors = sum(b * _BUNDLE_CYCLES[b] for b in bundles(size, 4 if most % 4 == 0 else most))
    if gemm.pixel_bundles:
        vectors = _BUNDLE_CYCLES[4]
    if gemm.residual is not None:
        vectors += _RESIDUAL_CYCLES * size
    finish = strips * rows * (vectors + 1.0)
    return max(multiply, finish) + 0.3 * min(multiply, finish) + 16.0 * turns
