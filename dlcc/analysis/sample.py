"""A recorded input of a network and the output that the reference makes of it.

What an artifact's example program is held to: bytes where every target gives the same ones, else
numbers and how far from them a target may be (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

import numpy as np

from dlcc.analysis.execute import execute
from dlcc.ir import Affine, Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Quantised, op_of
from dlcc.ops.integer import affine_of
from dlcc.program import Sample

SUMS: Final = 1e-4
"""Tolerance of float32 results: kernels sum in the order that suits them."""

ROUNDED: Final = 2.0**-5
"""Tolerance where such results become 16-bit floats or codes on the way, or operands are rounded to
TF32: some round otherwise."""


class _State(IntEnum):
    """What targets may make of a value."""

    EXACT = 0
    SUMS = 1
    ROUNDED = 2


_TOLERANCES: Final = {_State.EXACT: 0.0, _State.SUMS: SUMS, _State.ROUNDED: ROUNDED}


def record(graph: Graph, feed: Mapping[str, Array], source: str, *, tf32: bool = False) -> Sample:
    """Runs the reference of ``graph`` on ``feed``.

    Args:
        graph: the network after its passes.
        feed: stored arrays by input name.
        source: where the input is from, as a noun phrase.
        tf32: targets may round operands of float32 to TF32.

    Raises:
        DlccError: DATA, the input does not fit.
    """
    with np.errstate(all="ignore"):  # infinities and NaN are results as any other
        results = execute(graph, feed)
    return Sample(
        tuple(_bytes(feed[v.name]) for v in graph.inputs),
        tuple(_bytes(results[name]) for name in graph.output_names),
        tolerances(graph, tf32=tf32),
        source,
    )


def tolerances(graph: Graph, *, tf32: bool = False) -> tuple[float, ...]:
    """For each output 0 where it is the same bytes on every target, else the allowed difference.

    In units of the largest magnitude in the output. ``tf32``: operands of float32 may be rounded.
    """
    states: dict[Value, _State] = {}
    for node in graph.nodes:
        given = (states.get(v, _State.EXACT) for v in node.inputs if v is not None)
        state = max((_State.EXACT if _is_exact(node) else _State.SUMS, *given))
        for value in node.outputs:
            rounded = (
                tf32 or not value.type.is_dense or op_of(node).rounds_factors(node) is not None
            )
            states[value] = _State.ROUNDED if state and rounded else state
    return tuple(_TOLERANCES[states.get(value, _State.EXACT)] for value in graph.outputs)


def _is_exact(node: Node) -> bool:
    """Whether the numerics say each bit of the result, given the operands' bits.

    Integer arithmetic, and moving or rounding numbers. Other float arithmetic counts as inexact,
    even where a single operation would be defined too.
    """
    op = op_of(node)
    body = node.attrs.get("body")
    if isinstance(body, Graph):
        return all(map(_is_exact, body.nodes))
    if op.quantised is Quantised.SAME or op.name == "quantize":
        return True
    operands = [v for v in node.inputs if v is not None and not v.is_constant]
    if any(_is_real(v) for v in operands):
        return False
    factors = [node.input(slot) for slot in op.multiplied]
    return all(v.type.is_binary or affine_of(v) is not None for v in factors)


def _is_real(value: Value) -> bool:
    """Stored as a floating-point number: what is no code, no sign and no integer."""
    if isinstance(value.type.encoding, Affine) or value.type.is_binary:
        return False
    return np.dtype(value.type.storage.numpy).kind not in "iub"


def _bytes(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()
