"""Placeholder while being written."""

from dlcc.ir import Graph


def fuse_qdq(graph: Graph) -> int:
    return 0
