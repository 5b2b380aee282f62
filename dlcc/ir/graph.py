"""The graph: SSA values, nodes, and the edits that passes make.

Nodes stand in a list in execution order: every value is defined before it is used. Def-use chains
are kept by the edit methods; nothing else may touch ``Value.uses``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Union

import networkx as nx
import numpy as np

from dlcc.ir.dtypes import DType
from dlcc.ir.encodings import DENSE, Array, Encoding
from dlcc.ir.types import TensorType

AttrValue = Union[int, float, bool, str, tuple[Any, ...], "Graph"]


class Constant:
    """The contents of a constant value: immutable stored parts, identified by their hash."""

    __slots__ = ("digest", "parts")

    def __init__(self, parts: Mapping[str, Array]) -> None:
        frozen: dict[str, Array] = {}
        hasher = hashlib.sha256()
        for key in sorted(parts):
            given = parts[key]
            # a private copy, unless nobody can write to the caller's array any more
            mine = given.flags.c_contiguous and not given.flags.writeable and given.base is None
            array = given if mine else np.array(given, order="C", copy=True)
            array.setflags(write=False)
            frozen[key] = array
            hasher.update(f"{key}:{array.dtype.str}:{array.shape};".encode())
            hasher.update(array.reshape(-1).view(np.uint8).data)
        self.parts = frozen
        self.digest = hasher.hexdigest()[:24]


class Value:
    """An SSA value: a graph input, a constant, or the output of a node."""

    __slots__ = ("constant", "index", "name", "producer", "type", "uses")

    def __init__(self, name: str, type_: TensorType) -> None:
        self.name = name
        self.type = type_
        self.producer: Node | None = None
        self.index = 0
        self.constant: Constant | None = None
        self.uses: list[tuple[Node, int]] = []

    @property
    def is_constant(self) -> bool:
        """True if the contents are known at compile time."""
        return self.constant is not None

    @property
    def users(self) -> list[Node]:
        """The distinct nodes that read this value, in order of first use."""
        return list(dict.fromkeys(node for node, _ in self.uses))

    def decoded(self) -> Array:
        """Contents of a constant as logical values (float32 where the encoding is not dense)."""
        if self.constant is None:
            raise ValueError(f"%{self.name} is not a constant")
        return self.type.encoding.decode(self.constant.parts, self.type.shape)

    def stored(self) -> Array:
        """Main stored array of a Dense or Affine constant, in the logical shape."""
        if self.constant is None:
            raise ValueError(f"%{self.name} is not a constant")
        return self.constant.parts["values"].reshape(self.type.shape)

    def __repr__(self) -> str:
        return f"%{self.name}"


class Node:
    """One operation. ``loc`` is the name of the original node and survives every rewrite.

    Absent optional inputs are None.
    """

    __slots__ = ("_inputs", "attrs", "loc", "op", "outputs")

    def __init__(self, op: str, attrs: Mapping[str, AttrValue], loc: str) -> None:
        self.op = op
        self.attrs: dict[str, AttrValue] = dict(attrs)
        self.loc = loc
        self._inputs: list[Value | None] = []
        self.outputs: list[Value] = []

    @property
    def inputs(self) -> tuple[Value | None, ...]:
        """Operands; edit through :meth:`set_input`."""
        return tuple(self._inputs)

    def input(self, index: int) -> Value:
        """Operand ``index``, which must be present."""
        value = self.optional_input(index)
        if value is None:
            raise ValueError(f"{self.op} {self.loc!r} has no operand {index}")
        return value

    def optional_input(self, index: int) -> Value | None:
        """Operand ``index``, or None where it is absent or beyond the end."""
        return self._inputs[index] if index < len(self._inputs) else None

    @property
    def output(self) -> Value:
        """The only output."""
        (value,) = self.outputs
        return value

    def set_input(self, index: int, value: Value | None) -> None:
        """Replace operand ``index`` (the list grows with None where needed)."""
        while len(self._inputs) <= index:
            self._inputs.append(None)
        old = self._inputs[index]
        if old is not None:
            old.uses.remove((self, index))
        self._inputs[index] = value
        if value is not None:
            value.uses.append((self, index))

    def set_inputs(self, values: Sequence[Value | None]) -> None:
        """Replace all operands; trailing absent ones are dropped."""
        for index in range(len(self._inputs)):
            self.set_input(index, None)
        self._inputs.clear()
        end = len(values)
        while end and values[end - 1] is None:
            end -= 1
        for index, value in enumerate(values[:end]):
            self.set_input(index, value)

    def __repr__(self) -> str:
        return f"{self.op}({self.loc})"


class Graph:
    """A network: inputs, nodes in execution order, outputs. ``outputs`` may repeat a value."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self._outputs: list[Value] = []
        self.output_names: list[str] = []
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}  # base: no number up to this one makes a new name
        self._constants: dict[tuple[str, TensorType], Value] = {}

    # -- building ------------------------------------------------------------------------------

    def unique_name(self, hint: str) -> str:
        """A value name not yet in the graph, made from ``hint``; reserves it."""
        base = re.sub(r"[^A-Za-z0-9_.$-]", "_", hint) or "v"
        count = self._counts.get(base, 0)
        name = f"{base}_{count}" if count else base
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        self._counts[base] = count
        return name

    def _release(self, name: str) -> None:
        """Let another value have ``name``."""
        self._names.discard(name)
        base, _, number = name.rpartition("_")
        self._counts.pop(name, None)
        if number.isdecimal() and len(number) < 10 and int(number) < self._counts.get(base, 0):
            self._counts[base] = int(number)

    def add_input(self, name: str, type_: TensorType) -> Value:
        """Append a graph input. Its name is kept as it is: the caller of the library sees it.

        Raises:
            ValueError: another value has the name.
        """
        if name in self._names:
            raise ValueError(f"value name {name!r} is taken")
        self._names.add(name)
        value = Value(name, type_)
        self.inputs.append(value)
        return value

    def add_constant(
        self,
        values: Array,
        *,
        encoding: Encoding = DENSE,
        name: str = "c",
        dtype: DType | None = None,
    ) -> Value:
        """A constant holding the real ``values`` in ``encoding``; equal constants are shared."""
        logical = dtype or DType.of(values)
        return self.add_stored(
            encoding.encode(values), TensorType(tuple(values.shape), logical, encoding), name=name
        )

    def add_stored(
        self, parts: Mapping[str, Array], type_: TensorType, *, name: str = "c"
    ) -> Value:
        """A constant from already encoded parts; equal constants are shared."""
        constant = Constant(parts)
        key = (constant.digest, type_)
        value = self._constants.get(key)
        if value is None:
            value = self._constants[key] = Value(self.unique_name(name), type_)
            value.constant = constant
        return value

    def add_node(
        self,
        op: str,
        inputs: Sequence[Value | None],
        types: Sequence[TensorType],
        *,
        attrs: Mapping[str, AttrValue] | None = None,
        loc: str = "",
        names: Sequence[str] | None = None,
        before: Node | None = None,
        after: Node | None = None,
    ) -> Node:
        """Insert a node (at the end, or before/after another one) with outputs of ``types``."""
        node = Node(op, attrs or {}, loc)
        node.set_inputs(inputs)
        hints = names or [loc or op] * len(types)
        for index, (type_, hint) in enumerate(zip(types, hints, strict=True)):
            value = Value(self.unique_name(hint), type_)
            value.producer, value.index = node, index
            node.outputs.append(value)
        if before is not None:
            self.nodes.insert(self.nodes.index(before), node)
        elif after is not None:
            self.nodes.insert(self.nodes.index(after) + 1, node)
        else:
            self.nodes.append(node)
        return node

    def set_outputs(self, values: Iterable[Value], names: Iterable[str] | None = None) -> None:
        """Set the graph's outputs and the names by which the caller knows them."""
        self._outputs = list(values)
        self.output_names = list(names) if names is not None else [v.name for v in self._outputs]
        if len(self.output_names) != len(self._outputs):
            raise ValueError("as many output names as outputs are needed")

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The graph's outputs; edit through :meth:`set_outputs`."""
        return tuple(self._outputs)

    # -- editing -------------------------------------------------------------------------------

    def is_output(self, value: Value) -> bool:
        """True if ``value`` leaves the graph."""
        return any(value is out for out in self._outputs)

    def use_count(self, value: Value) -> int:
        """Operand uses plus uses as a graph output."""
        return len(value.uses) + sum(value is out for out in self._outputs)

    def replace_all_uses(self, old: Value, new: Value) -> None:
        """Let every user of ``old``, the graph's outputs included, read ``new``."""
        if old is new:
            return
        for node, index in list(old.uses):
            node.set_input(index, new)
        self._outputs = [new if out is old else out for out in self._outputs]

    def erase(self, node: Node) -> None:
        """Remove a node. Raises ValueError while one of its outputs is used."""
        used = [v for v in node.outputs if self.use_count(v)]
        if used:
            raise ValueError(f"cannot erase {node!r}: {used} still in use")
        node.set_inputs([])
        self.nodes.remove(node)
        for value in node.outputs:
            self._release(value.name)

    def cut(self, start: int) -> None:
        """Remove the nodes from number ``start`` on, which only each other may read."""
        for node in self.nodes[start:]:
            node.set_inputs([])
            for value in node.outputs:
                self._release(value.name)
        del self.nodes[start:]

    def rename(self, value: Value, hint: str) -> None:
        """Give a value the name ``hint``, or one made from it where another value has that."""
        self._release(value.name)
        value.name = self.unique_name(hint)

    def replace(self, node: Node, values: Sequence[Value]) -> None:
        """Let all users of ``node``'s outputs read ``values`` instead, and erase the node."""
        for old, new in zip(node.outputs, values, strict=True):
            self.replace_all_uses(old, new)
        self.erase(node)

    @property
    def held_bytes(self) -> int:
        """Bytes of all constants, those that nobody reads included."""
        held = (v.constant for v in self._constants.values() if v.constant is not None)
        return sum(array.nbytes for constant in held for array in constant.parts.values())

    def forget_unused_constants(self) -> None:
        """Let go of the constants (and their names) that nobody reads.

        :meth:`add_constant` keeps every constant, so that equal ones are shared; the pass manager
        calls this after each pass, so that old weights do not pile up in memory.
        """
        for key, value in list(self._constants.items()):
            if not self.use_count(value):
                del self._constants[key]
                self._release(value.name)

    def sort(self) -> None:
        """Put the nodes into a stable topological order. Raises ValueError on a cycle."""
        position = {node: i for i, node in enumerate(self.nodes)}
        order = nx.DiGraph()
        order.add_nodes_from(self.nodes)
        order.add_edges_from(
            (v.producer, node)
            for node in self.nodes
            for v in node.inputs
            if v is not None and v.producer is not None
        )
        try:
            self.nodes = list(nx.lexicographical_topological_sort(order, key=position.__getitem__))
        except nx.NetworkXUnfeasible:
            raise ValueError(f"graph {self.name!r} has a cycle") from None

    # -- reading -------------------------------------------------------------------------------

    def constants(self) -> list[Value]:
        """The constants in use, in order of first use."""
        found = dict.fromkeys(
            v for node in self.nodes for v in node.inputs if v is not None and v.is_constant
        )
        found.update(dict.fromkeys(v for v in self._outputs if v.is_constant))
        return list(found)

    def values(self) -> Iterator[Value]:
        """Inputs, constants in use, then node outputs in execution order."""
        yield from self.inputs
        yield from self.constants()
        for node in self.nodes:
            yield from node.outputs

    def to_networkx(self) -> nx.MultiDiGraph:
        """Nodes, inputs and outputs as a networkx graph; each edge carries its ``value``.

        Graph inputs and outputs are the keys ``("input", i)`` and ``("output", i)``; ops are the
        :class:`Node` objects, with node attributes ``op`` and ``loc``.
        """
        out = nx.MultiDiGraph(name=self.name)
        source: dict[Value, object] = {}
        for i, value in enumerate(self.inputs):
            out.add_node(("input", i), op="input", loc=value.name)
            source[value] = ("input", i)
        for node in self.nodes:
            out.add_node(node, op=node.op, loc=node.loc)
            source.update(dict.fromkeys(node.outputs, node))
        for node in self.nodes:
            for operand in node.inputs:
                if operand is not None and operand in source:
                    out.add_edge(source[operand], node, value=operand)
        for i, value in enumerate(self._outputs):
            out.add_node(("output", i), op="output", loc=self.output_names[i])
            if value in source:
                out.add_edge(source[value], ("output", i), value=value)
        return out

    def copy(self) -> Graph:
        """A deep copy that shares only the immutable constants' contents."""
        new = Graph(self.name)
        mapping: dict[Value, Value] = {}

        def clone(value: Value) -> Value:
            twin = Value(value.name, value.type)
            twin.constant = value.constant
            new._names.add(value.name)
            mapping[value] = twin
            return twin

        new.inputs = [clone(v) for v in self.inputs]
        for value in self.constants():
            twin = clone(value)
            assert twin.constant is not None
            new._constants[(twin.constant.digest, twin.type)] = twin
        for node in self.nodes:
            twin_node = Node(node.op, node.attrs, node.loc)
            twin_node.set_inputs([None if v is None else mapping[v] for v in node.inputs])
            for index, value in enumerate(node.outputs):
                twin = clone(value)
                twin.producer, twin.index = twin_node, index
                twin_node.outputs.append(twin)
            new.nodes.append(twin_node)
        new.set_outputs([mapping[v] for v in self._outputs], self.output_names)
        return new

    def __str__(self) -> str:
        from dlcc.ir.text import print_graph

        return print_graph(self)


def every_graph(graph: Graph) -> Iterator[Graph]:
    """``graph``, and the bodies of its nodes, at any depth."""
    yield graph
    for node in graph.nodes:
        for body in node.attrs.values():
            if isinstance(body, Graph):
                yield from every_graph(body)
