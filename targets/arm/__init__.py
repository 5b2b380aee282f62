"""ARM CPUs with NEON under Linux and macOS: ``arm`` is AArch64, ``armv7`` is 32-bit ARM.

``arm:dotprod`` and so on name a feature level, ``arm:cortex-a72`` a core, ``arm:raspberry-pi-4`` a
board.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cached_property

from dlcc.errors import DlccError, ExitCode
from dlcc.lowering.target import Target
from targets.arm.cpus import AARCH64, ARMV7_CPUS, Cpu
from targets.arm.levels import ARMV7, ARMV7_LEVELS, LEVELS, NEON
from targets.arm.table import rows_for
from targets.isa import Isa, host_flags


class ArmFamily:
    """Targets of one ARM architecture.

    Args:
        name: of the family.
        triple: LLVM's.
        machines: what ``platform.machine`` says on such a CPU.
        levels: feature levels by name, oldest first.
        cpus: cores and boards by name.
        default: the level where none is named.
    """

    def __init__(
        self,
        name: str,
        triple: str,
        machines: tuple[str, ...],
        levels: Mapping[str, Isa],
        cpus: Mapping[str, Cpu],
        default: Isa,
    ) -> None:
        self.name, self.triple = name, triple
        self._machines, self._levels, self._cpus = machines, levels, cpus
        self._default = default

    @cached_property
    def _targets(self) -> dict[str, Target]:
        isas = {"": self._default, **self._levels}
        isas |= {name: cpu.isa(name) for name, cpu in self._cpus.items()}
        return {variant: self._target(variant, isa) for variant, isa in isas.items()}

    def _target(self, variant: str, isa: Isa) -> Target:
        cpu = self._cpus.get(variant)
        return Target(
            f"{self.name}:{variant}" if variant else self.name,
            (cpu.triple if cpu else "") or self.triple,
            isa.mcpu,
            isa.mattr,
            isa.flags,
            rows_for(isa),
            isa.l2,
            (isa.without_amx().lanes, 4),
            channel_multiple=isa.lanes,
            short_floats=isa.short_floats,
            core=None if cpu is None else cpu.core(),
        )

    def variants(self) -> list[str]:
        """What every such CPU has (""), feature levels, oldest first, cores and boards."""
        return list(self._targets)

    def target(self, variant: str) -> Target:
        """The target of a level, core or board; "" for what every such CPU has.

        Raises:
            DlccError: there is no such variant.
        """
        if variant not in self._targets:
            raise DlccError(
                ExitCode.TARGET,
                f"no target '{self.name}:{variant}'",
                where="--target",
                why=f"the variants are {', '.join(filter(None, self.variants()))}",
                fix=f"--target {self.name} makes code that every such CPU runs",
            )
        return self._targets[variant]

    def missing(self, target: Target) -> list[str]:
        """Features of ``target`` that this machine lacks."""
        if platform.machine() not in self._machines or target.triple != self.triple:
            return [target.triple.split("-")[0]]
        return [f for f in target.features if f not in host_flags()]


FAMILY = ArmFamily("arm", "aarch64-unknown-linux-gnu", ("aarch64", "arm64"), LEVELS, AARCH64, NEON)
ARMV7_FAMILY = ArmFamily(
    "armv7",
    "armv7-unknown-linux-gnueabihf",
    ("armv7l", "armv8l"),
    ARMV7_LEVELS,
    ARMV7_CPUS,
    ARMV7,
)

__all__ = ["ARMV7", "ARMV7_FAMILY", "ARMV7_LEVELS", "FAMILY", "LEVELS"]
