"""Weights that are numbers: a model with others is damaged, and its results would be chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dlcc.frontends.registry import model_error
from dlcc.ir import Graph, Node
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of


def check_factors(graph: Graph) -> None:
    """Refuse NaN and infinity among constants that are multiplied and summed, and NaN in biases.

    Elsewhere they have a meaning (masks are -infinity, a bound may be, and a bias); in a weight
    they make every result NaN or, behind a ReLU, whatever a minimum or maximum of NaN is on the
    machine.

    Raises:
        DlccError: MODEL, with the layer, how many there are and where the first is.
    """
    for node in graph.nodes:
        op = op_of(node)
        for index in op.multiplied:
            _check(node, index, "weights", "NaN or infinity", np.isfinite)
        names = [name.rstrip("?*") for name in op.operands]
        if op.multiplied and "bias" in names:
            _check(node, names.index("bias"), "biases", "NaN", lambda a: ~np.isnan(a))


def _check(node: Node, index: int, what: str, which: str, good: Callable[[Array], Array]) -> None:
    value = node.optional_input(index)
    if value is None or not value.is_constant or not value.type.is_dense:
        return
    array = value.stored()
    if array.dtype.kind not in "fV" or bool(good(array).all()):
        return
    bad = np.argwhere(~good(array))
    raise model_error(
        f"the {what} {value.name[:100]!r} hold {which}",
        where=node.loc,
        why=f"{len(bad)} of {array.size} numbers, the first at {bad[0].tolist()}",
        fix="the model is damaged, or its training diverged; export a sound one",
    )


__all__ = ["check_factors"]
