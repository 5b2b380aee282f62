"""What the tests of elementwise and movement ops share: operands, and checks of one op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlcc.ir import Affine
from dlcc.ir.encodings import DENSE, Encoding
from dlcc.ops import Interval, op_of
from tests.ops.tir_harness import Case, Operand, case

U8 = Affine.per_tensor(8, False, 0.05, 100)
S8 = Affine.per_tensor(8, True, 0.02, -3)
OUT = Affine.per_tensor(8, False, 0.07, 120)
NARROW = Affine.per_tensor(8, False, 1e-5, 120)
"""An output range far smaller than the operands': almost every result is clamped."""

SHAPE = (1, 5, 4, 6)


def real(*shape: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def operand(values: np.ndarray, encoding: Encoding = DENSE, layout: str = "") -> Operand:
    """An activation with these real values."""
    stored = encoding.quantise(values) if isinstance(encoding, Affine) else np.asarray(values)
    return Operand(stored, encoding, layout=layout if stored.ndim == 4 else "")


def dense(
    op: str, *arrays: np.ndarray, attrs: Mapping[str, Any] | None = None, **more: Any
) -> Case:
    """A case on values as they are."""
    return case(op, [operand(a) for a in arrays], attrs, **more)


def coded(
    op: str,
    shapes: Sequence[tuple[int, ...]],
    encodings: Sequence[Affine],
    out: Encoding,
    attrs: Mapping[str, Any] | None = None,
    layout: str = "",
) -> Case:
    """A case on random codes."""
    operands = [
        operand(real(*s, seed=k), e, layout)
        for k, (s, e) in enumerate(zip(shapes, encodings, strict=True))
    ]
    return case(op, operands, attrs, out=out, layout=layout)


def evaluate(checked: Case) -> list[np.ndarray]:
    """The reference on the case's stored arrays."""
    return op_of(checked.node).reference(checked.node, checked.arrays)


def assert_interval_holds(checked: Case) -> None:
    """The interval rule contains every number of the result."""
    operands = [None if a is None else Interval.of(np.asarray(a)) for a in checked.arrays]
    rules = op_of(checked.node).interval(checked.node, operands)
    for rule, result in zip(rules, evaluate(checked), strict=True):
        finite = result[np.isfinite(result)] if result.dtype.kind == "f" else result
        if finite.size:
            slack = 1e-5 * max(1.0, float(np.abs(finite).max()))
            assert rule.low - slack <= finite.min(), checked.name
            assert finite.max() <= rule.high + slack, checked.name
