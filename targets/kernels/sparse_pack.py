"""Sparse weights as the kernels that skip zeros read them.

A weight is a matrix [outputs, columns] whose columns are places of the input: kernel rows and
columns outside, input channels inside. A *block row* is ``rows`` outputs side by side; what a
kernel multiplies at a time is an *entry* of it: ``rows`` x ``depth`` weights and the place of their
columns. Only entries with a weight other than 0 are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np

from targets.kernels.spec import ConvSpec


@dataclass(frozen=True)
class Entries:
    """The stored entries of a matrix, block row by block row.

    Attributes:
        values: ``[entries, rows, depth]``, zeros where a block row or the columns end early.
        columns: int64 ``[entries, pieces]``, first column of each piece; a piece is ``depth /
            pieces`` columns side by side.
        counts: int64 ``[block rows]``, entries of each.
    """

    values: np.ndarray
    columns: np.ndarray
    counts: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """First entry of each block row, and the end of the last."""
        return np.concatenate([[0], np.cumsum(self.counts)])


def weight_matrix(weights: np.ndarray) -> np.ndarray:
    """Weights ``[oc, c, kh, kw]`` as ``[oc, kh * kw * c]``."""
    return np.ascontiguousarray(weights.transpose(0, 2, 3, 1)).reshape(weights.shape[0], -1)


def column_places(spec: ConvSpec, width: int) -> np.ndarray:
    """Element of the padded NHWC image that each column reads, from that of column 0.

    ``width``: pixels of a row of the image, with padding.
    """
    row, tap, channel = np.meshgrid(
        np.arange(spec.kh) * spec.dilation[0] * width,
        np.arange(spec.kw) * spec.dilation[1],
        np.arange(spec.c),
        indexing="ij",
    )
    return np.asarray((row + tap) * spec.c + channel).reshape(-1)


def _block_rows(matrix: np.ndarray, rows: int, depth: int) -> np.ndarray:
    """``[block rows, rows, columns]``, filled up with zeros."""
    n, k = matrix.shape
    full = matrix
    if n % rows or k % depth:
        full = np.zeros((ceil(n / rows) * rows, ceil(k / depth) * depth), matrix.dtype)
        full[:n, :k] = matrix
    return full.reshape(full.shape[0] // rows, rows, full.shape[1])


def entry_counts(matrix: np.ndarray, rows: int, depth: int, pieces: int = 1) -> np.ndarray:
    """Entries of each block row, int64: what :func:`find_entries` would store."""
    tiles = _block_rows(matrix, rows, depth)
    occupied = tiles.any(axis=1).reshape(tiles.shape[0], -1, depth // pieces).any(axis=2)
    return np.asarray(-(-occupied.sum(axis=1, dtype=np.int64) // pieces))


def find_entries(matrix: np.ndarray, rows: int, depth: int, pieces: int = 1) -> Entries:
    """The entries of ``matrix`` [outputs, columns].

    Args:
        matrix: the weights.
        rows: outputs of a block row.
        depth: columns of an entry.
        pieces: into how many pieces, each with a place of its own, the columns are cut.
    """
    tiles = _block_rows(matrix, rows, depth)
    groups, width = tiles.shape[0], depth // pieces
    split = tiles.reshape(groups, rows, -1, width)
    group, place = np.nonzero(split.any(axis=(1, 3)))
    found = np.bincount(group, minlength=groups).astype(np.int64)
    counts = -(-found // pieces)
    rank = np.arange(group.size) - np.concatenate([[0], np.cumsum(found)])[group]
    entry = np.concatenate([[0], np.cumsum(counts)])[group] + rank // pieces
    values = np.zeros((int(counts.sum()), rows, pieces, width), matrix.dtype)
    columns = np.zeros((int(counts.sum()), pieces), np.int64)
    values[entry, :, rank % pieces] = split[group, :, place]
    columns[entry, rank % pieces] = place * width
    return Entries(values.reshape(-1, rows, depth), columns, counts)


def index_dtype(largest: int) -> str:
    """The narrowest dtype of an index up to ``largest``."""
    return "uint16" if largest < 1 << 16 else "int32"
