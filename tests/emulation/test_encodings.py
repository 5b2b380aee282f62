"""Layers in compressed encodings run from their codes on ARM, and give the reference's bytes."""

from __future__ import annotations

import numpy as np
import pytest

import dlcc
from dlcc.artifact import write_artifact
from dlcc.driver import build_object
from dlcc.ir import Affine, Encoding, Graph, Sparse
from dlcc.lowering.lower import lower
from dlcc.ops import build
from targets import get_target
from tests.emulation.machine import run_network
from tests.emulation.test_networks import on_machines
from tests.lowering.graphs import affine, typed
from tests.targets.test_packed_rows import CONVS, encoding_of, packed_layer
from tests.targets.test_sign_rows import CONV, binary_layer
from tests.targets.test_sparse_kernels import zeros_of

COLUMNS, OUTPUTS = 2304, 272

KERNELS = {"int2": "packed-gemv", "int4": "packed-gemv", "ternary": "packed-gemv"}
KERNELS |= {"binary": "packed-gemv", "16x4": "sparse-gemv", "1x4": "sparse-gemv"}


def compressed_layers() -> Graph:
    """A linear layer of each kind beside each other, on the same codes."""
    rng = np.random.default_rng(1)
    graph = Graph("net")
    x = graph.add_input("x", typed((1, COLUMNS), affine()))
    made = []
    for kind in KERNELS:
        real = rng.standard_normal((OUTPUTS, COLUMNS)).astype(np.float32)
        if "x" in kind:
            real *= zeros_of(rng, OUTPUTS, COLUMNS, tuple(map(int, kind.split("x"))), 0.1)
            encoding: Encoding = Sparse("unstructured", encoding_of("int8", real))
        else:
            encoding = encoding_of(kind, real)
        weight = graph.add_constant(real, encoding=encoding, name=f"{kind}-weight")
        assert encoding.uniform is not None
        wide = Affine.symmetric(32, 0.02 * np.asarray(encoding.uniform.scales), 0)
        bias = rng.standard_normal(OUTPUTS).astype(np.float32)
        given = graph.add_constant(bias, encoding=wide, name=f"{kind}-bias")
        node = build(graph, "linear", [x, weight, given], {}, loc=kind)
        node.output.type = node.output.type.with_(encoding=affine(0.3, 120))
        made.append(node.output)
    graph.set_outputs(made, list(KERNELS))
    return graph


@pytest.mark.parametrize(("machine", "target"), on_machines("cortex-a72", "cortex-a76", "armv7"))
def test_every_encoding_from_its_codes(tmp_path, machine, target):
    graph = compressed_layers()
    program = lower(graph, get_target(target), build_object, threads=2)
    rows = {row["layer"]: row for row in program.report["layers"]}
    assert {kind: rows[kind]["kernel"] for kind in KERNELS} == KERNELS
    assert all(rows[kind]["weights"] == "compressed" for kind in KERNELS)
    write_artifact(program, tmp_path / "net")
    x = np.random.default_rng(2).integers(0, 256, (1, COLUMNS), dtype=np.uint8)
    want = dlcc.execute(graph, {"x": x})
    write_artifact(lower(graph, get_target("cpu"), build_object, threads=2), tmp_path / "x86")
    with dlcc.load(tmp_path / "x86") as model:
        for ours, kind in zip(model.run({"x": x}).values(), KERNELS, strict=True):
            np.testing.assert_array_equal(ours, want[kind])
    for threads in (1, 2):
        got = run_network(tmp_path / "net", machine, [[x]], threads)
        assert got == b"".join(want[kind].tobytes() for kind in KERNELS)


@pytest.mark.parametrize(("machine", "target"), on_machines("cortex-a72", "max", "armv7"))
@pytest.mark.parametrize("which", [0, 2], ids=["conv", "rows"])
def test_layers_unpack_their_codes(tmp_path, machine, target, which):
    op, shape, weight = CONVS[which]
    graph = packed_layer("int4", op, shape, weight)
    program = lower(graph, get_target(target).without({"implicit-gemm"}), build_object, threads=2)
    row = next(row for row in program.report["layers"] if row["layer"] == "layer")
    assert (row["kernel"], row["weights"]) == ("packed-gemm", "compressed")
    assert row["weight_bytes"] < np.prod(weight)
    write_artifact(program, tmp_path / "net")
    x = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    got = run_network(tmp_path / "net", machine, [[x]], threads=2)
    assert got == dlcc.execute(graph, {"x": x})["y"].tobytes()


@pytest.mark.parametrize(("machine", "target"), on_machines("cortex-a72", "cortex-a76", "armv7"))
@pytest.mark.parametrize("kernel", ["xnor", "sign-bytes"])
def test_layers_of_signs(tmp_path, machine, target, kernel):
    graph = binary_layer(CONV, out=True)
    chosen = get_target(target).without({"xnor", "sign-bytes"} - {kernel})
    program = lower(graph, chosen, build_object)
    names = {row["layer"]: row["kernel"] for row in reversed(program.report["layers"])}
    assert names == {"signs": "signs", "layer": kernel, "second": kernel}
    write_artifact(program, tmp_path / "net")
    x = np.random.default_rng(2).standard_normal(CONV[1]).astype(np.float32)
    got = run_network(tmp_path / "net", machine, [[x]])
    assert got == dlcc.execute(graph, {"x": x})["y"].tobytes()
