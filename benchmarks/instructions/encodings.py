"""Instructions, predicted cycles and weight bytes of one layer, dense and in an encoding."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.instructions.networks import DATA, plain
from dlcc.artifact import write_artifact
from dlcc.cycles.predict import LayerCycles, predict
from dlcc.driver import build_object
from dlcc.ir import Affine, Binary, Encoding, Graph, Node, TensorType, Ternary
from dlcc.lowering.lower import lower
from dlcc.lowering.target import Target
from dlcc.ops import build
from passes.manager import PassManager
from targets import get_target

DENSE = ("implicit-gemm", "winograd", "sign-bytes")
"""What rows begin with that read decoded weights."""

INTEGER = ("int8", "int4", "int2", "ternary", "binary", "signs")
"""Encodings of integer layers; the first is what the others are compared with."""

PASSES = {
    "float32": "",
    "4 bits": "quantize-weights{bits=4}",
    "4 bits per 64": "quantize-weights{bits=4 group=64}",
    "16 values": "share-weights{values=16}",
    "64 values": "share-weights{values=64}",
    "runs of 4": "product-quantize{bits=8 length=4}",
    "sums of runs of 8": "residual-quantize{bits=8 length=8}",
}
"""Passes that make the encodings of float layers; the first has none."""


@dataclass(frozen=True)
class Source:
    """A layer of a network: the first of an op whose weight has this shape; ``rows``: its batch."""

    network: str
    op: str
    weight: tuple[int, ...]
    rows: int = 1

    def node(self) -> Node:
        """The layer, in its network."""
        graph = plain(DATA / f"{self.network}.onnx", self.rows)
        fitting = (
            n for n in graph.nodes if n.op == self.op and n.input(1).type.shape == self.weight
        )
        return next(fitting)


LAYERS = {
    "3x3": (Source("cifar10_resnet20", "conv2d", (64, 64, 3, 3)), INTEGER),
    "1x1": (Source("mobilenet_v1_1.0_224", "conv2d", (1024, 1024, 1, 1)), INTEGER),
    "4 rows": (Source("mlperf_tiny_ad_autoencoder", "linear", (128, 640), 4), INTEGER[:-1]),
    "1 row": (Source("mlperf_tiny_ad_autoencoder", "linear", (128, 640)), INTEGER[:-1]),
    "float": (Source("mlperf_tiny_ad_autoencoder", "linear", (128, 640)), tuple(PASSES)),
}
"""What is counted, by name, and in which encodings."""


@dataclass(frozen=True)
class Counted:
    """A layer in an encoding, as far as it can be run: its costs, and whether it is chosen."""

    encoding: str
    kernel: str
    cost: LayerCycles
    chosen: bool


def _encoding(kind: str, real: np.ndarray) -> Encoding:
    rows = np.abs(real).reshape(len(real), -1)
    if kind == "ternary":
        scales = tuple(map(float, rows.mean(axis=1)))
        return Ternary(scales, scales, 0)
    if kind in ("binary", "signs"):
        return Binary.fit(real, 0)
    bits = int(kind.removeprefix("int"))
    return Affine.symmetric(bits, np.maximum(rows.max(axis=1), 1e-6) / (2 ** (bits - 1) - 1), 0)


def integer_layer(node: Node, kind: str) -> Graph:
    """The layer on 8-bit activations (``signs``: on signs) by weights of this kind."""
    graph, weight = Graph("net"), node.input(1)
    real = weight.decoded()
    encoding, between = _encoding(kind, real), Affine.per_tensor(8, False, 0.05, 128)
    plain_type = TensorType(node.input(0).type.shape)
    if kind == "signs":
        x = graph.add_input("x", plain_type)
        read = [plain_type.with_(encoding=Binary((1.0,)))]
        x = build(graph, "quantize", [x], loc="signs", types=read).output
    else:
        x = graph.add_input("x", plain_type.with_(encoding=between))
    made = build(
        graph,
        node.op,
        [x, graph.add_constant(real, encoding=encoding, name="w")],
        node.attrs,
        loc="layer",
    )
    given = Binary((1.0,)) if kind == "signs" else between
    made.output.type = made.output.type.with_(encoding=given)
    out = made.output
    if kind == "signs":
        plain_out = made.output.type.with_(encoding=TensorType((1,)).encoding)
        out = build(graph, "dequantize", [out], loc="real", types=[plain_out]).output
    graph.set_outputs([out], ["y"])
    return graph


def float_layer(node: Node, passes: str) -> Graph:
    """The layer in float32, after these passes."""
    graph = Graph("net")
    x = graph.add_input("x", TensorType(node.input(0).type.shape))
    weight = graph.add_constant(node.input(1).decoded(), name="w")
    made = build(graph, node.op, [x, weight], node.attrs, loc="layer")
    graph.set_outputs([made.output], ["y"])
    if passes:
        PassManager(passes).run(graph)
    return graph


def _cost(graph: Graph, target: Target) -> tuple[dict[str, object], LayerCycles]:
    program = lower(graph, target, build_object, threads=1)
    row = next(r for r in program.report["layers"] if r["layer"] == "layer")
    assert target.core is not None
    with tempfile.TemporaryDirectory(prefix="dlcc-encodings-") as work:
        write_artifact(program, Path(work) / "net", emit=("a",))
        found = predict(Path(work) / "net", target.core)
    return row, next(cost for cost in found.layers if cost.layer == "layer")


def count(source: Source, kinds: Sequence[str], target_name: str) -> Iterator[Counted]:
    """Counts a layer, dense and from its codes.

    Args:
        source: the layer.
        kinds: of :data:`INTEGER` or of :data:`PASSES`.
        target_name: of a core, such as ``arm:cortex-a72``.
    """
    node, target = source.node(), get_target(target_name)
    dense = {row.name for row in target.rows if row.name.startswith(DENSE)}
    for kind in kinds:
        graph = integer_layer(node, kind) if kind in INTEGER else float_layer(node, PASSES[kind])
        if kind in ("int8", "float32"):
            row, cost = _cost(graph, target)
            yield Counted(kind, str(row["kernel"]), cost, True)
            continue
        chosen = lower(graph.copy(), target, build_object, threads=1).report["layers"]
        picked = next(r for r in chosen if r["layer"] == "layer")
        row, cost = _cost(graph, target.without(dense))
        if row["weights"] == "decoded":
            continue
        yield Counted(kind, str(row["kernel"]), cost, picked["kernel"] == row["kernel"])
