"""The eight small networks, and their layers in a form that torch can be built from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx

import dlcc
from dlcc.driver import CompileOptions, optimise
from dlcc.frontends.onnx_export import to_onnx
from dlcc.ir import Graph

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "models"
NETWORKS = {
    "digits": ROOT / "examples" / "digits" / "digits.onnx",
    "mnist": DATA / "mnist_cnn_ccexam.onnx",
    "resnet8": DATA / "mlperf_tiny_resnet8_cifar10.onnx",
    "resnet20": DATA / "cifar10_resnet20.onnx",
    "resnet56": DATA / "cifar10_resnet56.onnx",
    "kws": DATA / "mlperf_tiny_kws_dscnn.onnx",
    "vww": DATA / "mlperf_tiny_vww_mobilenet025_96.onnx",
    "ad": DATA / "mlperf_tiny_ad_autoencoder.onnx",
}
SCALE = {"resnet8": 255.0}
"""Range of the inputs, where it is not 0 to 1."""
_PASSES = (
    "eliminate-dead-code,canonicalize,fold-constants,fold-batch-norm,fold-pads,fold-transposes,"
    "fold-constants,eliminate-dead-code"
)
"""What leaves plain layers; nothing is fused or quantised."""


def load(network: str) -> Graph:
    """The float network with one sample a batch, batch norms folded."""
    return plain(NETWORKS[network])


def plain(model: Path, rows: int = 1) -> Graph:
    """A model's float network with ``rows`` samples a batch, batch norms folded."""
    graph = dlcc.load_graph(model, shapes={"N": rows})
    return optimise(graph, CompileOptions(passes=_PASSES)).graph


def describe(network: str, folder: Path) -> None:
    """Writes NETWORK.json (layers in order) and NETWORK.npz (their constants)."""
    model = to_onnx(load(network))
    graph = model.graph
    layers = [
        {
            "op": node.op_type,
            "inputs": list(node.input),
            "output": node.output[0],
            "attributes": {a.name: _plain(a) for a in node.attribute},
        }
        for node in graph.node
    ]
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    told = {
        "input": graph.input[0].name,
        "shape": shape,
        "output": graph.output[0].name,
        "scale": SCALE.get(network, 1.0),
        "layers": layers,
    }
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    names = {str(i): name for i, name in enumerate(constants)}
    arrays = {i: constants[name] for i, name in names.items()}
    np.savez(folder / f"{network}.npz", **arrays)
    (folder / f"{network}.json").write_text(json.dumps({**told, "constants": names}))


def _plain(attribute: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value
