"""Draws of ops that move, repeat and select numbers."""

from __future__ import annotations

import numpy as np

from tests.fuzz.sketch import BOOL, FLOAT, INTS, NUMBERS, RARE, Sketch, Term, draw

_ALL = (*NUMBERS, BOOL, *RARE)
_WIDE = (1, 2, 3, 4, 5)
ANY_COMMON = (FLOAT, *INTS[2:], BOOL)


def _factors(s: Sketch, count: int) -> list[int]:
    """A random shape of ``count`` elements."""
    shape = []
    for _ in range(s.integer(0, 4)):
        divisors = [d for d in range(1, count + 1) if count % d == 0]
        shape.append(s.among(divisors))
        count //= shape[-1]
    return [*shape, count]


@draw(4)
def reshape(s: Sketch) -> None:
    x = s.pick(_ALL, (0, *_WIDE))
    shape = _factors(s, int(np.prod(x.shape)))
    if s.chance(0.4):
        shape[s.integer(0, len(shape) - 1)] = -1
    s.node("Reshape", [x, s.ints(shape)], exact=True)


@draw(1)
def flatten(s: Sketch) -> None:
    x = s.pick(_ALL, _WIDE)
    s.node("Flatten", [x], exact=True, axis=s.integer(-x.rank, x.rank))


@draw(4)
def transpose(s: Sketch) -> None:
    x = s.pick(_ALL, (2, 3, 4, 5))
    s.node("Transpose", [x], exact=True, perm=s.rng.permutation(x.rank).tolist())


@draw(2)
def squeeze(s: Sketch) -> None:
    x = s.pick(_ALL, _WIDE)
    turn = x.rank if s.opset >= 11 else 0  # axes are not negative before
    ones = [k - turn if s.chance(0.3) else k for k, n in enumerate(x.shape) if n == 1]
    op, axes = ("Squeeze", ones) if ones and s.chance(0.6) else ("Unsqueeze", [])
    if op == "Unsqueeze":
        if x.rank > 4:
            return
        axes = [s.integer(-x.rank - 1 if s.opset >= 11 else 0, x.rank)]
    if s.opset >= 13:
        s.node(op, [x, s.ints(axes)], exact=True)
    else:
        s.node(op, [x], exact=True, axes=axes)


@draw(3)
def concat(s: Sketch) -> None:
    x = s.pick(_ALL, _WIDE)
    axis = s.integer(-x.rank, x.rank - 1)
    terms = [x]
    for _ in range(s.integer(1, 2)):
        shape = list(x.shape)
        shape[axis] = s.integer(1, 4)
        like = [t for t in s.terms if t.dtype == x.dtype and _fits(t, x, axis)]
        if like and s.chance(0.6):
            terms.append(s.among(like))
        elif s.chance(0.3):
            terms.append(s.constant(s.array(x.dtype, tuple(shape))))
        else:
            terms.append(s.input(x.dtype, tuple(shape)))
    order = s.rng.permutation(len(terms))
    s.node("Concat", [terms[k] for k in order], exact=True, axis=axis)


def _fits(t: Term, x: Term, axis: int) -> bool:
    axis %= x.rank
    return t.rank == x.rank and all(
        a == b for k, (a, b) in enumerate(zip(t.shape, x.shape, strict=True)) if k != axis
    )


@draw(3)
def split(s: Sketch) -> None:
    x = s.pick(_ALL, _WIDE)
    axis = s.integer(-x.rank, x.rank - 1)
    size = x.shape[axis]
    if size < 2:
        return
    first = s.integer(1, size - 1)
    parts = [first, size - first]
    if s.opset >= 13:
        s.node("Split", [x, s.ints(parts)], outputs=2, exact=True, axis=axis)
    else:
        s.node("Split", [x], outputs=2, exact=True, axis=axis, split=parts)


@draw(4)
def slices(s: Sketch) -> None:
    x = s.pick(ANY_COMMON, _WIDE)
    axes = s.rng.permutation(x.rank)[: s.integer(1, x.rank)].tolist()
    starts, ends, steps = [], [], []
    for axis in axes:
        n = x.shape[axis]
        a, b = sorted((s.integer(0, n - 1), s.integer(0, n - 1)))
        step = s.integer(1, 3)
        if s.chance(0.3):
            starts.append(b)
            ends.append(a - 1 if a else -n - 1)
            step = -step
        else:
            starts.append(a - n if s.chance(0.3) else a)
            ends.append(s.among([b + 1, 2**31]))
        steps.append(step)
    axes = [a - x.rank if s.chance(0.2) else a for a in axes]
    s.node("Slice", [x, *map(s.ints, (starts, ends, axes, steps))], exact=True)


@draw(3)
def pad(s: Sketch) -> None:
    x = s.pick((FLOAT,) if s.opset < 13 else ANY_COMMON[:-1], _WIDE)
    mode = s.among(["constant", "constant", "reflect", "edge", "wrap"])
    if mode == "wrap" and s.opset < 19:
        mode = "edge"
    limits = x.shape if mode in ("wrap",) else [n - 1 for n in x.shape]
    if mode in ("constant", "edge"):
        limits = [2] * x.rank
    pads = [s.integer(0, min(2, n)) if s.chance(0.6) else 0 for n in [*limits, *limits]]
    value = s.constant(np.array(2, x.dtype)) if mode == "constant" and s.chance(0.5) else None
    s.node("Pad", [x, s.ints(pads), *([value] if value else [])], exact=True, mode=mode)


@draw(2)
def expand(s: Sketch) -> None:
    x = s.pick(ANY_COMMON, (0, 1, 2, 3, 4))
    shape = [s.integer(2, 4) if n == 1 else s.among([n, 1]) for n in x.shape]
    if s.chance(0.4):
        shape.insert(0, s.integer(1, 3))
    if shape:
        s.node("Expand", [x, s.ints(shape)], exact=True)


@draw(2)
def tile(s: Sketch) -> None:
    x = s.pick(ANY_COMMON, (1, 2, 3, 4))
    s.node("Tile", [x, s.ints([s.integer(1, 3) for _ in x.shape])], exact=True)


def _indices(s: Sketch, limit: int, shape: tuple[int, ...]) -> Term:
    """Indices below ``limit``, a constant or an input, negative ones among them."""
    values = np.asarray(s.rng.integers(-limit, limit, shape))
    if s.chance(0.6):
        return s.constant(values.astype(np.int64))
    term = s.input(np.dtype(np.int64), shape)
    s.terms.remove(term)  # other ops' indices have other limits
    s.feeds[term.name] = values.astype(np.int64)
    return term


@draw(3)
def gather(s: Sketch) -> None:
    x = s.pick(ANY_COMMON, (1, 2, 3, 4))
    axis = s.integer(-x.rank, x.rank - 1)
    shape = s.shape(s.integer(0, 2), 4)
    s.node("Gather", [x, _indices(s, x.shape[axis], shape)], exact=True, axis=axis)


@draw(2)
def gather_elements(s: Sketch) -> None:
    x = s.pick(ANY_COMMON, (1, 2, 3, 4))
    axis = s.integer(-x.rank, x.rank - 1)
    shape = tuple(s.integer(1, n) for n in x.shape)
    s.node("GatherElements", [x, _indices(s, x.shape[axis], shape)], exact=True, axis=axis)


@draw(1)
def gather_nd(s: Sketch) -> None:
    x = s.pick(ANY_COMMON, (2, 3, 4))
    depth = s.integer(1, x.rank)
    indices = _indices(s, min(x.shape[:depth]), (*s.shape(s.integer(1, 2), 3), depth))
    s.node("GatherND", [x, indices], exact=True)


@draw(2)
def scatter_elements(s: Sketch) -> None:
    x = s.pick((FLOAT, *INTS[2:]), (1, 2, 3))
    axis = s.integer(0, x.rank - 1)
    order = np.argsort(s.rng.random(x.shape), axis)  # distinct along the axis
    count = s.integer(1, x.shape[axis])
    indices = np.take(order, range(count), axis).astype(np.int64)
    updates = s.input(x.dtype, indices.shape)
    reduction = s.among(["none", "add", "mul", "max", "min"])
    if s.opset < 16 or (s.opset < 18 and reduction in ("max", "min")):
        reduction = "none"
    more = {} if reduction == "none" else {"reduction": reduction}
    exact, size = reduction in ("none", "max", "min"), x.size * 9
    s.node("ScatterElements", [x, s.constant(indices), updates], exact=exact, bound=size,
           axis=axis, **more)  # fmt: skip


@draw(1)
def scatter_nd(s: Sketch) -> None:
    x = s.pick((FLOAT, *INTS[2:]), (1, 2, 3))
    rows = s.rng.permutation(x.shape[0])[: s.integer(1, x.shape[0])]
    updates = s.input(x.dtype, (len(rows), *x.shape[1:]))
    s.node("ScatterND", [x, s.ints(rows[:, None]), updates], exact=True, bound=x.size + 9)


@draw(2)
def blocks(s: Sketch) -> None:
    size = 2
    if s.chance(0.5):
        x = s.pick((FLOAT,), shape=(s.integer(1, 2), 4 * s.integer(1, 3), *s.shape(2, 4)))
        mode = s.among(["DCR", "CRD"])
        s.node("DepthToSpace", [x], exact=True, blocksize=size, mode=mode)
    else:
        x = s.pick((FLOAT,), shape=(*s.shape(2, 3), 2 * s.integer(1, 3), 2 * s.integer(1, 3)))
        s.node("SpaceToDepth", [x], exact=True, blocksize=size)


@draw(1)
def triangle(s: Sketch) -> None:
    x = s.pick((FLOAT, *INTS[2:]), (2, 3, 4))
    k = [s.ints(s.integer(-2, 2))] if s.chance(0.6) else []
    s.node("Trilu", [x, *k], exact=True, upper=s.integer(0, 1))


@draw(1)
def one_hot(s: Sketch) -> None:
    depth = s.integer(2, 6)
    indices = _indices(s, depth, s.shape(s.integer(1, 2), 4))
    values = s.constant(np.array([0.5, 2], np.float32))
    axis = s.integer(-indices.rank - 1, indices.rank)
    s.node("OneHot", [indices, s.ints([depth]), values], exact=True, axis=axis)


@draw(1)
def identity_matrix(s: Sketch) -> None:
    s.node("EyeLike", [s.pick((FLOAT,), (2,))], exact=True, k=s.integer(-2, 2))


@draw(1)
def reverse_sequence(s: Sketch) -> None:
    x = s.pick((FLOAT,), (2, 3, 4))
    lengths = s.ints(s.rng.integers(1, x.shape[0] + 1, x.shape[1]))
    s.node("ReverseSequence", [x, lengths], exact=True, time_axis=0, batch_axis=1)


@draw(2)
def resize(s: Sketch) -> None:
    x = s.pick((FLOAT,), (3, 4))
    mode = s.among(["nearest", "linear", "cubic"])
    where = s.among(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
    if mode == "cubic" and x.rank != 4:
        mode = "linear"
    more, shape = {}, [s.integer(1, 9) for _ in x.shape[2:]]
    if mode == "nearest":
        # elsewhere, and of other factors, engines differ in how they round a position
        where, more = "asymmetric", {"nearest_mode": "floor"}
        shape = [n * s.integer(1, 3) for n in x.shape[2:]]
    sizes = s.ints([*x.shape[:2], *shape])
    empty = s.constant(np.zeros(0, np.float32))
    operands = [x, empty, empty, sizes] if s.opset < 13 else [x, None, None, sizes]
    s.node("Resize", operands, exact=mode == "nearest", mode=mode, bound=2 * x.size,
           coordinate_transformation_mode=where, **more)  # fmt: skip
