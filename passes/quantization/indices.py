"""Integer inputs of a network without data: what range its graph leaves them.

Token numbers index tables of embeddings, bytes are compared with a range of numbers, masks become
bits or factors. An input is followed through moves and integer casts to what reads it; several
readers leave the smallest range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlcc.ir import BOOL, Node, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import Quantised, op_of

_COMPARING = ("equal", "less", "less_equal", "greater", "greater_equal")
_INDEXING = {"gather": "axis", "gather_elements": "axis"}
_BYTE = 8
"""Bits of types of which all numbers are drawn where nothing else is known."""


@dataclass(frozen=True)
class IntegerRange:
    """What an integer input may be.

    Attributes:
        low: smallest number.
        high: largest.
        why: what says so, as a phrase.
        mask: ones and then zeros along the last axis.
    """

    low: int
    high: int
    why: str
    mask: bool = False

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        """Numbers of this range, int64; of a mask at least the first of each row is 1."""
        if not self.mask or not shape:
            return np.asarray(rng.integers(self.low, self.high, shape, endpoint=True))
        lengths = rng.integers(1, shape[-1], (*shape[:-1], 1), endpoint=True)
        return np.asarray(np.arange(shape[-1]) < lengths, np.int64)


def integer_range(value: Value) -> IntegerRange:
    """The numbers that an integer input is drawn from."""
    found = [r for node, slot in _readers(value) if (r := _read(node, slot)) is not None]
    sure = [r for r in found if not r.mask]
    if sure:
        low, high = max(r.low for r in sure), min(r.high for r in sure)
        narrow = min(sure, key=lambda r: r.high - r.low)
        return narrow if low > high else IntegerRange(low, high, narrow.why)
    if value.type.dtype.bits <= _BYTE:
        limits = np.iinfo(value.type.storage.numpy)
        return IntegerRange(int(limits.min), int(limits.max), "all that its type holds")
    if found:
        return found[0]
    return IntegerRange(0, 0, "nothing in the graph tells its range")


def _readers(value: Value) -> list[tuple[Node, int]]:
    """What reads an integer, through moves and integer casts: nodes and operands."""
    out, seen, ahead = [], {value}, [value]
    while ahead:
        for node, slot in ahead.pop().uses:
            passes = op_of(node).quantised is Quantised.SAME and slot == 0
            passes |= node.op == "where" and slot > 0
            passes |= node.op == "cast" and not _is_bit_or_real(node.output)
            passes &= node.op not in _INDEXING or slot == 0
            if not passes:
                out.append((node, slot))
                continue
            more = [v for v in node.outputs if v not in seen]
            seen.update(more)
            ahead += more
    return out


def _is_bit_or_real(value: Value) -> bool:
    return value.type.dtype == BOOL or value.type.dtype.is_float


def _read(node: Node, slot: int) -> IntegerRange | None:
    """What one reader says of a number."""
    if node.op in _INDEXING and slot == 1:
        data = node.input(0).type.shape
        rows = data[int(op_of(node).get(node, _INDEXING[node.op]))]
        return IntegerRange(0, max(0, rows - 1), f"it indexes {rows} rows")
    if node.op == "one_hot" and slot == 0:
        depth = int(op_of(node).get(node, "depth"))
        return IntegerRange(0, max(0, depth - 1), f"a one-hot code of {depth}")
    other = node.optional_input(1 - slot) if node.op in _COMPARING else None
    if other is not None and other.is_constant and other.type.elements > 1:
        numbers = other.decoded()
        low, high = int(numbers.min()), int(numbers.max())
        return IntegerRange(low, high, f"it is compared with {low} to {high}")
    if node.op == "cast":
        return IntegerRange(0, 1, "it becomes bits or factors, as a mask does", mask=True)
    return None


__all__ = ["IntegerRange", "integer_range"]
