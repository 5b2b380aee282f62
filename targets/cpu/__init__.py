"""x86-64 CPUs: ``cpu`` is the machine at hand, ``cpu:avx2`` and so on name a feature level."""

from __future__ import annotations

import platform
from functools import cache

from dlcc.errors import DlccError, ExitCode
from dlcc.lowering.target import Target
from targets.cpu import levels
from targets.cpu.table import rows_for
from targets.isa import host_flags

TRIPLE = "x86_64-unknown-linux-gnu"


class CpuFamily:
    """The x86-64 targets."""

    name = "cpu"

    def variants(self) -> list[str]:
        """Feature levels, oldest first."""
        return list(levels.LEVELS)

    def target(self, variant: str) -> Target:
        """The target of a feature level; "" for the best level of this machine.

        Raises:
            DlccError: there is no such level, or this machine's cannot be told.
        """
        if not variant:
            return _target(levels.detect().name)
        if variant not in levels.LEVELS:
            raise DlccError(
                ExitCode.TARGET,
                f"no target 'cpu:{variant}'",
                where="--target",
                why=f"the levels are {', '.join(levels.LEVELS)}",
                fix="leave the level out to compile for this machine",
            )
        return _target(variant)

    def missing(self, target: Target) -> list[str]:
        """Features of ``target`` that this machine lacks, or the architecture if it has another."""
        if platform.machine() not in ("x86_64", "AMD64"):
            return ["x86_64"]
        return [f for f in target.features if f not in host_flags()]


@cache
def _target(name: str) -> Target:
    isa = levels.LEVELS[name]
    return Target(
        f"cpu:{name}",
        TRIPLE,
        isa.mcpu,
        isa.mattr,
        isa.flags,
        rows_for(isa),
        isa.l2,
        (32 if isa.dot == "amx" else isa.lanes, 4),  # vectors of channels, bytes of a dot product
        channel_multiple=isa.lanes,
        short_floats=isa.short_floats,
    )


FAMILY = CpuFamily()
