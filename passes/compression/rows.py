"""Inputs of a layer as rows: every output of a layer is a row of inputs times its weights."""

from __future__ import annotations

import numpy as np

from dlcc.ir import Node
from dlcc.ir.encodings import Array
from dlcc.ops.base import op_of
from dlcc.ops.conv import window_of
from dlcc.ops.windows import Window


def sampled(total: int, wanted: int, rng: np.random.Generator) -> Array:
    """``wanted`` different indices below ``total``, rising; all of them where there are few."""
    if total <= wanted:
        return np.arange(total)
    return np.sort(rng.choice(total, wanted, False))


def conv_rows(padded: Array, window: Window, groups: int, chosen: Array) -> Array:
    """Input patches [groups, rows, K] of a convolution.

    Args:
        padded: its padded input [N, C, H, W].
        window: its geometry.
        groups: channel groups.
        chosen: indices of outputs, counted over N, OH and OW.
    """
    view = window.view(padded).transpose(0, 4, 5, 1, 2, 3)
    _, oh, ow = view.shape[:3]
    image, rest = np.divmod(chosen, oh * ow)
    row, column = np.divmod(rest, ow)
    rows = view[image, row, column].reshape(len(chosen), groups, -1)
    return np.ascontiguousarray(rows.transpose(1, 0, 2))


def input_rows(node: Node, x: Array, chosen: Array) -> Array:
    """Inputs [groups, rows, K] of chosen outputs of a conv2d or linear node, K as in its weight.

    Args:
        node: the layer.
        x: real values of its input, of any batch size.
        chosen: indices of outputs, counted over all axes but the channels'.
    """
    if node.op == "linear":
        return np.asarray(x.reshape(-1, x.shape[-1])[chosen][None])
    window = window_of(node)
    return conv_rows(window.pad(x, 0), window, groups_of(node), chosen)


def output_rows(node: Node, y: Array, chosen: Array) -> Array:
    """Results [groups, rows, O / groups] of the same outputs."""
    moved = y if node.op == "linear" else np.moveaxis(y, 1, -1)
    rows = moved.reshape(-1, moved.shape[-1])[chosen]
    return np.asarray(rows.reshape(len(rows), groups_of(node), -1).transpose(1, 0, 2))


def groups_of(node: Node) -> int:
    """Channel groups of a layer, 1 for linear."""
    return 1 if node.op == "linear" else int(op_of(node).get(node, "groups"))


def row_count(node: Node, y: Array) -> int:
    """Number of outputs per channel in a result ``y`` of a layer."""
    return int(y.size // y.shape[-1 if node.op == "linear" else 1])


def input_energy(node: Node, x: Array) -> Array:
    """Sum of squares of what each weight of a layer is multiplied by, float64, in its shape.

    In a transposed convolution every weight of an input channel gets that channel's sum.

    Args:
        node: conv2d, conv_transpose2d or linear.
        x: real values of its input.
    """
    shape = node.input(1).type.shape
    if node.op == "linear":
        energy = np.square(x.reshape(-1, x.shape[-1])).sum(axis=0, dtype=np.float64)
        return np.broadcast_to(energy, shape)
    if node.op == "conv_transpose2d":
        energy = np.square(x).sum(axis=(0, 2, 3), dtype=np.float64)
        return np.broadcast_to(energy[:, None, None, None], shape)
    window, groups = window_of(node), groups_of(node)
    squares = np.square(window.pad(x, 0))
    taps = np.empty((x.shape[1], *window.kernel))
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            taps[:, i, j] = window.tap(squares, i, j).sum(axis=(0, 2, 3), dtype=np.float64)
    per_group = taps.reshape(groups, *shape[1:])
    return np.repeat(per_group, shape[0] // groups, axis=0)


__all__ = [
    "conv_rows",
    "groups_of",
    "input_energy",
    "input_rows",
    "output_rows",
    "row_count",
    "sampled",
]
