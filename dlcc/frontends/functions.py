"""Functions that a model defines itself: counted first, then put where they are called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import networkx as nx
import onnx
from onnx import inliner

from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.control import MOST_COPIED
from dlcc.frontends.registry import model_error

_Key = tuple[str, str, str]
"""Domain, name and overload of a function."""


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` without functions of its own.

    Raises:
        DlccError: MODEL, a function is defined twice or calls itself; LIMIT, there would be too
            many nodes.
    """
    if not model.functions:
        return model
    _check(model)
    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # the C++ inliner raises types of its own
        raise model_error(
            "the model's local functions cannot be inlined",
            why=str(error).splitlines()[0],
            fix="the model is damaged; export it again",
        ) from None


def _check(model: onnx.ModelProto) -> None:
    """Count what inlining makes in unbounded integers: 40 functions can stand for 2^40 nodes."""
    bodies: dict[_Key, list[onnx.NodeProto]] = {}
    for function in model.functions:
        key = (function.domain, function.name, function.overload)
        if key in bodies:
            raise model_error(
                f"the function {function.name!r} of domain {function.domain!r} is defined twice",
                fix="the model is damaged; export it again",
            )
        bodies[key] = list(_all_nodes(function.node))
    calls = nx.DiGraph()
    calls.add_nodes_from(bodies)
    calls.add_edges_from((k, _key(n)) for k, body in bodies.items() for n in body)
    try:
        order = [k for k in nx.topological_sort(calls) if k in bodies]
    except nx.NetworkXUnfeasible:
        names = " -> ".join(a[1] for a, _ in nx.find_cycle(calls)[:8])
        raise model_error(
            "a function of the model calls itself",
            where=names,
            why="a network cannot recurse",
            fix="the model is damaged; export it again",
        ) from None
    sizes: dict[_Key, int] = {}
    for key in reversed(order):
        sizes[key] = _size(bodies[key], sizes)
    count = _size(_all_nodes(model.graph.node), sizes)
    if count > MOST_COPIED:
        raise DlccError(
            ExitCode.LIMIT,
            f"with its functions inlined the model has more than {MOST_COPIED} nodes",
            why=f"there are {count if count < 10**18 else f'2^{count.bit_length() - 1} or more'}",
            fix="export it with fewer functions or calls",
        )


def _key(node: onnx.NodeProto) -> _Key:
    return node.domain, node.op_type, node.overload


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """``nodes`` and those of the bodies in them, at any depth."""
    waiting = [nodes]
    while waiting:
        for node in waiting.pop():
            yield node
            for attribute in node.attribute:
                bodies = [attribute.g] if attribute.HasField("g") else []
                waiting += [body.node for body in (*bodies, *attribute.graphs)]


def _size(nodes: Iterable[onnx.NodeProto], sizes: Mapping[_Key, int]) -> int:
    """Nodes after all calls have been replaced."""
    return sum(sizes.get(_key(node), 1) for node in nodes)


__all__ = ["inlined"]
