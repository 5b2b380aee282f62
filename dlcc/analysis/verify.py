"""The verifier: is this graph well formed?"""

from __future__ import annotations

from collections.abc import Mapping, Set

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, Dense, Graph, Node, Value, every_graph
from dlcc.ops.base import Quantised, activations, op_of, type_error
from dlcc.ops.index import check_places
from dlcc.ops.integer import check_binary


def verify(graph: Graph) -> None:
    """Check structure, def-use chains and types of every node.

    Raises:
        DlccError: what is wrong, at which node.
    """
    defined: set[Value] = set(graph.inputs)
    uses = {value: set(value.uses) for value in graph.values()}
    for node in graph.nodes:
        _check_operands(node, defined, uses)
        for body in (a for a in node.attrs.values() if isinstance(a, Graph)):
            verify(body)
        _check_types(node)
        defined.update(node.outputs)
    for value in (*graph.inputs, *graph.outputs):
        if value.type.is_binary and not value.is_constant:
            raise _broken(f"%{value.name} is binary, but the caller's", "")
    for value in graph.outputs:
        if value not in defined and not value.is_constant:
            raise _broken(f"output %{value.name} is not defined", "")
    _check_uses(graph)
    names = [v.name for v in graph.values()]
    if len(set(names)) != len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise _broken(f"value names are not unique: {twice[:5]}", "")


def verify_file(graph: Graph, source: str) -> None:
    """:func:`verify` for a graph that was read: what is wrong is the file's fault.

    Raises:
        DlccError: MODEL, what is wrong, at which node.
    """
    try:
        for part in every_graph(graph):
            for node in part.nodes:
                unknown = sorted(set(node.attrs) - set(op_of(node).attributes))
                if unknown:
                    raise type_error(node, f"no attribute named {', '.join(unknown)}")
            for value in part.constants():
                _check_contents(value)
        verify(graph)
        for part in every_graph(graph):
            for node in part.nodes:
                check_places(node)
    except DlccError as error:
        where = error.where or source
        if error.code != ExitCode.INTERNAL:
            raise
        raise DlccError(ExitCode.MODEL, error.what, where=where, why=error.why) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DlccError(
            ExitCode.MODEL,
            "a node's operands, results or attributes do not fit its op",
            where=source,
            why=f"{type(error).__name__}: {error}",
            fix="write .dlir files with `dlcc opt MODEL -o OUT.dlir`",
        ) from None


def _check_contents(value: Value) -> None:
    """Hold what a constant stores against its type.

    Raises:
        DlccError: MODEL, they do not fit.
        LookupError, ValueError: the same, where decoding finds it.
    """
    type_ = value.type
    if isinstance(type_.encoding, Dense | Affine):
        found = value.stored()
        fits = found.dtype == type_.storage.numpy
    else:
        found = value.decoded()
        fits = found.shape == type_.shape
    if fits and isinstance(type_.encoding, Affine) and found.size:
        low, high = type_.encoding.code_range
        fits = low <= found.min() and found.max() <= high
    if not fits:
        raise DlccError(
            ExitCode.MODEL,
            f"the contents of @{value.name} do not fit its type",
            why=f"they are {found.dtype}{list(found.shape)}, or codes out of its range",
            fix="write .dlir files with `dlcc opt MODEL -o OUT.dlir`",
        )


def _broken(why: str, where: str) -> DlccError:
    return DlccError(
        ExitCode.INTERNAL,
        "the graph is not well formed",
        where=where,
        why=why,
        fix="report this with the pipeline text; --print-after shows the pass that broke it",
    )


def _check_uses(graph: Graph) -> None:
    nodes = set(graph.nodes)
    if len(nodes) != len(graph.nodes):
        raise _broken("a node stands in the list twice", "")
    for value in graph.values():
        for node, index in value.uses:
            if node not in nodes:
                raise _broken(f"%{value.name} is used by a node that is not in the graph", node.loc)
            if node.optional_input(index) is not value:
                raise _broken(f"operand {index} is not %{value.name}, as that says", node.loc)


def _check_operands(
    node: Node, defined: set[Value], uses: Mapping[Value, Set[tuple[Node, int]]]
) -> None:
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if value not in defined and not value.is_constant:
            raise _broken(f"operand %{value.name} is used before it is defined", node.loc)
        if (node, index) not in uses[value]:
            raise _broken(f"def-use chain of %{value.name} misses operand {index}", node.loc)
    for value in node.outputs:
        if value.producer is not node:
            raise _broken(f"%{value.name} does not know its producer", node.loc)
    op = op_of(node)
    required = sum(not name.endswith(("?", "*")) for name in op.operands)
    variadic = any(name.endswith("*") for name in op.operands)
    if len(node.inputs) < required or (len(node.inputs) > len(op.operands) and not variadic):
        raise type_error(node, f"takes {len(op.operands)} operands, has {len(node.inputs)}")


def _check_types(node: Node) -> None:
    op = op_of(node)
    for value, expected in zip(node.outputs, op.infer(node), strict=True):
        if (value.type.shape, value.type.dtype) != (expected.shape, expected.dtype):
            raise type_error(
                node,
                f"output %{value.name} is {value.type.dtype}{list(value.type.shape)}, "
                f"must be {expected.dtype}{list(expected.shape)}",
            )
    if any(v.type.is_binary for v in activations(node)):
        _check_binary(node)
    types = [v.type for v in (*node.inputs, *node.outputs) if v is not None]
    affine = [t for t in types if isinstance(t.encoding, Affine)]
    if affine and op.quantised is Quantised.FLOAT:
        raise type_error(node, "has no integer form but has a quantised operand or result")
    moving = [v.type.encoding for v in activations(node)]
    if op.quantised is Quantised.WEIGHTS and any(isinstance(e, Affine) for e in moving):
        raise type_error(node, "takes codes as weights, but as no other operand or result")
    short = {encoding.name for t in types if (encoding := t.short_float)}
    if affine and short:
        raise type_error(node, f"mixes integer codes and {min(short)} numbers")
    if len({found for i in op.multiplied if (found := node.input(i).type.short_float)}) > 1:
        raise type_error(node, "multiplies bfloat16 and float16 numbers")
    if affine and op.quantised is Quantised.SAME:
        moved = [
            v.type for v in node.inputs if v is not None and v.type.rank and v.type.dtype.is_float
        ]
        encodings = {t.encoding for t in (*moved, *(v.type for v in node.outputs))}
        if len(encodings) > 1:
            raise type_error(node, "needs one encoding for all operands and results")


_ON_SIGNS = {"conv2d", "linear", "quantize", "dequantize", "relayout"}
"""Ops that read or make binary activations."""


def _check_binary(node: Node) -> None:
    """Binary activations are made by ``quantize`` and layers, and read by layers as operand 0."""
    if node.op not in _ON_SIGNS:
        raise type_error(node, "has no form for binary activations")
    if any(v is not None and v.type.is_binary and not v.is_constant for v in node.inputs[1:]):
        raise type_error(node, "only operand 0 can be a binary activation")
    x, y = node.input(0).type, node.output.type
    if node.op in ("conv2d", "linear") and not x.is_binary:
        raise type_error(node, "gives signs, but its input is not binary")
    if node.op == "relayout" and x.encoding != y.encoding:
        raise type_error(node, "changes a binary encoding")
    check_binary(node)
