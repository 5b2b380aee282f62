"""What the verbs do when nothing is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.artifact import Artifact
from dlcc.cli import main
from dlcc.cli.app import EXIT_CODES, fill_optional_values
from dlcc.errors import ExitCode
from dlcc.frontends import load_graph
from dlcc.ir import graphs_equal
from tests.cli import models

FOLD = "canonicalize,fold-batch-norm,fuse-epilogues,eliminate-dead-code"
VERBS = ("compile", "opt", "export", "run", "eval", "compare", "bench", "tune", "inspect", "passes",
         "sensitivity", "server", "targets")  # fmt: skip


@pytest.fixture(scope="module")
def int8(cnn: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network quantised, as IR."""
    path = tmp_path_factory.mktemp("ir") / "int8.dlir"
    arguments = ["--passes", f"{FOLD},quantize", "--calib", samples, "-o", path, "-q"]
    assert main(["opt", str(cnn), *map(str, arguments)]) == 0
    return path


def reference(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    graph = load_graph(path)
    rows = [execute(graph, {"x": x[None]}) for x in arrays["x"]]
    return {name: np.concatenate([r[name] for r in rows]) for name in rows[0]}


# -- help --------------------------------------------------------------------------------------


def test_help_names_every_verb_and_exit_code(dlcc):
    outcome = dlcc("--help")
    assert outcome.code == 0
    for verb in VERBS:
        assert re.search(rf"^  {verb} +\w", outcome.out, re.MULTILINE)
    for code in ExitCode:
        assert re.search(rf"^ +{int(code)}  {re.escape(EXIT_CODES[code])}$", outcome.out, re.M)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_json(dlcc, verb):
    outcome = dlcc(verb, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.out


def test_help_is_quick():
    """Nothing heavy is imported before a verb runs."""
    code = (
        "import sys; from dlcc.cli import main; main(['--help']);"
        "heavy = {'tvm', 'onnx', 'torch', 'numpy', 'networkx', 'rich'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_version(dlcc):
    import dlcc as package

    assert dlcc("--version").out == f"dlcc {package.__version__}\n"


def test_documentation_lists_the_verbs_options_and_codes():
    """To mend it: replace the sections with the output of ``python -m dlcc.cli.reference``."""
    from dlcc.cli.reference import reference

    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    for code in ExitCode:
        assert f"| {int(code)} | {EXIT_CODES[code]} |" in page
    assert reference().strip() in page


def test_options_with_optional_values():
    assert fill_optional_values(["opt", "--remarks"]) == ["opt", "--remarks=all"]
    assert fill_optional_values(["--remarks", "-o"]) == ["--remarks=all", "-o"]
    assert fill_optional_values(["--remarks", "fold-x"]) == ["--remarks", "fold-x"]
    assert fill_optional_values(["--remarks", "a.onnx"]) == ["--remarks=all", "a.onnx"]
    assert fill_optional_values(["--verify-numerics", "7"]) == ["--verify-numerics", "7"]
    assert fill_optional_values(["--verify-numerics", "m"]) == ["--verify-numerics=2", "m"]
    assert fill_optional_values(["--", "--remarks"]) == ["--", "--remarks"]


# -- opt, export, run, compare on models -------------------------------------------------------


def test_opt_writes_what_it_says(dlcc, cnn, tmp_path):
    out = tmp_path / "o.dlir"
    outcome = dlcc("opt", cnn, "--passes", FOLD, "-o", out, "-q", "--json")
    told = outcome.json()
    graph = load_graph(out)
    assert outcome.code == 0
    assert told["nodes"] == len(graph.nodes) < 9
    assert told["pipeline"] == FOLD
    assert [p["name"] for p in told["passes"]] == FOLD.split(",")
    assert all(node.op != "batch_norm" for node in graph.nodes)
    again = tmp_path / "again.dlir"
    assert dlcc("opt", out, "--passes", "", "-o", again, "-q").code == 0
    assert graphs_equal(load_graph(again), graph)


def test_opt_prints_and_dumps_the_ir(dlcc, cnn, tmp_path):
    arguments = ["opt", cnn, "--passes", FOLD, "-o", tmp_path / "o.dlir", "-q"]
    outcome = dlcc(*arguments, "--print-after", "fold-batch-norm", "--dump-dir", tmp_path / "ir")
    assert "// IR after fold-batch-norm" in outcome.err
    assert "IR before" not in outcome.err
    names = sorted(p.name for p in (tmp_path / "ir").glob("*.dlir"))
    assert names[0] == "00-input.dlir"
    assert "02-fold-batch-norm.dlir" in names
    outcome = dlcc(*arguments, "--print-before", "all")
    assert outcome.err.count("// IR before") == 4


def test_remarks(dlcc, cnn, tmp_path):
    arguments = ["opt", cnn, "--passes", FOLD, "-o", tmp_path / "o.dlir", "-q"]
    assert "dimension 'N'" in dlcc(*arguments).err
    assert "applied" not in dlcc(*arguments).err
    everything = dlcc(*arguments, "--remarks").err
    assert "fold-batch-norm: applied" in everything
    assert "fuse-epilogues: applied" in everything
    chosen = dlcc(*arguments, "--remarks", "fuse-epilogues").err
    assert "fuse-epilogues: applied" in chosen
    assert "fold-batch-norm" not in chosen
    kinds = {r["kind"] for r in dlcc(*arguments, "--json").json()["remarks"]}
    assert {"note", "applied"} <= kinds


def test_int8_without_data_is_remarked(dlcc, cnn, samples, tmp_path):
    arguments = ["opt", cnn, "--passes", f"{FOLD},quantize", "-o", tmp_path / "o.dlir", "-q"]
    without, given = dlcc(*arguments), dlcc(*arguments, "--calib", samples)
    assert without.code == given.code == 0
    assert "no calibration data" in without.err
    assert "--calib" in without.err
    assert "no calibration data" not in given.err


def test_verify_numerics_reports_the_error(dlcc, cnn, samples, tmp_path):
    arguments = ["opt", cnn, "--passes", FOLD, "-o", tmp_path / "o.dlir", "-q", "--json"]
    told = dlcc(*arguments, "--calib", samples, "--verify-numerics", "3").json()
    errors = [p["errors"]["y"]["relative"] for p in told["passes"] if p["errors"]]
    assert errors
    assert max(errors) < 1e-5


def test_progress_goes_to_standard_error(dlcc, cnn, tmp_path):
    out = tmp_path / "o.dlir"
    loud = dlcc("opt", cnn, "--passes", FOLD, "-o", out)
    assert loud.err.splitlines()[:2] == ["import", "canonicalize"]
    quiet = dlcc("opt", cnn, "--passes", FOLD, "-o", out, "-q")
    assert "canonicalize\n" not in quiet.err


def test_run_a_model(dlcc, cnn, samples, tmp_path):
    out = tmp_path / "o.npz"
    outcome = dlcc("run", cnn, "--inputs", samples, "--outputs", out, "--json")
    assert outcome.json()["outputs"] == {"y": {"dtype": "float32", "shape": [6, 10]}}
    expected = reference(cnn, dict(np.load(samples)))
    np.testing.assert_array_equal(np.load(out)["y"], expected["y"])


def test_run_keeps_the_form_of_the_samples(dlcc, cnn, samples, tmp_path):
    """Exactly the input's shape, or samples on an axis of their own."""
    x = np.load(samples)["x"]
    for name, array, shape in (("one", x[:1], (1, 10)), ("axis", x[:, None], (6, 1, 10))):
        np.savez(tmp_path / f"{name}.npz", x=array)
        out = tmp_path / f"{name}.out.npz"
        assert dlcc("run", cnn, "-i", tmp_path / f"{name}.npz", "-o", out).code == 0
        assert np.load(out)["y"].shape == shape
    assert dlcc("run", cnn, "-i", samples, "-o", tmp_path / "b.npz", "--shape", "N=3").code == 0
    whole = reference(cnn, {"x": x})["y"]
    np.testing.assert_allclose(np.load(tmp_path / "b.npz")["y"], whole, rtol=1e-5, atol=1e-5)


def test_shapes(dlcc, cnn):
    for text in ("N=5", "x=5x3x8x8", "x=5,3,8,8"):
        assert "f32[5, 3, 8, 8]" in dlcc("inspect", cnn, "--shape", text).out


def test_export_runs_in_onnxruntime(dlcc, cnn, int8, samples, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    x = np.load(samples)["x"]
    for source, tolerance in ((cnn, 1e-5), (int8, 0.05)):
        out = tmp_path / f"{source.stem}.onnx"
        outcome = dlcc("export", source, out, "--json")
        assert outcome.json() == {"output": str(out), "bytes": out.stat().st_size, "opset": 17}
        session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
        found = np.concatenate([session.run(["y"], {"x": row[None]})[0] for row in x])
        expected = reference(source, {"x": x})["y"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=tolerance * scale)


def test_opt_writes_onnx(dlcc, cnn, samples, tmp_path):
    out = tmp_path / "folded.onnx"
    assert dlcc("opt", cnn, "--passes", FOLD, "-o", out, "-q").code == 0
    x = dict(np.load(samples))
    np.testing.assert_allclose(reference(out, x)["y"], reference(cnn, x)["y"], rtol=1e-5, atol=1e-5)


def test_compare_models(dlcc, cnn, int8, samples):
    same = dlcc("compare", cnn, cnn, "-i", samples, "--json").json()
    assert same["outputs"]["y"] == {"sqnr_db": "inf", "max_abs": 0.0, "cosine": pytest.approx(1)}
    assert same["unmatched"] == []
    told = dlcc("compare", cnn, int8, "-i", samples, "--json", "--samples", "4").json()
    assert told["samples"] == 4
    assert 15 < told["outputs"]["y"]["sqnr_db"] < 80
    rows = {row["layer"]: row for row in told["layers"]}
    assert rows["conv1"]["reference"] == "relu1"
    assert rows["conv2"]["reference"] == "relu2"
    assert all(row["isolated"]["sqnr_db"] > 20 for row in rows.values())
    text = dlcc("compare", cnn, int8, "-i", samples).out
    assert "isolated dB" in text
    assert "conv2" in text


def test_eval_counts_hits(dlcc, cnn, labelled, tmp_path):
    arrays = dict(np.load(labelled))
    scores = reference(cnn, arrays)["y"]
    order = np.argsort(-scores, axis=1, kind="stable")
    top1 = np.mean(order[:, 0] == arrays["labels"])
    top5 = np.mean((order[:, :5] == arrays["labels"][:, None]).any(1))
    told = dlcc("eval", cnn, "--data", labelled, "-q", "--json").json()
    assert told["samples"] == 20
    assert told["classes"] == 10
    assert told["top1"] == pytest.approx(top1)
    assert told["top5"] == pytest.approx(top5)
    np.savez(tmp_path / "right.npz", x=arrays["x"], labels=order[:, 0])
    right = dlcc("eval", cnn, "--data", tmp_path / "right.npz", "-q", "--samples", "7", "--json")
    assert right.json()["samples"] == 7
    assert right.json()["top1"] == 1.0
    assert "100.00 %" in dlcc("eval", cnn, "--data", tmp_path / "right.npz", "-q").out


BAD_LABELS = [
    ({"labels": np.zeros(19, int)}, "19 labels, 20 samples"),
    ({"labels": np.full(20, 10)}, "10 classes"),
    ({"labels": np.full(20, -1)}, "-1"),
    ({"labels": np.zeros(20, np.float32)}, "float32"),
    ({"labels": np.zeros((20, 10), int)}, "20, 10"),
    ({}, "no labels"),
]


@pytest.mark.parametrize(("labels", "phrase"), BAD_LABELS)
def test_labels_that_do_not_fit(dlcc, cnn, labelled, tmp_path, labels, phrase):
    np.savez(tmp_path / "d.npz", x=np.load(labelled)["x"], **labels)
    outcome = dlcc("eval", cnn, "--data", tmp_path / "d.npz", "-q")
    assert outcome.code == ExitCode.DATA
    assert re.search(phrase, outcome.err)
    assert "Traceback" not in outcome.err


def test_eval_output_choice(dlcc, cnn, labelled):
    assert dlcc("eval", cnn, "--data", labelled, "--output", "y", "-q").code == 0
    outcome = dlcc("eval", cnn, "--data", labelled, "--output", "z", "-q")
    assert outcome.code == ExitCode.USAGE
    assert "no output 'z'" in outcome.err


def test_inspect_a_model(dlcc, cnn, int8):
    told = dlcc("inspect", cnn, "--json").json()
    assert told["kind"] == "model"
    weights = 4 * 27 + 4 + 4 * 4 + 4 * 36 + 40 + 10
    assert told["facts"]["parameters"] == weights
    assert told["facts"]["parameter_bytes"] == 4 * weights
    macs = 64 * (27 * 4 + 36 * 4) + 40
    assert told["facts"]["macs"] == macs
    assert [layer["op"] for layer in told["layers"]][:3] == ["conv2d", "batch_norm", "relu"]
    assert sum(layer["weight_bytes"] for layer in told["layers"]) == 4 * weights
    quantised = dlcc("inspect", int8, "--json").json()
    assert any(layer["encoding"].startswith("u8 x s8/axis0") for layer in quantised["layers"])
    assert quantised["facts"]["parameter_bytes"] < 4 * weights / 2
    assert "conv1" in dlcc("inspect", int8).out


# -- artifacts ---------------------------------------------------------------------------------


def test_compile_tells_what_it_made(dlcc, cnn, tmp_path):
    out = tmp_path / "out"
    outcome = dlcc("compile", cnn, "-o", out, "--bits", "32", "--emit", "so,a", "--json", "-q")
    told = outcome.json()
    sizes = {p.name: p.stat().st_size for p in out.iterdir()}
    assert told["files"] == sizes
    assert told["artifact_bytes"] == sum(sizes.values())
    assert told["model_bytes"] == cnn.stat().st_size
    library = {".so", ".a", ".h", ".weights", ".json"}
    assert {Path(n).suffix for n in sizes} == library | {".cmake", ".pc", ".c", ".md"}
    assert sum(k["layers"] for k in told["kernels"]) >= 4
    assert set(told["seconds"]) == {"passes", "lowering", "link"}
    assert {"import", "fold-batch-norm", "kernels", "code", "link"} <= set(told["phases"])
    assert sum(told["phases"].values()) == pytest.approx(sum(told["seconds"].values()), rel=0.1)
    options = ["--bits", "32", "--embed", "-q", "--verify-numerics", "1"]
    text = dlcc("compile", cnn, "-o", out, *options).out
    for word in ("kernel", "phase", "total", "model", "artifact", f"wrote {out}"):
        assert word in text
    assert not list(out.glob("*.weights"))


def test_compile_int8_and_run(dlcc, cnn, int8, samples, tmp_path):
    """The artifact computes what the reference of the same quantised graph computes."""
    out, found = tmp_path / "out", tmp_path / "o.npz"
    outcome = dlcc("compile", int8, "-o", out, "--passes", "", "--threads", "1", "-q", "--json")
    assert outcome.code == 0, outcome.err
    assert dlcc("run", out, "-i", samples, "-o", found).code == 0
    expected = reference(int8, dict(np.load(samples)))
    np.testing.assert_array_equal(np.load(found)["y"], expected["y"])
    rows = dlcc("inspect", out, "--json").json()["layers"]
    assert any(row["encoding"].startswith("u8 x s8/axis0") for row in rows)


def test_pack_for_size_computes_the_same(dlcc, cnn, samples, tmp_path):
    for pack in ("speed", "size"):
        options = ["--bits", "32", "--threads", "1", "--pack", pack, "-q"]
        assert dlcc("compile", cnn, "-o", tmp_path / pack, *options).code == 0
        found = tmp_path / f"{pack}.npz"
        assert dlcc("run", tmp_path / pack, "-i", samples, "-o", found).code == 0
    expected, packed = (dict(np.load(tmp_path / f"{p}.npz")) for p in ("speed", "size"))
    assert {n: a.tobytes() for n, a in packed.items()} == {
        n: a.tobytes() for n, a in expected.items()
    }
    told = dlcc("inspect", tmp_path / "size", "--json").json()
    (weights,) = (size for name, size in told["files"].items() if name.endswith(".weights"))
    assert told["facts"]["stored_weight_bytes"] == weights
    streams = sum(r["bytes"] for r in told["bytes"] if r["section"].startswith("stream "))
    table = sum(r["bytes"] for r in told["bytes"] if r["section"] == "stream table")
    assert sum(layer["stored_bytes"] for layer in told["layers"]) == streams - table
    assert "stored" in dlcc("inspect", tmp_path / "size").out
    refused = dlcc("compile", cnn, "-o", tmp_path / "x", "--pack", "tiny", "-q")
    assert refused.code == 2
    assert "cannot pack for tiny" in refused.err


def test_inspect_accounts_for_every_byte(dlcc, artifact):
    told = dlcc("inspect", artifact, "--json").json()
    sums: dict[str, int] = {}
    for row in told["bytes"]:
        sums[row["file"]] = sums.get(row["file"], 0) + row["bytes"]
    sizes = {p.name: p.stat().st_size for p in artifact.iterdir()}
    assert sums == sizes == told["files"]
    assert told["total_bytes"] == sum(sizes.values())
    for flags in ([], ["--bytes"]):
        text = dlcc("inspect", artifact, *flags).out
        table = text[text.index("\nfile") :].splitlines()[2:]
        counts = [int(re.search(r"(\d+)$", line)[1]) for line in table]
        assert counts[-1] == sum(sizes.values())
        parts = [c for c, line in zip(counts, table, strict=True) if "= the whole" not in line]
        assert sum(parts[:-1]) == counts[-1]


def test_inspect_layers(dlcc, artifact, samples, tmp_path):
    rows = dlcc("inspect", artifact, "--json").json()["layers"]
    assert all(row["kernel"] for row in rows)
    assert all(row["seconds"] is None for row in rows)
    convolution = next(row for row in rows if row["layer"] == "conv1")
    assert convolution["macs"] == 64 * 27 * 4
    assert convolution["why"]
    stored = Artifact.open(artifact).manifest["weights"]["entries"]
    assert convolution["weight_bytes"] == sum(e["size"] for e in stored if e["layer"] == "conv1")
    limits = ("--limits", tmp_path / "limits.json")
    for extra in ([], ["--inputs", samples], ["--threads", 1]):
        timed = dlcc("inspect", artifact, "--profile", "--json", *limits, *extra).json()["layers"]
        assert sum(row["seconds"] for row in timed) > 0
        assert all(row["limit_seconds"] > 0 for row in timed if row["activation_bytes"])
    # conv1: 3x8x8 floats in, the output's own shape out
    convolution = next(row for row in timed if row["layer"] == "conv1")
    shape = convolution["shape"]
    assert convolution["activation_bytes"] == 4 * (3 * 64 + shape[1] * shape[2] * shape[3])
    assert "of the machine's limit" in dlcc("inspect", artifact, "--profile", *limits).out
    benched = dlcc("bench", artifact, "--rounds", 1, "--layers", "--json", *limits).json()
    assert [row["layer"] for row in benched["layers"]] == [row["layer"] for row in timed]


def test_damaged_artifacts_are_refused(dlcc, artifact, samples, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    weights = next(copy.glob("*.weights"))
    weights.write_bytes(weights.read_bytes()[:-64])
    for verb in (
        ["inspect", copy],
        ["run", copy, "-i", samples, "-o", tmp_path / "o.npz"],
        ["bench", copy, "-q"],
    ):
        outcome = dlcc(*verb)
        assert outcome.code == ExitCode.ARTIFACT
        assert "truncated" in outcome.err
        assert weights.name in outcome.err
    assert not (tmp_path / "o.npz").exists()


def test_run_and_eval_and_compare_an_artifact(dlcc, cnn, artifact, samples, labelled, tmp_path):
    out = tmp_path / "o.npz"
    assert dlcc("run", artifact, "-i", samples, "-o", out, "--threads", "1").code == 0
    expected = reference(cnn, dict(np.load(samples)))["y"]
    np.testing.assert_allclose(np.load(out)["y"], expected, rtol=1e-4, atol=1e-4)
    hits = [dlcc("eval", n, "--data", labelled, "-q", "--json").json() for n in (cnn, artifact)]
    assert hits[0]["top1"] == hits[1]["top1"]
    told = dlcc("compare", cnn, artifact, "-i", samples, "--json").json()
    assert told["outputs"]["y"]["sqnr_db"] > 100
    assert told["layers"] == []


def test_run_keeps_the_names_of_the_model(dlcc, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Relu", ["in:0"], ["out/0"], name="r")]
    border = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in ("in:0", "out/0")
    ]
    onnx.save(models.model(nodes, border[:1], border[1:]), tmp_path / "m.onnx")
    arrays = {"in:0": -np.ones((2, 3), np.float32), "other": np.zeros(1)}
    np.savez(tmp_path / "in.npz", **arrays)
    out = tmp_path / "out.npz"
    outcome = dlcc("run", tmp_path / "m.onnx", "-i", tmp_path / "in.npz", "-o", out)
    assert outcome.code == 0, outcome.err
    assert list(np.load(out)) == ["out/0"]
    assert np.load(out)["out/0"].max() == 0


# -- bench -------------------------------------------------------------------------------------


def test_bench(dlcc, cnn, artifact):
    pytest.importorskip("onnxruntime")
    arguments = ["bench", artifact, "--against", "onnxruntime", "--model", cnn, "--rounds", "2"]
    told = dlcc(*arguments, "-q", "--json").json()
    assert [e["engine"] for e in told["engines"]] == ["dlcc", "onnxruntime"]
    assert told["engines"][0]["ratio"] == 1.0
    for engine in told["engines"]:
        assert len(engine["rounds"]) == 2
        assert 0 < min(engine["rounds"]) <= engine["seconds"] <= max(engine["rounds"])
        assert engine["threads"] == 1
        assert engine["precision"] == "fp32"
    assert told["cpu"]


def test_bench_gives_peers_our_export(dlcc, int8, artifact):
    pytest.importorskip("onnxruntime")
    arguments = ["bench", artifact, "--against", "onnxruntime", "--model", int8, "--rounds", "1"]
    outcome = dlcc(*arguments, "-q")
    assert re.search(r"onnxruntime +\S+ +int8", outcome.out), outcome.out + outcome.err


def test_bench_without_the_peer(dlcc, cnn, artifact, monkeypatch):
    import dlcc.bench

    monkeypatch.setattr(dlcc.bench, "installed", lambda peer: False)
    arguments = ["bench", artifact, "--against", "openvino", "--model", cnn, "--rounds", "1"]
    outcome = dlcc_run(arguments)
    assert outcome == 0


def dlcc_run(arguments):
    return main([str(a) for a in [*arguments, "-q"]])


def test_bench_with_a_model_the_peer_cannot_run(dlcc, artifact, tmp_path):
    pytest.importorskip("onnxruntime")
    models.unsupported(tmp_path / "m.onnx")
    arguments = ["bench", artifact, "--against", "onnxruntime", "--rounds", "1", "-q"]
    told = dlcc(*arguments, "--model", tmp_path / "m.onnx", "--json").json()
    assert [e["engine"] for e in told["engines"]] == ["dlcc"]
    assert told["unavailable"]["onnxruntime"]


# -- passes and targets ------------------------------------------------------------------------


def test_passes(dlcc):
    from passes import registered_passes

    told = dlcc("passes", "--json").json()["passes"]
    assert [p["name"] for p in told] == list(registered_passes())
    text = dlcc("passes").out
    for entry in told:
        assert entry["name"] in text
        assert entry["summary"] in text
        one = dlcc("passes", entry["name"])
        assert one.code == 0
        for option in entry["options"]:
            assert option["name"] in one.out
            assert option["help"] in one.out
    assert dlcc("passes", "fold-batch-norm", "--json").json()["name"] == "fold-batch-norm"


def test_targets(dlcc):
    from targets import all_targets, missing_here

    told = dlcc("targets", "--json").json()["targets"]
    assert [t["name"] for t in told] == [t.name for t in all_targets()]
    for entry, target in zip(told, all_targets(), strict=True):
        missing = missing_here(target)
        assert entry["missing"] == missing
        assert entry["runs_here"] == (not missing)
    assert "cpu:avx2" in dlcc("targets").out
    table = dlcc("targets", "--table").out.splitlines()
    assert table[0].startswith("| op | cpu:sse4")
    assert {line.count("|") for line in table} == {table[0].count("|")}
    assert any(line.startswith("| conv2d |") for line in table)


def test_subprocess_runs_from_any_folder(cnn, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "dlcc", "inspect", str(cnn), "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert '"kind": "model"' in done.stdout
