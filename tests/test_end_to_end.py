"""The whole way: a model in, a library out, the same numbers as the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.driver import CompileOptions
from dlcc.ir import Graph, TensorType
from dlcc.lowering.lower import prepare
from dlcc.ops import build
from targets.cpu.levels import LEVELS
from targets.isa import host_flags, supports
from tests.lowering.graphs import conv

RUNNABLE = [name for name, isa in LEVELS.items() if supports(isa, host_flags())]

SMALL = [
    "mnist_cnn_ccexam",
    "cifar10_resnet20",
    "mlperf_tiny_resnet8_cifar10",
    "mlperf_tiny_kws_dscnn",
    "mlperf_tiny_vww_mobilenet025_96",
    "mlperf_tiny_ad_autoencoder",
]
LARGE = [
    "cifar10_resnet56",
    "mobilenet_v1_1.0_224",
    "mobilenet_v2_1.0_224_qatdequant",
    "efficientnet_lite0_224",
    "squeezenet_v1.0_deepcompression",
]


def feed_for(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        v.name: rng.standard_normal(v.type.shape).astype(v.type.storage.numpy) for v in graph.inputs
    }


def small_net() -> Graph:
    """Convolutions of several kinds, a residual, pooling, concat, a classifier."""
    graph = Graph("small net")
    x = graph.add_input("image", TensorType((1, 3, 17, 19)))
    value = conv(graph, x, 20, loc="stem", pads=(1, 1, 1, 1), strides=(2, 2))
    value = build(graph, "relu", [value], loc="relu").output
    inner = conv(graph, value, 20, loc="dw", groups=20, pads=(1, 1, 1, 1))
    inner = conv(graph, inner, 20, loc="pw", kernel=1)
    value = build(graph, "add", [value, inner], loc="sum").output
    left = conv(graph, value, 7, loc="left", pads=(2, 2, 2, 2), dilations=(2, 2))
    right = conv(graph, value, 12, loc="right", groups=4, pads=(1, 1, 1, 1))
    value = build(graph, "concat", [left, right], {"axis": 1}, loc="concat").output
    attrs = {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
    value = build(graph, "max_pool2d", [value], attrs, loc="pool").output
    value = build(graph, "sigmoid", [value], loc="sigmoid").output
    value = build(graph, "reduce_mean", [value], {"axes": (2, 3), "keepdims": False}).output
    rng = np.random.default_rng(5)
    weight = graph.add_constant(rng.standard_normal((10, 19)).astype(np.float32), name="fc")
    logits = build(graph, "linear", [value, weight], loc="fc").output
    graph.set_outputs([logits], ["logits"])
    return graph


def check(model: object, out: Path, *, bits: int, target: str = "cpu", threads: int = 1) -> None:
    options = CompileOptions(bits=bits, target=target, threads=threads)
    result = dlcc.compile(model, out, options=options)
    graph = result.optimised.graph
    feed = feed_for(graph)
    with dlcc.load(out, threads=threads) as library:
        got = library.run(feed)
    want = dlcc.execute(prepare(graph) if bits == 8 else graph, feed)
    assert got.keys() == want.keys()
    for name, array in want.items():
        if bits == 8:
            assert np.array_equal(got[name], array), name
        else:
            scale, limit = float(np.abs(array).max()), {16: 2**-7, 32: 1e-4}[bits]
            assert np.allclose(got[name], array, rtol=0, atol=limit * scale), name


@pytest.mark.parametrize("target", RUNNABLE)
@pytest.mark.parametrize("bits", [32, 16, 8])
def test_small_net_on_every_instruction_set(tmp_path, target, bits):
    check(small_net(), tmp_path / "out", bits=bits, target=f"cpu:{target}")


def test_threads_do_not_change_a_byte(tmp_path):
    graph = small_net()
    dlcc.compile(graph, tmp_path / "out", bits=8, threads=4)
    feed = feed_for(graph)
    results = []
    for threads in (1, 2, 4):
        with dlcc.load(tmp_path / "out", threads=threads) as library:
            results.append(library.run(feed)["logits"])
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_same_input_same_bytes(tmp_path):
    for name in ("one", "two"):
        dlcc.compile(small_net(), tmp_path / name, bits=8, threads=2)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "two").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_int8_is_smaller_and_close(tmp_path):
    graph = Graph("wide")
    x = graph.add_input("image", TensorType((1, 64, 9, 9)))
    value = conv(graph, x, 64, loc="a", pads=(1, 1, 1, 1))
    value = build(graph, "relu", [value], loc="relu").output
    graph.set_outputs([conv(graph, value, 64, loc="b")], ["y"])
    rng = np.random.default_rng(1)
    samples = [{"image": rng.standard_normal((1, 64, 9, 9)).astype(np.float32)} for _ in range(16)]
    eight = dlcc.compile(graph, tmp_path / "i8", bits=8, calibration=lambda: iter(samples))
    full = dlcc.compile(graph, tmp_path / "f32", bits=32)
    assert len(eight.program.weights) < 0.3 * len(full.program.weights)
    feed = samples[0]
    want = dlcc.execute(graph, feed)["y"]
    with dlcc.load(tmp_path / "i8") as library:
        got = library.run(feed)["y"]
    noise = float(((got - want) ** 2).sum() / (want**2).sum())
    assert noise < 1e-3


@pytest.mark.data
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", SMALL)
def test_small_real_networks(tmp_path, models_dir, name, bits):
    check(models_dir / f"{name}.onnx", tmp_path / "out", bits=bits)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", LARGE)
def test_large_real_networks(tmp_path, models_dir, name, bits):
    check(models_dir / f"{name}.onnx", tmp_path / "out", bits=bits, threads=2)
