"""Draws that compute in other types than float32: wide and narrow floats, and rare integers."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.fuzz.sketch import BRAIN, DOUBLE, FLOAT, HALF, RARE, Sketch, Term, Unfit, draw, is_real

_INTEGERS = tuple(t for t in RARE if t.kind in "iu")
_KINDS = {t: helper.np_dtype_to_tensor_dtype(t) for t in (FLOAT, DOUBLE, HALF, BRAIN, *_INTEGERS)}


_NUMBERWISE = ("Add", "Mul", "Max", "Where", "Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Softmax")
_MOVING = ("Transpose", "Concat", "ReduceMean", "ReduceMax", "LayerNormalization")
_PRODUCTS = ("MatMul", "Gemm", "Conv", "MaxPool", "AveragePool")


def _to(s: Sketch, x: Term, dtype: np.dtype) -> Term:  # type: ignore[type-arg]
    return s.node("Cast", [x], exact=True, to=_KINDS[dtype])[0]


def _step(s: Sketch, x: Term) -> Term:
    """One op on numbers of another type."""
    op = s.among(_NUMBERWISE + _MOVING + _PRODUCTS)
    if (x.rank != 3 and op in ("Conv", "MaxPool", "AveragePool")) or x.rank < 2:
        raise Unfit("no row of channels")
    made: list[Term]
    if op in ("Add", "Mul", "Max"):
        y = s.partner(x, small=9)
        made = s.node(op, [x, y], bound=x.size * 9, exact=op == "Max")
    elif op == "Softmax":
        made = s.node(op, [x], axis=-1, bound=1.0)
    elif op in ("MatMul", "Gemm"):
        k, n = x.shape[-1], s.integer(1, 6)
        w = s.constant((s.rng.standard_normal((k, n)) / np.sqrt(k)).astype(x.dtype))
        made = s.node(op, [x, w], bound=3 * x.size)
    elif op == "ReduceMean":
        axes = {"axes": [x.rank - 1]} if s.opset < 18 else {}
        made = s.node(op, [x, s.ints([-1])] if not axes else [x], keepdims=1, **axes)
    elif op == "ReduceMax":
        made = s.node(op, [x], exact=True, keepdims=s.integer(0, 1))
    elif op == "Transpose":
        made = s.node(op, [x], exact=True, perm=s.rng.permutation(x.rank).tolist())
    elif op == "Concat":
        made = s.node(op, [x, x], exact=True, axis=s.integer(0, x.rank - 1))
    elif op == "LayerNormalization":
        gain = s.constant(s.rng.uniform(0.5, 2, x.shape[-1:]).astype(x.dtype))
        made = s.node(op, [x, gain], epsilon=0.1, bound=8.0)
    elif op == "Where":
        keep = s.constant(s.rng.integers(0, 2, x.shape[-1:]).astype(np.bool_))
        made = s.node(op, [keep, x, s.partner(x, small=9)], exact=True, bound=x.size + 9)
    elif op == "Exp":
        y = s.node("Tanh", [x], bound=1.0)[0]
        made = s.node(op, [y], bound=3.0)
    elif op == "Conv":
        w = s.constant((s.rng.standard_normal((2, x.shape[1], 3)) / 3).astype(x.dtype))
        made = s.node(op, [x, w], pads=[1, 1], bound=4 * x.size)
    elif op.endswith("Pool"):
        made = s.node(op, [x], kernel_shape=[2] * (x.rank - 2), exact=op[0] == "M")
    else:
        made = s.node(op, [x], exact=op == "Relu")
    return made[0]


@draw(5)
def elsewhere(s: Sketch) -> None:
    """There, a few steps, and back: what an ONNX file in float16 does inside."""
    dtype = s.among([DOUBLE, HALF, HALF, BRAIN])
    x = s.pick(ranks=(2, 3), small=64)
    y = _to(s, x, dtype)
    if dtype in (HALF, BRAIN) and not x.exact:
        s.replace([y], max(y.error, 0.02 if dtype == HALF else 0.15))
        y = s.terms[-1]
    for _ in range(s.integer(1, 3)):
        y = _step(s, y)
    _to(s, y, FLOAT)


@draw(4)
def rare_integers(s: Sketch) -> None:
    """Arithmetic modulo 2^16, 2^32 or 2^64, comparisons and casts."""
    dtype = s.among(_INTEGERS)
    x = s.pick((dtype,), (0, 1, 2, 3))
    y = s.partner(x)
    op = s.among(["Add", "Sub", "Mul", "Max", "Less", "Equal", "BitwiseAnd", "Mod", "Cast"])
    if op == "Cast":
        _to(s, x, s.among([FLOAT, *_INTEGERS]))
        return
    if op == "Mod":
        values = s.array(dtype, x.shape)
        y = s.constant(np.where(values <= 0, 3, values).astype(dtype))
    s.node(op, [x, y], exact=True, bound=min(x.size * y.size, 1e5))


@draw(2)
def real(s: Sketch) -> None:
    """Numbers of another float type from the start."""
    dtype = s.among([DOUBLE, DOUBLE, HALF])
    x = s.pick((dtype,), (2, 3), small=99)
    assert is_real(x.dtype)
    _step(s, x)
