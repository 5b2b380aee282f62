"""Operands of which only the type matters, for layers that are priced before they exist."""

from __future__ import annotations

from dlcc.ir import Constant, Graph, TensorType, Value

_NOTHING = Constant({})


def constant_of_type(graph: Graph, type_: TensorType) -> Value:
    """A constant without contents."""
    value = Value(graph.unique_name("c"), type_)
    value.constant = _NOTHING
    return value


def operand_of_type(graph: Graph, like: Value, type_: TensorType) -> Value:
    """An operand of another type: a constant, input or computed value, as ``like`` is."""
    if like.is_constant:
        return constant_of_type(graph, type_)
    given = graph.add_input(graph.unique_name("x") + ".in", type_)
    return given if like.producer is None else graph.add_node("relu", [given], [type_]).output


__all__ = ["constant_of_type", "operand_of_type"]
