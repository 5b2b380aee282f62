"""Weights that are numbers: a model with others is damaged, and its results would be chance."""

from __future__ import annotations

import numpy as np

from dlcc.frontends.registry import model_error
from dlcc.ir import Graph
from dlcc.ops.base import op_of


def check_factors(graph: Graph) -> None:
    """Refuse NaN and infinity among constants that are multiplied and summed.

    Elsewhere they have a meaning (masks are -infinity, a bound may be); in a weight they make every
    result NaN or, behind a ReLU, whatever a minimum or maximum of NaN is on the machine.

    Raises:
        DlccError: MODEL, with the layer, how many there are and where the first is.
    """
    for node in graph.nodes:
        for index in op_of(node).multiplied:
            value = node.optional_input(index)
            if value is None or not value.is_constant or not value.type.is_dense:
                continue
            array = value.stored()
            if array.dtype.kind not in "fV" or bool(np.isfinite(array).all()):
                continue
            bad = np.argwhere(~np.isfinite(array))
            raise model_error(
                f"the weights {value.name[:100]!r} hold NaN or infinity",
                where=node.loc,
                why=f"{len(bad)} of {array.size} numbers, the first at {bad[0].tolist()}",
                fix="the model is damaged, or its training diverged; export a sound one",
            )


__all__ = ["check_factors"]
