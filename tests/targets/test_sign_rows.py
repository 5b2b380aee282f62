"""Layers of binary activations, from the graph to the library: kernels and results."""

from __future__ import annotations

import numpy as np
import pytest

import dlcc
from dlcc.artifact import write_artifact
from dlcc.driver import build_object
from dlcc.errors import DlccError
from dlcc.ir import Affine, Binary, Graph, TensorType, parse_graph, print_graph
from dlcc.lowering.lower import lower
from dlcc.ops import build
from targets import get_target
from tests.lowering.graphs import typed
from tests.targets.running import isa_params

CONV = ("conv2d", (1, 40, 7, 6), (64, 40, 3, 3), {"pads": (1, 1, 1, 1)})
LINEAR = ("linear", (3, 70), (37, 70), {})


def signs_of(graph: Graph, value, scale: float = 0.5):
    """``value`` as a binary activation."""
    type_ = value.type.with_(encoding=Binary((scale,)))
    return build(graph, "quantize", [value], loc="signs", types=[type_]).output


def binary_layer(
    layer: tuple, *, out: bool = False, residual: bool = False, weight: str = "binary"
) -> Graph:
    """Signs, a layer of them, and with ``out`` a second one behind the sign of the first."""
    op, shape, kernel, attrs = layer
    rng, graph = np.random.default_rng(1), Graph("net")
    x = graph.add_input("x", typed(shape))
    x_signs = signs_of(graph, x)
    real = rng.standard_normal(kernel).astype(np.float32)
    encoding = Binary.fit(real, 0)
    if weight == "int4":
        encoding = Affine.symmetric(4, np.abs(real).reshape(len(real), -1).max(axis=1) / 7, 0)
    elif weight == "dead":
        encoding = Binary((0.0, *encoding.scales[1:]), 0)
    w = graph.add_constant(real, encoding=encoding, name="w")
    b = graph.add_constant(rng.standard_normal(kernel[0]).astype(np.float32) * 4, name="b")
    node = build(graph, op, [x_signs, w, b], attrs, loc="layer")
    if residual:
        added = graph.add_input("r", typed(node.output.type.shape))
        node.set_inputs([*node.inputs, added])
    if out:
        node.output.type = node.output.type.with_(encoding=Binary((2.0,)))
        real = rng.standard_normal((8, kernel[0], *(1 for _ in kernel[2:]))).astype(np.float32)
        w2 = graph.add_constant(real, encoding=Binary.fit(real), name="w2")
        node = build(graph, op, [node.output, w2], {}, loc="second")
    graph.set_outputs([node.output], ["y"])
    return graph


def check(graph: Graph, level: str, folder) -> dict[str, dict]:
    """The library against the reference, to the bit; the report's lines by layer."""
    program = lower(graph, get_target(f"cpu:{level}"), build_object, threads=2)
    write_artifact(program, folder)
    rng = np.random.default_rng(2)
    inputs = {
        v.name: np.round(rng.standard_normal(v.type.shape), 1).astype(np.float32)
        for v in graph.inputs
    }
    want = dlcc.execute(graph, inputs)["y"]
    for threads in (1, 2):
        with dlcc.load(folder, threads=threads) as model:
            np.testing.assert_array_equal(model(*inputs.values()), want)
    # a change of layout has the name of the layer before it
    return {row["layer"]: row for row in reversed(program.report["layers"])}


@pytest.mark.parametrize("isa", isa_params("sse4", "avx2", "amx"))
@pytest.mark.parametrize("layer", [CONV, LINEAR], ids=["conv", "linear"])
@pytest.mark.parametrize("out", [False, True])
def test_a_layer_of_signs_is_exact(isa, layer, out, tmp_path):
    rows = check(binary_layer(layer, out=out), isa.name, tmp_path / "net")
    assert rows["signs"]["kernel"] == "signs"
    assert "predicted" in rows["layer"]["rejected"].get("sign-bytes", "predicted")
    assert rows["layer"]["weights"] in ("compressed", "decoded")


@pytest.mark.parametrize("level", ["sse4", "avx2"])
def test_without_vnni_bits_are_counted(level, tmp_path):
    rows = check(binary_layer(CONV), level, tmp_path / "net")
    assert (rows["layer"]["kernel"], rows["layer"]["weights"]) == ("xnor", "compressed")
    assert "predicted" in rows["layer"]["rejected"]["sign-bytes"]


@pytest.mark.parametrize("isa", isa_params("avx2", "amx"))
@pytest.mark.parametrize("row", ["sign-bytes", "sign-bytes-amx"])
@pytest.mark.parametrize("out", [False, True])
def test_signs_as_bytes_give_the_same(isa, row, out, tmp_path):
    if row not in {r.name for r in get_target(f"cpu:{isa.name}").rows}:
        pytest.skip("the level has no tiles")
    graph = binary_layer(CONV, out=out)
    target = get_target(f"cpu:{isa.name}")
    others = {r.name for r in target.rows if r.name.startswith(("sign-b", "xnor"))} - {row}
    program = lower(graph, target.without(others), build_object)
    layer = next(r for r in program.report["layers"] if r["layer"] == "layer")
    assert (layer["kernel"], layer["weights"]) == (row, "decoded")
    write_artifact(program, tmp_path / "net")
    x = np.random.default_rng(2).standard_normal(CONV[1]).astype(np.float32)
    with dlcc.load(tmp_path / "net") as model:
        np.testing.assert_array_equal(model(x), dlcc.execute(graph, {"x": x})["y"])


@pytest.mark.parametrize("case", ["int4", "groups", "residual", "dead", "residual-sign"])
def test_other_layers_of_signs(case, tmp_path):
    if case == "groups":
        layer = ("conv2d", (1, 32, 5, 5), (32, 1, 3, 3), {"groups": 32, "pads": (1, 1, 1, 1)})
        rows = check(binary_layer(layer), "avx2", tmp_path / "net")
    else:
        weight = case if case in ("int4", "dead") else "binary"
        graph = binary_layer(
            CONV, weight=weight, residual="residual" in case, out=case == "residual-sign"
        )
        rows = check(graph, "avx2", tmp_path / "net")
    told = rows["layer"]
    refused = {"int4": "not binary", "groups": "32 groups", "residual-sign": "before the sign"}
    if case in refused:
        assert told["kernel"] == "sign-bytes"
        assert refused[case] in told["rejected"]["xnor"]
    else:
        assert told["kernel"] == "xnor"


def test_signs_are_unpacked_and_moved(tmp_path):
    graph = Graph("net")
    x = graph.add_input("x", typed((2, 37, 4, 5)))
    signs = signs_of(graph, x, 1.5)
    real = np.random.default_rng(0).standard_normal((8, 37, 1, 1)).astype(np.float32)
    w = graph.add_constant(real, encoding=Binary.fit(real), name="w")
    conv = build(graph, "conv2d", [signs, w], {}, loc="layer").output
    plain = build(graph, "dequantize", [signs], loc="plain").output
    total = build(graph, "reduce_sum", [plain], {"axes": (1,), "keepdims": True}, loc="sum").output
    graph.set_outputs([build(graph, "add", [conv, total], loc="add").output], ["y"])
    program = lower(graph, get_target("cpu:avx2"), build_object)
    write_artifact(program, tmp_path / "net")
    array = np.random.default_rng(1).standard_normal((2, 37, 4, 5)).astype(np.float32)
    array[0, :, 0, 0] = -0.0
    with dlcc.load(tmp_path / "net") as model:
        np.testing.assert_array_equal(model(array), dlcc.execute(graph, {"x": array})["y"])


def test_a_binary_activation_takes_a_bit():
    type_ = TensorType((2, 70, 3, 3), encoding=Binary((1.0,)))
    assert type_.with_(layout="nhwc").bytes == 2 * 9 * 3 * 4
    assert TensorType((5, 64), encoding=Binary((1.0,))).bytes == 5 * 8
    graph = binary_layer(CONV, out=True)
    sidecar: dict[str, np.ndarray] = {}
    text = print_graph(graph, sidecar)
    assert "!binary<scales=[2.0]>" in text
    assert print_graph(parse_graph(text, sidecar)) == print_graph(graph)


@pytest.mark.parametrize("fault", ["op", "operand", "bias", "axis", "float", "output", "zero"])
def test_misplaced_signs_are_refused(fault):
    from dlcc.analysis.verify import verify

    graph = binary_layer(LINEAR)
    signs, layer = graph.nodes
    if fault == "op":
        graph.set_outputs([build(graph, "relu", [signs.output], loc="relu").output], ["y"])
    elif fault == "operand":
        layer.set_inputs([graph.inputs[0], layer.input(1), None, signs.output])
    elif fault == "bias":
        codes = Affine.symmetric(32, np.ones(37), 0)
        layer.set_input(2, graph.add_constant(np.ones(37, np.float32), encoding=codes))
    elif fault == "axis":
        signs.output.type = signs.output.type.with_(encoding=Binary((1.0, 2.0, 3.0), 0))
    elif fault == "float":
        layer.set_input(0, graph.inputs[0])
        layer.output.type = layer.output.type.with_(encoding=Binary((1.0,)))
    elif fault == "zero":
        signs.output.type = signs.output.type.with_(encoding=Binary((0.0,)))
    else:
        graph.set_outputs([signs.output], ["y"])
    with pytest.raises(DlccError, match=r"binary|signs|well formed|not valid"):
        verify(graph)
