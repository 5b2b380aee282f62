"""Levels of x86-64 instruction sets: what LLVM is told, and what /proc/cpuinfo must list."""

from __future__ import annotations

from dlcc.errors import DlccError, ExitCode
from targets.isa import Isa, host_flags, supports

_V3 = ("avx", "avx2", "fma", "bmi1", "bmi2", "movbe", "f16c", "abm")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

SSE4 = Isa("sse4", "x86-64-v2", (), ("sse4_1", "sse4_2", "ssse3", "popcnt"), 4, 16, "madd", False)
AVX2 = Isa("avx2", "x86-64-v3", (), _V3, 8, 16, "madd", float16="widen")
AVXVNNI = Isa(
    "avxvnni",
    "x86-64-v3",
    ("+avxvnni",),
    (*_V3, "avx_vnni"),
    8,
    16,
    "vnni",
    float16="widen",
    l2=1280 << 10,
)
AVX512 = Isa("avx512", "x86-64-v4", (), _V4, 16, 32, "madd", float16="widen", l2=1 << 20)
AVX512VNNI = Isa(
    "avx512vnni",
    "x86-64-v4",
    ("+avx512vnni",),
    (*_V4, "avx512_vnni"),
    16,
    32,
    "vnni",
    float16="widen",
    l2=1 << 20,
)
_VBMI = ("+avx512vnni", "+avx512vbmi", "+avx512vpopcntdq", "+avx512vbmi2")
# CPUs with tiles have these
_AMX_FLAGS = (*AVX512VNNI.flags, "avx512vbmi", "avx512_vpopcntdq", "avx512_vbmi2")
_AMX_VECTORS = Isa("avx512vnni", "x86-64-v4", _VBMI, _AMX_FLAGS, 16, 32, "vnni", float16="widen")
AVX512BF16 = Isa(
    "avx512bf16",
    "x86-64-v4",
    ("+avx512vnni", "+avx512bf16"),
    (*AVX512VNNI.flags, "avx512_bf16"),
    16,
    32,
    "vnni",
    bfloat16="dot",
    float16="widen",
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
    float16="widen",
    l2=2 << 20,
    vectors=_AMX_VECTORS,
)

LEVELS = {isa.name: isa for isa in (SSE4, AVX2, AVXVNNI, AVX512, AVX512VNNI, AVX512BF16, AMX)}
"""All levels by name, from the oldest to the newest."""


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
