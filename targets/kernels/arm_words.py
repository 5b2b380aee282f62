"""ARM's products of single words of four codes, for kernels that jump from word to word.

A vector holds four weights of each of four outputs; a word of the input is in every lane. sdot and
smull multiply signed numbers, so codes become ``code - 128`` (:attr:`Unit.code_offset`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dlcc import tir
from targets.kernels.gemm import Unit

KINDS = frozenset({"smull", "sdot", "usdot"})
"""Units that take single words (:func:`~targets.kernels.gemm.word_unit`)."""

_SIGN_BITS = 0x80808080 - (1 << 32)
"""Flips four codes to ``code - 128``."""

_WORST = -128
"""Where two of these are neighbours, sums of two products by smull do not fit 16 bits."""

LATENCY = 4.0
"""Cycles that a sum waits for itself."""


def proven(unit: Unit, weights: np.ndarray) -> Unit:
    """``unit`` with no sums in 16 bits (``sums`` 1) where these weights do not allow them."""
    careful = unit.kind == "smull" and bool((weights == _WORST).any())
    return replace(unit, sums=1) if careful else unit


def as_factor(kb: tir.KernelBuilder, unit: Unit, word: Any) -> Any:
    """A word of codes, int32, or a vector of them, as the unit multiplies it."""
    if not unit.code_offset:
        return word
    return tir.tirx.bitwise_xor(word, kb.const(_SIGN_BITS, "int32", tir.lanes_of(word)))


def multiply_add(kb: tir.KernelBuilder, unit: Unit, acc: Any, a: Any, b: Any) -> Any:
    """``acc`` (int32x4) + the products of a word in every lane and four weights of each output."""
    if unit.kind != "smull":
        return tir.neon.dot(acc, a, b) if unit.kind == "usdot" else tir.neon.dot(acc, b, a)
    factors = (kb.let(a, "a"), kb.let(b, "b"))
    halves = [
        kb.let(tir.neon.multiply_long(*(tir.neon.half(v, side) for v in factors)), "products")
        for side in range(2)
    ]
    if unit.sums == 1:
        none = kb.const(0, "int32", unit.lanes)
        return acc + tir.neon.add_pairs(*(tir.neon.accumulate_pairs(none, h) for h in halves))
    return tir.neon.accumulate_pairs(acc, tir.neon.add_pairs(*halves))


def step_cycles(unit: Unit, m: int, nr: int) -> float:
    """Cycles of one step of ``m`` pixels and ``nr`` channel blocks on two vector pipes."""
    each = (6 if unit.sums == 1 else 4) if unit.kind == "smull" else 1
    return 0.5 * (each * m * nr + (1 + (unit.code_offset > 0)) * m + nr)
