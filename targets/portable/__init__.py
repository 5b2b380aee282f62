"""Portable C: ``c`` is a network as C99 source for any compiler and any machine.

Its libraries (``--emit so``) hold the same kernels, compiled for any x86-64 CPU with SSE4 under
Linux: for trying them on the machine at hand.
"""

from __future__ import annotations

import platform
from functools import cache

from dlcc.errors import DlccError, ExitCode
from dlcc.lowering.target import Target
from targets.cpu.levels import SSE4
from targets.isa import Isa, host_flags
from targets.portable.table import rows_for

SCALAR = Isa("c", SSE4.mcpu, (), SSE4.flags, 1, 16, "madd", fma=False, l2=0)
"""No vectors: what a C compiler makes of the loops is its own business."""

TRIPLE = "x86_64-unknown-linux-gnu"


class PortableFamily:
    """The one target ``c``."""

    name = "c"

    def variants(self) -> list[str]:
        """Only the family itself."""
        return [""]

    def target(self, variant: str) -> Target:
        """The target.

        Raises:
            DlccError: a variant is named.
        """
        if variant:
            raise DlccError(
                ExitCode.TARGET,
                f"no target 'c:{variant}'",
                where="--target",
                why="portable C is made for no machine in particular",
                fix="leave the variant out",
            )
        return _target()

    def missing(self, target: Target) -> list[str]:
        """Features that its libraries need and this machine lacks."""
        if platform.machine() not in ("x86_64", "AMD64"):
            return [target.triple.split("-")[0]]
        return [f for f in target.features if f not in host_flags()]


@cache
def _target() -> Target:
    return Target(
        "c",
        TRIPLE,
        SCALAR.mcpu,
        SCALAR.mattr,
        SCALAR.flags,
        rows_for(SCALAR),
        sparse_block=(1, 4),
        channel_multiple=1,
        emits=("c", "so", "a", "o"),
        most_threads=1,
        alignment=16,
        slack=0,
    )


FAMILY = PortableFamily()
