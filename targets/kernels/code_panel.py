"""Panels: weights of a few bits that a dense kernel reads as whole bytes, unpacked just before.

The second operand of an implicit GEMM is stored as codes of 1 to 7 bits. Before the first block of
pixels that takes a group of channel blocks, the group's codes are unpacked into a buffer of the
thread, in the order in which the dense kernel reads its weights; all blocks of pixels then read
them there, from the first- or second-level cache. What comes from memory are the codes.

Where hardly any blocks of pixels share channels, each of them unpacks the weights of a few steps at
a time, right before it multiplies them (``steps``); before tiles it is a tile (:mod:`amx_codes`).

The bytes of a piece (a channel block, one of its runs, a tile) are cut into *chunks* of a few
vectors. The bits of a code are cut into planes of 4, 2 and 1 (:class:`packed_bits.Codes`), and in a
chunk of V vectors the plane of w bits takes ``V * w / 8`` vectors: byte i of one of them holds in
its fields, from the lowest bits on, byte i of ``8 / w`` vectors of the panel. Half a byte is an
index into a table of 16 bytes (``pshufb``), of which there is one for each place that a field has
in half a byte: so the codes may stand for any numbers that are a sum over the planes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np

from dlcc import tir
from targets.isa import Isa
from targets.kernels.gemm import LINE, Gemm, Unit
from targets.kernels.packed_bits import Codes

_PSHUFB = {
    16: "llvm.x86.ssse3.pshuf.b.128",
    32: "llvm.x86.avx2.pshuf.b",
    64: "llvm.x86.avx512.pshuf.b.512",
}
_VPERMB = "llvm.x86.avx512.permvar.qi.512"

Form = Literal["panel", "steps", "tiles"]

_HALF = 4
"""Bits of an index."""

_NONE = -1
"""No group: nothing has been unpacked yet."""

GRAIN = {1: 8, 2: 4, 3: 8, 4: 2, 5: 8, 6: 4, 7: 8}
"""Vectors of a chunk: the fewest that leave no part of a plane's vector empty."""

AHEAD = 2048
"""Bytes that codes are fetched ahead of their use."""


@dataclass(frozen=True)
class Packing(ABC):
    """How a layer's weights are stored and unpacked.

    ``form``: what is unpacked at a time: a group of channel blocks, some steps, or a tile.
    """

    form: Form

    word: ClassVar[int] = 1
    """Bytes of an element of the buffer of codes."""

    @property
    @abstractmethod
    def chunk(self) -> int:
        """Weights that a chunk makes."""

    @property
    @abstractmethod
    def stored(self) -> int:
        """Elements of the buffer of codes that a chunk takes."""

    @property
    @abstractmethod
    def vector_weights(self) -> int:
        """Weights of a vector."""

    @property
    @abstractmethod
    def cycles(self) -> float:
        """Cycles of looking up one vector."""

    def chunks(self, piece: int) -> int:
        """Chunks of ``piece`` weights; the last one may be half empty."""
        return ceil(piece / self.chunk)


@dataclass(frozen=True)
class Panel(Packing):
    """Codes that stand for whole bytes.

    Attributes:
        bits: of a code.
        vector: bytes of a vector register.
        permute: bytes are permuted across the register, which needs no masks (``vpermb``).
    """

    bits: int
    vector: int
    permute: bool

    @staticmethod
    def of(form: Form, codes: Codes, isa: Isa) -> Panel:
        """As it suits an instruction set."""
        return Panel(form, codes.bits, 4 * isa.lanes, isa.byte_permute)

    @property
    def planes(self) -> tuple[tuple[int, int], ...]:
        """Width and lowest bit of each plane."""
        return Codes(self.bits, 0).planes

    @property
    def vector_weights(self) -> int:
        """One a byte."""
        return self.vector

    @property
    def grain(self) -> int:
        """Vectors of a chunk."""
        return GRAIN[self.bits]

    @property
    def chunk(self) -> int:
        """Bytes of the panel that a chunk makes."""
        return self.grain * self.vector

    @property
    def stored(self) -> int:
        """Bytes of the codes of a chunk."""
        return self.chunk * self.bits // 8

    @property
    def cycles(self) -> float:
        """For vectors of 64 bytes one port permutes, two do the rest; others have twice as many."""
        masks = 1 if self.permute else 3
        cycles = (len(self.planes) - 1) * 0.5
        cycles += sum(1.0 + 0.5 * masks * width / 8 for width, _ in self.planes)
        return cycles if self.vector == LINE else cycles / 2


def coded_piece(gemm: Gemm, unit: Unit, form: Form) -> int:
    """Weights that are coded by themselves: a channel block, one of its runs, a tile."""
    step, steps = unit.k * unit.lanes, ceil(gemm.run / unit.k)
    return step * {"panel": gemm.runs * steps, "steps": steps, "tiles": 1}[form]


def pack_codes(weights: np.ndarray, codes: Codes, panel: Panel) -> np.ndarray:
    """Weights [pieces, bytes], int8, as uint8 ``[pieces, chunks, vectors, vector]``.

    Bytes past a piece's end, and zeros where no code stands for one, hold the lowest code.
    """
    pieces, size = weights.shape
    full = np.full((pieces, panel.chunks(size) * panel.chunk), codes.base, np.int8)
    full[:, :size] = np.where(weights, weights, 0 if codes.has_zero else codes.base)
    u = codes.unsigned(full).reshape(pieces, -1, panel.grain, panel.vector)
    made = []
    for width, low in panel.planes:
        part = (u >> low) & ((1 << width) - 1)
        fields = part.reshape(*u.shape[:2], -1, 8 // width, panel.vector)
        shifts = (width * np.arange(8 // width, dtype=np.uint8))[:, None]
        made.append((fields << shifts).sum(axis=3, dtype=np.uint8))
    return np.concatenate(made, axis=2)


def code_tables(codes: Codes, panel: Panel) -> np.ndarray:
    """What half a byte stands for: int8 ``[tables, vector]``.

    A plane of w bits has ``4 / w`` tables, for the fields of half a byte from the lowest on.
    """
    half, made = np.arange(1 << _HALF), []
    for plane, (width, low) in enumerate(panel.planes):
        for field in range(_HALF // width):
            u = (half >> (width * field) & ((1 << width) - 1)) << low
            made.append((codes.base if plane == 0 else 0) + codes.step * u)
    return np.tile(np.array(made).astype(np.int8), (1, panel.vector >> _HALF))


P = TypeVar("P", bound=Packing)


@dataclass
class Unpacking(ABC, Generic[P]):
    """The unpacking of one kernel that is being emitted.

    ``codes``, ``tables``: its constants; ``y``: the buffer; ``piece``: weights that are coded by
    themselves (:attr:`Packing.form`); ``current``: which group the buffer of a panel holds.
    """

    kb: tir.KernelBuilder
    panel: P
    codes: Any
    tables: Any
    y: Any
    piece: int
    current: Any = None

    @staticmethod
    @abstractmethod
    def pointers(kb: tir.KernelBuilder) -> tuple[Any, Any]:
        """The parameters: codes, tables."""

    def start(self) -> None:
        """At the top of the function: the buffer holds nothing of this call's."""
        if self.panel.form == "panel":
            self.current = self.kb.alloc("int32", 1)
            self.kb.store(self.current, 0, self.kb.const(_NONE, "int32"))

    @property
    def chunks(self) -> int:
        """Chunks of a piece."""
        return self.panel.chunks(self.piece)

    def ensure(self, group: Any, first: Any, count: Any) -> None:
        """Unpacks ``count`` channel blocks from ``first``, unless the buffer holds this group."""
        kb, panel, chunks = self.kb, self.panel, self.chunks
        with kb.when(kb.load(self.current, 0) != group):
            with kb.loop(0, count, "unpacked") as block:
                tables = self.load_tables(first + block)
                get = kb.let((first + block) * (chunks * panel.stored), "get")
                put = kb.let(block * self.piece, "put")
                with kb.loop(0, chunks, "chunk") as chunk:
                    at = kb.let(get + chunk * panel.stored, "codes_at")
                    self.chunk(tables, at, kb.let(put + chunk * panel.chunk, "panel_at"))
            kb.store(self.current, 0, group)

    @abstractmethod
    def load_tables(self, block: Any) -> list[list[Any]]:
        """What codes of a channel block stand for."""

    @abstractmethod
    def chunk(self, tables: list[list[Any]], get: Any, put: Any) -> None:
        """One chunk, from ``get`` of the codes to ``put`` of the buffer."""

    def fetch(self, get: Any) -> None:
        """Asks for codes that come later."""
        panel = self.panel
        for at in range(0, panel.stored, LINE // panel.word):
            self.kb.prefetch(self.codes, get + (AHEAD // panel.word + at), level=1)


class ByteUnpacking(Unpacking[Panel]):
    """Codes to whole bytes."""

    @staticmethod
    def pointers(kb: tir.KernelBuilder) -> tuple[Any, Any]:
        """Bytes."""
        return kb.pointer("codes", "uint8"), kb.pointer("tables", "int8")

    def load_tables(self, block: Any) -> list[list[Any]]:
        """The tables of each plane."""
        kb, panel, at, planes = self.kb, self.panel, 0, []
        for width, _ in panel.planes:
            found = []
            for _ in range(_HALF // width):
                found.append(kb.let(kb.load(self.tables, at, panel.vector), "table"))
                at += panel.vector
            planes.append(found)
        return planes

    def chunk(self, tables: list[list[Any]], get: Any, put: Any) -> None:
        """One chunk, from ``get`` of the codes to ``put`` of the buffer."""
        kb, size = self.kb, self.panel.vector
        self.fetch(get)
        values: list[Any] = [None] * self.panel.grain
        vector = 0
        for (width, _), mine in zip(self.panel.planes, tables, strict=True):
            for v in range(self.panel.grain * width // 8):
                low, high = self._halves(kb.load(self.codes, get + vector * size, size))
                vector += 1
                for field in range(8 // width):
                    table = mine[field % len(mine)]
                    index = low if field < len(mine) else high
                    place = v * (8 // width) + field
                    value = self._looked_up(table, index)
                    before = values[place]
                    values[place] = kb.let(value if before is None else before + value, "weight")
        for i, value in enumerate(values):
            kb.store(self.y, put + i * size, value)

    def _halves(self, raw: Any) -> tuple[Any, Any]:
        """Indices of the lower and the upper halves of bytes.

        ``vpermb`` reads six bits of an index, and tables repeat after 16; ``pshufb`` gives 0 where
        the top bit is set.
        """
        kb, size = self.kb, self.panel.vector
        raw = kb.let(raw, "codes")
        words = tir.tirx.shift_right(
            kb.reinterpret(raw, "uint16", size // 2), kb.const(_HALF, "uint16", size // 2)
        )
        halves = [raw, kb.reinterpret(words, "uint8", size)]
        if not self.panel.permute:
            mask = kb.const((1 << _HALF) - 1, "uint8", size)
            halves = [tir.tirx.bitwise_and(half, mask) for half in halves]
        low, high = (kb.let(half, "half") for half in halves)
        return low, high

    def _looked_up(self, table: Any, index: Any) -> Any:
        kb, size = self.kb, self.panel.vector
        if self.panel.permute:
            return kb.pure(_VPERMB, "int8", size, table, index)
        return kb.pure(_PSHUFB[size], "int8", size, table, index)
