"""What predictions and generators know of a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from targets.kernels.spec import SIZE

Unit = Literal["mma", "simt"]

LAUNCH_SECONDS = 2e-6
"""From one kernel of a graph to the next."""


@dataclass(frozen=True)
class Machine:
    """A GPU.

    Attributes:
        multiprocessors: their number.
        clock: cycles per second.
        mma: whether there are matrix instructions on bytes and 16-bit floats from registers.
        shared_bytes: shared memory that a block can ask for.
        memory: bytes per second.
        wgmma: whether it is Hopper, whose warpgroups multiply from shared memory.
        tf32: whether float32 operands may be rounded to TF32, for matrix instructions on them.
    """

    multiprocessors: int
    clock: float
    mma: bool
    shared_bytes: int
    memory: float = 1e12
    tf32: bool = False
    wgmma: bool = False

    def unit(self, in_dtype: str) -> Unit:
        """What multiplies operands of a type."""
        return "mma" if self.mma and (self.tf32 or in_dtype != "f32") else "simt"

    def unit_name(self, in_dtype: str) -> str:
        """The same, for reports."""
        return "mma tf32" if in_dtype == "f32" and self.tf32 else self.unit(in_dtype)

    def products(self, in_dtype: str) -> int:
        """Multiply-accumulates of a multiprocessor in a cycle."""
        if self.unit(in_dtype) == "mma":
            return 2048 // SIZE[in_dtype]
        return {"u8": 256, "f32": 64}.get(in_dtype, 32)
