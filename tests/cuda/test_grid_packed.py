"""Blocked products by packed weights, on the emulated GPU against the reference."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest

from dlcc.codegen import device_source
from dlcc.cuda.architecture import ARCHITECTURES
from dlcc.cuda.cubin import read_cubin
from dlcc.cuda.nvrtc import compile_cubin
from dlcc.ir import Codebook, Graph
from dlcc.lowering.lower import lower
from dlcc.ops import build
from targets import get_target
from targets.cuda.table import machine_of
from targets.kernels import grid_packed
from targets.kernels.grid_packed import best_packed_tile
from targets.rows.grid_packed import GridPackedGemmRow, GridTableGemmRow
from tests.cuda.test_grid_code import instructions
from tests.cuda.test_grid_gemv import check, planned
from tests.lowering.graphs import typed
from tests.targets.test_packed_rows import packed_layer

MACHINE = machine_of(ARCHITECTURES["sm_80"])
PADDED = {"pads": (1, 1, 1, 1)}
LAYERS = {
    "linear": ("linear", (17, 70), (37, 70), {}),
    "padded": ("conv2d", (1, 16, 7, 6), (40, 16, 3, 3), PADDED),
    "narrow": ("conv2d", (2, 5, 6, 5), (18, 5, 3, 3), {"strides": (2, 1), **PADDED}),
    "large": ("conv2d", (8, 128, 28, 28), (128, 128, 3, 3), PADDED),
    "deep": ("linear", (9, 1088), (24, 1088), {}),
}
SMALL = tuple(name for name in LAYERS if name != "large")


def layer(kind: str, name: str):
    op, x, w, attrs = LAYERS[name]
    return packed_layer(kind, op, x, w, attrs=attrs)


@pytest.mark.parametrize(
    "names", [("linear", "padded"), pytest.param(SMALL, marks=pytest.mark.slow)]
)
def test_packed_weights(names):
    row = GridPackedGemmRow(MACHINE)
    kinds = ("int4", "ternary", "binary") if len(names) == 2 else ("int2", "int3", "int4", "binary")
    made = [planned(row, layer(kind, name)) for kind in kinds for name in names]
    assert all(plan.compressed for _, plan in made)
    check(made)


def real(what, name: str) -> Graph:
    """A float layer: ``what`` is a kind of codes, or the bits of a codebook."""
    op, x, w, attrs = LAYERS[name]
    if not isinstance(what, int):
        return packed_layer(what, op, x, w, integer=False, attrs=attrs)
    rng, graph = np.random.default_rng(what), Graph("net")
    weight = rng.standard_normal(w).astype(np.float32)
    held = graph.add_constant(weight, encoding=Codebook(what), name="w")
    node = build(graph, op, [graph.add_input("x", typed(x)), held, None], attrs, loc="layer")
    graph.set_outputs([node.output], ["y"])
    return graph


@pytest.mark.parametrize(
    ("what", "names", "architecture"),
    [
        ((4, "ternary", "binary"), ("padded",), "sm_80"),
        *(
            pytest.param((3, 8, "int2", "int4", "int7", "ternary", "binary"), SMALL, a,
                         marks=pytest.mark.slow)
            for a in ("sm_61", "sm_90")
        ),
    ],
)  # fmt: skip
def test_float_layers_by_tables(what, names, architecture):
    row = GridTableGemmRow(machine_of(ARCHITECTURES[architecture]))
    made = [planned(row, real(kind, name)) for kind in what for name in names]
    assert all(plan.compressed for _, plan in made)
    check(made, architecture)


@pytest.mark.parametrize(
    ("what", "tf32", "why"),
    [(9, False, "codes of 9 bits"), (4, True, "TF32"), ("asymmetric", False, "two values")],
)
def test_tables_refused(what, tf32, why):
    row = GridTableGemmRow(machine_of(ARCHITECTURES["sm_80"], tf32=tf32))
    assert why in row.refuses(real(what, "padded").nodes[0])


def test_shared_weights_stay_small():
    graph = real(4, "large")
    program = lower(graph, get_target("cuda:sm_90"), lambda *_: b"")
    row = next(row for row in program.report["layers"] if row["layer"] == "layer")
    assert (row["kernel"], row["weights"]) == ("grid-table-gemm", "compressed")
    assert row["weight_bytes"] <= 128 * 9 * 128 // 2 + 2048


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_every_tile(bits):
    kind, made = {1: "binary", 2: "ternary", 4: "int4"}[bits], []
    for tile in grid_packed.MMA_TILES:
        for splits in (1, 3):

            def chosen(*given, tile=tile, splits=splits):
                ways = {"rows": tile.rows, "columns": tile.columns, "warps": tile.warps}
                return replace(best_packed_tile(*given), splits=splits, **ways)

            with patch.object(grid_packed, "best_packed_tile", chosen):
                made.append(planned(GridPackedGemmRow(MACHINE), layer(kind, "narrow")))
    assert len({plan.steps[1].name_key for _, plan in made}) == len(made)
    check(made)


@pytest.mark.parametrize(
    ("machine", "kind", "why"),
    [
        ("sm_75", "int4", "no matrix instructions"),
        ("sm_80", "int5", "codes of 5 bits"),
    ],
)
def test_what_is_refused(machine, kind, why):
    row = GridPackedGemmRow(machine_of(ARCHITECTURES[machine]))
    assert why in row.refuses(layer(kind, "padded").nodes[0])


@pytest.mark.parametrize(("kind", "bits"), [("int4", 4), ("ternary", 2), ("binary", 1)])
def test_weights_files_are_as_small_as_on_a_cpu(kind, bits):
    graph = packed_layer(kind, "conv2d", (4, 128, 14, 14), (128, 128, 3, 3), attrs=PADDED)
    program = lower(graph, get_target("cuda:sm_90"), lambda *_: b"")
    row = next(row for row in program.report["layers"] if row["layer"] == "layer")
    assert (row["kernel"], row["weights"]) == ("grid-packed-gemm", "compressed")
    codes = 9 * 128 * 128 * bits // 8
    assert row["weight_bytes"] <= codes + 12 * 128 + 1024


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("int4", "sm_90"),
        *(pytest.param(k, "sm_80", marks=pytest.mark.slow) for k in ("int4", "ternary", "binary")),
    ],
)
def test_instructions(kind, architecture, tmp_path):
    graph = packed_layer(kind, "conv2d", (16, 128, 28, 28), (128, 128, 3, 3), attrs=PADDED)
    plan = GridPackedGemmRow(machine_of(ARCHITECTURES[architecture])).plan(graph.nodes[0])
    (step,) = plan.steps
    cubin = compile_cubin(device_source({step.name_key: step.build()}), architecture)
    found = instructions(cubin, tmp_path)
    for name in ("IMMA.16832.U8.S8", "LOP3.LUT", "LDGSTS.E.BYPASS.128"):
        assert any(known.startswith(name) for known in found), (name, found.most_common())
    assert sum(count for name, count in found.items() if name.startswith("LDSM")) <= 8
    assert not any(name.startswith(("LDL", "STL")) for name in found)
    assert read_cubin(cubin).kernels[step.name_key].local_bytes == 0
