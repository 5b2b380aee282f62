"""Layers summed in 16 bits, from the graph to the library: which are, why, and results."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.analysis.accumulators import Bounds
from dlcc.driver import build_object
from dlcc.ir import Affine, Graph
from dlcc.lowering.lower import lower
from dlcc.ops import build
from targets import get_target
from targets.cpu.levels import AVX2
from targets.kernels.pairs import ANY_CODES, PairSums
from targets.rows.proofs import code_bounds, pair_sums
from tests.lowering.graphs import affine, typed
from tests.targets.running import isa_params
from tests.targets.test_sparse_rows import check


def layers_of(reach: int, bits: int = 8) -> Graph:
    """Two convolutions of 1 and 3x3; the second one's input has codes of ``bits`` bits."""
    rng = np.random.default_rng(0)
    graph = Graph("net")
    x = graph.add_input("x", typed((1, 32, 9, 9), affine()))
    for name, kernel, code in (
        ("first", 1, Affine(bits, False, (0.1,), (3,))),
        ("second", 3, affine()),
    ):
        codes = np.rint(rng.normal(0, reach / 4, (32, 32, kernel, kernel))).clip(-reach, reach)
        codes[:, 0, 0, 0] = reach
        encoding = Affine.symmetric(8, np.full(32, 0.01), 0)
        w = graph.add_constant(
            (codes * 0.01).astype(np.float32), encoding=encoding, name=f"{name}.w"
        )
        pads = (kernel // 2,) * 4
        node = build(graph, "conv2d", [x, w], {"pads": pads}, loc=name)
        node.output.type = node.output.type.with_(encoding=code)
        x = node.output
    graph.set_outputs([x], ["y"])
    return graph


def lowered(graph: Graph, level: str):
    """The program."""
    return lower(graph, get_target(f"cpu:{level}"), build_object, threads=2)


def line(program, layer: str) -> dict:
    return next(row for row in program.report["layers"] if row["layer"] == layer)


@pytest.mark.parametrize("isa", isa_params("sse4", "avx2", "avx512"))
@pytest.mark.parametrize(("reach", "sums"), [(127, "of 4, "), (2, "of 32")])
def test_a_network_with_and_without_extra_steps(isa, reach, sums, tmp_path):
    program = lowered(layers_of(reach), isa.name)
    for name in ("first", "second"):
        row = line(program, name)
        assert row["kernel"] == "implicit-gemm-16"
        assert row["rejected"]["implicit-gemm"].startswith("predicted")
    assert sums in line(program, "first")["variant"]
    check(layers_of(reach), program, tmp_path / "net")


@pytest.mark.parametrize("isa", isa_params("avx2"))
def test_narrow_codes_are_summed_for_longer(isa, tmp_path):
    program = lowered(layers_of(5, bits=4), isa.name)
    assert line(program, "second")["variant"] == "conv-pairs 16-bit sums of 288"
    check(layers_of(5, bits=4), program, tmp_path / "net")


def test_codes_from_outside_may_be_any():
    graph = layers_of(30, bits=4)
    first, second = graph.nodes
    assert code_bounds(second.input(0)) == Bounds(0, 15)
    assert code_bounds(first.input(0)) == ANY_CODES
    narrow = typed((1, 32, 9, 9), Affine(4, False, (0.1,), (3,)))
    first.input(0).type = narrow
    assert code_bounds(first.input(0)) == ANY_CODES
    again = build(graph, "reinterpret", [second.output], {}, types=[narrow])
    assert code_bounds(again.output) == ANY_CODES  # eight bits before, eight bits after


def test_proofs_follow_the_weights():
    for reach in (2, 60, 127):
        found = [pair_sums(node, AVX2) for node in layers_of(reach).nodes]
        assert found == [pair_sums(node, AVX2) for node in layers_of(reach).nodes]
        if reach == 2:
            assert min(sums.steps for sums in found) >= 8
        elif reach == 60:
            assert found == [PairSums(2), PairSums(2)]
        else:
            assert all(sums.steps == 1 and sums.extra for sums in found)


@pytest.mark.parametrize("level", ["avxvnni", "avx512vnni", "amx"])
def test_levels_with_dot_products_do_without(level):
    program = lowered(layers_of(2), level)
    for row in program.report["layers"]:
        assert "implicit-gemm-16" not in (row["kernel"], *row["rejected"])
