"""Accuracy of a classifier on labelled samples, whatever form the network has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dlcc.data import LABEL_KEYS
from dlcc.errors import DlccError, ExitCode
from dlcc.evaluate import ranks
from dlcc.executable import Executable, feeds_of
from dlcc.ir.encodings import Array


@dataclass(frozen=True)
class Accuracy:
    """Shares of samples, 0 to 1.

    Attributes:
        samples: how many were run.
        classes: how many the network tells apart.
        top1: the label has the highest score.
        top5: the label is among the five highest scores; None for five classes or fewer.
    """

    samples: int
    classes: int
    top1: float
    top5: float | None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON data."""
        return asdict(self)


def evaluate_classifier(
    network: Executable,
    arrays: Mapping[str, Array],
    where: str,
    *,
    output: str = "",
    most: int = 0,
    progress: Callable[[str, float], None] = lambda _phase, _fraction: None,
) -> Accuracy:
    """Run the labelled samples of a file and count hits.

    Args:
        network: gives scores [batch, classes] (further axes of extent 1 are dropped).
        arrays: inputs by name, and integer labels under one of ``dlcc.data.LABEL_KEYS``.
        where: the file, for messages.
        output: name of the output with the scores, where there are several.
        most: samples to run at most; 0 for all.
        progress: told how far it is.

    Raises:
        DlccError: DATA, if labels are missing or do not fit; USAGE for a wrong ``output``.
    """
    name = scores_output([info.name for info in network.outputs], output, str(network.path))
    feeds = list(feeds_of(arrays, network, where, convert=True))  # views, not copies
    labels = labels_in(arrays, {info.name for info in network.inputs}, where)
    hits = hits5 = done = classes = 0
    wanted = min(most, len(labels)) if most else len(labels)
    for feed in feeds:
        if done >= wanted:
            break
        scores = _scores(network.run(feed)[name], name)
        if len(labels) != len(feeds) * len(scores):
            raise _bad_labels(where, f"{len(labels)} labels, {len(feeds) * len(scores)} samples")
        count, classes = min(len(scores), wanted - done), scores.shape[1]
        own = labels[done : done + count]
        _check_labels(own, classes, where)
        places = ranks(scores[:count], own)
        hits, hits5 = hits + int(np.sum(places < 1)), hits5 + int(np.sum(places < 5))
        done += count
        progress("samples", done / wanted)
    return Accuracy(done, classes, hits / done, hits5 / done if classes > 5 else None)


def scores_output(names: Sequence[str], output: str, where: str) -> str:
    """The output with the scores: ``output``, or the only one.

    Raises:
        DlccError: USAGE, if there is no such output, or none is given of several.
    """
    if output in names:
        return output
    if len(names) == 1 and not output:
        return names[0]
    raise DlccError(
        ExitCode.USAGE,
        f"no output {output!r}" if output else "several outputs could hold the scores",
        where=where,
        why=f"the outputs are {', '.join(names)}",
        fix="name one with --output",
    )


def has_labels(arrays: Collection[str], inputs: Collection[str]) -> bool:
    """Whether a data file of these arrays holds labels."""
    return any(key in arrays and key not in inputs for key in LABEL_KEYS)


def labels_in(arrays: Mapping[str, Array], inputs: Collection[str], where: str) -> Array:
    """The labels of a data file, int64 [samples].

    Raises:
        DlccError: DATA, if there are none or they are no class numbers.
    """
    for key in LABEL_KEYS:
        if key in arrays and key not in inputs:
            labels = np.asarray(arrays[key])
            if labels.dtype.kind not in "iu" or labels.ndim != 1 or not len(labels):
                raise _bad_labels(where, f"{key} is {labels.dtype}{list(labels.shape)}")
            return labels.astype(np.int64)
    raise DlccError(
        ExitCode.DATA,
        "the data file has no labels",
        where=where,
        why=f"it holds {sorted(arrays)}",
        fix=f"add an integer array named {LABEL_KEYS[0]}, one number per sample",
    )


def _check_labels(labels: Array, classes: int, where: str) -> None:
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        found = f"{labels.min()} to {labels.max()}"
        raise _bad_labels(where, f"they reach from {found}, the network has {classes} classes")


def _bad_labels(where: str, why: str) -> DlccError:
    return DlccError(
        ExitCode.DATA,
        "the labels do not fit",
        where=where,
        why=why,
        fix="give one class number, 0 or more, per sample",
    )


def _scores(array: Array, name: str) -> Array:
    if array.ndim == 1:  # a network without batch axis
        return array[None]
    flat = array.reshape(array.shape[0], -1) if array.ndim else array.reshape(1, 1)
    if array.ndim < 2 or flat.shape[1] != max(array.shape[1:]) or flat.shape[1] < 2:
        raise DlccError(
            ExitCode.DATA,
            f"output {name!r} does not hold class scores",
            why=f"its shape is {list(array.shape)}, needed is [samples, classes]",
            fix="name another output with --output",
        )
    return flat


__all__ = ["Accuracy", "evaluate_classifier", "labels_in", "scores_output"]
