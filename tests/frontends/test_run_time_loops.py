"""Loops whose trips are counted at run time: import, text, reference, and compiled code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import dlcc
from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify_file
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends import control
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Graph, parse_graph, print_graph
from dlcc.ops import loop as loop_ops
from passes.manager import PassManager
from tests.frontends.models import model, ops, runtime, tensor
from tests.frontends.test_control import COUNT, FLAG, X, body, halving, node
from tests.portable.source import Network

LIMIT = tensor("limit", ())
NUMBER = tensor("n", (), TensorProto.INT64)


def doubling() -> onnx.ModelProto:
    """``while sum(v) < limit: v, w = v + w, v``, and w is used behind the loop."""
    nodes = [
        node("Add", ["v", "w"], ["s"]),
        node("Identity", ["v"], ["t"]),
        node("ReduceSum", ["s"], ["m"], keepdims=0),
        node("Less", ["m", "limit"], ["b_on"]),
    ]
    step = body(nodes, ["i_k", "b_c", "v", "w"], ["b_on", "s", "t"])
    made = [
        node("Mul", ["x", "x"], ["square"]),
        node("Loop", ["", "flag", "square", "x"], ["v1", "w1"], "grow", body=step),
        node("Sub", ["w1", "square"], ["z"]),
    ]
    return model(made, [X, LIMIT, FLAG], ["v1", "z"])


def collatz() -> onnx.ModelProto:
    """How many trips n takes to 1, by the trip's index."""
    nodes = [
        node("Mod", ["i_n", "i_two"], ["i_odd"]),
        node("Cast", ["i_odd"], ["b_odd"], to=TensorProto.BOOL),
        node("Mul", ["i_n", "i_three"], ["i_triple"]),
        node("Add", ["i_triple", "i_one"], ["i_up"]),
        node("Div", ["i_n", "i_two"], ["i_half"]),
        node("Where", ["b_odd", "i_up", "i_half"], ["i_new"]),
        node("Greater", ["i_new", "i_one"], ["b_on"]),
        node("Add", ["i_k", "i_one"], ["i_trips"]),
    ]
    constants = {"i_one": np.int64(1), "i_two": np.int64(2), "i_three": np.int64(3)}
    step = body(nodes, ["i_k", "b_c", "i_n", "i_t"], ["b_on", "i_new", "i_trips"], constants)
    made = [
        node("Greater", ["n", "one"], ["go"]),
        node("Loop", ["", "go", "n", "zero"], ["last", "trips"], body=step),
    ]
    outputs = [tensor(name, (), TensorProto.INT64) for name in ("last", "trips")]
    return model(made, [NUMBER], outputs, {"one": np.int64(1), "zero": np.int64(0)})


def newton() -> onnx.ModelProto:
    """Square roots to the last bit but one or two."""
    nodes = [
        node("Div", ["x", "r"], ["q"]),
        node("Add", ["q", "r"], ["s"]),
        node("Mul", ["s", "half"], ["new"]),
        node("Sub", ["new", "r"], ["d"]),
        node("Abs", ["d"], ["a"]),
        node("ReduceMax", ["a"], ["m"], keepdims=0),
        node("Greater", ["m", "small"], ["b_on"]),
    ]
    step = body(
        nodes, ["i_k", "b_c", "r"], ["b_on", "new"],
        {"half": np.float32(0.5), "small": np.float32(1e-5)},
    )  # fmt: skip
    return model([node("Loop", ["most", "", "x"], ["root"], body=step)], [X], ["root"],
                 {"most": np.int64(2**62)})  # fmt: skip


def nested() -> onnx.ModelProto:
    """``for k < count: v = k * x + (v halved until below 1)``: a loop of the data's in a loop."""
    inner = body(
        [
            node("Mul", ["u", "half"], ["h"]),
            node("ReduceMax", ["h"], ["m"], keepdims=0),
            node("Greater", ["m", "one"], ["b_on"]),
        ],
        ["i_j", "b_d", "u"], ["b_on", "h"], {"half": np.float32(0.5), "one": np.float32(1)},
    )  # fmt: skip
    outer = body(
        [
            node("Loop", ["", "", "v"], ["below"], "inner", body=inner),
            node("Cast", ["i_k"], ["k"], to=TensorProto.FLOAT),
            node("Mul", ["x", "k"], ["p"]),
            node("Exp", ["x"], ["always"]),
            node("Add", ["p", "below"], ["q"]),
            node("Add", ["q", "always"], ["w"]),
            node("Identity", ["b_c"], ["b_o"]),
        ],
        ["i_k", "b_c", "v"], ["b_o", "w"],
    )  # fmt: skip
    return model([node("Loop", ["count", "", "x"], ["y"], "outer", body=outer)], [X, COUNT], ["y"])


def with_convolutions() -> onnx.ModelProto:
    """A convolution's result goes round, beside one that is the same in every trip."""
    rng = np.random.default_rng(1)
    weights = {n: rng.normal(0, 0.1, (8, 8, 3, 3)).astype(np.float32) for n in ("w1", "w2")}
    pads = {"pads": [1, 1, 1, 1]}
    step = body(
        [
            node("Conv", ["v", "w1"], ["c"], "turning", **pads),
            node("Conv", ["image", "w2"], ["d"], "fixed", **pads),
            node("Add", ["c", "d"], ["e"]),
            node("Relu", ["e"], ["f"]),
            node("Identity", ["b_c"], ["b_o"]),
        ],
        ["i_k", "b_c", "v"], ["b_o", "f"], {"w1": weights["w1"]},
    )  # fmt: skip
    image = tensor("image", (1, 8, 6, 6))
    made = [
        node("Conv", ["image", "w2"], ["first"], **pads),
        node("Loop", ["count", "", "first"], ["v1"], "turns", body=step),
        node("Conv", ["v1", "w2"], ["y"], **pads),
    ]
    return model(made, [image, COUNT], ["y"], {"w2": weights["w2"]})


def feeds(made: onnx.ModelProto, **rest: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    found = {}
    for value in made.graph.input:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        found[value.name] = rng.uniform(0.5, 2, shape).astype(np.float32)
    return found | {k: np.asarray(v) for k, v in rest.items()}


CASES: list[tuple[Any, list[dict[str, Any]]]] = [
    (doubling, [{"limit": np.float32(v), "flag": True} for v in (0, 50, 1e6)]
     + [{"limit": np.float32(9), "flag": False}]),
    (collatz, [{"n": np.int64(v)} for v in (27, 97, 1)]),
    (newton, [{}]),
    (nested, [{"count": np.int64(v)} for v in (0, 1, 7)]),
    (with_convolutions, [{"count": np.int64(v)} for v in (0, 1, 5)]),
]  # fmt: skip


@pytest.mark.parametrize(("build", "given"), CASES, ids=[case[0].__name__ for case in CASES])
def test_loops_agree_with_onnx_runtime(build: Any, given: list[Any], tmp_path: Path) -> None:
    made = build()
    graph = import_onnx(made)
    assert "loop" in ops(graph)
    sidecar: dict[str, Any] = {}
    text = print_graph(graph, sidecar)
    assert print_graph(parse_graph(text, sidecar)) == text
    dlcc.compile(graph, tmp_path, bits=32, threads=2)
    with dlcc.load(tmp_path, threads=2) as network:
        for rest in given:
            inputs = feeds(made, **rest)
            want = runtime(made, inputs)
            for results in (execute(graph, inputs), network.run(inputs)):
                for got, expected in zip(results.values(), want, strict=True):
                    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def counting(trips: int | str, scan: bool = False) -> onnx.ModelProto:
    """v + x in every trip, and the largest number so far as a row."""
    nodes = [
        node("Add", ["v", "x"], ["w"]),
        node("Identity", ["b_c"], ["b_o"]),
        node("ReduceMax", ["w"], ["m"], keepdims=0),
    ]
    step = body(nodes, ["i_k", "b_c", "v"], ["b_o", "w", *(["m"] if scan else [])])
    outputs = ["y", *(["rows"] if scan else [])]
    name = trips if isinstance(trips, str) else "most"
    constants = {} if isinstance(trips, str) else {"most": np.int64(trips)}
    made = node("Loop", [name, "", "x"], outputs, "sums", body=step)
    inputs = [X, COUNT] if isinstance(trips, str) else [X]
    return model([made], inputs, outputs, constants)


TEXT = """\
graph "network" {
  input %x: f32[2,3]
  input %count: i64[]
  const @trip: i64[]
  %sums_first: bool[] = less(@trip, %count) loc("sums/first")
  %sums: f32[2,3], %sums_1: i64[] = loop(%sums_first, %x, @trip, %x, %count) {body=graph "sums" {
    input %sums_carried: f32[2,3]
    input %sums_trip: i64[]
    input %x: f32[2,3]
    input %count: i64[]
    const @one: i64[]
    %sums_Add_1: f32[2,3] = add(%sums_carried, %x) loc("sums/Add_1")
    %sums_trip_1: i64[] = add(%sums_trip, @one) loc("sums/trip")
    %sums_more: bool[] = less(%sums_trip_1, %count) loc("sums/more")
    output "again" %sums_more
    output "carried.0" %sums_Add_1
    output "carried.1" %sums_trip_1
  }} loc("sums")
  output "y" %sums
}
"""


def test_the_text_of_a_loop() -> None:
    """The trip's index is carried where a trip count is compared with it."""
    lines = str(import_onnx(counting("count"), name="network")).splitlines()
    assert [line.split(" = #")[0] for line in lines] == TEXT.splitlines()


def test_a_known_count_of_many_trips(tmp_path: Path) -> None:
    """100,000 trips, which unrolled would be too many nodes."""
    graph = import_onnx(counting(100_000))
    assert ops(graph) == ["loop"]
    x = np.arange(6, dtype=np.float32).reshape(2, 3) / 1024
    dlcc.compile(graph, tmp_path, bits=32)
    np.testing.assert_array_equal(dlcc.load(tmp_path).run({"x": x})["y"], x * np.float32(100_001))


def test_rows_of_many_trips(tmp_path: Path) -> None:
    """Scan outputs of a count that is known: complete; of a condition: counted."""
    made = counting(5_000, scan=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "MOST_NODES", 1000)
        graph = import_onnx(made)
    assert graph.output_names == ["y", "rows"]
    inputs = feeds(made)
    dlcc.compile(graph, tmp_path, bits=32)
    got = dlcc.load(tmp_path).run(inputs)
    for name, want in zip(("y", "rows"), runtime(made, inputs), strict=True):
        np.testing.assert_allclose(got[name], want, rtol=1e-6)
    ends = node("Loop", ["many", "", "x"], ["y", "rows"], "ends", body=halving(True))
    made = model([ends], [X], ["y", "rows"], {"many": np.int64(200)})
    graph = import_onnx(made)
    assert graph.output_names == ["y", "rows", "rows.count"]
    for scale in (0.1, 0.3, 3.0):
        inputs = {"x": np.full((2, 3), scale, np.float32)}
        y, rows = runtime(made, inputs)
        results = execute(graph, inputs)
        assert results["rows.count"] == len(rows)
        np.testing.assert_allclose(results["y"], y, rtol=1e-6)
        np.testing.assert_allclose(results["rows"][: len(rows)], rows, rtol=1e-6)


def test_a_body_stays_float_in_a_network_of_8_bits(tmp_path: Path) -> None:
    made = with_convolutions()
    result = dlcc.compile(import_onnx(made), tmp_path, bits=8)
    remarks = [r for r in result.optimised.remarks if r.loc == "turns"]
    assert any("no integer form" in r.message for r in remarks), result.optimised.remarks
    network = dlcc.load(tmp_path)
    for count in (0, 4):
        inputs = feeds(made, count=np.int64(count))
        (want,) = runtime(made, inputs)
        np.testing.assert_allclose(network.run(inputs)["y"], want, atol=0.03 * np.abs(want).max())


def test_exact_passes_rewrite_bodies() -> None:
    graph = import_onnx(with_convolutions())
    PassManager("fuse-epilogues,eliminate-dead-code").run(graph)
    (loop,) = [n for n in graph.nodes if n.op == "loop"]
    body_ = loop.attrs["body"]
    assert isinstance(body_, Graph)
    assert "relu" not in ops(body_)


def test_loops_as_c_source(tmp_path: Path) -> None:
    for made, given in ((nested(), {"count": np.int64(5)}), (collatz(), {"n": np.int64(27)})):
        folder = tmp_path / next(iter(given))
        graph = import_onnx(made)
        result = dlcc.compile(graph, folder, bits=32, target="c", name="turning")
        assert "turning_next(0, arena)" in (folder / "turning.h").read_text("utf-8")
        inputs = feeds(made, **given)
        got = Network(result.artifact)(inputs)
        for name, want in execute(graph, inputs).items():
            np.testing.assert_allclose(got[name], want, rtol=1e-6)


def refusal(graph: Any) -> DlccError:
    with pytest.raises(DlccError) as error:
        import_onnx(graph) if isinstance(graph, onnx.ModelProto) else graph()
    return error.value


@pytest.mark.parametrize(
    ("nodes", "outputs", "why"),
    [
        ([node("Concat", ["v", "x"], ["w"], axis=0)], ["b_c", "w"], r"f32\[2, 3\] before a trip"),
        ([node("Add", ["v", "x"], ["w"])], ["b_c", "w"], "nothing ends it"),
        ([node("NonZero", ["v"], ["z"]), node("Cast", ["z"], ["w"], to=1)], ["b_c", "w"],
         "the size of output 1 of its body depends on the data"),
        ([node("Add", ["v", "x"], ["w"]), node("Greater", ["w", "x"], ["m"])], ["m", "w"],
         "its condition has 6 elements"),
        ([node("Add", ["v", "x"], ["w"]), node("ReduceMax", ["w"], ["m"], keepdims=0),
          node("Cast", ["m"], ["b_on"], to=TensorProto.BOOL)], ["b_on", "w", "m"],
         "a scan output of 4 bytes for each trip, and no maximal trip count"),
        ([node("DequantizeLinear", ["codes", "scale"], ["w"]),
          node("ReduceMax", ["w"], ["m"], keepdims=0),
          node("Cast", ["m"], ["b_on"], to=TensorProto.BOOL)], ["b_on", "w"],
         "stored as affine.*DequantizeLinear before"),
    ],
)  # fmt: skip
def test_what_no_loop_of_the_run_time_can_be(nodes: Any, outputs: list[str], why: str) -> None:
    step = body(nodes, ["i_k", "b_c", "v"], outputs)
    results = ["y", "rows"][: len(outputs) - 1]
    made = [
        node("QuantizeLinear", ["x", "scale"], ["codes"]),
        node("Loop", ["", "flag", "x"], results, body=step),
    ]
    error = refusal(model(made, [X, FLAG], results, {"scale": np.float32(0.5)}))
    assert error.code == ExitCode.UNSUPPORTED
    assert re.search(why, error.why)


def test_a_loop_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference stops, so that compilations do."""
    monkeypatch.setattr(loop_ops, "MOST_RUNS", 1000)
    made = doubling()
    graph = import_onnx(made)
    feed = feeds(made, limit=np.float32(np.inf), flag=True)
    feed["x"][:] = 0
    error = refusal(lambda: execute(graph, feed))
    assert error.code == ExitCode.LIMIT
    assert "--calib" in error.fix


def test_gpus_have_no_loops(tmp_path: Path) -> None:
    graph, out = import_onnx(nested()), tmp_path / "out"
    error = refusal(lambda: dlcc.compile(graph, out, target="cuda:sm_80"))
    assert error.code == ExitCode.TARGET
    assert "--constant" in error.fix
    assert not out.exists()


def test_broken_loops_of_a_text() -> None:
    graph = import_onnx(counting("count"))
    sidecar: dict[str, Any] = {}
    text = print_graph(graph, sidecar)
    for old, new, why in (
        ("input %sums_carried: f32[2,3]", "input %sums_carried: f32[3,2]", "is not valid"),
        ("body=graph", "other=graph", "no attribute named other"),
        ('output "again"', 'output "carried.0"', "listed twice"),
        ("less(", "lesser(", "unknown op"),
    ):
        assert old in text
        with pytest.raises(DlccError, match=why) as error:
            verify_file(parse_graph(text.replace(old, new), sidecar), "net.dlir")
        assert error.value.code == ExitCode.MODEL
