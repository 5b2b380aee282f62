"""Many small graphs as one, so that hundreds of cases cost one build and one link."""

from __future__ import annotations

from collections.abc import Mapping

from dlcc.ir import Graph, Node, Value


def merged(graphs: Mapping[str, Graph]) -> Graph:
    """One graph that computes all ``graphs`` side by side.

    Input ``x`` of graph ``key`` is input ``key.x`` of the result; outputs likewise, by position:
    ``key.0``, ``key.1``.
    """
    whole = Graph("merged")
    outputs: dict[str, Value] = {}
    for key, graph in graphs.items():
        twins: dict[Value, Value] = {
            v: whole.add_input(f"{key}.{v.name}", v.type) for v in graph.inputs
        }
        for value in graph.constants():
            assert value.constant is not None
            twins[value] = whole.add_stored(value.constant.parts, value.type, name=value.name)
        for node in graph.nodes:
            _copy(node, whole, twins, key)
        outputs |= {f"{key}.{k}": twins[v] for k, v in enumerate(graph.outputs)}
    whole.set_outputs(outputs.values(), outputs)
    return whole


def _copy(node: Node, whole: Graph, twins: dict[Value, Value], key: str) -> None:
    twin = whole.add_node(
        node.op,
        [None if v is None else twins[v] for v in node.inputs],
        [v.type for v in node.outputs],
        attrs=node.attrs,
        loc=f"{key}/{node.loc}",
    )
    twins.update(zip(node.outputs, twin.outputs, strict=True))
