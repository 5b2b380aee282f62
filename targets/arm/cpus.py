"""ARM CPUs and boards by name: one entry makes a CPU a target.

Cache sizes are the smallest that the core is sold with, clocks those of common products; kernels
are blocked for the former, and predictions use both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from targets.arm.levels import ARMV7, DOTPROD, I8MM, NEON
from targets.isa import Isa


@dataclass(frozen=True)
class Cpu:
    """One core, as a target.

    Attributes:
        level: the instruction sets it has.
        mcpu: LLVM's name of the core, whose scheduling model code is generated with.
        clock: cycles per second of common products.
        l2: bytes of second-level cache.
        in_order: it issues instructions in program order only.
    """

    level: Isa
    mcpu: str
    clock: float
    l2: int
    in_order: bool = False

    def isa(self, name: str) -> Isa:
        """Its instruction set, under the target's name."""
        return replace(
            self.level,
            name=name,
            mcpu=self.mcpu,
            mattr=(),
            clock=self.clock,
            l2=self.l2,
            in_order=self.in_order,
        )


AARCH64 = {
    "cortex-a53": Cpu(NEON, "cortex-a53", 1.4e9, 256 << 10, in_order=True),
    "cortex-a55": Cpu(DOTPROD, "cortex-a55", 1.8e9, 128 << 10, in_order=True),
    "cortex-a57": Cpu(NEON, "cortex-a57", 1.9e9, 512 << 10),
    "cortex-a72": Cpu(NEON, "cortex-a72", 1.8e9, 512 << 10),
    "cortex-a76": Cpu(DOTPROD, "cortex-a76", 2.4e9, 256 << 10),
    "cortex-a78": Cpu(DOTPROD, "cortex-a78", 2.4e9, 256 << 10),
    "cortex-x3": Cpu(I8MM, "cortex-x3", 3.2e9, 512 << 10),
    "neoverse-n1": Cpu(DOTPROD, "neoverse-n1", 2.6e9, 1 << 20),
    "neoverse-v1": Cpu(I8MM, "neoverse-v1", 2.6e9, 1 << 20),
    "raspberry-pi-3": Cpu(NEON, "cortex-a53", 1.4e9, 512 << 10, in_order=True),
    "raspberry-pi-4": Cpu(NEON, "cortex-a72", 1.8e9, 1 << 20),
    "raspberry-pi-5": Cpu(DOTPROD, "cortex-a76", 2.4e9, 512 << 10),
}
"""Cores and boards that run AArch64 Linux."""

ARMV7_CPUS = {
    "cortex-a7": Cpu(ARMV7, "cortex-a7", 0.9e9, 512 << 10, in_order=True),
    "cortex-a9": Cpu(ARMV7, "cortex-a9", 1.0e9, 512 << 10),
    "cortex-a15": Cpu(ARMV7, "cortex-a15", 1.5e9, 1 << 20),
}
"""Cores that run 32-bit ARM Linux."""
