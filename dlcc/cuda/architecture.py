"""NVIDIA's architectures by name: one entry makes one known here, and a target.

Limits are those of "Technical specifications per compute capability" in the CUDA C++ Programming
Guide (section 20.2); a multiprocessor's peak of dense products is from NVIDIA's white papers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

STATIC_SHARED_BYTES: Final = 48 << 10
"""Shared memory of a block that needs no permission; more has to be asked for."""

MOST_THREADS: Final = 1024
"""Threads of a block."""

MOST_BLOCK: Final = (1024, 1024, 64)
MOST_GRID: Final = (2**31 - 1, 65535, 65535)
_WARP: Final = 32
_REGISTERS: Final = 65536
_REGISTER_UNIT: Final = 8
_HOPPER: Final = 90


@dataclass(frozen=True)
class Architecture:
    """An architecture of NVIDIA GPUs.

    Attributes:
        number: ten times its compute capability, 80 for 8.0.
        shared_bytes: shared memory that a block can have at most.
        multiprocessors: of a common product.
        mma: whether its matrix instructions take 16 x 8 results of bytes and 16-bit floats from
            registers, and copies to shared memory run on their own (both from sm_80 on).
        memory: bytes per second of that product.
        clock: cycles per second that its published peaks count with.
        exact: its code uses what only GPUs of this very capability have (``sm_90a``).
    """

    number: int
    shared_bytes: int
    multiprocessors: int
    mma: bool
    memory: float
    clock: float
    exact: bool = False

    @classmethod
    def named(cls, name: str) -> Architecture | None:
        """``sm_80`` or ``sm_90a``; None where ``name`` is none that is known here."""
        found = ARCHITECTURES.get(name) or ARCHITECTURES.get(name.removesuffix("a"))
        return found if found is None or str(found) == name else replace(found, exact=True)

    @property
    def code(self) -> Architecture:
        """What its code is compiled for.

        That of ``sm_90`` as ``sm_90a``, with warpgroup products: no other GPU has a capability 9.
        """
        return replace(self, exact=True) if self.number == _HOPPER else self

    def __str__(self) -> str:
        return f"sm_{self.number}{'a' if self.exact else ''}"

    def runs(self, device: int) -> bool:
        """Whether a GPU of capability ``device`` / 10 runs code for this architecture."""
        if self.exact:
            return device == self.number
        return device // 10 == self.number // 10 and device >= self.number

    @staticmethod
    def threads_with(registers: int) -> int:
        """Threads of a block that have so many registers each: they are dealt out to warps."""
        per_warp = -(-max(registers, 1) // _REGISTER_UNIT) * _REGISTER_UNIT * _WARP
        return min(MOST_THREADS, _REGISTERS // per_warp * _WARP)


_ALL = (
    Architecture(61, 48 << 10, 28, mma=False, memory=0.48e12, clock=1.58e9),
    Architecture(70, 96 << 10, 80, mma=False, memory=0.9e12, clock=1.53e9),
    Architecture(75, 64 << 10, 40, mma=False, memory=0.32e12, clock=1.59e9),
    Architecture(80, 163 << 10, 108, mma=True, memory=1.55e12, clock=1.41e9),
    Architecture(86, 99 << 10, 82, mma=True, memory=0.93e12, clock=1.70e9),
    Architecture(87, 163 << 10, 16, mma=True, memory=0.2e12, clock=1.30e9),
    Architecture(89, 99 << 10, 128, mma=True, memory=1.0e12, clock=2.52e9),
    Architecture(90, 227 << 10, 132, mma=True, memory=3.3e12, clock=1.83e9),
    Architecture(100, 227 << 10, 148, mma=True, memory=8e12, clock=1.85e9),
    Architecture(120, 99 << 10, 170, mma=True, memory=1.8e12, clock=2.41e9),
)
ARCHITECTURES: Final = {str(architecture): architecture for architecture in _ALL}
"""Oldest first."""
