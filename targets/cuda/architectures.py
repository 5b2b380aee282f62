"""NVIDIA's architectures by name: one entry makes one a target.

Numbers are those of "Technical specifications per compute capability" in the CUDA C++ programming
guide; a multiprocessor's peak of dense products is from NVIDIA's white papers.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlcc.cuda.architecture import Architecture

CLOCK = 1.5e9
"""Cycles per second that predictions assume."""


@dataclass(frozen=True)
class Gpu:
    """The GPUs of one compute capability.

    Attributes:
        name: as the compiler wants it; code runs on devices of the same major number and this or a
            higher minor one.
        multiprocessors: of a common product.
        mma: whether its matrix instructions take 16 x 8 results of bytes and 16-bit floats from
            registers, and copies to shared memory run on their own (both from sm_80 on).
        memory: bytes per second.
    """

    name: str
    multiprocessors: int
    mma: bool
    memory: float

    @property
    def shared_bytes(self) -> int:
        """Shared memory that a block can ask for."""
        found = Architecture.named(self.name)
        assert found is not None
        return found.shared_bytes


_ALL = (
    Gpu("sm_61", 28, mma=False, memory=0.48e12),
    Gpu("sm_70", 80, mma=False, memory=0.9e12),
    Gpu("sm_75", 40, mma=False, memory=0.32e12),
    Gpu("sm_80", 108, mma=True, memory=1.55e12),
    Gpu("sm_86", 82, mma=True, memory=0.93e12),
    Gpu("sm_89", 128, mma=True, memory=1.0e12),
    Gpu("sm_90", 132, mma=True, memory=3.3e12),
    Gpu("sm_100", 148, mma=True, memory=8e12),
    Gpu("sm_120", 170, mma=True, memory=1.8e12),
)
ARCHITECTURES = {gpu.name: gpu for gpu in _ALL}
