"""A network compressed in several ways, each for one row of the table of GPUs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import dlcc
from dlcc.ir import Graph, TensorType
from dlcc.lowering.lower import prepare
from dlcc.ops import build
from tests.cuda.test_networks import DIGITS
from tests.test_end_to_end import feed_for

NEAR = 1e-4
"""Largest difference over the largest output, of networks that stay float32."""


@dataclass(frozen=True)
class Compressed:
    """What makes a layer that ``row`` takes: passes behind the exact ones, and rows left out."""

    row: str
    passes: str
    batch: int = 16
    without: tuple[str, ...] = ("grid-gemm",)

    @property
    def bits(self) -> int:
        """Of what is computed."""
        return 8 if self.passes.endswith("quantize") else 32

    def check(self, target: str, folder: Path) -> None:
        """The row is chosen, and the library gives the reference's bytes (of floats: is near)."""
        result = dlcc.compile(
            DIGITS,
            folder,
            target=target,
            bits=self.bits,
            passes=f"fold-batch-norm,fuse-epilogues,{self.passes}",
            shapes={"N": self.batch},
            without=self.without,
        )
        report = json.loads((folder / "report.json").read_text("utf-8"))
        assert self.row in {layer["kernel"] for layer in report["layers"]}
        graph = result.optimised.graph
        feed = feed_for(graph)
        with dlcc.load(folder) as library:
            got = library.run(feed)
        for name, want in dlcc.execute(prepare(graph) if self.bits == 8 else graph, feed).items():
            if self.bits == 8:
                np.testing.assert_array_equal(got[name], want)
            else:
                assert np.abs(got[name] - want).max() <= NEAR * np.abs(want).max()


def large_products() -> Graph:
    """Two linear layers on 8192 rows, large enough for the largest tiles."""
    rng, graph = np.random.default_rng(3), Graph("large")
    value = graph.add_input("x", TensorType((8192, 1024)))
    for size in (1024, 512):
        inner = value.type.shape[-1]
        weight = rng.standard_normal((size, inner)).astype(np.float32) / np.float32(inner**0.5)
        value = build(graph, "linear", [value, graph.add_constant(weight)]).output
    graph.set_outputs([value], ["y"])
    return graph


_SPARSE = ("grid-gemm", "grid-gemm-2:4", "grid-gemm-blocks")

COMPRESSED = (
    Compressed("grid-gemm-2:4", "prune{pattern=2:4},quantize"),
    Compressed("grid-gemm-blocks", "prune{pattern=block sparsity=0.75},quantize"),
    Compressed("grid-gemv-csr", "prune{sparsity=0.95},quantize", 1, _SPARSE),
    Compressed("grid-packed-gemv", "quantize-weights{bits=4},quantize", 1),
    Compressed("grid-packed-gemm", "ternarize,quantize"),
    Compressed("grid-packed-gemm", "binarize,quantize"),
    Compressed("grid-table-gemm", "share-weights{values=16}"),
    Compressed("grid-gemv", "quantize", 1),
)
