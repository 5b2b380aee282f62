"""Draws of layers: convolutions, pools, products, norms, recurrent and quantised ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.sketch import FLOAT, Sketch, Term, Unfit, draw


def _image(s: Sketch, spatial: int) -> Term:
    """Images of ``spatial`` axes: a value so far, or a new input."""
    fit = [t for t in s.terms if t.dtype == FLOAT and t.rank == spatial + 2]
    if fit and s.chance(0.8):
        return fit[-1]
    most = {1: 12, 2: 9, 3: 5}[spatial]
    return s.input(FLOAT, (s.integer(1, 2), s.among([1, 2, 3, 4, 8]), *s.shape(spatial, most)))


def _windows(s: Sketch, x: Term, *, dilate: bool = True, auto: bool = True) -> dict[str, Any]:
    """Attributes of windows that lie within the padded image."""
    spatial = x.rank - 2
    kernel = [s.integer(1, 3) for _ in range(spatial)]
    more: dict[str, Any] = {"kernel_shape": kernel}
    if s.chance(0.6):
        more["strides"] = [s.integer(1, 3) for _ in kernel]
    if dilate and s.chance(0.3):
        more["dilations"] = [s.integer(1, 2) for _ in kernel]
    if auto and s.chance(0.2):
        more["auto_pad"] = s.among(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif s.chance(0.6):
        more["pads"] = [s.integer(0, k - 1) for k in [*kernel, *kernel]]
    if more.get("auto_pad", "").startswith("SAME"):
        more.pop("dilations", None)  # the standard does not say how they are padded
        more["strides"] = [
            min(n, k) for n, k in zip(more.get("strides", kernel), kernel, strict=True)
        ]
        return more
    _check_windows(x, more)
    return more


def _check_windows(x: Term, more: dict[str, Any]) -> None:
    kernel, spatial = more["kernel_shape"], x.rank - 2
    pads = more.get("pads", [0] * 2 * spatial)
    spans = [d * (k - 1) + 1 for d, k in zip(more.get("dilations", [1] * 3), kernel, strict=False)]
    for axis, (size, span) in enumerate(zip(x.shape[2:], spans, strict=True)):
        if size + pads[axis] + pads[axis + spatial] < span:
            raise Unfit("a window larger than the image")


def _weights(s: Sketch, shape: tuple[int, ...], terms: int) -> Term:
    """Weights by which numbers do not grow."""
    return s.constant((s.rng.standard_normal(shape) / np.sqrt(terms)).astype(np.float32))


@draw(9)
def convolution(s: Sketch) -> None:
    x = _image(s, s.among([1, 2, 2, 2, 3]))
    more = _windows(s, x)
    channels = x.shape[1]
    groups = s.among([g for g in range(1, channels + 1) if channels % g == 0])
    if s.chance(0.4):
        groups = 1
    out = groups * s.integer(1, 3 if groups > 2 else 8)
    kernel = tuple(more["kernel_shape"])
    terms = channels // groups * int(np.prod(kernel))
    weight = _weights(s, (out, channels // groups, *kernel), terms)
    bias = [s.constant(s.array(FLOAT, (out,)))] if s.chance(0.6) else []
    s.node("Conv", [x, weight, *bias], group=groups, bound=2 * x.size + 4, **more)


@draw(2)
def transposed(s: Sketch) -> None:
    x = _image(s, s.among([1, 2, 2, 3]))
    more = _windows(s, x, auto=False)
    if s.chance(0.3):
        strides = more.get("strides", [1] * (x.rank - 2))
        more["output_padding"] = [s.integer(0, n - 1) for n in strides]
    groups = s.among([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0])
    out = s.integer(1, 4)
    kernel = tuple(more["kernel_shape"])
    weight = _weights(s, (x.shape[1], out, *kernel), x.shape[1] // groups * int(np.prod(kernel)))
    bias = [s.constant(s.array(FLOAT, (out * groups,)))] if s.chance(0.6) else []
    s.node("ConvTranspose", [x, weight, *bias], group=groups, bound=2 * x.size + 4, **more)


@draw(4)
def pool(s: Sketch) -> None:
    x = _image(s, s.among([1, 2, 2, 2, 3]))
    op = s.among(["MaxPool", "MaxPool", "AveragePool", "LpPool"])
    more = _windows(s, x, dilate=op == "MaxPool" or s.opset >= 19 + 3 * (op == "LpPool"))
    if max(more.get("dilations", [1])) > 1 and "pads" in more:
        del more["pads"]  # a window between two rows of padding: the largest of nothing
        _check_windows(x, more)
    if s.chance(0.3) and "auto_pad" not in more and (op != "LpPool" or s.opset >= 18):
        more["ceil_mode"] = 1
        kernel = more["kernel_shape"]
        more["strides"] = [
            min(n, k) for n, k in zip(more.get("strides", kernel), kernel, strict=True)
        ]
        if "pads" in more:  # a last window in the padding alone: engines differ
            more["pads"][x.rank - 2 :] = [0] * (x.rank - 2)
            _check_windows(x, more)
    if op == "AveragePool" and s.chance(0.5):
        more["count_include_pad"] = 1
    if op == "LpPool":
        more["p"] = s.integer(1, 2)
    size = x.size * (27 if op == "LpPool" else 1)
    s.node(op, [x], exact=op == "MaxPool", bound=size, **more)


@draw(2)
def whole_pool(s: Sketch) -> None:
    op = s.among(["GlobalAveragePool", "GlobalMaxPool"])
    s.node(op, [_image(s, s.integer(1, 3))], exact=op == "GlobalMaxPool")


@draw(4)
def gemm(s: Sketch) -> None:
    x = s.pick(ranks=(2,))
    trans_a, trans_b = s.integer(0, 1), s.integer(0, 1)
    rows, k = x.shape[::-1] if trans_a else x.shape
    n = s.integer(1, 20)
    shape = (n, k) if trans_b else (k, n)
    weight = _weights(s, shape, k) if s.chance(0.8) else s.input(FLOAT, shape)
    bias: list[Term | None] = []
    if s.chance(0.6):
        bias = [s.constant(s.array(FLOAT, s.among([(n,), (1, n), (rows, 1), (rows, n), ()])))]
    more: dict[str, Any] = {"transA": trans_a, "transB": trans_b}
    if s.chance(0.3):
        more |= {"alpha": 0.5, "beta": 2.0}
    s.node("Gemm", [x, weight, *bias], bound=x.size * 4 * k, **more)


@draw(6)
def product(s: Sketch) -> None:
    x = s.pick(ranks=(1, 2, 3, 4))
    k, n = x.shape[-1], s.integer(1, 20)
    if s.chance(0.6):
        y = _weights(s, (k, n), k)
    else:
        batch = tuple(d if s.chance(0.7) else 1 for d in x.shape[:-2])
        y = s.input(FLOAT, (*batch, k, n) if s.chance(0.8) else (k,))
    s.node("MatMul", [x, y], bound=x.size * y.size * k)


@draw(1)
def einsum(s: Sketch) -> None:
    x = s.pick(ranks=(3,))
    b, i, k = x.shape
    equation, shape = s.among(
        [("bik,bkj->bij", (b, k, 3)), ("bik,bjk->bji", (b, 4, k)), ("bik,ik->bi", (i, k)),
         ("bik,jk->ibj", (5, k)), ("bik,bi->kb", (b, i))]
    )  # fmt: skip
    s.node("Einsum", [x, s.input(FLOAT, shape)], bound=x.size * 4 * 7, equation=equation)


@draw(3)
def softmax(s: Sketch) -> None:
    op = s.among(["Softmax", "Softmax", "LogSoftmax"])
    x = s.pick(small=60)
    s.node(op, [x], axis=s.integer(-x.rank, x.rank - 1), bound=60.0)


def _vector(s: Sketch, shape: tuple[int, ...], low: float = -1.0) -> Term:
    return s.constant(s.rng.uniform(low, 2.0, shape).astype(np.float32))


@draw(3)
def batch_norm(s: Sketch) -> None:
    x = _image(s, s.among([1, 2, 2, 3]))
    shape = (x.shape[1],)
    terms = [_vector(s, shape), _vector(s, shape), _vector(s, shape), _vector(s, shape, 0.5)]
    s.node("BatchNormalization", [x, *terms], epsilon=0.01, bound=3 * x.size + 8)


@draw(3)
def layer_norm(s: Sketch) -> None:
    x = s.pick(ranks=(2, 3, 4))
    op = s.among(["LayerNormalization", "LayerNormalization", "RMSNormalization"])
    axis = s.integer(1, x.rank - 1) - (x.rank if s.chance(0.5) else 0)
    shape = x.shape[axis:]
    bias = [_vector(s, shape)] if op[0] == "L" and s.chance(0.6) else []
    s.node(op, [x, _vector(s, shape), *bias], axis=axis, epsilon=0.1, bound=8.0)


@draw(2)
def image_norm(s: Sketch) -> None:
    x = _image(s, 2)
    channels = x.shape[1]
    op = s.among(["InstanceNormalization", "GroupNormalization", "LRN", "LpNormalization"])
    pair = [_vector(s, (channels,)), _vector(s, (channels,))]
    if op == "InstanceNormalization":
        s.node(op, [x, *pair], epsilon=0.1, bound=8.0)
    elif op == "GroupNormalization":
        if s.opset < 21:
            raise Unfit("the older one has scales of groups, and is withdrawn")
        groups = s.among([g for g in range(1, channels + 1) if channels % g == 0])
        s.node(op, [x, *pair], num_groups=groups, epsilon=0.1, bound=8.0)
    elif op == "LRN":
        s.node(op, [x], alpha=0.01, beta=0.75, bias=1.5, size=s.among([1, 3, 5]))
    else:
        y = s.node("Add", [x, s.constant(np.float32(x.size + 1))], bound=2 * x.size + 1)[0]
        s.node(op, [y], axis=s.integer(-y.rank, y.rank - 1), p=s.integer(1, 2))


@draw(1)
def recurrent(s: Sketch) -> None:
    op = s.among(["LSTM", "GRU", "RNN"])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    steps, batch, width = s.shape(3, 4)
    hidden = s.integer(1, 5)
    x = s.pick((FLOAT,), shape=(steps, batch, width))
    direction = s.among(["forward", "reverse", "bidirectional"])
    ways = 2 if direction == "bidirectional" else 1
    w = _weights(s, (ways, gates * hidden, width), width)
    r = _weights(s, (ways, gates * hidden, hidden), hidden)
    b = _weights(s, (ways, 2 * gates * hidden), 4) if s.chance(0.7) else None
    start = s.input(FLOAT, (ways, batch, hidden)) if s.chance(0.4) else None
    more: dict[str, Any] = {"linear_before_reset": s.integer(0, 1)} if op == "GRU" else {}
    count = 3 if op == "LSTM" else 2
    operands = [x, w, r, b, None, start]
    s.node(op, operands, outputs=count, bound=8.0, hidden_size=hidden, direction=direction, **more)


# -- codes


@draw(2)
def quantised(s: Sketch) -> None:
    """A number to codes and back."""
    x = s.pick(ranks=(1, 2, 3, 4), exact=True)
    dtype = np.dtype(s.among([np.uint8, np.int8]))
    axis = s.integer(0, x.rank - 1)
    rows = s.opset >= 13 and s.chance(0.3)
    shape = (x.shape[axis],) if rows else ()
    scale = s.constant(np.exp2(s.rng.integers(-5, 0, shape)).astype(np.float32))
    zero = s.constant(s.rng.integers(0, 100, shape).astype(dtype))
    more = {"axis": axis} if rows else {}
    q = s.node("QuantizeLinear", [x, scale, zero], exact=True, **more)[0]
    s.terms.remove(q)
    if s.chance(0.8):
        s.node("DequantizeLinear", [q, scale, zero], exact=True, bound=130.0, **more)
    else:
        s.terms.append(q)


def _codes(s: Sketch, shape: tuple[int, ...], dtype: Any) -> Term:
    info = np.iinfo(dtype)
    return s.constant(s.rng.integers(info.min, info.max + 1, shape).astype(dtype))


@draw(1)
def integer_product(s: Sketch) -> None:
    x = s.pick((np.dtype(np.uint8),), (2, 3))
    zero = s.constant(np.uint8(s.integer(0, 9)))
    w = _codes(s, (x.shape[-1], s.integer(1, 9)), np.int8)
    s.node("MatMulInteger", [x, w, zero], exact=True, bound=1e5)


@draw(1)
def integer_convolution(s: Sketch) -> None:
    shape = (1, s.integer(1, 4), *s.shape(2, 7))
    x = s.pick((np.dtype(np.uint8),), shape=shape)
    more = _windows(s, x, auto=False)
    w = _codes(s, (s.integer(1, 5), shape[1], *more["kernel_shape"]), np.uint8)
    zero = s.constant(np.uint8(s.integer(0, 9)))
    s.node("ConvInteger", [x, w, zero], exact=True, bound=1e5, **more)


@draw(1)
def code_product(s: Sketch) -> None:
    """QLinearMatMul: scales, zero points, codes."""
    x = s.pick((np.dtype(np.uint8),), (2, 3))
    n = s.integer(1, 9)
    w = _codes(s, (x.shape[-1], n), np.int8)
    scales = [s.constant(np.float32(v)) for v in (0.125, 0.25, 8.0)]
    zeros = [s.constant(np.uint8(5)), s.constant(np.int8(0)), s.constant(np.uint8(100))]
    operands: list[Term | None] = [x, scales[0], zeros[0], w, scales[1], zeros[1]]
    s.node("QLinearMatMul", [*operands, scales[2], zeros[2]], exact=True, bound=255.0)


@draw(1)
def code_convolution(s: Sketch) -> None:
    """QLinearConv with a scale of each output channel."""
    shape = (1, s.integer(1, 4), *s.shape(2, 7))
    x = s.pick((np.dtype(np.uint8),), shape=shape)
    more = _windows(s, x, auto=False)
    out = s.integer(1, 5)
    w = _codes(s, (out, shape[1], *more["kernel_shape"]), np.int8)
    sw = s.constant(np.exp2(s.rng.integers(-6, -3, (out,))).astype(np.float32))
    zw = s.constant(np.zeros(out, np.int8))
    sx, sy = s.constant(np.float32(0.125)), s.constant(np.float32(2.0))
    zx, zy = s.constant(np.uint8(7)), s.constant(np.uint8(90))
    bias = [s.constant(s.rng.integers(-500, 500, (out,)).astype(np.int32))]
    operands = [x, sx, zx, w, sw, zw, sy, zy, *(bias if s.chance(0.6) else [])]
    s.node("QLinearConv", operands, exact=True, bound=255.0, **more)
