"""Networks as C source: compiled by zig's clang and by gcc, the same bytes as everywhere else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.artifact import account
from dlcc.errors import DlccError, ExitCode
from dlcc.lowering.lower import prepare
from dlcc.objects.elf import ElfFile
from passes.pipelines import OPTIMISE
from tests.portable.source import GCC, STRICT, ZIG, Network
from tests.test_end_to_end import feed_for, small_net

DATA = {
    "mnist_cnn_ccexam": "mnist.npz",
    "mlperf_tiny_resnet8_cifar10": "cifar10.npz",
    "cifar10_resnet20": "cifar10.npz",
    "mlperf_tiny_kws_dscnn": "kws01_mlperf_tiny.npz",
}
FAST = ["mlperf_tiny_kws_dscnn"]
SLOW = [
    "mlperf_tiny_resnet8_cifar10",
    "mnist_cnn_ccexam",
    "mlperf_tiny_ad_autoencoder",
    "mlperf_tiny_vww_mobilenet025_96",
    "cifar10_resnet20",
]
NETWORKS = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def compiled(model: object, folder: Path, **options: object) -> dlcc.driver.CompileResult:
    return dlcc.compile(model, folder, target="c", **options)


def test_files_are_accounted_for_and_reproducible(tmp_path: Path) -> None:
    made = [compiled(small_net(), tmp_path / name).artifact for name in ("one", "two")]
    files = {"small_net.c", "small_net.h", "small_net_weights.h", "report.json"}
    assert made[0].manifest["files"].keys() >= files
    record = made[0].manifest
    assert (record["emit"], record["triple"], record["features"]) == (["c"], "", [])
    for name in files:
        assert (made[0].folder / name).read_bytes() == (made[1].folder / name).read_bytes()
    sizes = {name: (made[0].folder / name).stat().st_size for name in files}
    rows = account(made[0])
    assert all(sum(n for f, _, n in rows if f == name) == size for name, size in sizes.items())
    made[0].verify()


def test_header_serves_cpp_and_nothing_is_exported_but_the_interface(tmp_path: Path) -> None:
    artifact = dlcc.compile(small_net(), tmp_path / "out", name="my_net", emit=("c",)).artifact
    assert artifact.manifest["target"] == "c"
    assert artifact.symbol == "my_net"
    user = tmp_path / "user.cpp"
    user.write_text('#include "my_net.h"\nmy_net_arena_t arena;\n')
    command = [*ZIG, "-x", "c++", "-std=c++11", "-Wextra", "-Werror", "-I", artifact.folder]
    subprocess.run([*command, "-c", user, "-o", tmp_path / "user.o"], check=True)
    compiled_object = tmp_path / "my_net.o"
    subprocess.run([*ZIG, "-c", artifact.folder / "my_net.c", "-o", compiled_object], check=True)
    elf = ElfFile(compiled_object.read_bytes())
    public = {s.name for s in elf.symbols() if s.is_global and s.section}
    assert public == {"my_net_run", "my_net_step", "my_net_layer"}
    from dlcc.tir import undefined_symbols

    assert undefined_symbols(compiled_object.read_bytes()) <= {"memcpy", "memset", "memmove"}


def test_small_net_in_int8_and_float(tmp_path: Path) -> None:
    graph = small_net()
    feed = feed_for(graph)
    for bits in (8, 32):
        result = compiled(graph, tmp_path / str(bits), bits=bits)
        got = Network(result.artifact)(feed)["logits"]
        optimised = result.optimised.graph
        want = dlcc.execute(prepare(optimised) if bits == 8 else optimised, feed)["logits"]
        if bits == 8:
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("first", "bits"), [("ternarize", 2), ("quantize-weights{bits=4}", 4)])
def test_narrow_weights_stay_narrow(first: str, bits: int, tmp_path: Path) -> None:
    graph = small_net()
    result = compiled(graph, tmp_path / "out", passes=f"{OPTIMISE},{first},quantize")
    rows = {row["layer"]: row for row in result.program.report["layers"]}
    assert rows["stem"]["variant"] == f"direct conv 3x3, {bits}-bit weights"
    assert rows["stem"]["weights"] == "compressed"
    entries = {(e.layer, e.name): e for e in result.program.weight_entries}
    assert entries["stem", "weight"].size == -(-20 * 3 * 9 * bits // 8)
    feed = feed_for(graph)
    want = dlcc.execute(prepare(result.optimised.graph), feed)["logits"]
    np.testing.assert_array_equal(Network(result.artifact)(feed)["logits"], want)


@pytest.mark.skipif(GCC is None, reason="no gcc")
def test_float_results_do_not_depend_on_the_compiler(tmp_path: Path) -> None:
    graph = small_net()
    feeds = [feed_for(graph, seed) for seed in range(4)]
    result = compiled(graph, tmp_path / "out", bits=32)
    networks = [Network(result.artifact)]
    assert GCC is not None
    fused = ("-O3", "-mfma", "-std=gnu99", *STRICT[1:])
    networks += [Network(result.artifact, (GCC,), flags) for flags in (fused, ("-O0", *STRICT))]
    for feed in feeds:
        first, *others = [network(feed)["logits"].tobytes() for network in networks]
        assert all(other == first for other in others)


@pytest.mark.parametrize("name", NETWORKS)
def test_real_networks_give_the_bytes_of_x86(name: str, models_dir: Path, tmp_path: Path) -> None:
    path = models_dir / f"{name}.onnx"
    result = compiled(path, tmp_path / "c", threads=1)
    dlcc.compile(path, tmp_path / "x86", target="cpu:avx2", threads=1)
    network = Network(result.artifact)
    graph = prepare(result.optimised.graph)
    with dlcc.load(tmp_path / "x86", threads=1) as x86:
        for index, feed in enumerate(feeds_of(name, models_dir.parent, result.artifact)):
            got, want = network(feed), x86.run(feed)
            if index < 2:
                reference = dlcc.execute(graph, feed)
            for output, array in want.items():
                assert got[output].tobytes() == array.tobytes()
                assert index >= 2 or array.tobytes() == reference[output].tobytes()


def feeds_of(name: str, data: Path, artifact: dlcc.Artifact) -> list[dict[str, np.ndarray]]:
    """20 real inputs where there is a data set, else noise of several sizes."""
    (info,) = artifact.inputs
    if name in DATA:
        arrays = np.load(data / DATA[name])
        if "x_int8" in arrays:
            images = (arrays["x_int8"][:20] - arrays["zero_point"]) * arrays["scale"]
        else:
            images = arrays["x_test"][:20]
        if images.shape[-1] == 3:
            images = np.moveaxis(images, -1, 1)
    else:
        rng = np.random.default_rng(3)
        images = [rng.normal(size=info.shape) * size for size in (0.1, 1.0, 3.0, 40.0) * 5]
    return [{info.name: image.reshape(info.shape).astype(info.dtype)} for image in images]


MISTAKES = [
    ({"target": "cpu:avx2", "emit": ("c",)}, ExitCode.USAGE, "--target c"),
    ({"target": "c", "emit": ("c", "so")}, ExitCode.USAGE, "two folders"),
    ({"target": "c", "pack": "size"}, ExitCode.USAGE, "leave the option out"),
    ({"target": "c", "threads": 2}, ExitCode.USAGE, "leave the option out"),
    ({"target": "c:fast"}, ExitCode.TARGET, "leave the variant out"),
    ({"target": "c", "bits": 16}, ExitCode.UNSUPPORTED, "--bits 32"),
]


@pytest.mark.parametrize(("options", "code", "fix"), MISTAKES)
def test_mistakes(options: dict, code: ExitCode, fix: str, tmp_path: Path) -> None:
    with pytest.raises(DlccError) as caught:
        dlcc.compile(small_net(), tmp_path / "out", **options)
    assert caught.value.code == code
    assert fix in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_libraries_of_the_same_kernels(tmp_path: Path) -> None:
    graph = small_net()
    result = compiled(graph, tmp_path / "so", emit=("so",))
    feed = feed_for(graph)
    want = dlcc.execute(prepare(result.optimised.graph), feed)["logits"]
    with dlcc.load(tmp_path / "so", threads=1) as library:
        np.testing.assert_array_equal(library.run(feed)["logits"], want)


def test_a_network_too_large_for_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlcc.artifact.portable.MOST_BYTES", 100)
    with pytest.raises(DlccError, match="too large for C source") as caught:
        compiled(small_net(), tmp_path / "out")
    assert "C compilers take 100" in caught.value.why
