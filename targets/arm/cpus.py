"""ARM CPUs and boards by name: one entry makes a CPU a target.

Cache sizes are the smallest that the core is sold with, clocks and rates of memory round figures
of common products; kernels are blocked for the former, and predictions use all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dlcc.lowering.target import Core
from targets.arm.levels import ARMV7, DOTPROD, I8MM, NEON, SVE256, VFPV4
from targets.isa import CLOCK, Isa


@dataclass(frozen=True)
class Cpu:
    """One core, as a target.

    Attributes:
        level: the instruction sets it has.
        mcpu: LLVM's name of the core, whose scheduling model code is generated with.
        clock: cycles per second of common products.
        l2: bytes of second-level cache.
        l2_read: bytes that it reads from there in a cycle.
        memory: bytes per second that it reads from memory, the other cores being idle.
        model: LLVM's name of the core whose scheduling model tells most of this one; "": its own.
        triple: of the system that it runs; "": Linux.
    """

    level: Isa
    mcpu: str
    clock: float
    l2: int
    l2_read: float
    memory: float
    model: str = ""
    triple: str = ""

    def isa(self, name: str) -> Isa:
        """Its instruction set, under the target's name.

        LLVM is told of no SVE, of which it would use single instructions: a library asks for the
        features of its kernels only, and must not die on another core that has these.
        """
        vectors = self.level.vectors
        return replace(
            self._named(self.level, name), vectors=vectors and self._named(vectors, name)
        )

    def _named(self, level: Isa, name: str) -> Isa:
        return replace(
            level,
            name=name,
            mcpu=self.mcpu,
            mattr=("-sve",) if "i8mm" in level.flags else (),
            l2=self.l2,
            cached_read=self.l2_read * CLOCK,
            memory_read=self.memory / self.clock * CLOCK,
        )

    def core(self) -> Core:
        """What predictions know of it."""
        name = self.model or self.mcpu
        return Core(name, self.clock, 32 << 10, self.l2, self.l2_read, self.memory)


_A76 = "neoverse-n1"
"""The same pipeline; LLVM has no model of the Cortex-A76 itself."""

MACOS = "aarch64-apple-macosx12.0.0"
"""The first that tells of all CPU features by name; every Mac with such a CPU runs it."""

_M1, _M2 = "apple-m1", "apple-m2"

AARCH64 = {
    "cortex-a53": Cpu(NEON, "cortex-a53", 1.4e9, 256 << 10, 8, 3e9),
    "cortex-a55": Cpu(DOTPROD, "cortex-a55", 1.8e9, 128 << 10, 8, 5e9),
    "cortex-a57": Cpu(NEON, "cortex-a57", 1.9e9, 512 << 10, 10, 8e9),
    "cortex-a72": Cpu(NEON, "cortex-a72", 1.8e9, 512 << 10, 12, 6e9),
    "cortex-a76": Cpu(DOTPROD, "cortex-a76", 2.4e9, 256 << 10, 20, 14e9, model=_A76),
    "cortex-a78": Cpu(DOTPROD, "cortex-a78", 2.4e9, 256 << 10, 24, 16e9, model=_A76),
    "cortex-x3": Cpu(I8MM, "cortex-x3", 3.2e9, 512 << 10, 32, 30e9),
    "neoverse-n1": Cpu(DOTPROD, "neoverse-n1", 2.6e9, 1 << 20, 20, 18e9),
    "neoverse-v1": Cpu(SVE256, "neoverse-v1", 2.6e9, 1 << 20, 32, 25e9),
    "raspberry-pi-3": Cpu(NEON, "cortex-a53", 1.4e9, 512 << 10, 8, 2e9),
    "raspberry-pi-4": Cpu(NEON, "cortex-a72", 1.8e9, 1 << 20, 12, 4e9),
    "raspberry-pi-5": Cpu(DOTPROD, "cortex-a76", 2.4e9, 512 << 10, 20, 9e9, model=_A76),
    _M1: Cpu(DOTPROD, _M1, 3.2e9, 12 << 20, 32, 58e9, triple=MACOS),
    _M2: Cpu(I8MM, _M2, 3.5e9, 16 << 20, 32, 80e9, model=_M1, triple=MACOS),
    "apple-m3": Cpu(I8MM, "apple-m3", 4.0e9, 16 << 20, 32, 80e9, model=_M1, triple=MACOS),
    "apple-m4": Cpu(I8MM, "apple-m4", 4.4e9, 16 << 20, 32, 100e9, model=_M1, triple=MACOS),
}
"""Cores and boards; of Macs the performance cores."""

ARMV7_CPUS = {
    "cortex-a7": Cpu(VFPV4, "cortex-a7", 0.9e9, 512 << 10, 4, 1.5e9),
    "cortex-a9": Cpu(ARMV7, "cortex-a9", 1.0e9, 512 << 10, 8, 1.5e9),
    "cortex-a15": Cpu(VFPV4, "cortex-a15", 1.5e9, 1 << 20, 8, 5e9),
}
"""Cores that run 32-bit ARM Linux."""
