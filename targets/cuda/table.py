"""The kernel table of NVIDIA's GPUs."""

from __future__ import annotations

from dlcc.cuda.architecture import Architecture
from dlcc.lowering.target import KernelRow
from targets.isa import Isa
from targets.kernels.grid_machine import Machine
from targets.rows.default import DefaultRow
from targets.rows.grid import GridRow
from targets.rows.grid_attention import GridAttentionRow
from targets.rows.grid_gemv import GridGemvRow, GridPackedGemvRow
from targets.rows.grid_layers import (
    GridConvRow,
    GridConvTransposeRow,
    GridDepthwiseRow,
    GridGemmRow,
    GridGroupedRow,
    GridMatmulRow,
    GridTransposedRow,
)
from targets.rows.grid_packed import GridPackedGemmRow, GridTableGemmRow
from targets.rows.grid_reduce import GridGroupNormRow, GridReduceRow
from targets.rows.grid_rows import GridNormRow, GridSoftmaxRow
from targets.rows.grid_signs import GridSignBytesRow, GridSignsRow, GridXnorRow
from targets.rows.grid_sparse import GridBlocksRow, GridScatteredRow, GridSparseRow
from targets.rows.loops import loop_rows


def thread_of(gpu: Architecture) -> Isa:
    """What one thread is to generators of scalar code."""
    name = str(gpu)
    return Isa(name, name, (), (name,), 1, 64, "madd", l2=0, item_elements=1)


def machine_of(gpu: Architecture, *, tf32: bool = False) -> Machine:
    """What it is to generators of code for blocks of threads."""
    return Machine(
        gpu.multiprocessors,
        gpu.clock,
        gpu.mma,
        gpu.shared_bytes,
        gpu.memory,
        tf32,
        wgmma=gpu.code.exact,
    )


def rows_for(gpu: Architecture, *, tf32: bool = False) -> tuple[KernelRow, ...]:
    """All rows; ``tf32``: those that round float32 operands to TF32."""
    thread = thread_of(gpu)
    scalar = (*loop_rows(thread), DefaultRow(thread))
    machine = machine_of(gpu, tf32=tf32)
    made = (
        GridGemvRow,
        GridPackedGemvRow,
        GridPackedGemmRow,
        GridTableGemmRow,
        GridGemmRow,
        GridMatmulRow,
        GridDepthwiseRow,
        GridGroupedRow,
        GridConvRow,
        GridTransposedRow,
        GridConvTransposeRow,
        GridSoftmaxRow,
        GridNormRow,
        GridReduceRow,
        GridGroupNormRow,
        GridSparseRow,
        GridBlocksRow,
        GridScatteredRow,
        GridAttentionRow,
    )
    signs = [row(machine, thread) for row in (GridSignsRow, GridXnorRow, GridSignBytesRow)]
    return (*(row(machine) for row in made), *signs, *map(GridRow, scalar))
