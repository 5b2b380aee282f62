"""What an architecture (``sm_80``) lets a kernel have: CUDA C++ Programming Guide, section 20.2."""

from __future__ import annotations

import re
from dataclasses import dataclass
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
_SHARED_KIB: Final = {
    50: 48, 52: 48, 53: 48, 60: 48, 61: 48, 62: 48, 70: 96, 72: 96, 75: 64,
    80: 163, 86: 99, 87: 163, 88: 99, 89: 99,
    90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """An architecture of NVIDIA GPUs.

    Attributes:
        number: ten times its compute capability, 80 for 8.0.
        exact: its code uses what only GPUs of this very capability have (``sm_90a``).
    """

    number: int
    exact: bool = False

    @classmethod
    def named(cls, name: str) -> Architecture | None:
        """``sm_80`` or ``sm_90a``; None where ``name`` is none that is known here."""
        match = re.fullmatch(r"sm_(\d+)(a?)", name)
        if match is None or int(match[1]) not in _SHARED_KIB:
            return None
        return cls(int(match[1]), bool(match[2]))

    def __str__(self) -> str:
        return f"sm_{self.number}{'a' if self.exact else ''}"

    @property
    def shared_bytes(self) -> int:
        """Shared memory that a block can have at most."""
        return _SHARED_KIB[self.number] << 10

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
