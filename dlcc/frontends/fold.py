"""Folding of what is known at import: shape arithmetic, and transposed or reshaped weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dlcc.bounds import check_bytes
from dlcc.errors import DlccError
from dlcc.ir import Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of

FOLD_ELEMENTS = 1 << 20
"""Results larger than this, and larger than their operands, stay computed at run time."""


def folded(node: Node) -> list[Array] | None:
    """The outputs of a node whose operands are dense constants, or None.

    Outputs without elements are known whatever the operands.
    A result that is larger than the operands together and than :data:`FOLD_ELEMENTS` is not
    folded: it would make the library bigger than the model.
    """
    if not any(v.type.elements for v in node.outputs):
        return [np.zeros(v.type.shape, v.type.dtype.numpy) for v in node.outputs]
    present = [v for v in node.inputs if v is not None]
    if not all(v.is_constant and v.type.is_dense for v in present):
        return None
    if not all(v.type.is_dense for v in node.outputs):
        return None
    size = sum(v.type.elements for v in node.outputs)
    if size > max(FOLD_ELEMENTS, sum(v.type.elements for v in present)):
        return None
    operands = [None if v is None else v.stored() for v in node.inputs]
    with np.errstate(all="ignore"):
        results = op_of(node).evaluate(node, operands)
    return [
        np.asarray(array).astype(v.type.dtype.numpy, copy=False).reshape(v.type.shape)
        for v, array in zip(node.outputs, results, strict=True)
    ]


def _check_room(graph: Graph, node: Node) -> None:
    """Refuse results for which there is no room beside the constants: loops may double them.

    Raises:
        DlccError: LIMIT.
    """
    need = sum(math.ceil(v.type.elements * v.type.dtype.bits / 8) for v in node.outputs)
    known = all(v is None or v.is_constant for v in node.inputs)
    if known and need > FOLD_ELEMENTS:  # smaller ones need not be summed each time
        check_bytes(graph.held_bytes + 2 * need, "what is known at import", node.loc)


def fold_nodes(graph: Graph, start: int, results: Sequence[Value]) -> list[Value]:
    """Replace the foldable ones among ``graph.nodes[start:]`` by constants.

    Returns:
        ``results`` with folded values replaced by their constants.
    """
    kept = list(results)
    for node in graph.nodes[start:]:
        _check_room(graph, node)
        try:
            arrays = folded(node)
        except DlccError:
            continue  # an op without a reference for these operands is not folded
        if arrays is None:
            continue
        hints = [v.name for v in node.outputs]
        old = list(node.outputs)
        new = [graph.add_constant(a, name=h) for a, h in zip(arrays, hints, strict=True)]
        graph.replace(node, new)
        kept = [next((n for o, n in zip(old, new, strict=True) if o is v), v) for v in kept]
    return kept


def remove_dead(graph: Graph) -> None:
    """Erase nodes whose results nobody reads."""
    for node in reversed(list(graph.nodes)):
        if not any(graph.use_count(v) for v in node.outputs):
            graph.erase(node)
