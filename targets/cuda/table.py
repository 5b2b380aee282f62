"""The kernel table of NVIDIA's GPUs."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.cuda.architectures import CLOCK, Gpu
from targets.isa import Isa
from targets.kernels.grid_machine import Machine
from targets.rows.default import DefaultRow
from targets.rows.grid import GridRow
from targets.rows.grid_layers import (
    GridConvRow,
    GridConvTransposeRow,
    GridGemmRow,
    GridMatmulRow,
)
from targets.rows.grid_rows import GridNormRow, GridSoftmaxRow
from targets.rows.loops import loop_rows


def thread_of(gpu: Gpu) -> Isa:
    """What one thread is to generators of scalar code."""
    return Isa(gpu.name, gpu.name, (), (gpu.name,), 1, 64, "madd", l2=0, item_elements=1)


def machine_of(gpu: Gpu) -> Machine:
    """What it is to generators of code for blocks of threads."""
    return Machine(gpu.multiprocessors, CLOCK, gpu.mma, gpu.shared_bytes)


def rows_for(gpu: Gpu) -> tuple[KernelRow, ...]:
    """All rows."""
    thread = thread_of(gpu)
    scalar = (*loop_rows(thread), DefaultRow(thread))
    machine = machine_of(gpu)
    made = (
        GridGemmRow,
        GridMatmulRow,
        GridConvRow,
        GridConvTransposeRow,
        GridSoftmaxRow,
        GridNormRow,
    )
    return (*(row(machine) for row in made), *map(GridRow, scalar))
