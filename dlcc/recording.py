"""Which input an artifact's example program is checked on, and what it has to give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from dlcc.analysis.sample import record
from dlcc.data import load_npz, named_inputs, split_batches
from dlcc.errors import DlccError, ExitCode
from dlcc.executable import Feed, random_feed
from dlcc.ir import Graph
from dlcc.ir.encodings import Array
from dlcc.program import Sample, TensorInfo

NONE: Final = "none"
"""The choice of no recorded input."""

MOST_ELEMENTS: Final = 1 << 22
"""Numbers that are recorded unasked: C source of some 40 MB."""

_STEPS: Final = 64
"""Seeded numbers are multiples of 1/64: exact in all float types, and short as text."""

SEEDED: Final = "made of seeded numbers (no data was given: --calib or --sample)"


def record_sample(
    graph: Graph,
    inputs: tuple[TensorInfo, ...],
    choice: str | Path | None,
    calibration: Iterable[Mapping[str, Array]] | None,
    calibration_name: str,
    *,
    tf32: bool = False,
) -> tuple[Sample | None, str]:
    """The recorded input and output of a network, and why there is none where there should be.

    Args:
        graph: the network after its passes.
        inputs: its inputs.
        choice: an .npz file whose first sample is taken; "none" for no sample; None: the first
            calibration sample, or seeded numbers where there is no calibration data.
        calibration: starts with that sample; None: there is no such data.
        calibration_name: what it is called in the example.
        tf32: targets may round operands of float32 to TF32.

    Raises:
        DlccError: DATA, the file cannot be read or does not fit the network.
    """
    if choice == NONE:
        return None, ""
    if choice is not None:
        path = Path(choice)
        source = f"the first sample of {path.name}"
        return record(graph, _first(load_npz(path), graph, str(path)), source, tf32=tf32), ""
    outputs = sum(v.type.elements for v in graph.outputs)
    elements = sum(info.elements for info in inputs) + outputs
    if elements > MOST_ELEMENTS:
        return None, (
            f"no recorded input for the example program: {elements} numbers are more than "
            f"{MOST_ELEMENTS}; --sample FILE.npz records them all the same"
        )
    for feed in calibration or ():
        first = _first(feed, graph, calibration_name)
        return record(graph, first, calibration_name, tf32=tf32), ""
    if any(node.op == "loop" for node in graph.nodes):
        return None, (
            "no recorded input for the example program: a loop of the run time may not end for "
            "seeded numbers; --sample FILE.npz or --calib FILE.npz give others"
        )
    return record(graph, _seeded(inputs), SEEDED, tf32=tf32), ""


def _first(arrays: Mapping[str, Array], graph: Graph, where: str) -> Feed:
    """The first batch.

    Raises:
        DlccError: DATA, the arrays do not fit the network.
    """
    named = named_inputs({k: np.asarray(a) for k, a in arrays.items()}, graph, where)
    for feed in split_batches(named, graph, where)():
        return feed
    raise DlccError(
        ExitCode.DATA, "there is no sample", where=where, fix="give a file with at least one"
    )


def _seeded(inputs: tuple[TensorInfo, ...]) -> Feed:
    """:func:`dlcc.executable.random_feed`, floats rounded to multiples of 1/64."""
    feed = random_feed(inputs)
    for name, array in feed.items():
        if array.dtype.kind not in "iub":
            rounded = np.rint(array.astype(np.float64) * _STEPS) / _STEPS
            feed[name] = rounded.astype(array.dtype)
    return feed
