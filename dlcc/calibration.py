"""Calibration data as a compilation takes it, held against the network or its shape profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlcc.accuracy import has_labels, labels_in
from dlcc.data import Batches, load_npz, named_inputs, split_batches
from dlcc.errors import DlccError
from dlcc.ir import Graph
from dlcc.ir.encodings import Array

Calibration = str | Path | Callable[[], Iterable[Mapping[str, Array]]]
"""An .npz file, or what starts an iterator of feeds."""


@dataclass(frozen=True)
class Given:
    """What a network has of the calibration data.

    Attributes:
        batches: of its own batch size; None where there are none.
        labels: gives the class of each sample, where the data has them.
    """

    batches: Batches | None = None
    labels: Callable[[], Array] | None = None


def calibrations(source: Calibration | None, graphs: Sequence[Graph]) -> tuple[int, list[Given]]:
    """The first shape profile that the data fits, and what each of them has of it.

    Args:
        source: the data; feeds of a callable, which nobody has looked at, are for the first
            profile.
        graphs: the network, for each profile.

    Raises:
        DlccError: DATA, it fits none.
    """
    if callable(source):
        start = source
        first = Given(lambda: (dict(feed) for feed in start()))
        return 0, [first, *[Given()] * (len(graphs) - 1)]
    made: list[Given] = []
    refusals: list[DlccError] = []
    fitting: list[int] = []
    for number, graph in enumerate(graphs):
        try:
            made.append(_of_file(source, graph))
            fitting.append(number)
        except DlccError as error:
            refusals.append(error)
            made.append(Given())
    if not fitting:
        raise refusals[0]
    return fitting[0], made


def _of_file(source: str | Path | None, graph: Graph) -> Given:
    if source is None:
        return Given()
    arrays, names, where = load_npz(Path(source)), {v.name for v in graph.inputs}, str(source)
    batches = split_batches(named_inputs(arrays, graph, where), graph, where)
    if not has_labels(arrays, names):
        return Given(batches)
    return Given(batches, lambda: labels_in(arrays, names, where))


__all__ = ["Calibration", "Given", "calibrations"]
