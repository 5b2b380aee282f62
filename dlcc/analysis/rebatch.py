"""The same network for another batch size, so that the numpy reference runs on many samples."""

from __future__ import annotations

import numpy as np

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.ir import Graph, Node
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of

_RESHAPING = ("reshape", "expand")


def batch_size(graph: Graph) -> int | None:
    """Common leading extent of all inputs, or None where there is none."""
    extents = {v.type.shape[0] if v.type.rank else None for v in graph.inputs}
    return extents.pop() if len(extents) == 1 else None


def rebatched(graph: Graph, batch: int) -> Graph | None:
    """A copy of ``graph`` whose inputs have ``batch`` as leading extent.

    Returns:
        The copy, or None where the batch axis cannot be told from the others: a shape that does
        not follow, or results that differ from those of single samples.
    """
    own = batch_size(graph)
    if own is None or own < 1:
        return None
    if own == batch:
        return graph.copy()
    copy = graph.copy()
    for value in copy.inputs:
        value.type = value.type.with_(shape=(batch, *value.type.shape[1:]))
    try:
        for node in copy.nodes:
            _adapt(node, own, batch)
    except (DlccError, ValueError):
        return None
    return copy if _agrees(graph, copy, own, batch) else None


def _adapt(node: Node, own: int, batch: int) -> None:
    if node.op in _RESHAPING:
        shape = node.attrs["shape"]
        assert isinstance(shape, tuple)
        if shape and shape[0] % own == 0:
            node.attrs["shape"] = (shape[0] // own * batch, *shape[1:])
    for value, type_ in zip(node.outputs, op_of(node).infer(node), strict=True):
        value.type = value.type.with_(shape=type_.shape)


def _agrees(graph: Graph, copy: Graph, own: int, batch: int) -> bool:
    """Compare the copy on random samples with the network's own batch size on the last of them."""
    if batch < own:
        return True
    rng = np.random.default_rng(0)
    feed = {
        v.name: rng.standard_normal(v.type.shape).astype(v.type.storage.numpy) for v in copy.inputs
    }
    try:
        many = execute(copy, feed)
        few = execute(graph, {name: x[batch - own :] for name, x in feed.items()})
    except (DlccError, ValueError, IndexError):
        return False
    return all(_close(many[name], few[name], own, batch) for name in few)


def _close(many: Array, few: Array, own: int, batch: int) -> bool:
    if not few.ndim or few.shape[0] % own or many.shape[0] != few.shape[0] // own * batch:
        return False
    tail = many[many.shape[0] - few.shape[0] :].astype(np.float64)
    scale = float(np.abs(few.astype(np.float64)).max(initial=0.0))
    return bool(np.all(np.abs(tail - few) <= 1e-3 * scale + 1e-30))
