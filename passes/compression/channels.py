"""Which channels of a network can only be removed together.

Every value whose channels can be told apart has a :class:`Track`: the axis along which they lie,
and an atom (a number) for each place. Layers make new atoms, everything between layers hands them
on or unites them: a residual sum unites the channels of its terms, a depthwise convolution those of
its input and output, a concatenation puts two lists one after the other, and a reshape that
flattens repeats each atom for the places that its channel becomes. The classes of the union-find
structure are the groups of coupled channels (the dependency graph of Fang et al. 2023, "DepGraph",
section 3, by channel instead of by layer). What each op does stands in
:mod:`passes.compression.channel_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from networkx.utils import UnionFind

from dlcc.ir import AttrValue, Dense, Graph, Node, Sparse, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from passes.quantization.structure import output_axis

Role = Literal["in", "out", "tied", "parameter"]
"""What a place along a cut axis is to a layer: a channel that its weight reads, one that it makes,
both at once (grouped and depthwise convolutions), or a number that belongs to a channel."""

Keep = Callable[[Array], Array]
"""Atoms -> bool of the same shape: which are kept."""


@dataclass(frozen=True)
class Track:
    """The channels of a value.

    Attributes:
        axis: where they lie.
        atoms: int, one for each place along the axis.
    """

    axis: int
    atoms: Array


@dataclass(frozen=True)
class Cut:
    """A constant operand that shrinks with the channels, where it is present.

    Attributes:
        node: who reads it.
        operand: its index.
        axis: the axis that shrinks.
        atoms: of the places along the axis.
        role: what they are to the node.
    """

    node: Node
    operand: int
    axis: int
    atoms: Array
    role: Role


@dataclass(frozen=True)
class Resize:
    """Attributes of a node that depend on which channels are kept."""

    node: Node
    attributes: Callable[[Keep], dict[str, AttrValue]]


class Coupling:
    """The analysis under way: tracks, cuts, unions and freezes, filled in by the rules.

    Attributes:
        graph: the network.
        tracks: of the values whose channels are told apart.
        cuts: constants that shrink.
        resizes: attributes that change.
        reasons: frozen atom -> why it cannot be removed.
        untold: layers that stay as they are -> why.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.tracks: dict[Value, Track] = {}
        self.cuts: list[Cut] = []
        self.resizes: list[Resize] = []
        self.reasons: dict[int, str] = {}
        self.untold: dict[Node, str] = {}
        self.count = 0
        self._union = UnionFind()
        self._shared: dict[Value, tuple[Array | None, Array]] = {}

    def fresh(self, count: int) -> Array:
        """New atoms."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def unite(self, a: Array, b: Array) -> None:
        """Couple the atoms at equal places."""
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            if x != y:
                self._union.union(x, y)

    def freeze(self, atoms: Array, why: str) -> None:
        """Say that atoms cannot be removed."""
        for atom in atoms.tolist():
            self.reasons.setdefault(atom, why)

    def close(self, node: Node, why: str) -> None:
        """Say that a node needs all channels of its operands; those of its results are untold."""
        for value in node.inputs:
            if value is not None and value in self.tracks:
                self.freeze(self.tracks[value].atoms, why)

    def refuse(self, layer: Node, why: str) -> None:
        """Leave a layer as it is."""
        self.close(layer, why)
        self.untold[layer] = why

    def cut(self, node: Node, operand: int, axis: int, atoms: Array, role: Role) -> None:
        """Let a constant operand shrink; one that is computed freezes the atoms.

        An absent one may come to be before the cut is made: a bias, for what is removed.
        """
        value = node.optional_input(operand)
        why = "" if value is None else uncuttable(value)
        if value is not None and why:
            self.freeze(atoms, f"operand %{value.name} of {node.op} {node.loc!r} {why}")
        else:
            self.cuts.append(Cut(node, operand, axis, atoms, role))

    def share(self, weight: Value, atoms_in: Array | None, atoms_out: Array) -> None:
        """Couple the channels of all layers that read one weight, so that it stays shared."""
        first = self._shared.setdefault(weight, (atoms_in, atoms_out))
        self.unite(first[1], atoms_out)
        if first[0] is not None and atoms_in is not None:
            self.unite(first[0], atoms_in)
        elif first[0] is not None or atoms_in is not None:
            alone = first[0] if first[0] is not None else atoms_in
            assert alone is not None
            self.freeze(alone, "another reader of the weight takes an input of the network")

    def done(self) -> Channels:
        """The groups of coupled channels."""
        for value, name in zip(self.graph.outputs, self.graph.output_names, strict=True):
            if value in self.tracks:
                self.freeze(self.tracks[value].atoms, f"it is output {name!r} of the network")
        roots = np.array([self._union[a] for a in range(self.count)], np.int64)
        _, groups = np.unique(roots, return_inverse=True)
        group_of = groups.reshape(-1)
        frozen: dict[int, str] = {}
        for atom, why in self.reasons.items():
            frozen.setdefault(int(group_of[atom]), why)
        return Channels(
            self.graph,
            self.tracks,
            tuple(self.cuts),
            tuple(self.resizes),
            group_of,
            frozen,
            self.untold,
        )


def uncuttable(value: Value) -> str:
    """Why a constant cannot shrink, or ""."""
    if not value.is_constant:
        return "is not constant"
    encoding = value.type.encoding
    inner = encoding.inner if isinstance(encoding, Sparse) else encoding
    if not isinstance(inner, Dense):
        return f"is stored as {inner.name}"
    if isinstance(encoding, Sparse) and encoding.pattern != "unstructured":
        return f"is sparse by {encoding.pattern}"
    return ""


@dataclass(frozen=True)
class Channels:
    """Groups of coupled channels, numbered from 0.

    Attributes:
        graph: the network; nothing is changed in it yet.
        tracks: channels of the values.
        cuts: constants that shrink.
        resizes: attributes that change.
        group_of: group of each atom.
        frozen: group -> why it cannot be removed.
        untold: layers that stay as they are -> why.
    """

    graph: Graph
    tracks: dict[Value, Track]
    cuts: tuple[Cut, ...]
    resizes: tuple[Resize, ...]
    group_of: Array
    frozen: dict[int, str]
    untold: dict[Node, str]

    @property
    def count(self) -> int:
        """Number of groups."""
        return int(self.group_of.max(initial=-1)) + 1

    def groups(self, cut: Cut) -> Array:
        """Group of each place along a cut axis."""
        return np.asarray(self.group_of[cut.atoms])

    def layers(self) -> list[LayerSides]:
        """The layers whose work depends on which channels are kept, in execution order."""
        found: dict[Node, dict[Role, Cut]] = {}
        for cut in self.cuts:
            if cut.operand == 1 and cut.role != "parameter":
                found.setdefault(cut.node, {})[cut.role] = cut
        return [
            LayerSides(node, roles.get("in"), roles.get("out"), roles.get("tied"))
            for node, roles in found.items()
        ]


@dataclass(frozen=True)
class LayerSides:
    """The axes of a layer's weight that shrink: both of its own, or one for both.

    Attributes:
        node: conv2d, conv_transpose2d or linear.
        reads: the channels that it reads; None where they are not told apart.
        makes: the channels that it makes.
        tied: of a grouped layer: those that it reads and makes.
    """

    node: Node
    reads: Cut | None
    makes: Cut | None
    tied: Cut | None

    @property
    def results(self) -> Cut:
        """The channels that leave the layer."""
        cut = self.makes or self.tied
        assert cut is not None
        return cut

    def axes(self) -> tuple[int, int]:
        """Axes of the weight along which made and read channels lie, where not tied."""
        made = output_axis(self.node)
        return made, 1 - made

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole layer."""
        return op_of(self.node).macs(self.node)


def keeper(channels: Channels, kept: Array) -> Keep:
    """Which atoms are kept, from which groups are (bool [groups])."""
    return lambda atoms: np.asarray(kept[channels.group_of[atoms]])


def count_kept(keep: Keep, atoms: Array) -> int:
    """How many of the places are kept."""
    return int(np.count_nonzero(keep(atoms)))


def replaced(values: Sequence[int], index: int, value: int) -> tuple[int, ...]:
    """A tuple with another number at one place."""
    return (*values[:index], value, *values[index + 1 :])


__all__ = [
    "Channels",
    "Coupling",
    "Cut",
    "Keep",
    "LayerSides",
    "Resize",
    "Role",
    "Track",
    "count_kept",
    "keeper",
    "replaced",
    "uncuttable",
]
