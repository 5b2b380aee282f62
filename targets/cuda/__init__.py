"""NVIDIA GPUs: ``cuda:sm_80`` and so on name an architecture, ``cuda`` the common ones.

``cuda-arm`` has the same kernels behind a library for AArch64 hosts: Jetson, Grace.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache

from dlcc.cuda.architecture import ARCHITECTURES
from dlcc.cuda.driver import compute_capability
from dlcc.errors import DlccError, ExitCode
from dlcc.lowering.target import Target
from targets.cuda.table import rows_for

ALIGNMENT = 256
"""Bytes, of buffers in device memory: what cuMemAlloc gives."""

SLACK = 64

PACKED_WITHIN = 1.2
"""Unpacking is beside the products of a network that waits for them; memory, and the time to bring
weights there, are what packed weights are for. Predictions are hardly closer than that."""

SPARSE_BLOCK = (32, 16)
"""Channels of a tile that is not the smallest, and bytes of codes that are copied at once."""


@dataclass(eq=False)
class CudaFamily:
    """The GPUs of one kind of host.

    Attributes:
        name: of the family.
        triple: of the host.
    """

    name: str
    triple: str

    def variants(self) -> list[str]:
        """Architectures, oldest first."""
        return list(ARCHITECTURES)

    def target(self, variant: str) -> Target:
        """The target of an architecture.

        Raises:
            DlccError: there is no such architecture.
        """
        if variant not in ARCHITECTURES:
            raise DlccError(
                ExitCode.TARGET,
                f"no target '{self.name}:{variant}'",
                where="--target",
                why=f"the architectures are {', '.join(ARCHITECTURES)}",
                fix="name the newest one that is not newer than the GPU; a plus joins several",
            )
        return _target(self, variant)

    def missing(self, target: Target) -> list[str]:
        """What code for ``target`` runs on, where this machine has no such GPU."""
        found = compute_capability()
        here = self.triple.startswith(f"{platform.machine()}-")
        runs = here and found is not None and ARCHITECTURES[target.mcpu].runs(found)
        return [] if runs else [target.mcpu]


@cache
def _target(family: CudaFamily, variant: str) -> Target:
    gpu = ARCHITECTURES[variant]
    return Target(
        f"{family.name}:{variant}",
        family.triple,
        variant,
        (),
        (variant,),
        rows_for(gpu),
        sparse_block=SPARSE_BLOCK,
        sparse_short_floats=True,
        most_threads=1,
        alignment=ALIGNMENT,
        slack=SLACK,
        short_floats=("float16", "bfloat16"),
        packed_within=PACKED_WITHIN,
        device="cuda",
        tf32_rows=rows_for(gpu, tf32=True) if gpu.mma else (),
    )


FAMILY = CudaFamily("cuda", "x86_64-unknown-linux-gnu")
ARM_FAMILY = CudaFamily("cuda-arm", "aarch64-unknown-linux-gnu")
