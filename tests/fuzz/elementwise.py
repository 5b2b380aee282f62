"""Draws of ops that work number by number, of reductions, casts and choices."""

from __future__ import annotations

import numpy as np
from onnx import helper

from tests.fuzz.sketch import BOOL, FLOAT, INTS, NUMBERS, Sketch, Term, draw

_INNER = (1, 2, 3, 4)
_WIDE = (0, 1, 2, 3, 4, 5)


def clipped(s: Sketch, x: Term, low: float, high: float) -> Term:
    """``x`` within the bounds."""
    bounds = [s.constant(np.float32(b)) for b in (low, high)]
    return s.node("Clip", [x, *bounds], exact=True, bound=max(-low, high))[0]


def positive(s: Sketch, x: Term) -> Term:
    """``x`` well above 0: its logarithm, root and reciprocal are well conditioned."""
    y = s.node("Abs", [x], exact=True)[0]
    return s.node("Add", [y, s.constant(np.float32(0.5))], exact=True, bound=x.size + 0.5)[0]


@draw(3)
def bounded(s: Sketch) -> None:
    """Smooth functions with a slope of about 1 at most."""
    ops = [
        "Sigmoid",
        "Tanh",
        "Erf",
        "Sin",
        "Cos",
        "Atan",
        "Asinh",
        "Softplus",
        "Softsign",
        "Mish",
        "HardSwish",
        "Gelu",
        "Selu",
    ]
    op = s.among(ops)
    more = {"approximate": s.among(["none", "tanh"])} if op == "Gelu" else {}
    s.node(op, [s.pick(ranks=_WIDE, small=1e4)], **more)


@draw(2)
def shaped(s: Sketch) -> None:
    """Functions with parameters."""
    op = s.among(["Elu", "Celu", "LeakyRelu", "HardSigmoid"])
    alpha = s.among([0.125, 0.3, 0.5, 1.5])
    more = {"beta": 0.4} if op == "HardSigmoid" else {}
    x = s.pick(ranks=_WIDE)
    s.node(op, [x], alpha=alpha, **more)


@draw(2)
def limited(s: Sketch) -> None:
    """Functions that are computed on a part of the real numbers."""
    op = s.among(
        [
            "Exp",
            "Sinh",
            "Cosh",
            "Asin",
            "Acos",
            "Atanh",
            "Acosh",
            "Log",
            "Sqrt",
            "Reciprocal",
            "Tan",
        ]
    )
    x = s.pick(ranks=_WIDE, small=1e4)
    if op in ("Log", "Sqrt", "Reciprocal"):
        s.node(op, [positive(s, x)])
        return
    low, high = {
        "Exp": (-6.0, 3.0), "Sinh": (-3.0, 3.0), "Cosh": (-3.0, 3.0), "Tan": (-1.0, 1.0),
        "Acosh": (1.5, 9.0),
    }.get(op, (-0.75, 0.75))  # fmt: skip
    s.node(op, [clipped(s, x, low, high)], bound=21.0)


@draw(2)
def plain(s: Sketch) -> None:
    op = s.among(["Relu", "Abs", "Neg", "Identity"])
    dtypes = (FLOAT,) if op == "Relu" and s.opset < 14 else NUMBERS
    if op != "Identity":
        dtypes = tuple(d for d in dtypes if d.kind != "u" or op == "Abs")
    s.node(op, [s.pick(dtypes, _WIDE)], exact=True)


@draw(2)
def jumps(s: Sketch) -> None:
    """Functions that are not continuous."""
    op = s.among(["Floor", "Ceil", "Round", "Sign", "ThresholdedRelu", "Shrink", "IsNaN", "IsInf"])
    more = {}
    if op == "ThresholdedRelu":
        more = {"alpha": 0.75}
    if op == "Shrink":
        more = {"lambd": 0.75, "bias": s.among([0.0, 0.25])}
    s.node(op, [s.pick(ranks=_WIDE, exact=True)], exact=True, **more)


@draw(2)
def clip(s: Sketch) -> None:
    x = s.pick(NUMBERS if s.opset >= 13 else (FLOAT,), _WIDE)
    low, high = (s.constant(np.array(v, x.dtype)) for v in (1, 5))
    s.node("Clip", [x, low if s.chance(0.7) else None, high if s.chance(0.7) else None], exact=True)


@draw(2)
def slope(s: Sketch) -> None:
    x = s.pick(ranks=_INNER)
    shape = tuple(n if s.chance(0.6) else 1 for n in x.shape)
    slope = s.constant(s.array(FLOAT, shape) / 8)
    s.node("PRelu", [x, slope])


@draw(8)
def arithmetic(s: Sketch) -> None:
    op = s.among(["Add", "Sub", "Mul"])
    x = s.pick(NUMBERS if s.opset >= 14 else (FLOAT, *INTS[2:]), _WIDE)
    y = s.partner(x)
    size = x.size * y.size if op == "Mul" else x.size + y.size
    # products of exact numbers need twice the bits: after a few they are rounded
    exact = x.dtype.kind != "f" or op != "Mul"
    s.node(op, s.among([[x, y], [y, x]]), exact=exact, bound=_wrapped(x, size))


def _wrapped(x: Term, size: float) -> float:
    """Integers wrap modulo 2^n everywhere alike."""
    return size if x.dtype.kind == "f" else min(size, 1e5)


@draw(2)
def quotient(s: Sketch) -> None:
    x = s.pick((FLOAT, *INTS[2:]), _WIDE)
    if x.dtype.kind == "f":
        s.node("Div", [x, positive(s, s.partner(x))], bound=2 * x.size)
        return
    values = s.array(x.dtype, x.shape)
    s.node("Div", [x, s.constant(np.where(values == 0, 3, values).astype(x.dtype))], exact=True)


@draw(1)
def power(s: Sketch) -> None:
    x = s.pick(ranks=_WIDE, small=60)
    if s.chance(0.5):
        s.node("Pow", [x, s.constant(np.float32(s.among([2, 3])))], bound=x.size**3)
        return
    exponent = s.constant(np.float32(s.among([0.5, -1.0, 1.7])))
    s.node("Pow", [positive(s, x), exponent], bound=x.size**2)


@draw(1)
def remainder(s: Sketch) -> None:
    x = s.pick((FLOAT, *INTS[2:]), _WIDE, exact=True)
    values = np.abs(s.array(x.dtype, x.shape)) + np.array(1, x.dtype)
    real = x.dtype.kind == "f"
    s.node("Mod", [x, s.constant(values.astype(x.dtype))], exact=True, fmod=int(real))


@draw(3)
def several(s: Sketch) -> None:
    op = s.among(["Max", "Min", "Sum", "Mean"])
    dtypes = (FLOAT, *INTS[2:]) if op in ("Max", "Min") and s.opset >= 12 else (FLOAT,)
    x = s.pick(dtypes, _WIDE)
    terms = [x, *(s.partner(x) for _ in range(s.integer(0, 2)))]
    exact = op in ("Max", "Min")
    s.node(op, terms, exact=exact, bound=sum(t.size for t in terms))


@draw(3)
def comparison(s: Sketch) -> None:
    op = s.among(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
    x = s.pick((FLOAT, *INTS[2:]), _WIDE, exact=True)
    s.node(op, [x, s.partner(x, exact=True)], exact=True)


@draw(2)
def logic(s: Sketch) -> None:
    x = s.pick((BOOL,), _WIDE)
    op = s.among(["And", "Or", "Xor", "Not"])
    s.node(op, [x] if op == "Not" else [x, s.partner(x)], exact=True)


@draw(1)
def bits(s: Sketch) -> None:
    x = s.pick(INTS, _WIDE)
    op = s.among(["BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"])
    s.node(op, [x] if op == "BitwiseNot" else [x, s.partner(x)], exact=True)


@draw(1)
def shift(s: Sketch) -> None:
    x = s.pick((np.dtype(np.uint8),), _WIDE)
    amount = s.constant(s.rng.integers(0, 8, x.shape).astype(np.uint8))
    s.node("BitShift", [x, amount], exact=True, direction=s.among(["LEFT", "RIGHT"]))


@draw(3)
def choice(s: Sketch) -> None:
    x = s.pick((FLOAT, *INTS[2:], BOOL), _WIDE)
    condition = s.pick((BOOL,), shape=x.shape) if s.chance(0.5) else s.pick((BOOL,), (0, 1))
    y = s.partner(x)
    s.node("Where", [condition, x, y], exact=True, bound=max(x.size, y.size))


@draw(3)
def cast(s: Sketch) -> None:
    to = s.among([FLOAT, *INTS, BOOL])
    x = s.pick((*NUMBERS, BOOL), _WIDE, exact=to != FLOAT, small=100.0)
    if x.dtype.kind == "f" and to.kind == "u":  # negative ones are undefined behaviour
        x = s.node("Abs", [x], exact=True)[0]
    s.node("Cast", [x], exact=True, to=helper.np_dtype_to_tensor_dtype(to))


_REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp", "LogSum"]


@draw(5)
def reduction(s: Sketch) -> None:
    kind = s.among(_REDUCTIONS)
    op = f"Reduce{kind}"
    dtypes = (FLOAT, *INTS[2:]) if kind in ("Sum", "Max", "Min", "Prod") else (FLOAT,)
    x = s.pick(dtypes, _INNER, small={"Prod": 9, "SumSquare": 500}.get(kind, 1e4))
    if kind == "LogSum":
        x = positive(s, x)
    if kind == "Prod":
        x = s.pick(dtypes, (1, 2), small=9)
        if x.shape[-1] > 4:
            return
    axes = sorted(s.rng.permutation(x.rank)[: s.integer(1, x.rank)].tolist())
    axes = [a - x.rank if s.chance(0.3) else a for a in axes]
    count = np.prod([x.shape[a] for a in axes])
    size = x.size**2 * count if kind in ("SumSquare", "Prod") else x.size * count
    operands: list[Term | None] = [x]
    more = {"keepdims": s.integer(0, 1)}
    if s.chance(0.15):
        pass  # all axes
    elif s.opset >= (13 if kind == "Sum" else 18):
        operands.append(s.ints(axes))
    else:
        more["axes"] = axes
    exact = kind in ("Max", "Min") or x.dtype.kind != "f"
    s.node(op, operands, exact=exact, bound=_wrapped(x, float(size)), **more)


@draw(2)
def position(s: Sketch) -> None:
    x = s.pick((FLOAT, *INTS[2:]), _INNER, exact=True)
    more = {"select_last_index": s.integer(0, 1)} if s.opset >= 12 else {}
    axis = s.integer(-x.rank, x.rank - 1)
    op = s.among(["ArgMax", "ArgMin"])
    result = s.node(op, [x], exact=True, bound=9.0, axis=axis, keepdims=s.integer(0, 1), **more)
    assert result


@draw(1)
def running_sum(s: Sketch) -> None:
    x = s.pick((FLOAT, *INTS[2:]), _INNER)
    axis = s.ints(s.integer(-x.rank, x.rank - 1))
    more = {"exclusive": s.integer(0, 1), "reverse": s.integer(0, 1)}
    exact = x.dtype.kind != "f"
    s.node("CumSum", [x, axis], exact=exact, bound=_wrapped(x, x.size * 7), **more)


@draw(1)
def largest(s: Sketch) -> None:
    x = s.pick((FLOAT, *INTS[2:]), _INNER, exact=True)
    axis = s.integer(-x.rank, x.rank - 1)
    k = s.ints([s.integer(1, x.shape[axis])])
    s.node("TopK", [x, k], outputs=2, exact=True, axis=axis, largest=s.integer(0, 1), sorted=1)
