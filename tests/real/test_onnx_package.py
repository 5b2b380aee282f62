"""The nine networks that ship with the onnx package compile and agree.

Their weights are fills: all of one number in most of them, so that any wrong order of them goes
unnoticed. Each is compiled with seeded weights too, and compared with ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import dlcc
from dlcc.ir.encodings import Array

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NETWORKS = (
    "light_bvlc_alexnet",
    "light_densenet121",
    "light_inception_v1",
    "light_inception_v2",
    "light_resnet50",
    "light_shufflenet",
    "light_squeezenet",
    "light_vgg19",
    "light_zfnet512",
)
NEAR = 1e-4


def _feed(model: onnx.ModelProto) -> dict[str, Array]:
    """What the package's own test feeds: a ramp from 0 to 1."""
    fed = {}
    filled = {i.name for i in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in filled:
            shape = tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
            ramp = np.arange(np.prod(shape)) / np.prod(shape)
            fed[value.name] = ramp.reshape(shape).astype(np.float32)
    return fed


def _run(model: onnx.ModelProto, feed: dict[str, Array], folder: Path) -> Array:
    dlcc.compile(model, folder, bits=32, threads=2)
    (result,) = dlcc.load(folder).run(feed).values()
    return result


def _largest_error(got: Array, want: Array) -> float:
    assert got.shape == want.shape
    return float(np.max(np.abs(got - want)) / np.max(np.abs(want)))


def seeded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with random weights where it has fills.

    Kernels are drawn so that the spread stays about 1 from layer to layer (He et al. 2015,
    section 2.2); vectors, which are statistics, factors and offsets, are about 1.
    """
    rng, changed = np.random.default_rng(0), onnx.ModelProto()
    changed.CopyFrom(model)
    shapes = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in changed.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            continue
        shape = tuple(int(d) for d in shapes[node.input[0]])
        fan_in = int(np.prod(shape[1:]))
        if len(shape) > 1:
            array = rng.standard_normal(shape) * np.sqrt(2 / fan_in)
        else:
            array = rng.uniform(0.5, 1.5, shape)
        name = node.output[0]
        node.CopyFrom(
            onnx.helper.make_node(
                "Constant", [], [name], value=numpy_helper.from_array(np.float32(array), name)
            )
        )
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_gives_the_recorded_output(name: str, tmp_path: Path) -> None:
    model = onnx.load(FOLDER / f"{name}.onnx")
    recorded = onnx.load_tensor(FOLDER / f"{name}_output_0.pb")
    got = _run(model, _feed(model), tmp_path / "as_it_is")
    assert _largest_error(got, numpy_helper.to_array(recorded)) <= NEAR


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_seeded_weights(name: str, tmp_path: Path) -> None:
    import onnxruntime

    model = seeded(onnx.load(FOLDER / f"{name}.onnx"))
    feed, file = _feed(model), tmp_path / "seeded.onnx"
    onnx.save(model, file)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    (want,) = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]).run(
        None, feed
    )
    assert np.std(want) > 1e-6  # the weights do matter
    assert _largest_error(_run(model, feed, tmp_path / "out"), want) <= NEAR


def test_all_networks_of_the_package_are_here() -> None:
    assert sorted(p.stem for p in FOLDER.glob("*.onnx")) == list(NETWORKS)
