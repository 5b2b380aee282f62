"""Reference execution of a graph in numpy: the definition of what a compiled network computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dlcc.analysis.blas import single_threaded_blas
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, Dense, Graph, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of

Observer = Callable[[Value, Array], None]


def constant_array(value: Value) -> Array:
    """What the reference of an op receives for a constant: codes (Affine), else real values."""
    if isinstance(value.type.encoding, Dense | Affine):
        return value.stored()
    return value.decoded()


def check_inputs(graph: Graph, inputs: Mapping[str, Array]) -> None:
    """Check names, shapes and dtypes of a feed.

    Raises:
        DlccError: which input does not fit, and how.
    """
    names = [v.name for v in graph.inputs]
    if set(inputs) != set(names):
        raise DlccError(
            ExitCode.DATA,
            "the inputs do not fit the network",
            why=f"given {sorted(inputs)}, the network takes {sorted(names)}",
            fix="name the arrays after the network's inputs",
        )
    for value in graph.inputs:
        array = inputs[value.name]
        expected = value.type.storage.numpy
        if tuple(array.shape) != value.type.shape or array.dtype != expected:
            raise DlccError(
                ExitCode.DATA,
                f"input {value.name!r} does not fit the network",
                why=f"it is {array.dtype}{list(array.shape)}, must be "
                f"{expected}{list(value.type.shape)}",
                fix="convert the array, or compile for another shape with --shape",
            )


def execute(
    graph: Graph, inputs: Mapping[str, Array], observe: Observer | None = None
) -> dict[str, Array]:
    """Run the reference of every node.

    Args:
        graph: the network.
        inputs: stored arrays by input name (codes where an input is quantised).
        observe: called with every input and intermediate value as soon as it is known.

    Returns:
        The outputs by output name.

    Raises:
        DlccError: the inputs do not fit.
    """
    check_inputs(graph, inputs)
    live: dict[Value, Array] = {v: inputs[v.name] for v in graph.inputs}
    last_use = last_uses(graph)
    if observe is not None:
        for value in graph.inputs:
            observe(value, live[value])
    for node in graph.nodes:
        with single_threaded_blas():
            results = run_node(node, live)
        for value, array in zip(node.outputs, results, strict=True):
            live[value] = array
            if observe is not None:
                observe(value, array)
        for value in last_use.get(node, ()):
            live.pop(value, None)
    return {
        name: constant_array(value) if value.is_constant else live[value]
        for name, value in zip(graph.output_names, graph.outputs, strict=True)
    }


def run_node(node: Node, live: Mapping[Value, Array]) -> list[Array]:
    """Run one node's reference on the arrays in ``live``; results have the storage dtype."""
    operands = [
        None if v is None else constant_array(v) if v.is_constant else live[v] for v in node.inputs
    ]
    results = op_of(node).reference(node, operands)
    return [
        array.astype(value.type.storage.numpy, copy=False).reshape(value.type.shape)
        for value, array in zip(node.outputs, results, strict=True)
    ]


def last_uses(graph: Graph) -> dict[Node, list[Value]]:
    """By node, the values (outputs of the graph left out) that nothing after it reads."""
    kept = set(graph.outputs)
    last: dict[Value, Node] = {}
    for node in graph.nodes:
        for value in (*node.inputs, *node.outputs):
            if value is not None and not value.is_constant and value not in kept:
                last[value] = node
    out: dict[Node, list[Value]] = {}
    for value, node in last.items():
        out.setdefault(node, []).append(value)
    return out
