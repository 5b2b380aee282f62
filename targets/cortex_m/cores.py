"""Cortex-M cores: what LLVM is told of each. Adding one is one entry."""

from __future__ import annotations

from dataclasses import dataclass

from dlcc.lowering import target as lowering
from targets.isa import Isa


@dataclass(frozen=True)
class Core:
    """One core with the DSP instructions and an FPU of single precision.

    Attributes:
        name: what the user writes after ``--target``, and LLVM's name of it.
        triple: LLVM triple.
        clock: nominal cycles per second, for predictions.
        helium: it has the vectors of M-profile (MVE) of integers and float32.
        unpredicted: why its cycles cannot be predicted; "" where they can.
    """

    name: str
    triple: str
    clock: float
    helium: bool = False
    unpredicted: str = ""

    @property
    def predicted(self) -> lowering.Core:
        """What predictions of cycles know of it."""
        return lowering.Core(self.name, self.clock, unpredicted=self.unpredicted)

    @property
    def isa(self) -> Isa:
        """What generators of general code need to know: no vectors, few registers."""
        return Isa(self.name, self.name, (), (), 1, 13, "madd", fma=True, l2=0)


CORES = {
    core.name: core
    for core in (
        Core("cortex-m4", "thumbv7em-unknown-none-gnueabihf", 80e6),
        Core("cortex-m7", "thumbv7em-unknown-none-gnueabihf", 400e6),
        Core(
            "cortex-m33",
            "thumbv8m.main-unknown-none-gnueabihf",
            100e6,
            unpredicted="LLVM has no scheduling model of it, and takes that of cortex-m4",
        ),
        Core(
            "cortex-m55",
            "thumbv8.1m.main-unknown-none-gnueabihf",
            200e6,
            helium=True,
            unpredicted="QEMU's user-mode emulator does not run its vectors",
        ),
    )
}
"""All cores by name."""
