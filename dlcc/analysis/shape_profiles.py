"""One network for several shapes of its inputs: what passes made of it for one, for the others.

Passes that round weights, or choose by data, run once. What they made is carried over: the nodes
stay, with the extents that their counterparts have for the other shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, AttrValue, Graph, Node, TensorType, Value
from dlcc.ops.base import op_of

_EXTENTS: Final = frozenset({"shape", "sizes", "starts", "ends", "repeats"})
"""Attributes that say how large a result is."""


@dataclass(frozen=True)
class Passage:
    """What passes made of a graph.

    Attributes:
        before: the graph before them.
        after: the graph after them.
        origins: for each node of ``after`` the number of the node of ``before`` that it was; None
            for one that they put in.
    """

    before: Graph
    after: Graph
    origins: tuple[int | None, ...]


class Watch:
    """Follows the nodes of a graph through passes that rewrite it in place."""

    def __init__(self, graph: Graph) -> None:
        """Begin with ``graph`` as it is."""
        self._before = graph.copy()
        self._numbers = {node: number for number, node in enumerate(graph.nodes)}

    def end(self, graph: Graph) -> Passage:
        """What became of it."""
        origins = tuple(self._numbers.get(node) for node in graph.nodes)
        return Passage(self._before, graph.copy(), origins)


def carried(passage: Passage, other: Graph) -> Graph:
    """What the passes make of the same network for other shapes: same weights, same encodings.

    Args:
        passage: what they made of it for one profile.
        other: the graph of another profile, as ``passage.before`` was.

    Raises:
        DlccError: PASS, the two have not the same layers, or something that the passes made has
            another extent for the other shapes and nothing tells which.
    """
    before = passage.before
    _check_alike(before, other)
    graph = passage.after.copy()
    for value, wanted in zip(graph.inputs, other.inputs, strict=True):
        value.type = value.type.with_(shape=wanted.type.shape)
    twins = zip(graph.nodes, passage.after.nodes, passage.origins, strict=True)
    for node, first, origin in twins:
        if origin is None:
            _check_new(node, first)
        else:
            _adapt(graph, node, before.nodes[origin], other.nodes[origin])
        _infer(node)
        if origin is not None:
            _check_results(node, first, before.nodes[origin], other.nodes[origin])
    graph.forget_unused_constants()
    verify(graph)
    return graph


# -- the same layers ---------------------------------------------------------------------------


def _check_alike(first: Graph, other: Graph) -> None:
    """Whether both graphs are the same but for extents and what is computed from them."""
    places: list[dict[Value, object]] = [
        {v: ("input", i) for i, v in enumerate(graph.inputs)} for graph in (first, other)
    ]
    for number, (a, b) in enumerate(zip_longest(first.nodes, other.nodes)):
        if a is None or b is None or (a.op, a.loc, a.attrs.keys()) != (b.op, b.loc, b.attrs.keys()):
            raise _refuse(a or b, f"one has {_shown(a)} where the other has {_shown(b)}")
        sources = [
            [None if v is None else known.get(v, "constant") for v in node.inputs]
            for known, node in zip(places, (a, b), strict=True)
        ]
        if sources[0] != sources[1]:
            raise _refuse(a, "its operands are of other layers in one than in the other")
        for known, node in zip(places, (a, b), strict=True):
            known |= {value: (number, i) for i, value in enumerate(node.outputs)}
    ends = zip(first.outputs, other.outputs, strict=True)
    if any(places[0].get(a) != places[1].get(b) for a, b in ends):
        raise _refuse(None, "their results are of different layers")


def _shown(node: Node | None) -> str:
    return "nothing" if node is None else f"{node.op} {node.loc!r}"


def _refuse(node: Node | None, why: str) -> DlccError:
    return DlccError(
        ExitCode.PASS,
        "weights cannot be rounded once for all shape profiles",
        where="" if node is None else node.loc,
        why=f"the profiles have not the same layers: {why}",
        fix="compile the profiles to artifacts of their own, or with --bits 32",
    )


# -- other extents -----------------------------------------------------------------------------


def _adapt(graph: Graph, node: Node, before: Node, other: Node) -> None:
    """Give ``node``, which was ``before``, what its counterpart ``other`` has for its shapes."""
    if node.op != before.op:
        if before.attrs != other.attrs:
            raise _lost(node, f"it was a {before.op} of other attributes in each profile")
        return
    for key, wanted in other.attrs.items():
        if key in node.attrs and wanted != before.attrs[key]:
            node.attrs[key] = _extent(node, key, before.attrs[key], wanted)
    for index, (own, twin) in enumerate(zip(before.inputs, other.inputs, strict=True)):
        if own is None or twin is None or not own.is_constant or _same(own, twin):
            continue
        node.set_input(index, _constant(graph, node, index, own, twin))


def _extent(node: Node, key: str, before: AttrValue, wanted: AttrValue) -> AttrValue:
    """An attribute for the other shapes: what the passes changed stays, the rest is as wanted."""
    made = node.attrs[key]
    if made == before:
        return wanted
    known = [v for v in (made, before, wanted) if isinstance(v, tuple)]
    if len(known) == 3 and len(set(map(len, known))) == 1:
        rows = list(zip(*known, strict=True))
        if all(b in (m, w) for m, b, w in rows):
            return tuple(m if b == w else w for m, b, w in rows)
    raise _lost(node, f"{key} is {before} and {wanted} in the profiles, and became {made}")


def _same(a: Value, b: Value) -> bool:
    assert a.constant is not None
    assert b.constant is not None
    return a.type == b.type and a.constant.digest == b.constant.digest


def _constant(graph: Graph, node: Node, index: int, before: Value, other: Value) -> Value:
    """A constant that depends on the shapes, stored as the passes stored it."""
    made = node.optional_input(index)
    what = f"operand {index} is a constant of other contents in each profile"
    if made is None or not made.is_constant:
        raise _lost(node, f"{what}, and no constant any more")
    if _same(made, before):
        assert other.constant is not None
        return graph.add_stored(other.constant.parts, other.type, name=made.name)
    encoding = made.type.encoding
    if made.type.shape != before.type.shape or before.type.encoding == encoding:
        raise _lost(node, f"{what}, and was changed")
    if not isinstance(encoding, Affine) or encoding.axis is not None:
        raise _lost(node, f"{what}, and has scales of its own")
    return graph.add_constant(other.decoded(), encoding=encoding, name=made.name)


def _check_new(node: Node, first: Node) -> None:
    """Whether a node that the passes put in serves other shapes as it is."""
    pairs = zip(node.inputs, first.inputs, strict=True)
    moved = any(a and b and a.type.shape != b.type.shape for a, b in pairs)
    sized = sorted(_EXTENTS & node.attrs.keys())
    if moved and sized:
        raise _lost(node, f"the passes put it in, and its {sized[0]} is for one profile")


def _infer(node: Node) -> None:
    try:
        types: Sequence[TensorType] = op_of(node).infer(node)
    except (DlccError, ValueError) as error:
        raise _lost(node, str(error).splitlines()[0]) from None
    for value, type_ in zip(node.outputs, types, strict=True):
        value.type = value.type.with_(shape=type_.shape)


def _check_results(node: Node, first: Node, before: Node, other: Node) -> None:
    """Whether extents that the passes left alone are those of the other profile."""
    rows = zip(node.outputs, first.outputs, before.outputs, other.outputs, strict=False)
    for values in rows:
        for made, kept, old, wanted in zip(*(v.type.shape for v in values), strict=False):
            if kept == old and made != wanted:
                raise _lost(node, f"a result would have an extent of {made}, it has {wanted}")


def _lost(node: Node, why: str) -> DlccError:
    return DlccError(
        ExitCode.PASS,
        "what the passes made of a layer cannot be carried over to another shape profile",
        where=node.loc,
        why=why,
        fix="compile the profiles to artifacts of their own, or leave out the pass",
    )


__all__ = ["Passage", "Watch", "carried"]
