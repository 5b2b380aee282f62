"""Pruning of a real network, without retraining."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.analysis.rebatch import rebatched
from dlcc.frontends import load_graph
from dlcc.ir import Graph
from passes import PassContext, PassManager
from passes.pipelines import OPTIMISE

Array = np.ndarray[Any, Any]


def accuracy(graph: Graph, x: Array, labels: Array) -> float:
    batch = rebatched(graph, 50)
    assert batch is not None
    name, hits = graph.inputs[0].name, 0
    for start in range(0, len(x), 50):
        scores = execute(batch, {name: x[start : start + 50]})[graph.output_names[0]]
        hits += int((scores.argmax(axis=1) == labels[start : start + 50]).sum())
    return hits / len(x)


@pytest.mark.slow
@pytest.mark.data
def test_keyword_spotting(models_dir: Path, data_dir: Path) -> None:
    """Half of the weights: magnitude alone ruins it, the fit saves most, surgery nearly all."""
    arrays = np.load(data_dir / "kws01_mlperf_tiny.npz")
    labels = arrays["y"]
    x = (arrays["x_int8"].astype(np.float32) - arrays["zero_point"]) * arrays["scale"]
    x = x.astype(np.float32).reshape(-1, 1, 49, 10)
    graph = load_graph(models_dir / "mlperf_tiny_kws_dscnn.onnx", shapes={"N": 1})
    PassManager(OPTIMISE).run(graph)

    def batches() -> Iterator[dict[str, Array]]:
        return ({graph.inputs[0].name: x[i : i + 1]} for i in range(128))

    found = []
    for options in ("", " reconstruct", " saliency=obs reconstruct"):
        pruned = graph.copy()
        context = PassContext(calibration=batches)
        PassManager(f"prune{{sparsity=0.5 depthwise{options}}}").run(pruned, context)
        found.append(accuracy(pruned, x[200:600], labels[200:600]))
    dense = accuracy(graph, x[200:600], labels[200:600])
    assert found[0] < 0.4
    assert found[1] > dense - 0.12
    assert found[2] > dense - 0.04
