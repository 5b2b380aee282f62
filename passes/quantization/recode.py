"""Groups of values whose width is decided when their first reader is known to the fit."""

from __future__ import annotations

from dlcc.analysis.blas import single_threaded_blas
from dlcc.analysis.execute import run_node
from dlcc.ir import Affine, Graph, Node, Value
from dlcc.ops.base import Quantised, op_of
from passes.compression.stepping import Live
from passes.quantization.fit import Prepared
from passes.quantization.structure import Structure, activations, key


class Groups:
    """The groups of values that share an encoding, and those whose encoding may still change.

    A layer's weights do not depend on the encoding of its result, so that encoding can wait. When
    it changes, the nodes that made the group's values run again.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._plan = prepared.plan
        self._members: dict[str, list[Value]] = {}
        self._root: dict[Value, str] = {}
        for graph in (prepared.graph, prepared.twin):
            self._enter(graph)
        self.open = set(self._members) - _pinned(prepared.twin, prepared.plan)
        self._made: dict[str, list[tuple[Node, Live]]] = {}

    def _enter(self, graph: Graph) -> None:
        for node in graph.nodes:
            for value in node.outputs:
                name = value.name
                if node.op == "quantize" and name not in self._plan.group:
                    name = node.input(0).name
                if isinstance(value.type.encoding, Affine) and name in self._plan.group:
                    root = self._plan.find(name)
                    self._root[value] = root
                    self._members.setdefault(root, []).append(value)

    def root(self, value: Value) -> str | None:
        """Representative of the group of a value of either graph; None for what is no code."""
        return self._root.get(value)

    def read_by(self, node: Node) -> list[str]:
        """Open groups that a node reads, without that of its result."""
        own = {self.root(v) for v in node.outputs}
        roots = (self.root(v) for v in node.inputs if v is not None)
        return [r for r in dict.fromkeys(roots) if r is not None and r in self.open - own]

    def remember(self, node: Node, live: Live) -> None:
        """Keep what a node reads, if its result's encoding may still change."""
        for root in {self.root(v) for v in node.outputs} & self.open:
            assert root is not None
            operands = {v: live[v] for v in node.inputs if v is not None and not v.is_constant}
            self._made.setdefault(root, []).append((node, operands))

    def close(self, root: str, encoding: Affine | None, live: Live) -> None:
        """Settle a group's encoding; ``live`` gets the codes of a new one.

        Args:
            root: its representative.
            encoding: the new one, or None if it stays.
            live: what is known of the rebatched network's values.
        """
        self.open.discard(root)
        made = self._made.pop(root, [])
        if encoding is None:
            return
        for value in self._members[root]:
            value.type = value.type.with_(encoding=encoding)
        fresh: Live = {}
        for node, operands in made:
            known = {v: fresh.get(v, chunks) for v, chunks in operands.items()}
            count = max((len(c) for c in known.values()), default=1)
            with single_threaded_blas():
                runs = [run_node(node, {v: c[i] for v, c in known.items()}) for i in range(count)]
            for index, value in enumerate(node.outputs):
                fresh[value] = [run[index] for run in runs]
        live.update({v: chunks for v, chunks in fresh.items() if v in live})


def _pinned(graph: Graph, plan: Structure) -> set[str]:
    """Groups that hold a constant's codes too, which were made for one encoding."""
    out = set()
    for node in graph.nodes:
        moves = op_of(node).quantised is Quantised.SAME or node.op == "resize2d"
        if key(node) in plan.integer and moves and any(v.is_constant for v in activations(node)):
            out.add(plan.find(key(node)))
    return out


__all__ = ["Groups"]
