"""Implicit-GEMM functions, whole: parameters, frame, and blocks of registers or tiles."""

from __future__ import annotations

from typing import Any

from dlcc import tir
from targets.kernels import amx, epilogue
from targets.kernels.arm_dot import emit_dot_block
from targets.kernels.arm_half import emit_half_block
from targets.kernels.arm_mlal import emit_mlal_block
from targets.kernels.arm_mmla import emit_mmla_block
from targets.kernels.code_panel import Packing, coded_piece
from targets.kernels.coded_gemm import unpacking_of
from targets.kernels.columns import Columns, StagedRows
from targets.kernels.gemm import Blocking, Gemm, Unit
from targets.kernels.narrow import emit_narrow_block
from targets.kernels.pairs import EXTRA_STEPS, emit_pair_block
from targets.kernels.registers import emit_register_block
from targets.kernels.skeleton import Context, EmitBlock, emit_items
from targets.kernels.spec import NUMPY
from targets.kernels.sve import emit_sve_block

_EMITTERS: dict[str, EmitBlock] = {
    "pairs": emit_pair_block,
    "mlal": emit_mlal_block,
    "sdot": emit_dot_block,
    "usdot": emit_dot_block,
    "mmla": emit_mmla_block,
    "sve_usmmla": emit_sve_block,
    "sve_fmla": emit_sve_block,
    "half": emit_half_block,
}
"""What emits a block, by the kind of unit; the others' is :func:`emit_register_block`."""


def gemm_function(
    name: str,
    gemm: Gemm,
    unit: Unit,
    blocking: Blocking,
    columns: Columns | None = None,
    panel: Packing | None = None,
) -> Any:
    """The PrimFunc of an implicit GEMM.

    Parameters: a (with ``columns``: the input, the fill value and a buffer for the staged rows), b
    (with ``panel``: codes, tables and a buffer for what they are unpacked to), [its extra steps,]
    [row terms,] then the epilogue's (:func:`epilogue.argument_names`), residual if there is one, y.
    """
    kb = tir.KernelBuilder(name, bfloat16=unit.bf16 and unit.kind != "fma")
    rows = None if columns is None else StagedRows(kb, columns)
    a = kb.pointer("a", NUMPY[gemm.a_dtype], align=1) if rows is None else rows.y
    b_dtype = unit.packed
    if gemm.b_image and unit.kind == "madd":
        b_dtype = "int16"
    coded = None if panel is None else unpacking_of(panel).pointers(kb)
    b = kb.pointer("b", b_dtype, align=1 if gemm.b_row else 64)
    extra = tuple(kb.pointer(*part) for part in EXTRA_STEPS) if unit.extra else ()
    terms = kb.pointer("row_terms", "int32") if gemm.row_terms else None
    out = epilogue.parameters(kb, gemm.integer, gemm.out, gemm.residual)
    ctx = Context(kb, gemm, unit, blocking, a, b, terms, out)
    ctx.extra = extra
    ctx.prepare = None if rows is None else rows.emit
    if panel is not None and coded is not None:
        piece = coded_piece(gemm, unit, panel.form)
        ctx.panel = unpacking_of(panel)(kb, panel, *coded, b, piece)
        ctx.panel.start()
    if unit.kind != "amx":
        emit = _EMITTERS.get(unit.kind, emit_register_block)
        emit_items(ctx, emit_narrow_block if gemm.pixel_bundles else emit)
        return kb.build()
    amx.emit_tile_items(ctx)
    return kb.build()
