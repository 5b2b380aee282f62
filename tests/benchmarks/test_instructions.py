"""The count of executed instructions against LiteRT, as far as it goes without LiteRT."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import dlcc
from benchmarks.instructions.__main__ import dlcc_instructions
from benchmarks.instructions.encodings import PASSES, float_layer, integer_layer
from benchmarks.instructions.machine import CPUS, describe_machine, mapped_files
from benchmarks.instructions.networks import NETWORKS, describe, load
from dlcc.driver import build_object
from dlcc.ir import Codebook
from dlcc.lowering.lower import lower
from targets import get_target


def test_a_description_has_every_layer_and_constant(tmp_path):
    describe("digits", tmp_path)
    told = json.loads((tmp_path / "digits.json").read_text())
    ops = {layer["op"] for layer in told["layers"]}
    assert ops == {"Conv", "Clip", "Add", "MaxPool", "ReduceMean", "Reshape", "Gemm"}
    known = {told["input"], *told["constants"].values()}
    for layer in told["layers"]:
        assert set(layer["inputs"]) <= known
        known.add(layer["output"])
    assert told["output"] in known
    with np.load(tmp_path / "digits.npz") as arrays:
        weights = sum(a.size for a in arrays.values() if a.dtype == np.float32 and a.ndim)
    graph = load("digits")
    assert weights == sum(v.type.elements for v in graph.constants() if v.type.shape)
    feed = {graph.inputs[0].name: np.ones(told["shape"], np.float32)}
    plain = dlcc.load_graph(NETWORKS["digits"], shapes={"N": 1})
    (want,), (got,) = dlcc.execute(plain, feed).values(), dlcc.execute(graph, feed).values()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_memory_is_told_apart_by_its_files():
    maps = (
        "5500000000-5500001000 r-xp 00000000 08:01 12   /arm64/usr/bin/python3.11\n"
        "5501000000-5501002000 r-xp 00000000 08:01 13   /arm64/site/litert/lib.so\n"
        "5502000000-5502001000 rw-p 00000000 00:00 0 \n"
    )
    assert mapped_files(maps) == [
        (0x5500000000, 0x5500001000, "python3.11"),
        (0x5501000000, 0x5501002000, "lib.so"),
        (0x5502000000, 0x5502001000, ""),
    ]


def test_the_emulated_machine_has_one_core_of_the_kind(tmp_path):
    describe_machine(tmp_path, CPUS[1])
    assert "CPU part\t: 0xd0b" in (tmp_path / "proc" / "cpuinfo").read_text()
    assert (tmp_path / "sys/devices/system/cpu/present").read_text() == "0\n"


@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="no qemu-aarch64")
def test_instructions_are_the_same_each_time():
    first, macs = dlcc_instructions("digits", "arm:cortex-a76", "cortex-a76")
    assert macs / 16 < first < macs
    assert dlcc_instructions("digits", "arm:cortex-a76", "cortex-a76") == (first, macs)


def test_layers_in_encodings_run_from_their_codes():
    node = next(
        n for n in load("digits").nodes if n.op == "conv2d" and n.input(1).type.shape[1] > 3
    )
    target, found = get_target("arm:cortex-a72"), {}
    for kind in ("int8", "int4", "signs"):
        report = lower(integer_layer(node, kind), target, build_object).report["layers"]
        found[kind] = next(row["kernel"] for row in report if row["layer"] == "layer")
    assert found == {"int8": "implicit-gemm", "int4": "packed-gemm", "signs": "xnor"}
    (layer,) = float_layer(node, PASSES["64 values"]).nodes
    assert layer.input(1).type.encoding == Codebook(6)
