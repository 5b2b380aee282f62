"""Products of few rows by dense and packed weights, on the emulated GPU against the reference."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest

import dlcc
from dlcc.codegen import device_source
from dlcc.cuda.architecture import ARCHITECTURES
from dlcc.cuda.cubin import read_cubin
from dlcc.cuda.nvrtc import compile_cubin
from dlcc.ir import Codebook, Graph, Grouped
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.lower import lower
from dlcc.ops import build
from targets import get_target
from targets.cuda.table import machine_of
from targets.kernels import grid_gemv
from targets.kernels.grid_gemv import best
from targets.rows.grid_gemv import GridGemvRow, GridPackedGemvRow
from tests.cuda.running import GridRunner
from tests.cuda.test_grid_code import instructions
from tests.lowering.graphs import typed
from tests.targets.test_packed_rows import packed_layer

MACHINE = machine_of(ARCHITECTURES["sm_80"])
SHAPES = ((1, 320, 37), (3, 203, 50), (8, 96, 9))
"""Rows, columns, outputs: no multiple of a step, of 16 bytes, of a warp's outputs."""


def feed(graph: Graph) -> dict[str, np.ndarray]:
    rng, made = np.random.default_rng(5), {}
    for value in graph.inputs:
        if value.type.is_dense:
            made[value.name] = rng.standard_normal(value.type.shape).astype(np.float32)
        else:
            made[value.name] = rng.integers(0, 256, value.type.shape, dtype=np.uint8)
    return made


def real_layer(encoding, rows: int, k: int, n: int) -> Graph:
    """A float layer with a residual."""
    rng, graph = np.random.default_rng(k), Graph("net")
    x, r = graph.add_input("x", typed((rows, k))), graph.add_input("r", typed((rows, n)))
    real = rng.standard_normal((n, k)).astype(np.float32)
    w = graph.add_constant(real, name="w", **({"encoding": encoding} if encoding else {}))
    b = graph.add_constant(rng.standard_normal(n).astype(np.float32), name="b")
    node = build(graph, "linear", [x, w, b, r], {"act_min": -30.0}, loc="layer")
    graph.set_outputs([node.output], ["y"])
    return graph


def in_memory(array: np.ndarray) -> np.ndarray:
    """Images with their channels innermost."""
    moved = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
    return np.ascontiguousarray(moved)


def check(made: list[tuple[Graph, KernelPlan]], architecture: str = "sm_80") -> None:
    runner = GridRunner([plan for _, plan in made], architecture)
    for number, (graph, plan) in enumerate(made):
        inputs = feed(graph)
        want = in_memory(dlcc.execute(graph, inputs)["y"])
        given = [in_memory(array) for array in inputs.values()]
        results = [
            runner.run(plan, given, np.zeros_like(want), reverse=reverse)
            for reverse in (False, True)
        ]
        np.testing.assert_array_equal(*results, err_msg=str(number))
        if want.dtype == np.float32:
            room = 2e-5 * np.abs(want).max()
            np.testing.assert_allclose(results[0], want, rtol=2e-5, atol=room, err_msg=str(number))
        else:
            assert len(np.unique(want)) > 5
            np.testing.assert_array_equal(results[0], want, err_msg=str(number))


def planned(row, graph: Graph):
    node = graph.nodes[0]
    assert row.serves(node)
    assert not row.refuses(node)
    assert row.cost(node) > 0
    return graph, row.plan(node)


def layer_of(what, m: int, k: int, n: int) -> Graph:
    """``what``: kind of codes and whether activations are, or an encoding of a float layer."""
    if isinstance(what, tuple):
        return packed_layer(what[0], "linear", (m, k), (n, k), integer=what[1])
    return real_layer(what, m, k, n)


QUICK = [
    (("int4", True), SHAPES[0]),
    (("ternary", True), (2, 203, 18)),
    (("binary", True), (1, 70, 21)),
    (Codebook(4), (1, 70, 9)),
    (Grouped(3, 32), (2, 104, 9)),
]
EVERY = [
    *((kind, True) for kind in ("int2", "int3", "int4", "int7", "ternary", "binary")),
    *((kind, False) for kind in ("int2", "int3", "int4", "int7", "int8", "ternary", "binary")),
    ("asymmetric", False),
    *(Codebook(3), Codebook(4), Codebook(8), Grouped(4, 32), Grouped(3, 64)),
]


def test_packed_weights():
    row = GridPackedGemvRow(MACHINE)
    made = [planned(row, layer_of(what, *shape)) for what, shape in QUICK]
    assert all(plan.compressed for _, plan in made)
    check(made)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("architecture", ["sm_61", "sm_90"])
def test_every_form(shape, architecture):
    row = GridPackedGemvRow(machine_of(ARCHITECTURES[architecture]))
    check([planned(row, layer_of(what, *shape)) for what in EVERY], architecture)


def test_dense_weights():
    row, made = GridGemvRow(MACHINE), []
    for what, shape in ((None, (2, 51, 13)), (("int8", True), (3, 70, 21))):
        made.append(planned(row, layer_of(what, *shape)))
    check(made)


def test_ways_to_share_an_output():
    """Lanes, outputs of a thread and warps, each with its own order of sums."""
    graph, made = layer_of(("int4", True), 1, 1024, 70), []
    for lanes, each, warps, side in ((32, 1, 1, 4), (1, 2, 4, 2), (4, 4, 8, 1), (8, 1, 2, 3)):
        ways = {"lanes": lanes, "each": each, "warps": warps, "side": side}

        def chosen(*given, ways=ways):
            return replace(best(*given), **ways)

        with patch.object(grid_gemv, "best", chosen):
            made.append((graph, GridPackedGemvRow(MACHINE).plan(graph.nodes[0])))
    assert len({plan.steps[-1].name_key for _, plan in made}) == 4
    check(made)


@pytest.mark.parametrize(
    ("what", "op", "shapes", "why"),
    [
        (("int4", True), "linear", ((9, 64), (8, 64)), "9 rows"),
        (Codebook(9), "linear", ((1, 64), (8, 64)), "codes of 9 bits"),
        (Grouped(4, 6), "linear", ((1, 64), (8, 64)), "no multiple of 4"),
        (("int4", True), "conv2d", ((1, 8, 3, 3), (8, 8, 3, 3)), "no product of rows"),
        (("int4", True), "linear", ((1, 70000), (2, 70000)), "70000 products"),
    ],
)
def test_what_is_refused(what, op, shapes, why):
    if op == "linear":
        graph = layer_of(what, *shapes[0], shapes[1][0])
    else:
        graph = packed_layer(what[0], op, *shapes)
    assert why in GridPackedGemvRow(MACHINE).refuses(graph.nodes[0])


@pytest.mark.parametrize(
    ("kind", "integer", "bits"), [("int4", True, 4), ("ternary", True, 2), ("binary", False, 1)]
)
def test_weights_files_are_as_small_as_on_a_cpu(kind, integer, bits):
    graph = packed_layer(kind, "linear", (1, 2048), (256, 2048), integer=integer)
    target = get_target("cuda:sm_80")
    program = lower(graph, target, lambda *_: b"")
    row = next(row for row in program.report["layers"] if row["layer"] == "layer")
    assert (row["kernel"], row["weights"]) == ("grid-packed-gemv", "compressed")
    codes = 2048 * 256 * bits // 8
    assert row["weight_bytes"] <= codes + 12 * 256 + 1024
    assert len(program.weights) <= codes + 12 * 256 + 4096


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        (("int4", True), ("IDP.4A.U8.U8", "LOP3.LUT", "SHFL.BFLY")),
        pytest.param(Grouped(4, 32), ("FFMA", "LOP3.LUT", "SHFL.BFLY"), marks=pytest.mark.slow),
        (Codebook(4), ("FFMA", "LDS", "SHFL.BFLY")),
    ],
)
def test_instructions(what, wanted, tmp_path):
    plan = GridPackedGemvRow(MACHINE).plan(layer_of(what, 1, 4096, 1024).nodes[0])
    (step,) = plan.steps
    cubin = compile_cubin(device_source({step.name_key: step.build()}), "sm_80")
    found = instructions(cubin, tmp_path)
    assert any(name.startswith("LDG.E.NA.128.CONSTANT") for name in found), found
    for name in wanted:
        assert any(known.startswith(name) for known in found), (name, found.most_common())
    assert not any(name.startswith(("LDL", "STL")) for name in found)
    assert read_cubin(cubin).kernels[step.name_key].local_bytes == 0
