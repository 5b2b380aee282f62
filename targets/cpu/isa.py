"""Levels of x86-64 instruction sets: what LLVM is told, and what /proc/cpuinfo must list."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from dlcc.errors import DlccError, ExitCode

CLOCK = 3.5e9
"""Cycles per second that predictions assume."""

DotUnit = Literal["madd", "vnni", "amx"]
Bfloat16Unit = Literal["widen", "dot", "amx"]


@dataclass(frozen=True)
class Isa:
    """One feature level of x86-64.

    Attributes:
        name: how a user asks for it.
        mcpu: LLVM CPU name; ``mattr``: LLVM features on top.
        flags: features as in /proc/cpuinfo, all needed.
        lanes: 32-bit lanes of a vector register; ``registers``: how many of them.
        dot: the u8 x s8 unit: pmaddwd on widened values, vpdpbusd, or AMX tiles.
        fma: fused multiply-add exists.
        bfloat16: the unit for bfloat16: widening to float32, vdpbf16ps, or AMX tiles.
        l2: bytes of the second-level cache of the smallest cores that have the level.
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
    l2: int = 256 << 10

    def without_amx(self) -> Isa:
        """What an AMX level has without its tiles (itself otherwise)."""
        return _AMX_VECTORS if self.dot == "amx" else self

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


_V3 = ("avx", "avx2", "fma", "bmi1", "bmi2", "movbe", "f16c", "abm")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

SSE4 = Isa("sse4", "x86-64-v2", (), ("sse4_1", "sse4_2", "ssse3", "popcnt"), 4, 16, "madd", False)
AVX2 = Isa("avx2", "x86-64-v3", (), _V3, 8, 16, "madd")
AVXVNNI = Isa(
    "avxvnni", "x86-64-v3", ("+avxvnni",), (*_V3, "avx_vnni"), 8, 16, "vnni", l2=1280 << 10
)
AVX512 = Isa("avx512", "x86-64-v4", (), _V4, 16, 32, "madd", l2=1 << 20)
AVX512VNNI = Isa(
    "avx512vnni",
    "x86-64-v4",
    ("+avx512vnni",),
    (*_V4, "avx512_vnni"),
    16,
    32,
    "vnni",
    l2=1 << 20,
)
_VBMI = ("+avx512vnni", "+avx512vbmi", "+avx512vpopcntdq", "+avx512vbmi2")
# CPUs with tiles have these
_AMX_FLAGS = (*AVX512VNNI.flags, "avx512vbmi", "avx512_vpopcntdq", "avx512_vbmi2")
_AMX_VECTORS = Isa("avx512vnni", "x86-64-v4", _VBMI, _AMX_FLAGS, 16, 32, "vnni")
AVX512BF16 = Isa(
    "avx512bf16",
    "x86-64-v4",
    ("+avx512vnni", "+avx512bf16"),
    (*AVX512VNNI.flags, "avx512_bf16"),
    16,
    32,
    "vnni",
    bfloat16="dot",
    l2=1 << 20,
)
AMX = Isa(
    "amx",
    "x86-64-v4",
    (*_VBMI, "+avx512bf16", "+amx-tile", "+amx-int8", "+amx-bf16"),
    (*_AMX_FLAGS, "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    16,
    32,
    "amx",
    bfloat16="amx",
    l2=2 << 20,
)

LEVELS = {isa.name: isa for isa in (SSE4, AVX2, AVXVNNI, AVX512, AVX512VNNI, AVX512BF16, AMX)}
"""All levels by name, from the oldest to the newest."""


@cache
def host_flags(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str]:
    """Feature flags of the CPU this runs on; empty where ``cpuinfo`` cannot be read."""
    try:
        text = Path(cpuinfo).read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def supports(isa: Isa, flags: frozenset[str]) -> bool:
    """Whether a CPU with these flags can run code for ``isa``."""
    return set(isa.flags) <= flags


def detect(cpuinfo: str = "/proc/cpuinfo") -> Isa:
    """The best level of the CPU this runs on.

    Raises:
        DlccError: not an x86-64 CPU with SSE4, or ``cpuinfo`` cannot be read.
    """
    flags = host_flags(cpuinfo)
    fitting = [isa for isa in LEVELS.values() if supports(isa, flags)]
    if not fitting:
        raise DlccError(
            ExitCode.TARGET,
            "cannot tell a supported instruction set of this machine",
            where=cpuinfo,
            why=f"no level of {', '.join(LEVELS)} is covered by its flags",
            fix="name the level to compile for",
        )
    return fitting[-1]
