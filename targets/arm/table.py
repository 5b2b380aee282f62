"""The kernel tables of AArch64 and of 32-bit ARM with NEON."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.isa import Isa
from targets.rows.codebooks import WideLookupRow
from targets.rows.codes import QuantizeRow, TableRow
from targets.rows.default import DefaultRow
from targets.rows.dense import (
    ConvRow,
    ConvTransposeRow,
    DepthwiseRow,
    MatmulRow,
    SoftmaxRow,
    SveConvRow,
    WinogradRow,
)
from targets.rows.loops import loop_rows
from targets.rows.packed import packed_rows
from targets.rows.rounding import RoundPlanesRow
from targets.rows.signs import sign_rows
from targets.rows.sparse import sparse_rows


def rows_for(isa: Isa) -> tuple[KernelRow, ...]:
    """All rows that this feature level can run: those of NEON, and of SVE where there is it."""
    sve = [SveConvRow(isa)] if isa.dot == "sve" else []
    transposed = ConvTransposeRow(isa)
    isa = isa.without_amx()
    return (
        *sve,
        ConvRow(isa),
        DepthwiseRow(isa),
        WinogradRow(isa),
        transposed,
        MatmulRow(isa),
        SoftmaxRow(isa),
        *sparse_rows(isa),
        *packed_rows(isa),
        *sign_rows(isa),
        RoundPlanesRow(isa),
        QuantizeRow(isa),
        *([TableRow(isa), WideLookupRow(isa)] if isa.arch == "aarch64" else []),
        *loop_rows(isa),
        DefaultRow(isa),
    )
