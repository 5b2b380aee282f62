"""Several shape profiles in one library: the same weights, and the bytes of single artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

import dlcc
from dlcc.analysis.shape_profiles import Watch, carried
from dlcc.artifact import Artifact, profile_suffix
from dlcc.artifact.manifest import NAME, checksum, dump_json
from dlcc.bench import bench
from dlcc.cli import main
from dlcc.cli.console import Console
from dlcc.cli.verifying import show_certificates
from dlcc.driver import CompileResult
from dlcc.errors import DlccError, ExitCode
from dlcc.inspection import inspect_artifact
from dlcc.ir import Graph, TensorType
from dlcc.ops import build
from tests.cli.models import CLASSES, INPUT_SHAPE, model, residual_cnn
from tests.runtime.programs import run_bare, zig_cc

MOST = 3
X = np.random.default_rng(3).standard_normal((MOST, *INPUT_SHAPE[1:])).astype(np.float32)
LIBRARIES = {".so", ".weights"}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return residual_cnn(tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.fixture(scope="module")
def coded(network: Path, tmp_path_factory: pytest.TempPathFactory) -> CompileResult:
    """At 8 bits, for batches of three and of one; the first is what the passes ran on."""
    folder = tmp_path_factory.mktemp("coded") / "out"
    changes = {"shapes": {"N": [MOST, 1]}, "threads": 2, "keep_ir": True, "verify_numerics": 1}
    return dlcc.compile(network, folder, target="cpu:sse4", **changes)


def bytes_of(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in LIBRARIES)


def test_profiles_have_the_same_weights_and_codes(coded: CompileResult) -> None:
    folder = coded.artifact.folder
    graphs = [dlcc.load_graph(folder / f"net{s}.dlir") for s in ("", "_shape_profile_1")]
    contents = [[(v.type, v.constant.digest) for v in g.constants()] for g in graphs]
    assert contents[0] == contents[1]
    encodings = [[v.type.encoding for n in g.nodes for v in n.outputs] for g in graphs]
    assert encodings[0] == encodings[1]
    assert [g.inputs[0].type.shape[0] for g in graphs] == [MOST, 1]
    rows = coded.artifact.manifest["weights"]["shape_profiles"]
    assert rows[1]["added_bytes"] < rows[0]["added_bytes"] == rows[0]["read_bytes"]


def test_each_profile_gives_the_bytes_of_an_artifact_of_its_own(
    coded: CompileResult, tmp_path: Path
) -> None:
    folder = coded.artifact.folder
    apart = 0
    with dlcc.load(folder, threads=2) as both:
        assert [p.inputs[0].shape[0] for p in both.shape_profiles] == [MOST, 1]
        assert both.inputs[0].shape[0] == MOST
        for suffix, x in (("", X), ("_shape_profile_1", X[:1])):
            graph = folder / f"net{suffix}.dlir"
            one = dlcc.compile(graph, tmp_path / f"one{suffix}", bits=32, target="cpu:sse4")
            apart += bytes_of(one.artifact.folder)
            with dlcc.load(one.artifact.folder) as alone:
                np.testing.assert_array_equal(both(x), alone(x))
        rows = np.concatenate([both(X[k : k + 1]) for k in range(MOST)])
        np.testing.assert_array_equal(both(X), rows)
        steps = both.profile(X[:1])
        assert [s.layer for s in steps] == [
            s["layer"] for s in both.artifact.variant("sse4", 1)["steps"]
        ]
        with pytest.raises(DlccError, match=r"no shape profile is for x\[2, 3, 8, 8\]") as caught:
            both(X[:2])
    assert caught.value.why == "the network was compiled for x[3, 3, 8, 8]; x[1, 3, 8, 8]"
    assert bytes_of(folder) < apart


@pytest.mark.slow
def test_exact_passes_run_on_every_profile(network: Path, tmp_path: Path) -> None:
    """Two levels and two profiles: each has the bytes of an artifact for this shape alone."""
    options = {"bits": 32, "target": "cpu:sse4+avx2", "threads": 1}
    dlcc.compile(network, tmp_path / "both", shapes={"N": (1, 2)}, **options, pack="size")
    report = json.loads((tmp_path / "both" / "report.json").read_bytes())
    assert [row["variant"] for row in report["more_shapes"][0]["better"]] == ["avx2"]
    with dlcc.load(tmp_path / "both", variant="sse4") as both:
        for count in (1, 2):
            folder = tmp_path / str(count)
            dlcc.compile(network, folder, shapes={"N": count}, **options)
            with dlcc.load(folder, variant="sse4") as alone:
                np.testing.assert_array_equal(both(X[:count]), alone(X[:count]))


@pytest.mark.slow
def test_equal_inputs_give_equal_files(coded: CompileResult, network: Path, tmp_path: Path) -> None:
    options = {"shapes": {"N": [MOST, 1]}, "threads": 2, "keep_ir": True}
    again = dlcc.compile(network, tmp_path / "again", target="cpu:sse4", **options)
    for name in ("net.weights", "libnet.so", "net.h", "net_shape_profile_1.dlir"):
        want = (coded.artifact.folder / name).read_bytes()
        assert (again.artifact.folder / name).read_bytes() == want


def test_certificates_of_every_profile_are_computed_again(
    coded: CompileResult, network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = coded.artifact.folder
    show_certificates(Console(True), folder, None, None, {})
    assert len(json.loads(capsys.readouterr().out)["more_shapes"]) == 1
    with pytest.raises(DlccError, match="holds 2 shape profiles, the model has 1 here"):
        show_certificates(Console(True), folder, network, None, {"shapes": {"N": 1}})
    show_certificates(Console(False), folder, network, None, {"shapes": {"N": (MOST, 1)}})
    assert "shape profile x[1, 3, 8, 8]" in capsys.readouterr().out


PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "net.h"
#define CHECK(x) if (!(x)) return printf("%s: %s\\n", #x, net_error()), 1
static float x[3 * 192], many[3 * 10], one[10];
int main(int count, char **arguments) {
  const net_info_t *info = net_info();
  CHECK(count == 2 && info->abi == NET_ABI && info->shape_profile_count == NET_SHAPE_PROFILES);
  CHECK(NET_SHAPE_PROFILES == 2 && info->inputs == info->shape_profiles[0].inputs);
  CHECK(info->arena_bytes == NET_ARENA_BYTES && info->variant_count == 1);
  const net_shape_profile_t *small = &info->shape_profiles[1];
  CHECK(small->arena_bytes == NET_SHAPE_PROFILE_1_ARENA_BYTES);
  CHECK(small->arena_bytes < NET_ARENA_BYTES && small->step_count <= NET_STEPS);
  CHECK(small->inputs[0].shape[0] == 1 && small->outputs[0].bytes == sizeof one);
  const int64_t three[] = {3, 3, 8, 8}, single[] = {1, 3, 8, 8}, two[] = {2, 3, 8, 8};
  const int64_t *shapes[] = {single};
  uint32_t profile = 7;
  CHECK(net_find_shape_profile(shapes, &profile) == NET_OK && profile == 1);
  net_t *a, *b, *none = (net_t *)&count;
  void *arena = aligned_alloc(64, (small->arena_bytes + 63) / 64 * 64);
  CHECK(net_create(arguments[1], 1, &a) == NET_OK);
  CHECK(net_shape_profile(a) == info->shape_profiles && net_shape_profile(NULL) == NULL);
  CHECK(net_create_shape_profile(arguments[1], 1, profile, "sse4", arena, small->arena_bytes, &b)
        == NET_OK);
  CHECK(net_shape_profile(b) == small && net_variant(b) == small->variants);
  for (int i = 0; i < 3 * 192; i++) x[i] = (float)(i % 17) / 8 - 1;
  const void *inputs[] = {x};
  void *outputs[] = {many};
  CHECK(net_run(a, inputs, outputs) == NET_OK);
  outputs[0] = one;
  for (int i = 0; i < 3; i++) {
    inputs[0] = x + 192 * i;
    CHECK(net_run(b, inputs, outputs) == NET_OK);
    CHECK(memcmp(one, many + 10 * i, sizeof one) == 0);
  }
  outputs[0] = x;
  CHECK(net_run(b, inputs, outputs) == NET_OK); /* the last sample: no overlap in this profile */
  CHECK(net_run(a, (const void *[]){x}, outputs) == NET_INVALID_ARGUMENT);
  shapes[0] = three;
  CHECK(net_find_shape_profile(shapes, &profile) == NET_OK && profile == 0);
  shapes[0] = two;
  CHECK(net_find_shape_profile(shapes, &profile) == NET_INVALID_ARGUMENT);
  puts(net_error());
  CHECK(net_find_shape_profile(NULL, &profile) == NET_INVALID_ARGUMENT);
  CHECK(net_find_shape_profile(shapes, NULL) == NET_INVALID_ARGUMENT);
  shapes[0] = NULL;
  CHECK(net_find_shape_profile(shapes, &profile) == NET_INVALID_ARGUMENT);
  CHECK(net_create_shape_profile(NULL, 1, 2, NULL, NULL, 0, &none) == NET_INVALID_ARGUMENT);
  CHECK(none == NULL);
  puts(net_error());
  CHECK(net_create_shape_profile(arguments[1], 1, 0, NULL, arena, small->arena_bytes, &none)
        == NET_INVALID_ARGUMENT);
  net_destroy(a);
  net_destroy(b);
  free(arena);
  return 0;
}
"""


def test_a_c_program_uses_two_profiles(coded: CompileResult, tmp_path: Path) -> None:
    folder = coded.artifact.folder
    (tmp_path / "main.c").write_text(PROGRAM)
    flags = [f"-I{folder}", f"-Wl,-rpath,{folder}"]
    zig_cc(*flags, tmp_path / "main.c", folder / "libnet.so", "-o", tmp_path / "main")
    done = run_bare(tmp_path / "main", folder / "net.weights", cwd=tmp_path)
    told = (
        "no shape profile is for inputs of shapes [2, 3, 8, 8]; compile with --shape for them\n"
        "there is no shape profile 2, the library holds 2\n"
    )
    assert (done.stdout, done.returncode) == (told, 0)


def test_a_manifest_with_other_profiles_is_refused(coded: CompileResult, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for file in coded.artifact.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    known = Artifact.open(folder)
    assert known.shape_profile(1).inputs[0].shape[0] == 1
    with pytest.raises(DlccError, match="there is no shape profile 2"):
        known.shape_profile(2)

    def changed(**fields: object) -> None:
        record = {**known.manifest, **fields}
        record["checksum"] = checksum(record)
        (folder / NAME).write_bytes(dump_json(record))

    changed(more_shapes=[])
    with pytest.raises(DlccError, match="other inputs or outputs than the library"):
        dlcc.load(folder)
    changed(more_shapes=[{**known.manifest["more_shapes"][0], "variant": "avx9"}])
    with pytest.raises(DlccError, match="not one that dlcc writes"):
        dlcc.load(folder)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"shapes": {"N": list(range(1, 40))}}, "39 shape profiles"),
        ({"shapes": {"N": [1, 1]}}, "names a size twice"),
        ({"shapes": {"N": [1, 0]}}, "sizes must be positive"),
        ({"shapes": {"N": [1, 2], "x": (1, 3, 8, 8)}}, "have the same inputs"),
        ({"shapes": {"N": [1, 2]}, "emit": ("c",)}, "where one is wanted"),
        ({"shapes": {"N": [1, 2]}, "target": "cortex-m4"}, "where one is wanted"),
        ({"shapes": {"M": [1, 2]}}, "names 'M', which the model does not have"),
    ],
)
def test_profiles_that_cannot_be(network: Path, tmp_path: Path, options: dict, what: str) -> None:
    with pytest.raises(DlccError, match=what) as caught:
        dlcc.compile(network, tmp_path / "out", bits=32, **options)
    assert caught.value.code == ExitCode.USAGE
    assert not (tmp_path / "out").exists()


def test_only_artifacts_have_several_profiles(network: Path) -> None:
    with pytest.raises(DlccError, match="where one is wanted"):
        dlcc.load_graph(network, shapes={"N": (1, 8)})
    shapes = {"x": ((1, *INPUT_SHAPE[1:]), (2, *INPUT_SHAPE[1:]))}
    with pytest.raises(DlccError, match="stands for 2 shape profiles"):
        dlcc.import_onnx(network, shapes=shapes)


def test_data_is_for_the_profile_that_it_fits(tmp_path: Path) -> None:
    """Sequences: the data has the second length, so that the passes run on this profile."""
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["y"], name="mix"),
        h.make_node("Relu", ["y"], ["z"], name="relu"),
        h.make_node("MatMul", ["z", "w"], ["out"], name="again"),
    ]
    weight = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    inputs = [h.make_tensor_value_info("x", T.FLOAT, ["N", "T", 8])]
    outputs = [h.make_tensor_value_info("out", T.FLOAT, ["N", "T", 8])]
    constants = [onnx.numpy_helper.from_array(weight, "w")]
    path = tmp_path / "net.onnx"
    onnx.save(model(nodes, inputs, outputs, constants), path)
    data = np.random.default_rng(2).uniform(0, 9, (5, 6, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=data)
    shapes = {"N": (1, 2), "T": (4, 6)}
    made = dlcc.compile(
        path, tmp_path / "out", shapes=shapes, calibration=tmp_path / "data.npz", target="cpu:sse4"
    )
    found = [p.inputs[0].shape for p in made.artifact.shape_profiles]
    assert found == [(1, 4, 8), (1, 6, 8), (2, 4, 8), (2, 6, 8)]
    with dlcc.load(tmp_path / "out") as net:
        whole = net(data[:2])
        for axis in (0, 1):
            np.testing.assert_array_equal(whole[axis : axis + 1], net(data[axis : axis + 1]))
        np.testing.assert_array_equal(whole[:, :4], net(np.ascontiguousarray(data[:2, :4])))
    exact = np.maximum(data[:2] @ weight, 0) @ weight
    assert np.abs(whole - exact).max() < 0.02 * np.abs(exact).max()
    np.savez(tmp_path / "data.npz", x=data[:, :5])
    with pytest.raises(DlccError, match="does not fit the network"):
        dlcc.compile(path, tmp_path / "none", shapes=shapes, calibration=tmp_path / "data.npz")


def _scaled(batch: int, *, twice: bool = False) -> Graph:
    """A constant and a shape that depend on the batch size."""
    graph = Graph("net")
    value = graph.add_input("x", TensorType((batch, 2, 3)))
    for _ in range(1 + twice):
        value = build(graph, "relu", [value], loc="relu").output
    steps = np.full((batch, 1, 1), 0.5 * batch, np.float32)
    value = build(graph, "mul", [value, graph.add_constant(steps)], loc="scale").output
    value = build(graph, "reshape", [value], {"shape": (batch, 6)}, loc="flat").output
    graph.set_outputs([value], ["y"])
    return graph


def test_what_depends_on_shapes_is_carried_over() -> None:
    graph = _scaled(4)
    watch = Watch(graph)
    extra = build(graph, "neg", [graph.outputs[0]], loc="new").output
    graph.set_outputs([extra], ["y"])
    made = carried(watch.end(graph), _scaled(2))
    x = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float32)
    want = dlcc.execute(_scaled(2), {"x": x})["y"]
    np.testing.assert_array_equal(dlcc.execute(made, {"x": x})["y"], -want)


@pytest.mark.parametrize("change", ["layers", "constant", "attribute", "new"])
def test_what_cannot_be_carried_over_is_refused(change: str) -> None:
    graph = _scaled(4)
    watch = Watch(graph)
    _, scale, flat = graph.nodes
    if change == "constant":
        scale.set_input(1, graph.add_constant(np.full((4, 1, 1), 7, np.float32)))
    elif change == "attribute":
        flat.attrs["shape"] = (2, 12)
    elif change == "new":
        back = build(graph, "reshape", [flat.output], {"shape": (24,)}, loc="new").output
        graph.set_outputs([back], ["y"])
    why = {
        "layers": "one has mul 'scale' where the other has relu 'relu'",
        "constant": "operand 1 is a constant of other contents in each profile, and was changed",
        "attribute": "shape is (4, 6) and (2, 6) in the profiles, and became (2, 12)",
        "new": "the passes put it in, and its shape is for one profile",
    }
    with pytest.raises(DlccError) as caught:
        carried(watch.end(graph), _scaled(2, twice=change == "layers"))
    assert caught.value.code == ExitCode.PASS
    assert why[change] in caught.value.why


def test_the_command_line_chooses_and_shows_profiles(
    coded: CompileResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(coded.artifact.folder)
    found = {}
    for count in (1, 2, MOST):
        np.savez(tmp_path / "x.npz", x=X[:count])
        arguments = ["run", folder, "-i", str(tmp_path / "x.npz"), "-o", str(tmp_path / "y.npz")]
        assert main(arguments) == 0
        found[count] = np.load(tmp_path / "y.npz")["y"]
        assert len(found[count]) == count
    np.testing.assert_array_equal(found[MOST][:2], found[2])
    capsys.readouterr()
    assert main(["inspect", folder, "--shape-profile", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["inputs"] == ["x: float32[1, 3, 8, 8]"]
    assert told["facts"]["shown_shape_profile"] == 1
    assert told["facts"]["arena_bytes"] == coded.artifact.shape_profiles[1].arena_bytes
    shapes = [layer["shape"] for layer in told["layers"]]
    assert shapes[-1] == [1, CLASSES]
    assert main(["inspect", folder, "--shape-profile", "2"]) == ExitCode.USAGE
    report = inspect_artifact(folder, profile=True, threads=1, shape_profile=1)
    assert any(layer.seconds is not None for layer in report.layers)
    page = (coded.artifact.folder / "INTEGRATION.md").read_text()
    arena = coded.artifact.shape_profiles[1].arena_bytes
    assert f"| 1 | x 1 x 3 x 8 x 8 | y 1 x {CLASSES} | {arena} |" in page


@pytest.mark.slow
def test_bench_times_the_profile_that_it_is_told(coded: CompileResult) -> None:
    folder = coded.artifact.folder
    seconds = [
        bench(folder, rounds=1, slot_seconds=0.02, shape_profile=n).times[0].seconds for n in (0, 1)
    ]
    assert min(seconds) > 0
    with pytest.raises(DlccError, match="there is no shape profile 2"):
        bench(folder, rounds=1, shape_profile=2)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", ["mlperf_tiny_kws_dscnn", "cifar10_resnet20"])
def test_real_networks(name: str, bits: int, models_dir: Path, tmp_path: Path) -> None:
    """Each profile has the bytes of an artifact of its own, and both are smaller than two."""
    path = models_dir / f"{name}.onnx"
    options = {"bits": bits, "threads": 2, "target": "cpu:sse4", "without": ("winograd",)}
    both = dlcc.compile(path, tmp_path / "both", shapes={"N": (1, 4)}, keep_ir=True, **options)
    rng = np.random.default_rng(0)
    shape = both.artifact.shape_profiles[1].inputs[0].shape
    x = rng.standard_normal(shape).astype(np.float32)
    apart = 0
    with dlcc.load(tmp_path / "both") as net:
        for number, count in enumerate((1, 4)):
            graph = tmp_path / "both" / f"{both.artifact.symbol}{profile_suffix(number)}.dlir"
            given = {"shapes": {"N": count}} if bits == 32 else {}
            one = dlcc.compile(
                path if bits == 32 else graph,
                tmp_path / str(count),
                **{**options, "bits": 32},
                **given,
            )
            apart += bytes_of(one.artifact.folder)
            with dlcc.load(one.artifact.folder) as alone:
                np.testing.assert_array_equal(net(x[:count]), alone(x[:count]))
        if bits == 8:
            np.testing.assert_array_equal(net(x), np.concatenate([net(row[None]) for row in x]))
    assert bytes_of(tmp_path / "both") < 0.8 * apart
