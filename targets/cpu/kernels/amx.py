"""Emits implicit-GEMM blocks of up to four AMX accumulator tiles.

The products are u8 x s8 -> s32 (tdpbusd) or bf16 x bf16 -> f32 (tdpbf16ps). A tile of A is up to 16
pixels, one row each at distance ``a_col``, by up to 64 bytes of a run; a tile of B is as many
steps-bytes of 16 channels, packed as for VNNI. All tiles of a function have the same
number of rows: a narrower one starts earlier, recomputes pixels of its neighbour and leaves them
unstored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlcc import tir
from targets.cpu.kernels.gemm import TILE, Blocking
from targets.cpu.kernels.skeleton import Block, Context, a_start, b_start, runs, store_block
from targets.cpu.kernels.spec import SIZE

_ACC, _A, _B = 0, 4, 6  # tile registers: accumulators 0-3 (row-major), A 4-5, B 6-7, in turns


@dataclass(frozen=True)
class _Strip:
    """One tile of pixels of a block: its place, its pixels, and how far early it starts."""

    row: int
    col: int
    pixels: int
    early: int


def tile_rows(blocking: Blocking) -> int:
    """Rows of every A and accumulator tile of a function with this blocking."""
    return max(-(-width // 2) if width > TILE else width for width in blocking.cols.sizes)


def _strips(block: Block, rows: int) -> list[_Strip]:
    """The block's pixels as tiles of ``rows`` rows."""
    widths = [block.width]
    if block.width > TILE:
        widths = [-(-block.width // 2), block.width // 2]
    strips, col = [], 0
    for width in widths:
        strips += [_Strip(r, col, width, rows - width) for r in range(block.height)]
        col += width
    return strips


def _tile(number: int) -> Any:
    return tir.tirx.IntImm("int8", number)


def configure(ctx: Context) -> None:
    """Loads the tile configuration (palette 1); at the top of every call."""
    kb, rows = ctx.kb, tile_rows(ctx.blocking)
    depth = ctx.unit.k * SIZE[ctx.gemm.a_dtype]  # bytes of a row of A; four of them a row of B
    config = kb.alloc("int8", 64)
    content = [0] * 64
    content[0] = 1
    for tile in range(8):
        content[16 + 2 * tile] = depth if _A <= tile < _B else 64
        content[48 + tile] = depth // 4 if tile >= _B else rows
    for start in range(0, 64):
        kb.store(config, start, kb.const(content[start], "int8"))
    kb.effect("llvm.x86.ldtilecfg", kb.address(config, 0))


def release(ctx: Context) -> None:
    """Gives the tiles back, so that context switches stay cheap."""
    ctx.kb.effect("llvm.x86.tilerelease")


def emit_tile_block(ctx: Context, block: Block) -> None:
    """Accumulates one block in tiles and hands it to the epilogue."""
    kb, gemm = ctx.kb, ctx.gemm
    rows, nr = tile_rows(ctx.blocking), block.channel_blocks
    strips = _strips(block, rows)
    for i in range(len(strips) * nr):
        kb.effect("llvm.x86.tilezero", _tile(_ACC + i))
    unit, size = ctx.unit, SIZE[gemm.a_dtype]
    dot = "llvm.x86.tdpbf16ps" if unit.bf16 else "llvm.x86.tdpbusd"
    a_bytes = tir.tirx.IntImm("int64", gemm.a_col * size if rows > 1 else 64)
    row_bytes = tir.tirx.IntImm("int64", 64)
    with runs(ctx, a_start(ctx, block), b_start(ctx, block)) as (a_run, b_run):
        a_run, b_run = kb.let(a_run, "a_run"), kb.let(b_run, "b_run")
        with kb.loop(0, -(-gemm.run // unit.k), "k") as k:
            for i, strip in enumerate(strips):
                start = strip.row * gemm.a_row + (strip.col - strip.early) * gemm.a_col
                at = kb.address(ctx.a, a_run + k * unit.k + start)
                kb.effect("llvm.x86.tileloadd64", _tile(_A + i % 2), at, a_bytes)
                for j in range(nr):
                    if i == 0:  # more than two B tiles only where there is one A tile
                        at = kb.address(ctx.b, b_run + j * ctx.b_block + k * (unit.k * TILE))
                        kb.effect("llvm.x86.tileloadd64", _tile(_B + j % 2), at, row_bytes)
                    tiles = (_tile(_ACC + nr * i + j), _tile(_A + i % 2), _tile(_B + j % 2))
                    kb.effect(dot, *tiles)
    acc, aligned = kb.alloc_aligned(unit.accumulator, 4 * TILE * TILE)
    for i in range(len(strips) * nr):
        at = kb.address(acc, aligned + i * TILE * TILE)
        kb.effect("llvm.x86.tilestored64", _tile(_ACC + i), at, row_bytes)
    for i, strip in enumerate(strips):
        part = Block(
            1,
            strip.pixels,
            nr,
            block.row + strip.row,
            block.col + strip.col,
            block.channel_block,
            block.last,
        )
        first = aligned + (nr * i * TILE + strip.early) * TILE
        store_block(ctx, part, acc, 0, TILE, TILE * TILE, first)
