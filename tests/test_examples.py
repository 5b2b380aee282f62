"""The digits example: its network, its C program, its demo, and what the library depends on."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

import dlcc

pytest.importorskip("sklearn", reason="the digits come from scikit-learn (extra 'demo')")

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits"
MODEL = EXAMPLE / "digits.onnx"
LIBC = re.compile(r"linux-vdso|ld-linux|libc\.so|libm\.so|libpthread\.so")

Array = np.ndarray[Any, Any]


def module(name: str) -> ModuleType:
    """A file of the example as a module; its neighbours are found by their plain names."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        spec = importlib.util.spec_from_file_location(f"digits_{name}", EXAMPLE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = made
        spec.loader.exec_module(made)
        return made
    finally:
        sys.path.remove(str(EXAMPLE))
        sys.modules.pop("data", None)


@pytest.fixture(scope="module")
def held_out() -> tuple[Array, Array]:
    _, _, images, labels = module("data").split()
    return images, labels


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "demo.py"), "--rounds", "1", "-o", str(folder)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "120"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def row(output: str, name: str) -> list[str]:
    line = next(line for line in output.splitlines() if name in line and "│" in line)
    return [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]


@pytest.mark.parametrize("name", ["dlcc fp32", "dlcc int8"])
def test_demo_prints_a_table(
    demo: tuple[Path, str], held_out: tuple[Array, Array], name: str
) -> None:
    folder, output = demo
    assert f"{len(held_out[0])} held-out images" in output
    _, accuracy, weights, library, python_us, c_us = row(output, name)
    artifact = folder / name.split()[1]
    assert int(weights.replace(",", "")) == (artifact / "digits.weights").stat().st_size
    assert int(library.replace(",", "")) == (artifact / "libdigits.so").stat().st_size
    assert 0 < float(c_us) < float(python_us)
    right = accurate(artifact, *held_out)
    assert accuracy == f"{right:.2%}"


def accurate(artifact: Path, images: Array, labels: Array) -> float:
    with dlcc.load(artifact, threads=1) as model:
        logits = np.concatenate([model(image[None]) for image in images])
    return float((logits.argmax(1) == labels).mean())


def test_accuracy(demo: tuple[Path, str], held_out: tuple[Array, Array]) -> None:
    fp32, int8 = (accurate(demo[0] / name, *held_out) for name in ("fp32", "int8"))
    assert fp32 == pytest.approx(594 / 597)
    assert int8 >= fp32 - 3 / 597


def test_int8_weights_are_a_quarter(demo: tuple[Path, str]) -> None:
    fp32, int8 = (demo[0] / name / "digits.weights" for name in ("fp32", "int8"))
    assert int8.stat().st_size < 0.4 * fp32.stat().st_size


def test_fp32_agrees_with_onnxruntime(
    demo: tuple[Path, str], held_out: tuple[Array, Array]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    images = held_out[0][:100]
    expected = session.run(None, {"image": images})[0]
    with dlcc.load(demo[0] / "fp32", threads=1) as model:
        logits = np.concatenate([model(image[None]) for image in images])
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_c_program_needs_libc_alone(demo: tuple[Path, str]) -> None:
    ldd = shutil.which("ldd")
    if ldd is None:
        pytest.skip("ldd is not installed")
    for file in (demo[0] / "digits_int8", demo[0] / "int8" / "libdigits.so"):
        shown = subprocess.run([ldd, file], capture_output=True, text=True, check=True).stdout
        names = [line.split()[0] for line in shown.splitlines()]
        foreign = [n for n in names if not LIBC.search(n) and not n.endswith("libdigits.so")]
        assert foreign == [], shown


def test_c_program_in_an_empty_root(
    demo: tuple[Path, str], held_out: tuple[Array, Array], tmp_path: Path
) -> None:
    """Nothing but the program, the artifact's library and weights, and libc exist there."""
    if os.geteuid() != 0:
        pytest.skip("changing the root directory needs root")
    if shutil.which("ldd") is None:
        pytest.skip("ldd is not installed")
    program, artifact = demo[0] / "digits_int8", (demo[0] / "int8").resolve()
    shown = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    wanted = [Path(path) for path in re.findall(r"(/\S+) \(0x", shown)]
    assert artifact / "libdigits.so" in [path.resolve() for path in wanted], shown
    for path in (*wanted, artifact / "digits.weights"):
        place = tmp_path / path.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    shutil.copy(program, tmp_path / "digits")
    images = held_out[0][:20]
    images.tofile(tmp_path / "images")
    done = subprocess.run(
        ["/digits", str(artifact / "digits.weights"), "/images", "/logits"],
        preexec_fn=lambda: (os.chroot(tmp_path), os.chdir("/")),
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "20"
    with dlcc.load(artifact, threads=1) as model:
        expected = np.concatenate([model(image[None]) for image in images])
    assert (tmp_path / "logits").read_bytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage"),
        (["nowhere", "{images}", "{logits}"], "create"),
        (["{weights}", "nowhere", "{logits}"], "nowhere"),
        (["{weights}", "{images}", "{logits}", "0"], "REPEATS"),
        (["{images}", "{images}", "{logits}"], "create"),
        (["{weights}", "{empty}", "{logits}"], "there are none"),
    ],
)
def test_c_program_refuses(
    demo: tuple[Path, str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").touch()
    np.zeros(64, np.float32).tofile(tmp_path / "images")
    places = {name: str(tmp_path / name) for name in ("images", "logits", "empty")}
    places["weights"] = str(demo[0] / "int8" / "digits.weights")
    command = [demo[0] / "digits_int8", *(a.format(**places) for a in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr


def test_network_has_its_batch_norms() -> None:
    model = onnx.load(MODEL)
    assert model.opset_import[0].version == 17
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("BatchNormalization") == 5
    assert {"Conv", "Add", "Gemm", "MaxPool", "GlobalAveragePool"} <= set(kinds)
    assert MODEL.stat().st_size < 200_000


def test_split_is_fixed_and_disjoint() -> None:
    data = module("data")
    train, labels, test, test_labels = data.split()
    assert (len(train), len(test)) == (1200, 597)
    assert train.shape[1:] == test.shape[1:] == (1, 8, 8)
    assert (train.dtype, labels.dtype) == (np.float32, np.int64)
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)
    assert np.bincount(test_labels, minlength=10).min() > 40
    np.testing.assert_array_equal(data.split()[2], test)


def test_data_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLE / "data.py", "-o", tmp_path], check=True)
    calib, test = np.load(tmp_path / "calib.npz"), np.load(tmp_path / "test.npz")
    assert calib["image"].shape == (200, 1, 8, 8)
    assert test["image"].shape == (597, 1, 8, 8)
    assert test["labels"].shape == (597,)


def test_training_makes_a_network(tmp_path: Path) -> None:
    """One epoch of the script that made digits.onnx: a network of the same form."""
    pytest.importorskip("torch", reason="training needs torch")
    made = tmp_path / "made.onnx"
    command = [sys.executable, "-W", "ignore", EXAMPLE / "train.py", "--epochs", "1", "-o", made]
    subprocess.run(command, check=True, capture_output=True)
    nodes = [[n.op_type for n in onnx.load(path).graph.node] for path in (made, MODEL)]
    assert nodes[0] == nodes[1]
