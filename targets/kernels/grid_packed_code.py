"""The kernel of :mod:`targets.kernels.grid_packed`: weights unpacked to fragments in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dlcc import tir
from targets.kernels.grid_gemm_code import SLICE, Layer, MmaGemm, Tile

LANES = 32
PAIR = 16
"""Columns whose fragments a lane reads together: those of two instructions."""

OPERANDS = 8
"""Registers of a lane's fragments of a pair: 2 instructions across, 2 halves of a slice, 2 each."""

_BYTES_OF_ONE = 0x01010101


@dataclass(frozen=True)
class PackedTile(Tile):
    """How a layer is cut whose weights are codes of ``bits`` (1, 2, 4) bits.

    Codes of 2 and 4 bits are in two's complement; a bit stands for -1, and no bit for 1.
    """

    bits: int = 4

    @property
    def weight_bytes(self) -> int:
        """Of the weights of a slice."""
        return self.columns * SLICE * self.bits // 8

    @property
    def speedup(self) -> float:
        """Less than 1: a shift and a mask for each register of an operand, whose time is that of
        ``16 * warps[0] / rows`` of the products, half of it beside them.
        """
        return 1 / (1 + 8 * self.warps[0] / self.rows)


def packed_function(key: str, layer: Layer, tile: PackedTile) -> Callable[[], Any]:
    """As :func:`~targets.kernels.grid_gemm_code.gemm_function`, for packed weights."""
    return lambda: _PackedGemm(key, layer, tile).build()


class _PackedGemm(MmaGemm):
    """Slices of packed weights lie in shared memory as they do in the file.

    A code is left at the upper end of its byte, where it counts 2^(8 - bits), with one ``lop3``
    (and a shift); sums lose that factor once, at the end.
    """

    tile: PackedTile

    @property
    def _pairs(self) -> int:
        """Pairs of instructions across."""
        return self._counts[1] // 2

    def _load_columns(self, depth: Any, stage: Any) -> None:
        self._load_arranged(depth, stage)

    def _multiply(self, stage: Any) -> None:
        kb, tile = self.kb, self.tile
        lane, _, first_column = self._warp()
        size = 4 * tile.bits
        self.packed = kb.alloc("uint32", self._pairs * tile.bits, "packed")
        start = first_column // PAIR * (LANES * size) + lane * size
        start = kb.let(stage * tile.weight_bytes + start, "start")
        for pair in range(self._pairs):
            to = kb.address(self.packed, pair * tile.bits)
            source = kb.address(self.b, start + pair * (LANES * size))
            kb.call(f"dlcc_load{size}", to, source)
        super()._multiply(stage)

    def _columns_operand(self, b: Any, stage: Any, half: int) -> None:
        kb, bits = self.kb, self.tile.bits
        fields = 8 // bits
        mask = ((1 << bits) - 1 << (8 - bits)) * _BYTES_OF_ONE
        for pair in range(self._pairs):
            for column in range(2):
                for register in range(2):
                    place = 4 * column + 2 * half + register
                    word, field = divmod(place, fields)
                    codes = kb.load(self.packed, pair * bits + word)
                    left = 8 - bits * (field + 1)
                    if left:
                        by = kb.const(-left, "int32")
                        codes = kb.extern("dlcc_shift", "uint32", 1, codes, by)
                    if bits == 1:  # 64 and, with the bit, -64
                        constants = (kb.const(n * _BYTES_OF_ONE, "uint32") for n in (0x80, 0x40))
                        codes = kb.extern("dlcc_and_or", "uint32", 1, codes, *constants)
                    else:
                        codes = tir.tirx.bitwise_and(codes, kb.const(mask, "uint32"))
                    kb.store(b, 4 * pair + 2 * column + register, codes)

    def _store(self) -> None:
        kb, bits = self.kb, self.tile.bits
        shift = kb.const(6 if bits == 1 else 8 - bits, "int32")
        for i in range(self._sum_count()):
            kb.store(self.sums, i, tir.tirx.shift_right(kb.load(self.sums, i), shift))
        super()._store()
