"""Ops on sequences and optionals, which are lists of values during import and nothing later.

Every length and position must be known: a sequence that is a network's input, or whose length
depends on data, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dlcc.frontends.control import MOST_NODES, Call
from dlcc.frontends.fold import fold_nodes
from dlcc.frontends.registry import Unsupported
from dlcc.frontends.scopes import EMPTY, FAILED, Binding, Empty, Failed, ValueList
from dlcc.ir import Value
from dlcc.ops.movement import sliced
from dlcc.ops.shape import axis_of, integers, reshaped


def _items(call: Call, index: int = 0) -> tuple[Value, ...]:
    """The elements of operand ``index``, which must be a sequence."""
    given = call.operand(index)
    if not isinstance(given, ValueList):
        raise Unsupported(f"input {index} is no sequence")
    return given.items


def _position(call: Call, index: int, count: int, default: int, places: int) -> int:
    """Operand ``index`` as a position among ``places``, counted from ``count`` if negative."""
    if call.operand(index) is None:
        return default
    position = call.tensor(index)
    if not position.is_constant:
        raise Unsupported(f"the position (input {index}) must be known at compile time")
    place = int(position.decoded().reshape(-1)[0])
    if not -count <= place < places:
        raise Unsupported(f"position {place} is outside a sequence of {count} elements")
    return place + count if place < 0 else place


def _scalar(call: Call, value: int | bool) -> list[Binding]:
    return [call.importer.graph.add_constant(np.asarray(value), name=call.node.name)]


def _construct(call: Call) -> list[Binding]:
    return [ValueList(tuple(call.tensor(k) for k in range(len(call.operands))))]


def _empty(call: Call) -> list[Binding]:
    return [ValueList(())]


def _at(call: Call) -> list[Binding]:
    items = _items(call)
    place = _position(call, 1, len(items), -1, len(items))
    return [items[place]]


def _length(call: Call) -> list[Binding]:
    return _scalar(call, len(_items(call)))


def _insert(call: Call) -> list[Binding]:
    items = _items(call)
    place = _position(call, 2, len(items), len(items), len(items) + 1)
    return [ValueList((*items[:place], call.tensor(1), *items[place:]))]


def _erase(call: Call) -> list[Binding]:
    items = _items(call)
    if not items:
        raise Unsupported("the sequence has no element to erase")
    place = _position(call, 1, len(items), len(items) - 1, len(items))
    return [ValueList((*items[:place], *items[place + 1 :]))]


def _split(call: Call) -> list[Binding]:
    x, split = call.tensor(0), call.operand(1)
    axis = axis_of(call.node.attrs.get("axis", 0), x.type.rank)
    size = x.type.shape[axis]
    single = split is None and not call.node.attrs.get("keepdims", 1)
    parts: Sequence[int] = range(size)
    step = 1
    if split is not None:
        given = call.tensor(1)
        if not given.is_constant:
            raise Unsupported("the split (input 1) must be known at compile time")
        parts = integers(given.decoded())
        if not given.type.rank:
            step = parts[0]
            if step < 1:
                raise Unsupported(f"parts of {step}")
            parts = range(0, size, step)
    if len(parts) > MOST_NODES:
        raise Unsupported(f"it has {len(parts)} parts, and the limit is {MOST_NODES}")
    if isinstance(parts, range):
        parts = [min(step, size - at) for at in range(0, size, step)]
    if sum(parts) != size or min(parts, default=0) < 0:
        raise Unsupported(f"parts {parts} do not add up to {size}")
    start, at, cuts = len(call.importer.graph.nodes), 0, []
    for k, part in enumerate(parts):
        cut = sliced(call.node, x, [at], [at + part], [axis], [1], f"/{k}")
        if single:
            shape = (*x.type.shape[:axis], *x.type.shape[axis + 1 :])
            cut = reshaped(call.node, cut, shape, f"/{k}.row")
        cuts.append(cut)
        at += part
    return [ValueList(tuple(fold_nodes(call.importer.graph, start, cuts)))]


def _concat(call: Call) -> list[Binding]:
    items = _items(call)
    if not items:
        raise Unsupported("the sequence is empty")
    new = bool(call.node.attrs.get("new_axis", 0))
    axis = axis_of(call.node.attrs["axis"], items[0].type.rank + new)
    if new:
        shape = items[0].type.shape
        lifted = (*shape[:axis], 1, *shape[axis:])
        items = tuple(
            call.built("reshape", [v], {"shape": lifted}, f"/{k}") for k, v in enumerate(items)
        )
    return [items[0] if len(items) == 1 else call.built("concat", items, {"axis": axis}, "")]


def _map(call: Call) -> list[Binding]:
    """SequenceMap: the body on every element; other tensors are given to each of them."""
    items, body = _items(call), call.body()
    columns: list[list[Value]] = [[] for _ in body.output]
    start = len(call.importer.graph.nodes)
    for k, item in enumerate(items):
        rest = []
        for index in range(1, len(call.operands)):
            other = call.operand(index)
            if isinstance(other, ValueList) and len(other.items) != len(items):
                raise Unsupported(
                    f"its sequences have {len(items)} and {len(other.items)} elements"
                )
            rest.append(other.items[k] if isinstance(other, ValueList) else other)
        results = call.run(body, [item, *rest], f"{call.node.name}/{k}/")
        if any(isinstance(v, Failed) for v in results):
            return [FAILED] * len(results)
        for column, value in zip(columns, results, strict=True):
            if not isinstance(value, Value):
                raise Unsupported("its body gives no tensor")
            column.append(value)
        call.within_limits(k + 1, start)
    return [ValueList(tuple(column)) for column in columns]


def _optional(call: Call) -> list[Binding]:
    given = call.operand(0)
    return [EMPTY if given is None else given]


def _has_element(call: Call) -> list[Binding]:
    return _scalar(call, not (call.operand(0) is None or isinstance(call.operand(0), Empty)))


def _get_element(call: Call) -> list[Binding]:
    given = call.operand(0)
    if given is None or isinstance(given, Empty):
        raise Unsupported("the optional holds nothing")
    return [given]


SEQUENCES: dict[str, Callable[[Call], list[Binding]]] = {
    "SequenceConstruct": _construct,
    "SequenceEmpty": _empty,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SplitToSequence": _split,
    "ConcatFromSequence": _concat,
    "SequenceMap": _map,
    "Optional": _optional,
    "OptionalHasElement": _has_element,
    "OptionalGetElement": _get_element,
}
"""Ops that take or give something else than tensors."""

__all__ = ["SEQUENCES"]
