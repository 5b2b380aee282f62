"""Cortex-M microcontrollers: one target for each core, without an operating system."""

from __future__ import annotations

from functools import cached_property

from dlcc.errors import DlccError, ExitCode
from dlcc.lowering.target import Target
from targets.cortex_m.cores import CORES, Core
from targets.cortex_m.table import rows_for

ALIGNMENT = 8
"""Bytes: of what double-word loads like."""

SLACK = 4
"""Bytes after a buffer: the rest of a word."""

PACKED_WITHIN = 1.5
"""Flash is what a microcontroller has least of: half the weights are worth more than the cycles,
some of which reading them from flash takes back."""


class CortexMFamily:
    """The target of one core; it has no variants."""

    def __init__(self, core: Core) -> None:
        self.core, self.name = core, core.name

    @cached_property
    def _target(self) -> Target:
        core = self.core
        return Target(
            core.name,
            core.triple,
            core.isa.mcpu,
            core.isa.mattr,
            (),
            rows_for(core),
            channel_multiple=2,
            emits=("a", "o"),
            most_threads=1,
            alignment=ALIGNMENT,
            slack=SLACK,
            core=core.predicted,
            packed_within=PACKED_WITHIN,
            tensors_in_arena=True,
        )

    def variants(self) -> list[str]:
        """The one that the core's name alone means."""
        return [""]

    def target(self, variant: str) -> Target:
        """The target.

        Raises:
            DlccError: a variant is named.
        """
        if variant:
            raise DlccError(
                ExitCode.TARGET,
                f"no target '{self.name}:{variant}'",
                where="--target",
                why=f"{self.name} has no variants",
                fix=f"--target {self.name}",
            )
        return self._target

    def missing(self, target: Target) -> list[str]:
        """This machine is no microcontroller."""
        return [target.name]


FAMILIES = tuple(CortexMFamily(core) for core in CORES.values())

__all__ = ["CORES", "FAMILIES", "CortexMFamily"]
