"""How many bits the codes of each layer and of each activation have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph, Node
from passes.compression.layers import check_names
from passes.names import names
from passes.quantization.structure import ACCUMULATING, LAYERS, Structure, key


@dataclass
class BitWidths:
    """Widths of codes: one for all weights and one for all activations, and what differs.

    Attributes:
        weights: of layers that ``of_layer`` does not name.
        activations: of groups that ``of_group`` does not name.
        of_layer: key of a layer -> width of its weights.
        of_group: representative of a group of values -> width of their codes.
    """

    weights: int
    activations: int
    of_layer: dict[str, int] = field(default_factory=dict)
    of_group: dict[str, int] = field(default_factory=dict)

    def weight(self, layer: str) -> int:
        """Width of a layer's weights."""
        return self.of_layer.get(layer, self.weights)

    def activation(self, group: str) -> int:
        """Width of the codes of a group of values."""
        return self.of_group.get(group, self.activations)


@dataclass(frozen=True)
class WidthRules:
    """Widths of layers by name: ``NAME:BITS``, of which the first that names a layer holds.

    Attributes:
        rules: patterns (as of a shell) and widths.
        where: option and pass, for errors.
    """

    rules: tuple[tuple[str, int], ...]
    where: str

    @staticmethod
    def read(texts: Sequence[str], where: str) -> WidthRules:
        """The rules of an option.

        Raises:
            DlccError: USAGE, for what is not NAME:BITS with 2 to 8 bits.
        """
        rules = []
        for text in texts:
            pattern, mark, bits = text.rpartition(":")
            if not mark or not pattern or not bits.isdecimal() or not 2 <= int(bits) <= 8:
                raise DlccError(
                    ExitCode.USAGE,
                    f"{text!r} is no width of a layer",
                    where=where,
                    why="it must be NAME:BITS with 2 to 8 bits",
                    fix="write for example [conv1:6,fc*:4]",
                )
            rules.append((pattern, int(bits)))
        return WidthRules(tuple(rules), where)

    def check(self, nodes: Sequence[Node]) -> None:
        """Check that every pattern names one of the layers ``nodes``.

        Raises:
            DlccError: USAGE, where one does not.
        """
        check_names(nodes, [pattern for pattern, _ in self.rules], self.where)

    def of(self, loc: str, otherwise: int) -> int:
        """Width for a layer."""
        return next((bits for pattern, bits in self.rules if names(pattern, loc)), otherwise)


def assign(
    widths: BitWidths, graph: Graph, plan: Structure, weights: WidthRules, inputs: WidthRules
) -> None:
    """Enter what rules say of layers into ``widths``.

    A tensor that several layers read has the widest of the widths that they want.

    Raises:
        DlccError: USAGE, a pattern names no layer.
    """
    layers = [n for n in graph.nodes if n.op in LAYERS or key(n) in plan.recurrent]
    weights.check(layers)
    inputs.check(layers)
    wanted: dict[str, int] = {}
    for node in graph.nodes:
        if key(node) in plan.recurrent:
            widths.of_layer[key(node)] = weights.of(node.loc, widths.weights)
        if node.op not in ACCUMULATING or key(node) not in plan.integer:
            continue
        widths.of_layer[key(node)] = weights.of(node.loc, widths.weights)
        for value in node.inputs[: 1 if node.op in LAYERS else 2]:
            if value is not None and value.name in plan.group:
                root = plan.find(value.name)
                bits = inputs.of(node.loc, widths.activations)
                wanted[root] = max(bits, wanted.get(root, 0))
    widths.of_group.update(wanted)


def described(rules: Mapping[str, int]) -> tuple[str, ...]:
    """The rules that give each layer its width, as an option's value."""
    return tuple(f"{loc}:{bits}" for loc, bits in rules.items())


__all__ = ["BitWidths", "WidthRules", "assign", "described"]
