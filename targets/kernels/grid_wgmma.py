"""Blocked products by Hopper's warpgroups: ``wgmma``, operands of both sides from shared memory.

Four warps multiply 64 rows by all columns of their part of the tile, 32 bytes of the depth with one
instruction, which runs on its own until its group is waited for. Slices are rows of 128 bytes,
whose eight 16-byte parts ``cp.async`` exchanges by the row as the instruction expects them: the
128-byte swizzle of PTX ISA, "Asynchronous warpgroup level matrix instructions", matrix descriptors.

While the products of a slice run, those of the one before end, and the slice after the next is on
its way: a stage is filled again when its products are two slices old and every warp has waited for
them before a barrier.
"""

from __future__ import annotations

from typing import Any

from dlcc import tir
from targets.kernels.grid_gemm_code import MMA_NAMES, MmaGemm

_STEP = 32
"""Bytes of the depth of an instruction."""


class WgmmaGemm(MmaGemm):
    """Products by warpgroups."""

    @staticmethod
    def _exchanged(row: Any, part: Any) -> Any:
        return tir.tirx.bitwise_xor(part, row % 8)

    def _slices(self) -> None:
        kb, tile = self.kb, self.tile
        first, count = self._span()
        ahead = tile.stages - 2
        self._first_loads(first, count, ahead)
        with kb.loop(0, count, "slice") as index:
            kb.call(f"dlcc_copy_wait_{ahead - 1}")
            kb.call("dlcc_fence_async")
            kb.sync()
            self._multiply(kb.let(index % tile.stages, "stage"))
            following = kb.let(index + ahead, "following")
            with kb.when(following < count):
                self._load(first + following, kb.let(following % tile.stages, "stage"))
            kb.call("dlcc_copy_commit")
            kb.call("dlcc_wgmma_wait_1")
        kb.call("dlcc_wgmma_wait_0")

    def _multiply(self, stage: Any) -> None:
        kb, tile = self.kb, self.tile
        _, first_row, first_column = self._warp()
        row = kb.let(stage * tile.rows + first_row // 64 * 64, "row")
        column = kb.let(stage * tile.columns + first_column, "column")
        name = MMA_NAMES.get(self.layer.in_dtype, self.layer.in_dtype)
        across = tile.columns // tile.warps[1]
        kb.call("dlcc_wgmma_begin")
        for step in range(0, tile.slice_bytes, _STEP):
            a = kb.address(self.a, row * tile.slice_bytes + step)
            b = kb.address(self.b, column * tile.slice_bytes + step)
            kb.call(f"dlcc_wgmma_{name}_{across}", kb.address(self.sums, 0), a, b)
        kb.call("dlcc_wgmma_commit")
