"""Targets: descriptions of machines and their kernel tables.

A target family is one package here with a module-level ``FAMILY`` (see :mod:`targets.cpu`).
"""

from __future__ import annotations

from typing import Protocol

from dlcc.errors import DlccError, ExitCode
from dlcc.lowering.target import Target
from targets import arm, cortex_m, cpu, portable


class Family(Protocol):
    """Targets of one architecture."""

    name: str

    def variants(self) -> list[str]:
        """What may stand behind the family's name; "" for its name alone."""

    def target(self, variant: str) -> Target:
        """The target of a variant."""

    def missing(self, target: Target) -> list[str]:
        """Features of ``target`` that this machine lacks."""


_ALL: tuple[Family, ...] = (
    cpu.FAMILY,
    arm.FAMILY,
    arm.ARMV7_FAMILY,
    *cortex_m.FAMILIES,
    portable.FAMILY,
)
FAMILIES = {family.name: family for family in _ALL}


def get_target(name: str) -> Target:
    """The target called ``name``: a family (``cpu``: this machine) or ``family:variant``.

    Raises:
        DlccError: there is no such target.
    """
    family, _, variant = name.partition(":")
    if family not in FAMILIES:
        raise DlccError(
            ExitCode.TARGET,
            f"no target {name!r}",
            where="--target",
            why=f"the target families are {', '.join(FAMILIES)}",
            fix="`dlcc targets` lists all of them",
        )
    return FAMILIES[family].target(variant)


def all_targets() -> list[Target]:
    """Every named target."""
    return [family.target(v) for family in FAMILIES.values() for v in family.variants()]


def missing_here(target: Target) -> list[str]:
    """Features of ``target`` that this machine lacks, or the architecture if it has another."""
    return FAMILIES[target.name.partition(":")[0]].missing(target)


__all__ = ["FAMILIES", "Target", "all_targets", "get_target", "missing_here"]
