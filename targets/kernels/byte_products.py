"""Sums of products of u8 activations and small codes, u >= 0, by each architecture's instructions.

A vector holds, in each 32-bit lane, four codes of one output; its partner holds the activations
they belong to. ``vpdpbusd`` and ``udot`` add the four products to the lane. Without them products
are summed in 16 bits first, by ``pmaddubsw`` or by ``umull`` and ``umlal``: that cannot overflow,
as codes are masked to half a byte.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from dlcc import tir
from targets.isa import Isa
from targets.kernels.gemm import Unit, unit_for
from targets.kernels.packed_bits import STEP, WORD

_DOT = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}
_PAIRS = {
    16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
    4: ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"),
}

_HALF = 4
"""Bits of half a byte: a masked code is below 16."""

_ARM_KINDS = {"mlal": "umlal", "sdot": "udot", "usdot": "udot", "mmla": "udot"}


def code_unit(isa: Isa) -> Unit:
    """The unit for products of this kind: ``vnni``, ``madd`` (of which only the lanes count),
    ``udot`` or ``umlal``.
    """
    unit = unit_for(isa, "u8", amx=False)
    kind = _ARM_KINDS.get(unit.kind, unit.kind)
    return Unit(kind, unit.lanes, WORD, unit.registers) if kind != unit.kind else unit


def is_arm(unit: Unit) -> bool:
    """Whether a unit of :func:`code_unit` is one of ARM's."""
    return unit.kind in _ARM_KINDS.values()


class Products(ABC):
    """How products are summed. Sums of a vector of outputs take :attr:`vectors` vectors."""

    vectors: ClassVar[int] = 1
    steps: ClassVar[int] = 1
    """Steps after which sums must be complete (:meth:`flush`)."""

    def __init__(self, kb: tir.KernelBuilder, lanes: int) -> None:
        self.kb, self.lanes, self.size = kb, lanes, WORD * lanes

    @abstractmethod
    def add(self, acc: Any, at: int, pairs: list[tuple[Any, Any]]) -> None:
        """Adds the products of ``pairs`` of activations and codes to the sums at ``at``."""

    def flush(self, acc: Any) -> None:  # noqa: B027 - most have nothing left to do
        """Completes the sums."""

    def value(self, acc: Any, at: int) -> Any:
        """The sums at ``at``, int32."""
        return self.kb.load(acc, at, self.lanes)

    def codes(self, value: Any) -> Any:
        """A vector of bytes as these instructions take codes."""
        return self.kb.reinterpret(value, "int8", self.size)

    activations = codes

    def words(self, x: Any, at: Any) -> list[Any]:
        """The activations of a step from ``at``: of each group one word, in every lane."""
        kb, made = self.kb, []
        for group in range(STEP // WORD):
            word = kb.reinterpret(kb.load(x, at + group * WORD, WORD), "int32")
            made.append(kb.let(self.codes(kb.splat(word, self.lanes)), "x"))
        return made

    def halves(self, codes: Any) -> tuple[Any, Any]:
        """Bytes whose lower halves are the lower, and the upper, halves of ``codes``."""
        kb, size = self.kb, self.size
        low = kb.let(codes, "codes")
        pairs = kb.reinterpret(low, "uint16", size // 2)
        high = tir.tirx.shift_right(pairs, kb.const(_HALF, "uint16", size // 2))
        return low, kb.let(kb.reinterpret(high, "uint8", size), "high")


class VnniProducts(Products):
    """AVX-VNNI and AVX512-VNNI."""

    def add(self, acc: Any, at: int, pairs: list[tuple[Any, Any]]) -> None:
        """One instruction for each pair."""
        kb, lanes = self.kb, self.lanes
        total = kb.load(acc, at, lanes)
        for a, b in pairs:
            total = kb.let(kb.pure(_DOT[lanes], "int32", lanes, total, a, b), "sum")
        kb.store(acc, at, total)


class MaddProducts(Products):
    """SSE, AVX2 and AVX-512: at most two pairs at a time (4 * 255 * 15 < 2^15)."""

    def add(self, acc: Any, at: int, pairs: list[tuple[Any, Any]]) -> None:
        """In 16 bits, then in 32."""
        kb, lanes = self.kb, self.lanes
        total = kb.load(acc, at, lanes)
        narrow, wide = _PAIRS[lanes]
        words = None
        for a, b in pairs:
            product = kb.pure(narrow, "int16", 2 * lanes, a, b)
            words = product if words is None else words + product
        ones = kb.const(1, "int16", 2 * lanes)
        kb.store(acc, at, total + kb.pure(wide, "int32", lanes, kb.let(words, "words"), ones))


class _ArmProducts(Products):
    """What ARM's have in common: unsigned codes, shifts of bytes, activations by element."""

    def codes(self, value: Any) -> Any:
        """Unsigned bytes."""
        return self.kb.reinterpret(value, "uint8", self.size)

    activations = codes

    def words(self, x: Any, at: Any) -> list[Any]:
        """Out of whole vectors: an instruction takes its word from there."""
        kb, lanes, made = self.kb, self.lanes, []
        for first in range(0, STEP, self.size):
            loaded = kb.let(kb.reinterpret(kb.load(x, at + first, self.size), "int32", lanes), "x")
            made += [self.codes(kb.shuffle(loaded, [i] * lanes)) for i in range(lanes)]
        return made

    def halves(self, codes: Any) -> tuple[Any, Any]:
        """A shift of bytes leaves nothing else in them."""
        low = self.kb.let(codes, "codes")
        high = tir.tirx.shift_right(low, self.kb.const(_HALF, "uint8", self.size))
        return low, self.kb.let(high, "high")


class DotProducts(_ArmProducts):
    """udot."""

    def add(self, acc: Any, at: int, pairs: list[tuple[Any, Any]]) -> None:
        """One instruction for each pair."""
        total = self.kb.load(acc, at, self.lanes)
        for a, b in pairs:
            total = self.kb.let(tir.neon.dot(total, b, a), "sum")
        self.kb.store(acc, at, total)


class LongProducts(_ArmProducts):
    """umull and umlal, the products of two steps in 16 bits: at most 16 of 255 * 15; then uadalp.

    A vector of sums has those of the first two outputs, two each, another those of the others.
    """

    vectors: ClassVar[int] = 2
    steps: ClassVar[int] = 2

    def __init__(self, kb: tir.KernelBuilder, lanes: int) -> None:
        super().__init__(kb, lanes)
        self._sums: dict[int, list[Any]] = {}

    def words(self, x: Any, at: Any) -> list[Any]:
        """Both halves of a word's vector are factors."""
        return [self.kb.let(word, "word") for word in super().words(x, at)]

    def add(self, acc: Any, at: int, pairs: list[tuple[Any, Any]]) -> None:
        """In 16 bits."""
        for a, b in pairs:
            sums = self._sums.setdefault(at, [None, None])
            for side, before in enumerate(sums):
                halves = (tir.neon.half(value, side) for value in (a, b))
                product = tir.neon.multiply_long(*halves)
                total = product if before is None else before + product
                sums[side] = self.kb.let(total, "sum")

    def flush(self, acc: Any) -> None:
        """To 32 bits."""
        kb, lanes = self.kb, self.lanes
        for at, sums in self._sums.items():
            for side, value in enumerate(sums):
                place = self.vectors * at + side * lanes
                total = tir.neon.accumulate_pairs(kb.load(acc, place, lanes), value)
                kb.store(acc, place, total)
        self._sums.clear()

    def value(self, acc: Any, at: int) -> Any:
        """Neighbours belong to one output."""
        kb, lanes = self.kb, self.lanes
        sides = [kb.load(acc, self.vectors * at + side * lanes, lanes) for side in range(2)]
        return tir.neon.add_pairs(*sides)


_KINDS: dict[str, type[Products]] = {
    "vnni": VnniProducts,
    "madd": MaddProducts,
    "udot": DotProducts,
    "umlal": LongProducts,
}


def products_of(unit: Unit) -> type[Products]:
    """What sums products on a unit of :func:`code_unit`."""
    return _KINDS[unit.kind]
