"""Accuracy of post-training int8 on the third-party models, by the default options.

``python benchmarks/ptq.py [--models mnist_cnn,kws] [--no-data] [--with-data] [--json FILE]``

Quantises every model with 200 calibration samples and without any data, runs the numpy reference of
the quantised graph on the evaluation samples, and prints a markdown table beside the best figures
of ONNX Runtime and NNCF on the same splits (calibration: ImageNet 0..199, the first 200 training
images of CIFAR-10 and MNIST, KWS 0..199; evaluation: the rest, or the test sets). The reference is
what the compiled library computes, bit for bit.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlcc.analysis.execute import execute
from dlcc.analysis.rebatch import rebatched
from dlcc.evaluate import fidelity, top_k
from dlcc.frontends import load_graph
from dlcc.ir import Graph
from dlcc.ir.encodings import Array
from passes import PassContext, PassManager
from passes.pipelines import OPTIMISE

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
CALIBRATION = 200
BATCH = 50


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        file: its stem.
        peer_agreement: best of ONNX Runtime's and NNCF's settings, in %.
        peer_divergence: least KL divergence of the same, where it was published.
    """

    file: str
    peer_agreement: float
    peer_divergence: float | None = None


ROWS = {
    "mnist_cnn": Row("mnist_cnn_ccexam", 100.0),
    "resnet20": Row("cifar10_resnet20", 98.3, 0.005),
    "resnet56": Row("cifar10_resnet56", 98.5),
    "resnet8": Row("mlperf_tiny_resnet8_cifar10", 97.9, 0.004),
    "kws": Row("mlperf_tiny_kws_dscnn", 99.4),
    "mobilenet_v1": Row("mobilenet_v1_1.0_224", 98.9, 0.004),
    "efficientnet_lite0": Row("efficientnet_lite0_224", 99.0, 0.004),
    "mobilenet_v2": Row("mobilenet_v2_1.0_224_qatdequant", 97.8, 0.008),
}


@dataclass(frozen=True)
class Split:
    """Samples of a model, [count, C, H, W] float32, and the labels of those to evaluate on."""

    calibration: Array
    evaluation: Array
    labels: Array


def jpegs(data: Array, offsets: Array, indices: range) -> Array:
    """Decoded RGB images [count, H, W, 3]."""
    from PIL import Image

    pieces = (data[offsets[i] : offsets[i + 1]].tobytes() for i in indices)
    return np.stack([np.asarray(Image.open(io.BytesIO(p)).convert("RGB")) for p in pieces])


def prepared(pixels: Array, how: Mapping[str, Any]) -> Array:
    """Raw samples as the network expects them, channels first."""
    x: Array = pixels.astype(np.float32)
    if "zero_point" in how:
        x = (x - np.float32(how["zero_point"])) * np.float32(how["scale"])
        return np.ascontiguousarray(x.reshape(len(x), 1, *x.shape[1:3]))
    x = x[..., ::-1] if how.get("channels") == "BGR" else x
    x = x * np.float32(how["scale"])
    x = (x - np.asarray(how["mean"], np.float32)) / np.asarray(how["std"], np.float32)
    return np.ascontiguousarray(np.moveaxis(x, -1, 1).astype(np.float32))


def entry_of(file: str) -> dict[str, Any]:
    """What the data's manifest says of a model."""
    manifest = json.loads((DATA / "manifest.json").read_text())
    entry: dict[str, Any] = next(m for m in manifest["models"] if m["model"] == file)
    return entry


def load_split(
    entry: Mapping[str, Any], calibration: int = CALIBRATION, evaluation: int | None = None
) -> Split:
    """Calibration and evaluation samples by the published convention.

    Args:
        entry: of the manifest.
        calibration: how many to calibrate on; at most 200 where the set has no training samples.
        evaluation: the first of how many to evaluate on; all without it.
    """
    how, n, most = entry["pre"], calibration, slice(evaluation)
    with np.load(DATA / entry["data"]) as z:
        if "x_int8" in z:
            x, y = prepared(z["x_int8"], how), z["y"].reshape(-1)
            return Split(x[:CALIBRATION][:n], x[CALIBRATION:][most], y[CALIBRATION:][most])
        if "jpeg" in z:
            y = z["labels"][CALIBRATION:][most] + entry.get("class_offset", 0)
            images = jpegs(z["jpeg"], z["offsets"], range(CALIBRATION + len(y)))
            edge = (images.shape[1] - how["crop"]) // 2
            x = prepared(images[:, edge:, edge:][:, : how["crop"], : how["crop"]], how)
            return Split(x[:CALIBRATION][:n], x[CALIBRATION:], y)
        labels = z["y_test"].reshape(-1)[most]
        if "train_jpeg" in z:
            train, test = jpegs(z["train_jpeg"], z["train_offsets"], range(n)), z["x_test"]
        else:
            train, test = (z[key][..., None] for key in ("x_train", "x_test"))
        return Split(prepared(train[:n], how), prepared(test[most], how), labels)


def scores(graph: Graph, x: Array) -> Array:
    """Outputs [count, classes] of the numpy reference on all samples."""
    many = rebatched(graph, BATCH)
    if many is None:
        raise SystemExit(f"{graph.name}: cannot run on batches of {BATCH}")
    name, out = graph.inputs[0].name, []
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH]
        padded = np.concatenate([part, np.zeros((BATCH - len(part), *x.shape[1:]), x.dtype)])
        result = next(iter(execute(many, {name: padded}).values()))
        out.append(result.reshape(BATCH, -1)[: len(part)])
    return np.concatenate(out)


def quantised(graph: Graph, calibration: Array | None, options: str) -> tuple[Graph, float]:
    """A quantised copy of an imported graph, and the seconds that the passes took."""
    copy, name = graph.copy(), graph.inputs[0].name

    def batches() -> Iterator[dict[str, Array]]:
        assert calibration is not None
        return ({name: x[None]} for x in calibration)

    context = PassContext(calibration=None if calibration is None else batches)
    start = time.perf_counter()
    PassManager(f"{OPTIMISE},quantize{{{options}}}").run(copy, context)
    return copy, time.perf_counter() - start


def measure(name: str, modes: list[str], options: str) -> dict[str, Any]:
    """All figures of one model."""
    split = load_split(entry_of(ROWS[name].file))
    graph = load_graph(DATA / "models" / f"{ROWS[name].file}.onnx", shapes={"N": 1})
    reference = scores(graph, split.evaluation)
    out: dict[str, Any] = {"model": name, "fp32_top1": top_k(reference, split.labels)}
    for mode in modes:
        samples = split.calibration if mode == "data" else None
        network, seconds = quantised(graph, samples, options)
        found = scores(network, split.evaluation)
        figures = fidelity(reference, found).to_json()
        out[mode] = {**figures, "top1": top_k(found, split.labels), "seconds": seconds}
        print(f"{name} {mode}: {out[mode]}", file=sys.stderr, flush=True)
    return out


def table(results: list[dict[str, Any]]) -> str:
    """The markdown table."""
    lines = [
        "| model | fp32 top-1 | int8 top-1 | agreement | best peer | KL | best peer "
        "| no data: top-1 | agreement | KL |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        row = ROWS[r["model"]]
        peer = "" if row.peer_divergence is None else f"{row.peer_divergence:.3f}"
        data, free = _cells(r.get("data")), _cells(r.get("no-data"))
        lines.append(
            f"| {r['model']} | {100 * r['fp32_top1']:.2f} | {data[0]} | {data[1]} "
            f"| {row.peer_agreement} | {data[2]} | {peer} | {free[0]} | {free[1]} | {free[2]} |"
        )
    return "\n".join(lines)


def _cells(figures: Mapping[str, float] | None) -> tuple[str, str, str]:
    if figures is None:
        return "", "", ""
    top1, agreement = (f"{100 * figures[key]:.2f}" for key in ("top1", "agreement"))
    return top1, agreement, f"{figures['divergence']:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(ROWS), help="comma-separated names")
    parser.add_argument("--no-data", action="store_true", help="only without calibration data")
    parser.add_argument("--with-data", action="store_true", help="only with calibration data")
    parser.add_argument("--options", default="bits=8", help="options of the quantize pass")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    names = arguments.models.split(",")
    if unknown := set(names) - set(ROWS):
        parser.error(f"unknown models {sorted(unknown)}; known are {', '.join(ROWS)}")
    if not DATA.is_dir():
        parser.error("the third-party data (../shared/data) is not here")
    modes = [
        m for m, off in (("data", arguments.no_data), ("no-data", arguments.with_data)) if not off
    ]
    results = []
    for name in names:
        results.append(measure(name, modes, arguments.options))
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
