"""Calibration samples: reading, checking, and how many of them are worth their time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from dlcc.analysis.rebatch import batch_size, rebatched
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of

WORK = 4e10
"""Multiply-accumulates that all samples of one calibration may cost."""

CODES_BYTES = 384 << 20
"""Bytes of the samples' live activations, as codes."""

CHUNK_BYTES = 48 << 20
"""Bytes of the largest activation of one chunk, as floats."""

FEWEST = 16
"""Samples that are used whatever they cost: min-max ranges hardly gain beyond."""

MOST_NUMBERS = 1 << 30
"""Numbers that all nodes make of those samples; a network that makes more is run on fewer. 16
samples of an object detector for images of 640 x 640 stay below it."""


@dataclass(frozen=True)
class Samples:
    """Samples, stacked and cut into chunks.

    Inputs of different leading extents share no batch axis: a sample of such a network is one run
    of it, and the runs are stacked along an axis of their own.

    Attributes:
        arrays: by input name, [count, ...] in the input's dtype.
        chunk: samples per chunk; divides ``count``.
        network: the float network for batches of ``chunk`` samples.
        given: number of samples that were offered.
    """

    arrays: Mapping[str, Array]
    chunk: int
    network: Graph
    given: int

    @property
    def count(self) -> int:
        """Samples in use."""
        return len(next(iter(self.arrays.values()))) if self.arrays else 0

    def first(self, wanted: int) -> Samples:
        """The first ``wanted`` samples, in whole chunks; at least one chunk."""
        kept = max(1, wanted // self.chunk) * self.chunk
        return replace(self, arrays={n: a[:kept] for n, a in self.arrays.items()})

    def single(self, graph: Graph, wanted: int) -> list[dict[str, Array]]:
        """The first feeds of the network itself, in its own batches."""
        own = batch_size(graph)
        if own is None:
            return [
                {n: a[k] for n, a in self.arrays.items()} for k in range(min(wanted, self.count))
            ]
        starts = range(0, min(self.count, wanted * own) - own + 1, own)
        return [{n: a[s : s + own] for n, a in self.arrays.items()} for s in starts]

    def chunks(self) -> Iterator[dict[str, Array]]:
        """Feeds of the rebatched network."""
        if batch_size(self.network) is None:
            yield from ({n: a[run] for n, a in self.arrays.items()} for run in range(self.count))
            return
        for start in range(0, self.count, self.chunk):
            yield {n: a[start : start + self.chunk] for n, a in self.arrays.items()}


def affordable(graph: Graph, wanted: int) -> int:
    """How many samples of one batch element are used, of ``wanted``."""
    batch = batch_size(graph) or 1
    macs = sum(op_of(n).macs(n) for n in graph.nodes) / batch
    peak = max((v.type.elements for n in graph.nodes for v in n.outputs), default=1) / batch
    made = sum(v.type.elements for n in graph.nodes for v in n.outputs) / batch
    fewest = max(1, min(FEWEST, int(MOST_NUMBERS / max(made, 1.0))))
    by_work = WORK / max(macs, 1.0)
    by_memory = CODES_BYTES / max(4.0 * peak, 1.0)
    return max(min(wanted, fewest), min(wanted, int(min(by_work, by_memory))))


def read(graph: Graph, batches: Iterable[Mapping[str, Array]], wanted: int) -> Samples:
    """The first samples of ``batches``.

    Raises:
        DlccError: there is none, or one does not fit the network or holds NaN.
    """
    own = batch_size(graph) or 1
    limit = max(own, affordable(graph, wanted))
    taken: dict[str, list[Array]] = {v.name: [] for v in graph.inputs}
    count = 0
    for number, batch in enumerate(batches):
        _check(graph, batch, number)
        if count < limit:
            for name, arrays in taken.items():
                arrays.append(np.asarray(batch[name]))
        count += own
        if count >= wanted:
            break
    if not count:
        raise DlccError(
            ExitCode.DATA,
            "the calibration data is empty",
            why="at least one sample is needed",
            fix="give some samples, or none at all to calibrate on synthetic inputs",
        )
    join = np.stack if batch_size(graph) is None else np.concatenate
    return cut(graph, {name: join(arrays) for name, arrays in taken.items()}, count)


def cut(graph: Graph, arrays: Mapping[str, Array], given: int) -> Samples:
    """Cut stacked samples into chunks that fit the memory."""
    own = batch_size(graph) or 1
    count = min(len(a) for a in arrays.values()) if arrays else 0
    peak = max((v.type.bytes for n in graph.nodes for v in n.outputs), default=1) / own
    most = max(own, min(count, int(CHUNK_BYTES / max(peak, 1.0))))
    pieces = math.ceil(count / most)
    chunk = max(own, count // pieces)
    network = rebatched(graph, chunk)
    if network is None:
        chunk, network = own, graph.copy()
    kept = max(chunk, count // chunk * chunk)
    return Samples({n: a[:kept] for n, a in arrays.items()}, chunk, network, given)


def _check(graph: Graph, batch: Mapping[str, Array], number: int) -> None:
    names = {v.name for v in graph.inputs}
    if set(batch) != names:
        raise _bad(number, f"it has arrays {sorted(batch)}, the network takes {sorted(names)}")
    for value in graph.inputs:
        array = np.asarray(batch[value.name])
        expected = value.type.storage.numpy
        if array.shape != value.type.shape or array.dtype != expected:
            raise _bad(
                number,
                f"input {value.name!r} is {array.dtype}{list(array.shape)}, must be "
                f"{expected}{list(value.type.shape)}",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise _bad(number, f"input {value.name!r} holds NaN or infinite numbers")


def _bad(number: int, why: str) -> DlccError:
    return DlccError(
        ExitCode.DATA,
        "the calibration data does not fit the network",
        where=f"batch {number}",
        why=why,
        fix="give finite arrays of the network's input shapes, preprocessed as it expects",
    )
