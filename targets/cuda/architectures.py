"""NVIDIA's architectures by name: one entry makes one a target.

Numbers are those of "Technical specifications per compute capability" in the CUDA C++ programming
guide; a multiprocessor's peak of dense products is from NVIDIA's white papers.
"""

from __future__ import annotations

from dataclasses import dataclass

CLOCK = 1.5e9
"""Cycles per second that predictions assume."""


@dataclass(frozen=True)
class Architecture:
    """One compute capability.

    Attributes:
        name: as the compiler wants it; code runs on devices of the same major number and this or a
            higher minor one.
        shared_bytes: shared memory that a block can ask for.
        multiprocessors: of a common product.
        mma: whether its matrix instructions take 16 x 8 results of bytes and 16-bit floats from
            registers, and copies to shared memory run on their own (both from sm_80 on).
        memory: bytes per second.
    """

    name: str
    shared_bytes: int
    multiprocessors: int
    mma: bool
    memory: float


_ALL = (
    Architecture("sm_61", 48 << 10, 28, mma=False, memory=0.48e12),
    Architecture("sm_70", 96 << 10, 80, mma=False, memory=0.9e12),
    Architecture("sm_75", 64 << 10, 40, mma=False, memory=0.32e12),
    Architecture("sm_80", 163 << 10, 108, mma=True, memory=1.55e12),
    Architecture("sm_86", 99 << 10, 82, mma=True, memory=0.93e12),
    Architecture("sm_89", 99 << 10, 128, mma=True, memory=1.0e12),
    Architecture("sm_90", 227 << 10, 132, mma=True, memory=3.3e12),
    Architecture("sm_100", 227 << 10, 148, mma=True, memory=8e12),
    Architecture("sm_120", 99 << 10, 170, mma=True, memory=1.8e12),
)
ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}
