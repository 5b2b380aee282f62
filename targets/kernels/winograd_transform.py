"""Winograd's minimal filtering F(m x m, 3 x 3): its matrices, and code that applies them.

Output tile ``Y = A^T [(G g G^T) * (B^T d B)] A`` of an input tile ``d`` of ``n = m + 2`` pixels a
side (Lavin and Gray 2016, section 4.1). The matrices come from the Cook-Toom construction over
``n - 1`` finite points and infinity. The points are 0 and pairs +-p, so that the rows of ``B^T``
(and the columns of ``A^T``) of a pair share their even and their odd part: half the operations.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from dlcc import tir

TAPS = 3
"""Kernel rows and columns."""

POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(1), Fraction(-1), Fraction(2), Fraction(-2)),
    6: (
        Fraction(0),
        *(Fraction(p) * s for p in (1, 2) for s in (1, -1)),
        *(Fraction(s, 2) for s in (1, -1)),
    ),
}
"""Finite interpolation points by output tile size."""

Matrix = tuple[tuple[Fraction, ...], ...]


def _from_roots(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients, lowest first, of the polynomial with these roots and leading coefficient 1."""
    made = [Fraction(1)]
    for root in roots:
        made = [
            a - root * b for a, b in zip([Fraction(0), *made], [*made, Fraction(0)], strict=True)
        ]
    return made


@cache
def matrices(m: int) -> tuple[Matrix, Matrix, Matrix]:
    """``A^T`` [m, n], ``G`` [n, 3] and ``B^T`` [n, n] of F(m, 3), exact."""
    points, n = POINTS[m], m + TAPS - 1
    a_t = [[p**i for p in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    g, b_t = [], []
    for j, p in enumerate(points):
        others = [q for k, q in enumerate(points) if k != j]
        norm = Fraction(1)
        for q in others:
            norm *= p - q
        g.append([p**i / norm for i in range(TAPS)])
        b_t.append([*_from_roots(others), Fraction(0)])
    g.append([Fraction(0)] * (TAPS - 1) + [Fraction(1)])
    b_t.append(_from_roots(list(points)))
    assert len(b_t) == n
    return tuple(map(tuple, a_t)), tuple(map(tuple, g)), tuple(map(tuple, b_t))


def transform_weights(weights: np.ndarray, m: int) -> np.ndarray:
    """``G g G^T`` of weights ``[oc, c, 3, 3]`` as ``[n * n, oc, c]`` f32.

    Computed in float64 in a fixed order, so that others can (dlcc.program.FilterTransform).
    """
    g = np.array(matrices(m)[1], dtype=np.float64)
    taps = np.ascontiguousarray(weights.transpose(2, 3, 0, 1), np.float64)
    made = np.empty((len(g), len(g), *weights.shape[:2]), np.float32)
    for i, left in enumerate(g):
        row = left[0] * taps[0] + left[1] * taps[1] + left[2] * taps[2]
        for j, right in enumerate(g):
            made[i, j] = row[0] * right[0] + row[1] * right[1] + row[2] * right[2]
    return made.reshape(-1, *weights.shape[:2])


def _combine(kb: tir.KernelBuilder, terms: list[tuple[Fraction, Any]]) -> Any:
    """The sum of coefficient times vector; products become fused multiply-adds."""
    terms = [(c, v) for c, v in terms if c != 0]
    if not terms:
        return None
    terms.sort(key=lambda term: (term[0] != 1, abs(term[0]) != 1))  # start without a product
    total = None
    for c, v in terms:
        if total is None:
            total = v if c == 1 else v * kb.const(float(c), "float32", tir.lanes_of(v))
        elif abs(c) == 1:
            total = total + v if c == 1 else total - v
        else:
            total = total + v * kb.const(float(c), "float32", tir.lanes_of(v))
    return kb.let(total, "t")


def _pairs(m: int) -> dict[int, int]:
    """Index of each point p > 0, with that of -p."""
    points = POINTS[m]
    return {j: points.index(-p) for j, p in enumerate(points) if p > 0}


def apply_b(kb: tir.KernelBuilder, m: int, values: list[Any]) -> list[Any]:
    """``B^T values`` for n vectors."""
    b_t, pairs = matrices(m)[2], _pairs(m)
    made: list[Any] = [None] * len(b_t)
    for j, other in pairs.items():
        terms = list(zip(b_t[j], values, strict=True))
        even, odd = _combine(kb, terms[::2]), _combine(kb, terms[1::2])
        made[j], made[other] = kb.let(even + odd, "t"), kb.let(even - odd, "t")
    for j in (0, len(b_t) - 1):
        made[j] = _combine(kb, list(zip(b_t[j], values, strict=True)))
    return made


def apply_a(kb: tir.KernelBuilder, m: int, values: list[Any]) -> list[Any]:
    """``A^T values``: m vectors from n."""
    a_t = matrices(m)[0]
    sums = {}
    for j, other in _pairs(m).items():
        plus, minus = values[j], values[other]
        sums[j] = (kb.let(plus + minus, "s"), kb.let(plus - minus, "d"))
    made = []
    for i, row in enumerate(a_t):
        terms = [(row[j], pair[i % 2]) for j, pair in sums.items()]
        terms += [(row[j], values[j]) for j in (0, len(values) - 1)]
        made.append(_combine(kb, terms))
    return made


def apply_2d(kb: tir.KernelBuilder, m: int, one: Any, tile: list[list[Any]]) -> list[list[Any]]:
    """``one`` (:func:`apply_b` or :func:`apply_a`) over the rows and then the columns of a tile."""
    rows = [one(kb, m, row) for row in tile]
    cols = [one(kb, m, list(col)) for col in zip(*rows, strict=True)]
    return [list(row) for row in zip(*cols, strict=True)]
