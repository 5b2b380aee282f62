"""What elementwise ops share: numpy broadcasting in types and in TIR, fixed-point terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dlcc.ir import Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.ops.base import type_error


def present(x: Array | None) -> Array:
    """An operand that must be there."""
    assert x is not None
    return x


def broadcast_shape(node: Node, types: Sequence[TensorType]) -> tuple[int, ...]:
    """The shape that the operands broadcast to.

    Raises:
        DlccError: they do not.
    """
    try:
        return tuple(np.broadcast_shapes(*(t.shape for t in types)))
    except ValueError:
        raise type_error(node, "the shapes do not broadcast") from None


def broadcast_reader(read: Callable[..., Any], shape: Sequence[int]) -> Callable[..., Any]:
    """``read`` of an operand of ``shape``, by the indices of the broadcast result."""

    def at(*index: Any) -> Any:
        own = index[len(index) - len(shape) :]
        return read(*(i if size != 1 else 0 for i, size in zip(own, shape, strict=True)))

    return at


def same_dtype(node: Node) -> TensorType:
    """The type of the first operand, which all others must share in dtype.

    Raises:
        DlccError: the dtypes differ.
    """
    types = [v.type for v in node.inputs if v is not None]
    if len({t.dtype for t in types}) > 1:
        raise type_error(node, "the operands have different dtypes", "add a Cast")
    return types[0]


def clamped(values: Array, low: float, high: float) -> Array:
    """``values`` in [low, high], in their own dtype; infinite ends leave them alone."""
    if low == -np.inf and high == np.inf:
        return values
    if np.issubdtype(values.dtype, np.integer):
        info = np.iinfo(values.dtype)
        low, high = max(int(max(low, info.min)), info.min), int(min(high, info.max))
    return np.clip(values, values.dtype.type(low), values.dtype.type(high))
