"""How much a quantised network loses on samples: accuracy, agreement, or error of the outputs."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dlcc.analysis.rebatch import batch_size, rebatched
from dlcc.errors import DlccError, ExitCode
from dlcc.evaluate import ranks
from dlcc.ir import Graph
from dlcc.ir.encodings import Array
from passes.manager import run_real
from passes.quantization.samples import Samples

Measure = Literal["auto", "accuracy", "agreement", "error"]

WORDS = {
    "accuracy": "of the labels are missed that the float network hits",
    "agreement": "of the samples get another class than from the float network",
    "error": "relative error of the outputs",
}
"""What a loss is, by measure."""


class Judge:
    """Compares networks with the float network on the same samples.

    Attributes:
        measure: "accuracy", "agreement" or "error".
    """

    def __init__(
        self, graph: Graph, samples: Samples, labels: Array | None, measure: Measure
    ) -> None:
        """Run the float network.

        Args:
            graph: the float network.
            samples: what to run.
            labels: class of each sample, or None.
            measure: what a loss is; auto: by what there is.

        Raises:
            DlccError: the measure needs labels or scores that are not there.
        """
        self.samples = samples
        self.names = [
            name
            for name, value in zip(graph.output_names, graph.outputs, strict=True)
            if not value.is_constant and value.type.dtype.is_float
        ]
        self.reference = self._outputs(samples.network)
        self.measure = self._measure(measure, labels)
        self.labels: Array = np.zeros(0, np.int64)
        if self.measure == "accuracy" and labels is not None:
            self.labels = labels[: samples.count]
            self._check_labels()

    def loss(self, graph: Graph) -> float:
        """Loss of a network with the float network's inputs and outputs; below 0 for a gain."""
        network = rebatched(graph, self.samples.chunk)
        if network is None:
            assert self.samples.chunk == (batch_size(graph) or self.samples.chunk)
            network = graph
        found = self._outputs(network)
        if self.measure == "error":
            pairs = [(self.reference[n], found[n]) for n in self.names]
            noise = sum(float(np.square(b - a).sum()) for a, b in pairs)
            signal = sum(float(np.square(a).sum()) for a, _ in pairs)
            return float(np.sqrt(noise / (signal or 1.0)))
        was, now = (_scores(r[self.names[0]]) for r in (self.reference, found))
        if self.measure == "agreement":
            return float(np.mean(was.argmax(axis=1) != now.argmax(axis=1)))
        hits = [float((ranks(s, self.labels) < 1).mean()) for s in (was, now)]
        return hits[0] - hits[1]

    def _outputs(self, network: Graph) -> dict[str, Array]:
        runs = [run_real(network, feed) for feed in self.samples.chunks()]
        return {n: np.concatenate([r[n].astype(np.float64) for r in runs]) for n in self.names}

    def _measure(self, wanted: Measure, labels: Array | None) -> str:
        scored = len(self.names) == 1 and _is_scores(self.reference[self.names[0]])
        if wanted == "auto":
            if not scored:
                return "error"
            return "agreement" if labels is None else "accuracy"
        if wanted != "error" and not scored:
            raise DlccError(
                ExitCode.USAGE,
                f"measure={wanted} needs one output with the scores of classes",
                why=f"the outputs are {', '.join(self.names)}",
                fix="use measure=error",
            )
        if wanted == "accuracy" and labels is None:
            raise DlccError(
                ExitCode.USAGE,
                "measure=accuracy needs labels",
                why="the calibration data has none",
                fix="add an integer array 'labels' to the .npz file, or use measure=agreement",
            )
        return wanted

    def _check_labels(self) -> None:
        classes = _scores(self.reference[self.names[0]]).shape[1]
        fits = len(self.labels) == self.samples.count and bool(
            ((self.labels >= 0) & (self.labels < classes)).all()
        )
        if not fits:
            raise DlccError(
                ExitCode.DATA,
                "the labels do not fit",
                why=f"{len(self.labels)} labels for {self.samples.count} samples, of which the "
                f"network tells {classes} classes apart",
                fix="give one class number, 0 or more, per sample",
            )


def _scores(array: Array) -> Array:
    return array.reshape(len(array), -1)


def _is_scores(array: Array) -> bool:
    flat = _scores(array)
    return array.ndim > 1 and flat.shape[1] == max(array.shape[1:]) and flat.shape[1] > 1


__all__ = ["WORDS", "Judge", "Measure"]
