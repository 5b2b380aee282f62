"""Codes of recurrent weights: rounded row by row, against the states that the samples lead to.

A state has a fixed scale (:data:`dlcc.ops.recurrent_codes.STATE`), so that weights are all there is
to choose. Their rounding sees the second moments of the states of the float recurrence on what the
quantised prefix of the network gives. The candidates of a GRU whose reset gate comes first multiply
gated states, of which nothing is known here: they are rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlcc.analysis.accumulators import Bounds, of_weights
from dlcc.ir import Affine, Graph, Node
from dlcc.ir.encodings import Array
from dlcc.ops.base import Quantised, op_of
from dlcc.ops.recurrent import codes_refusal
from dlcc.ops.recurrent_codes import STATE
from passes.quantization import weights
from passes.quantization.rounding import Rounding

WEIGHT = 1
"""Operand of the recurrent weights."""


def is_recurrent(node: Node) -> bool:
    """Whether a node multiplies its own states."""
    return op_of(node).quantised is Quantised.WEIGHTS


def reason(node: Node) -> str:
    """Why the recurrent weights of a node cannot become codes, or ""."""
    why = codes_refusal(node)
    if why:
        return why
    value = node.input(WEIGHT)
    if not value.type.is_dense:
        return "its recurrent weights already have another encoding"
    if not np.isfinite(value.decoded()).all():
        return "its recurrent weights hold NaN or infinite numbers"
    return ""


def state_moments(node: Node, runs: Sequence[Sequence[Array | None]]) -> weights.Moments:
    """Moments of the states of a float recurrence.

    Args:
        node: the recurrent node, with float weights.
        runs: its operands, run by run.
    """
    units = node.input(WEIGHT).type.shape[1]
    total, second, count = np.zeros(units), np.zeros((units, units)), 0
    for operands in runs:
        states = op_of(node).evaluate(node, operands)[0].reshape(-1, units).astype(np.float32)
        total += states.sum(axis=0, dtype=np.float64)
        second += states.T @ states
        count += len(states)
    mean = total / count
    return weights.Moments(mean[None], (second / count - np.outer(mean, mean))[None])


def quantised(
    node: Node, bits: int, moments: weights.Moments | None, rounding: Rounding
) -> weights.QuantisedWeights:
    """Codes of the recurrent weights, [G*H,H]."""
    rows = node.input(WEIGHT).decoded().astype(np.float32)
    units = rows.shape[1]
    known = len(rows)
    if node.op == "gru" and not op_of(node).get(node, "reset_after"):
        known = 2 * units
    parts = []
    for part, own in ((rows[:known], moments), (rows[known:], None)):
        if len(part):
            floor = np.zeros(len(part))
            parts.append(weights.quantise_weight(part, bits, floor, own, rounding))
    return weights.QuantisedWeights(
        np.concatenate([p.codes for p in parts]),
        np.concatenate([p.scales for p in parts]),
        all(p.exact for p in parts),
    )


def set_codes(graph: Graph, node: Node, bits: int, made: weights.QuantisedWeights) -> None:
    """Give a node its coded weights."""
    old = node.input(WEIGHT)
    encoding = Affine.symmetric(bits, made.scales, 0)
    parts = {"values": np.ascontiguousarray(made.codes).astype(np.int8)}
    node.set_input(
        WEIGHT, graph.add_stored(parts, old.type.with_(encoding=encoding), name=old.name)
    )


def reach(made: weights.QuantisedWeights) -> int:
    """Largest |accumulator| that any state can cause."""
    return of_weights(made.codes, Bounds(*STATE.code_range)).all.reach


__all__ = [
    "WEIGHT",
    "is_recurrent",
    "quantised",
    "reach",
    "reason",
    "set_codes",
    "state_moments",
]
