"""Targets: descriptions of machines and their kernel tables.

A target family is one package here with a module-level ``FAMILY`` (see :mod:`targets.cpu`). A name
can stand for several targets of a family, of whose kernels a library runs the best that the CPU
can: ``cpu:avx2+amx``, or ``arm`` for all feature levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from dlcc.errors import DlccError, ExitCode
from dlcc.lowering.target import Target
from targets import arm, cortex_m, cpu, cuda, portable


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
    cuda.FAMILY,
    cuda.ARM_FAMILY,
)
FAMILIES = {family.name: family for family in _ALL}
SEVERAL = {
    "arm": ("neon", "dotprod", "i8mm"),
    "cuda": ("sm_80", "sm_90"),
    "cuda-arm": ("sm_87", "sm_90"),
}
"""Families whose name alone stands for these levels, as far as they pay. Too few cores have vectors
of 256 bits for ``sve256`` to be among them."""


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


def get_targets(name: str, *, tf32: bool = False) -> tuple[Target, ...]:
    """The targets that ``name`` stands for, from the least to the best.

    Args:
        name: as a user writes it.
        tf32: with kernels that round operands of float32 to TF32.

    Raises:
        DlccError: there is no such target, or the CPU cannot tell two of them apart; one has no
            TF32.
    """
    found = _named(name)
    return tuple(target.with_tf32() for target in found) if tf32 else found


def _named(name: str) -> tuple[Target, ...]:
    family, _, listed = name.partition(":")
    variants = listed.split("+") if listed else SEVERAL.get(family, ("",))
    if len(variants) == 1:
        return (get_target(f"{family}:{variants[0]}" if variants[0] else family),)
    if "" in variants:
        raise DlccError(
            ExitCode.TARGET,
            f"no target {name!r}",
            where="--target",
            why="a plus has no level on one of its sides",
            fix="`dlcc targets` lists all levels",
        )
    found = [get_target(f"{family}:{variant}") for variant in variants]
    order = FAMILIES[family].variants()
    found.sort(key=lambda t: (len(t.features), order.index(t.name.partition(":")[2])))
    systems = {target.triple for target in found}
    if len(systems) > 1:
        raise DlccError(
            ExitCode.TARGET,
            f"{' and '.join(target.name for target in found)} are for different systems",
            where=f"--target {name}",
            why=f"a library is for one of {', '.join(sorted(systems))}",
            fix="compile for them one after the other",
        )
    for one, other in pairwise(found):
        if set(one.features) == set(other.features):
            raise DlccError(
                ExitCode.TARGET,
                f"{one.name} and {other.name} cannot be in one library",
                where=f"--target {name}",
                why="a CPU that has the features of one has those of the other, which are the same",
                fix="leave one of them out",
            )
    return tuple(found)


def joined_name(targets: Sequence[Target]) -> str:
    """The name that stands for ``targets`` of one family: what :func:`get_targets` takes."""
    family = targets[0].name.partition(":")[0]
    if len(targets) == 1:
        return targets[0].name
    return f"{family}:{'+'.join(target.name.partition(':')[2] for target in targets)}"


def without_rows(targets: Sequence[Target], names: Sequence[str]) -> tuple[Target, ...]:
    """The targets with the rows called ``names`` left out of their tables.

    Raises:
        DlccError: no table has a row of such a name.
    """
    known = [{row.name for row in target.rows} for target in targets]
    foreign = [name for name in names if not any(name in rows for rows in known)]
    return tuple(
        target.without(foreign or [name for name in names if name in rows])
        for target, rows in zip(targets, known, strict=True)
    )


def all_targets() -> list[Target]:
    """Every named target."""
    return [family.target(v) for family in FAMILIES.values() for v in family.variants()]


def missing_here(target: Target) -> list[str]:
    """Features of ``target`` that this machine lacks, or the architecture if it has another."""
    return FAMILIES[target.name.partition(":")[0]].missing(target)


__all__ = [
    "FAMILIES",
    "SEVERAL",
    "Target",
    "all_targets",
    "get_target",
    "get_targets",
    "joined_name",
    "missing_here",
    "without_rows",
]
