"""The third-party models import, and their references agree with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlcc.analysis.verify import verify
from dlcc.frontends import load_graph
from dlcc.ir import graphs_equal
from dlcc.ir.text import load, save
from tests.frontends.models import assert_same, feed

MODELS = [
    "cifar10_resnet20",
    "cifar10_resnet56",
    "efficientnet_lite0_224",
    "mlperf_tiny_ad_autoencoder",
    "mlperf_tiny_kws_dscnn",
    "mlperf_tiny_resnet8_cifar10",
    "mlperf_tiny_vww_mobilenet025_96",
    "mnist_cnn_ccexam",
    "mobilenet_v1_1.0_224",
    "mobilenet_v2_1.0_224_qatdequant",
    "squeezenet_v1.0_deepcompression",
]


@pytest.mark.data
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_onnx_runtime(models_dir: Path, name: str) -> None:
    path = models_dir / f"{name}.onnx"
    remarks: list[str] = []
    graph = load_graph(path, remarks=remarks)
    verify(graph)
    assert remarks == ["import: dimension 'N' of input 'input' (axis 0) is taken as 1"]
    assert_same(graph, str(path), feed(graph), 1e-4)


@pytest.mark.data
def test_given_batch_size_leaves_no_remark(models_dir: Path) -> None:
    path = models_dir / "cifar10_resnet20.onnx"
    remarks: list[str] = []
    graph = load_graph(path, shapes={"N": 3}, remarks=remarks)
    assert remarks == []
    assert graph.inputs[0].type.shape == (3, 3, 32, 32)
    assert_same(graph, str(path), feed(graph), 1e-4)


@pytest.mark.data
def test_imported_model_survives_its_text_form(models_dir: Path, tmp_path: Path) -> None:
    graph = load_graph(models_dir / "mlperf_tiny_resnet8_cifar10.onnx")
    save(graph, tmp_path / "net.dlir")
    assert graphs_equal(load(tmp_path / "net.dlir"), graph)
    assert graphs_equal(load_graph(tmp_path / "net.dlir"), graph)
