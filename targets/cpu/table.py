"""The kernel table of x86-64."""

from __future__ import annotations

from dlcc.lowering.target import KernelRow
from targets.isa import Isa
from targets.rows.codebooks import WideLookupRow
from targets.rows.codes import QuantizeRow, TableRow
from targets.rows.default import DefaultRow
from targets.rows.dense import (
    AmxColumnsConvRow,
    AmxConvRow,
    AmxMatmulRow,
    ColumnsConvRow,
    ConvRow,
    ConvTransposeRow,
    DepthwiseRow,
    MatmulRow,
    PairConvRow,
    ShortDepthwiseRow,
    SoftmaxRow,
    WinogradRow,
)
from targets.rows.loops import loop_rows
from targets.rows.packed import packed_rows
from targets.rows.rounding import RoundPlanesRow
from targets.rows.signs import sign_rows
from targets.rows.sparse import sparse_rows
from targets.rows.sparse_codes import SparseCodesRow


def rows_for(isa: Isa) -> tuple[KernelRow, ...]:
    """All rows that this feature level can run."""
    rows: list[KernelRow] = [
        ConvRow(isa),
        DepthwiseRow(isa),
        WinogradRow(isa),
        ConvTransposeRow(isa),
        MatmulRow(isa),
        SoftmaxRow(isa),
    ]
    if isa.dot == "madd":
        rows += [PairConvRow(isa), ShortDepthwiseRow(isa)]
    if isa.dot == "amx":
        rows += [AmxConvRow(isa), AmxMatmulRow(isa), AmxColumnsConvRow(isa)]
    if isa.byte_permute:
        rows.append(ColumnsConvRow(isa))
    return (
        *rows,
        *sparse_rows(isa),
        SparseCodesRow(isa),
        *packed_rows(isa),
        WideLookupRow(isa),
        *sign_rows(isa),
        RoundPlanesRow(isa),
        QuantizeRow(isa),
        TableRow(isa),
        *loop_rows(isa),
        DefaultRow(isa),
    )
