"""The kernel table of x86-64."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.cpu.default import DefaultRow
from targets.cpu.isa import Isa


def rows_for(isa: Isa) -> tuple[KernelRow, ...]:
    """All rows that this feature level can run."""
    return (DefaultRow(isa),)
