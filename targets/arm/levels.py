"""Levels of ARM instruction sets: what LLVM is told, and what Linux must list in /proc/cpuinfo."""

from __future__ import annotations

from dataclasses import replace

from targets.isa import CLOCK, Isa

_V8 = ("fp", "asimd")

NEON = Isa(
    "neon",
    "generic",
    (),
    _V8,
    4,
    32,
    "mlal",
    float16="widen",
    l2=512 << 10,
    arch="aarch64",
    cached_read=8 * CLOCK,
    memory_read=2.5 * CLOCK,
)
"""ARMv8.0: what every AArch64 core has (Cortex-A53, A57, A72, A73)."""

DOTPROD = Isa(
    "dotprod",
    "generic",
    ("+v8.2a", "+dotprod", "+fullfp16"),
    (*_V8, "atomics", "asimdrdm", "asimdhp", "asimddp"),
    4,
    32,
    "sdot",
    float16="multiply",
    l2=512 << 10,
    arch="aarch64",
    cached_read=16 * CLOCK,
    memory_read=5 * CLOCK,
)
"""ARMv8.2 with sdot, udot and half precision (Cortex-A55, A75 to A78, X1, Neoverse N1)."""

I8MM = Isa(
    "i8mm",
    "generic",
    ("+v8.2a", "+dotprod", "+fullfp16", "+i8mm"),
    (*DOTPROD.flags, "i8mm"),
    4,
    32,
    "mmla",
    float16="multiply",
    l2=512 << 10,
    arch="aarch64",
    cached_read=24 * CLOCK,
    memory_read=8 * CLOCK,
)
"""ARMv8.6 with usdot and usmmla (Cortex-A510, A710, X2 on, Neoverse V1 and N2)."""

SVE256 = replace(
    I8MM,
    name="sve256",
    flags=(*I8MM.flags, "sve", "svei8mm", "sve256"),
    lanes=8,
    dot="sve",
    vectors=replace(I8MM, name="sve256"),
)
"""The same with SVE vectors of 256 bits or more and usmmla on them (Neoverse V1).

SVE2 is not asked for: V1 does not have it, and the kernels would gain nothing. LLVM is not told of
SVE, so that only kernels that ask for the vectors' length use it.
"""

ARMV7 = Isa(
    "armv7",
    "cortex-a9",
    ("+neon",),
    ("neon", "vfpv3"),
    4,
    16,
    "mlal",
    fma=False,
    l2=256 << 10,
    arch="armv7",
    cached_read=6 * CLOCK,
    memory_read=2 * CLOCK,
)
"""32-bit ARMv7-A with NEON (Cortex-A8 and A9 on): no fused multiply-add, no rounding instruction,
and NEON flushes denormal floats to zero."""

VFPV4 = replace(
    ARMV7,
    name="vfpv4",
    mcpu="cortex-a7",
    flags=(*ARMV7.flags, "vfpv4", "idiva"),
    fma=True,
    l2=512 << 10,
)
"""The same with fused multiply-add (Cortex-A7, A15, A17 and 64-bit cores in 32-bit mode)."""

LEVELS = {isa.name: isa for isa in (NEON, DOTPROD, I8MM, SVE256)}
"""The levels of AArch64 by name, from the oldest to the newest."""

ARMV7_LEVELS = {isa.name: isa for isa in (VFPV4,)}
"""The levels of 32-bit ARM above the first."""
