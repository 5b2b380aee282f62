"""What kernel generators know of a machine: one instruction set, with its vector unit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

CLOCK = 3.5e9
"""Cycles per second that predictions assume."""

CACHED_WEIGHTS = 256 << 10
"""Bytes of weights up to which a layer may find them in the second-level cache."""

DotUnit = Literal["madd", "vnni", "amx", "mlal", "sdot", "mmla", "sve"]
Architecture = Literal["x86", "aarch64", "armv7"]
Bfloat16Unit = Literal["widen", "dot", "amx"]
Float16Unit = Literal["none", "widen", "multiply"]


@dataclass(frozen=True)
class Isa:
    """One feature level of an architecture.

    Attributes:
        name: how a user asks for it.
        mcpu: LLVM CPU name; ``mattr``: LLVM features on top.
        flags: features as Linux names them in /proc/cpuinfo, all needed.
        lanes: 32-bit lanes of a vector register; ``registers``: how many of them.
        dot: the u8 x s8 unit. x86: pmaddwd on widened values, vpdpbusd, or AMX tiles; ARM: smull
            and smlal to 16 bits with sadalp, sdot, usmmla beside usdot, or usmmla of SVE.
        fma: fused multiply-add exists.
        bfloat16: the unit for bfloat16: widening to float32, vdpbf16ps, or AMX tiles.
        float16: what there is for half precision: nothing, conversions, or arithmetic too.
        l2: bytes of the second-level cache of the smallest cores that have the level.
        vectors: what the level is without its tiles, or without SVE; None where it has neither.
        arch: whose instructions these are.
        cached_read: bytes per second of weights from the second-level cache, ``memory_read`` from
            memory, where :data:`CLOCK` cycles pass in a second.
        item_elements: results of default TIR that a work item aims at; 1: a GPU's thread.
    """

    name: str
    mcpu: str
    mattr: tuple[str, ...]
    flags: tuple[str, ...]
    lanes: int
    registers: int
    dot: DotUnit
    fma: bool = True
    bfloat16: Bfloat16Unit = "widen"
    float16: Float16Unit = "none"
    l2: int = 256 << 10
    vectors: Isa | None = None
    arch: Architecture = "x86"
    cached_read: float = 150e9
    memory_read: float = 30e9
    item_elements: int = 4096

    def without_amx(self) -> Isa:
        """What a level has without its tiles or without SVE (itself where it has neither)."""
        return self.vectors or self

    def read_seconds(self, size: int) -> float:
        """Predicted seconds that ``size`` bytes of weights take to arrive, each read once."""
        return size / (self.cached_read if size <= CACHED_WEIGHTS else self.memory_read)

    @property
    def short_floats(self) -> tuple[str, ...]:
        """Encodings of 16-bit floats that it can run, the one that ``--bits 16`` means first."""
        if self.float16 == "none":
            return ("bfloat16",)
        return ("float16", "bfloat16") if self.arch == "aarch64" else ("bfloat16", "float16")

    @property
    def byte_permute(self) -> bool:
        """Whether bytes can be permuted across a whole register (AVX512_VBMI)."""
        return "avx512vbmi" in self.flags

    @property
    def byte_expand(self) -> bool:
        """Whether bytes can be spread to the places of a mask (AVX512_VBMI2)."""
        return "avx512_vbmi2" in self.flags

    @property
    def bit_counts(self) -> bool:
        """Whether the bits of each lane can be counted (AVX512_VPOPCNTDQ)."""
        return "avx512_vpopcntdq" in self.flags

    def vector_flags(self, *, bfloat16: bool = False) -> tuple[str, ...]:
        """Features of the vector unit, with its instructions for bfloat16 or without."""
        extra = ("avx512_bf16",) if bfloat16 and self.bfloat16 != "widen" else ()
        kept = (f for f in self.without_amx().flags if f != "avx512_bf16")
        return (*kept, *extra)

    def tile_flags(self, *, bfloat16: bool = False) -> tuple[str, ...]:
        """Features of the vector unit and of the tiles for 8-bit codes, or for bfloat16."""
        tiles = ("amx_tile", "amx_bf16" if bfloat16 else "amx_int8")
        return (*self.vector_flags(bfloat16=bfloat16), *tiles)


_FEATURE_LINES = ("flags", "Features")
"""What the line of features is called on x86 and on ARM."""


_VECTOR_LENGTH = "/proc/sys/abi/sve_default_vector_length"


@cache
def host_flags(
    cpuinfo: str = "/proc/cpuinfo", vector_length: str = _VECTOR_LENGTH
) -> frozenset[str]:
    """Feature flags of the CPU this runs on; empty where ``cpuinfo`` cannot be read.

    ``sve256`` is among them where ``vector_length`` says that SVE's vectors have 256 bits or more.
    """
    try:
        text = Path(cpuinfo).read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(_FEATURE_LINES):
            flags = frozenset(line.partition(":")[2].split())
            return flags | _vector_flags(vector_length) if "sve" in flags else flags
    return frozenset()


def _vector_flags(vector_length: str) -> frozenset[str]:
    try:
        size = int(Path(vector_length).read_text())
    except (OSError, ValueError):
        return frozenset()
    return frozenset({"sve256"} if size >= 32 else ())


def supports(isa: Isa, flags: frozenset[str]) -> bool:
    """Whether a CPU with these flags can run code for ``isa``."""
    return set(isa.flags) <= flags
