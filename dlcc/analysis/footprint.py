"""Bytes that a graph needs at the least: its constants, and what lives at the same time."""

from __future__ import annotations

from dlcc.analysis.execute import last_uses
from dlcc.bounds import check_bytes
from dlcc.ir import Graph


def constant_bytes(graph: Graph) -> int:
    """Bytes of all constants as they are stored."""
    parts = (v.constant.parts.values() for v in graph.constants() if v.constant is not None)
    return sum(array.nbytes for held in parts for array in held)


def peak_bytes(graph: Graph) -> int:
    """The most bytes of inputs and intermediate values that are needed at the same time."""
    last = last_uses(graph)
    live = peak = sum(v.type.bytes for v in graph.inputs)
    for node in graph.nodes:
        live += sum(v.type.bytes for v in node.outputs)
        peak = max(peak, live)
        live -= sum(v.type.bytes for v in last.get(node, ()))
    return peak


def check_footprint(graph: Graph) -> None:
    """Refuse a graph that needs more memory than a compilation may ask for.

    Raises:
        DlccError: LIMIT, with the numbers.
    """
    check_bytes(constant_bytes(graph) + peak_bytes(graph), "the network", graph.name[:100])


__all__ = ["check_footprint", "constant_bytes", "peak_bytes"]
