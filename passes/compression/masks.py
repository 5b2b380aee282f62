"""Which weights are kept: patterns fitted to a layer, units of elements, and the best of them.

A *unit* is what is kept or dropped as a whole: an element, or a block. Units compete within a
*group*: all of the layer, an output row, a share of rows, or M neighbours. The score of a unit is
the sum of its elements' saliencies, which must therefore be additive (squares, not magnitudes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Sparse
from dlcc.ir.encodings import Array

Facts = Mapping[str, int | float | bool | str]
"""Facts of the target: ``sparse_rows`` and ``sparse_columns`` are the block its kernels like."""

ROWS, COLUMNS = 16, 4
"""Block for a target that states none: the lanes of a vector, the bytes of a dot product."""

_GIVEN = re.compile(r"unstructured|block|balanced|\d+:\d+|block\d+x\d+|balanced\d+")


def check_pattern(pattern: str, where: str) -> None:
    """Check the text of a pattern.

    Raises:
        DlccError: USAGE, if there is no such pattern.
    """
    try:
        if not _GIVEN.fullmatch(pattern):
            raise ValueError("it is none of these")
        if pattern not in ("block", "balanced"):
            Sparse(pattern)
    except ValueError as error:
        raise DlccError(
            ExitCode.USAGE,
            f"option pattern={pattern} is not valid",
            where=where,
            why=str(error),
            fix="write unstructured, N:M (2:4), block, blockRxC (block16x4), balanced or "
            "balancedR (balanced8)",
        ) from None


def fitted_pattern(pattern: str, shape: tuple[int, ...], facts: Facts) -> str:
    """The pattern of one layer: ``block`` and ``balanced`` get the sizes that suit the target.

    Args:
        pattern: as :func:`check_pattern` takes it.
        shape: of the weight.
        facts: of the target.
    """
    rows, lanes = shape[0], int(facts.get("sparse_rows", ROWS))
    if pattern == "balanced":
        return f"balanced{math.gcd(rows, lanes)}"
    if pattern == "block":
        columns = int(facts.get("sparse_columns", COLUMNS))
        return f"block{min(rows, lanes)}x{math.gcd(shape[1] if len(shape) > 1 else 1, columns)}"
    return pattern


@dataclass(frozen=True)
class Units:
    """The units of one layer, in groups.

    Attributes:
        pattern: of the encoding.
        shape: of the weight.
        places: int [groups, units, elements]: logical flat indices, -1 outside the weight.
    """

    pattern: str
    shape: tuple[int, ...]
    places: Array

    @staticmethod
    def of(pattern: str, shape: tuple[int, ...], *, per_row: bool = False) -> Units:
        """The units of a weight.

        Args:
            pattern: of the encoding, see :class:`dlcc.ir.Sparse`.
            shape: of the weight.
            per_row: units compete within their row (of blocks) only.

        Raises:
            ValueError: the pattern does not fit the shape.
        """
        sparse = Sparse(pattern)
        flat = sparse.units(shape)
        if sparse.nm is not None:
            return Units(pattern, shape, flat[:, :, None])
        rows = shape[0]
        if sparse.share is not None:
            groups = rows // sparse.share
        elif per_row:
            groups = rows if sparse.block is None else -(-rows // sparse.block[0])
        else:
            groups = 1
        return Units(pattern, shape, flat.reshape(groups, -1, flat.shape[1]))

    @property
    def count(self) -> int:
        """Number of units."""
        return int(self.places.shape[0] * self.places.shape[1])

    @property
    def fixed(self) -> int | None:
        """Units that are kept where the pattern says it (N of every M)."""
        nm = Sparse(self.pattern).nm
        return None if nm is None else nm[0] * int(self.places.shape[0])

    @property
    def columns(self) -> Array:
        """Columns of the units of one row, int [units, columns]; -1 beyond the last.

        Columns are counted in the order of the weight's own axes.
        """
        block = Sparse(self.pattern).block
        depth = math.prod(self.shape[1:])
        if block is None:
            return np.arange(depth)[:, None]
        first = self.places.reshape(-1, self.places.shape[2])[: -(-depth // block[1]), : block[1]]
        return np.asarray(np.where(first >= 0, first % depth, -1))

    def scores(self, saliency: Array) -> Array:
        """Sums of the saliencies of the elements, float64 [groups, units]."""
        flat = saliency.reshape(-1).astype(np.float64)
        return np.asarray(np.where(self.places >= 0, flat[self.places], 0.0).sum(axis=2))

    def sizes(self) -> Array:
        """Elements of each unit that lie inside the weight, int [groups, units]."""
        return np.asarray((self.places >= 0).sum(axis=2))

    def kept(self, scores: Array, keep: int) -> Array:
        """Mask in the weight's shape: the ``keep`` best units, as many of each group.

        Every group keeps at least one; of equals the first.
        """
        groups, units = scores.shape
        each = min(units, max(1, round(keep / groups)))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :each]
        chosen = np.take_along_axis(self.places, order[:, :, None], axis=1).reshape(-1)
        mask = np.zeros(math.prod(self.shape), np.bool_)
        mask[chosen[chosen >= 0]] = True
        return mask.reshape(self.shape)


__all__ = ["Facts", "Units", "check_pattern", "fitted_pattern"]
