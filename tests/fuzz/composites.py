"""Draws of ops that the standard defines by others, and of those that sample and attend."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from tests.fuzz.elementwise import clipped
from tests.fuzz.layers import _check_windows, _codes, _image, _vector, _weights
from tests.fuzz.movement import ANY_COMMON
from tests.fuzz.sketch import BOOL, DOUBLE, FLOAT, INTS, Sketch, Term, Unfit, draw

UINT8, INT64 = np.dtype(np.uint8), np.dtype(np.int64)


@draw(2)
def grid_sample(s: Sketch) -> None:
    spatial = s.among([2, 2, 3]) if s.opset >= 20 else 2
    x = _image(s, spatial)
    grid = s.rng.uniform(-1.3, 1.3, (x.shape[0], *s.shape(spatial, 5), spatial))
    linear, cubic = ("linear", "cubic") if s.opset >= 20 else ("bilinear", "bicubic")
    mode = s.among([linear, linear, cubic])  # nearest: positions between two are a matter of taste
    if spatial == 3:
        mode = linear
    more: dict[str, Any] = {"align_corners": s.integer(0, 1)}
    # of a cubic's points beyond the border ONNX Runtime takes others than the standard
    edges = ["zeros", "reflection"] if mode == cubic else ["zeros", "border", "reflection"]
    more["padding_mode"] = s.among(edges)
    term = s.constant(grid.astype(np.float32))
    s.node("GridSample", [x, term], mode=mode, bound=3 * x.size, **more)


@draw(1)
def affine_grid(s: Sketch) -> None:
    # the standard's function squeezes a single image's own axis too, and divides by size - 1
    n, spatial = 2, s.among([2, 3])
    theta = s.input(FLOAT, (n, spatial, spatial + 1))
    size = s.ints([n, 2, *(s.integer(2, 4) for _ in range(spatial))])
    s.node("AffineGrid", [theta, size], bound=16.0, align_corners=s.integer(0, 1))


@draw(2)
def deformed(s: Sketch) -> None:
    channels = s.among([1, 2, 4])
    shape = (s.integer(1, 2), channels, s.integer(3, 6), s.integer(3, 6))
    x = s.pick((FLOAT,), shape=shape)
    kernel = (s.integer(1, 3), s.integer(1, 3))
    groups = s.among([g for g in (1, 2) if channels % g == 0])
    offsets = s.among([g for g in (1, 2) if channels % g == 0])
    strides, pads = s.shape(2, 2), [s.integer(0, 1) for _ in range(4)]
    more: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    _check_windows(x, more)
    rows, columns = (
        (shape[2 + a] + pads[a] + pads[2 + a] - kernel[a]) // strides[a] + 1 for a in (0, 1)
    )
    out, points = groups * s.integer(1, 3), kernel[0] * kernel[1]
    weight = _weights(s, (out, channels // groups, *kernel), channels * points)
    moved = s.rng.uniform(-2, 2, (shape[0], offsets * points * 2, rows, columns))
    operands: list[Term | None] = [x, weight, s.constant(moved.astype(np.float32))]
    mask = s.chance(0.5)
    if mask or s.chance(0.5):
        operands.append(s.constant(s.array(FLOAT, (out,))))
    if mask:
        operands.append(_vector(s, (shape[0], offsets * points, rows, columns), 0.0))
    s.node("DeformConv", operands, group=groups, offset_group=offsets, bound=4 * x.size + 8, **more)


@draw(1)
def columns_to_image(s: Sketch) -> None:
    n, channels = s.integer(1, 2), s.integer(1, 3)
    image, block = (s.integer(3, 6), s.integer(3, 6)), (s.integer(1, 3), s.integer(1, 3))
    strides, dilations = s.shape(2, 2), s.shape(2, 2)
    pads = [s.integer(0, 1) for _ in range(4)]
    windows = 1
    for a in (0, 1):
        span = image[a] + pads[a] + pads[2 + a] - dilations[a] * (block[a] - 1) - 1
        if span < 0:
            raise Unfit("a block larger than the image")
        windows *= span // strides[a] + 1
    x = s.pick((FLOAT,), shape=(n, channels * block[0] * block[1], windows))
    more = {"strides": strides, "dilations": dilations, "pads": pads}
    s.node("Col2Im", [x, s.ints(image), s.ints(block)], bound=9 * x.size, **more)


@draw(2)
def attention(s: Sketch) -> None:
    batch, heads = s.integer(1, 2), s.among([1, 2, 4])
    shared = s.among([h for h in (1, 2, 4) if heads % h == 0])
    length, keys, width, out = (
        s.integer(1, 4),
        s.integer(1, 5),
        2 * s.integer(1, 3),
        s.integer(1, 4),
    )
    more: dict[str, Any] = {}
    if s.chance(0.5):  # heads side by side
        q = s.pick((FLOAT,), shape=(batch, length, heads * width), small=9)
        k = s.input(FLOAT, (batch, keys, shared * width))
        v = s.input(FLOAT, (batch, keys, shared * out))
        more = {"q_num_heads": heads, "kv_num_heads": shared}
    else:
        q = s.pick((FLOAT,), shape=(batch, heads, length, width), small=9)
        k = s.input(FLOAT, (batch, shared, keys, width))
        v = s.input(FLOAT, (batch, shared, keys, out))
    mask: list[Term] = []
    if s.chance(0.5):
        shape = s.among([(length, keys), (batch, heads, length, keys), (1, 1, length, keys)])
        if s.chance(0.5):
            allowed = s.rng.random(shape) < 0.7
            allowed[..., 0] = True  # a row of which nothing is allowed has no result
            mask = [s.constant(allowed)]
        else:
            mask = [s.constant(s.array(FLOAT, shape))]
    elif s.chance(0.5):
        more["is_causal"] = 1
    if s.chance(0.3):
        more["scale"] = 0.4
    if s.chance(0.3):
        more["softcap"] = 2.0
    s.node("Attention", [q, k, v, *mask], bound=4.0 + v.size, **more)


@draw(2)
def rotary(s: Sketch) -> None:
    batch, heads, length = s.integer(1, 2), s.integer(1, 3), s.integer(1, 4)
    width = 2 * s.integer(1, 4)
    part = 2 * s.integer(1, width // 2) if s.chance(0.4) else 0
    half, most = (part or width) // 2, length + 3
    more: dict[str, Any] = {"interleaved": s.integer(0, 1), "rotary_embedding_dim": part}
    if s.chance(0.5):
        x = s.pick((FLOAT,), shape=(batch, heads, length, width))
    else:
        x = s.pick((FLOAT,), shape=(batch, length, heads * width))
        more["num_heads"] = heads
    if s.chance(0.6):
        tables, where = (most, half), [s.ints(s.rng.integers(0, most, (batch, length)))]
    else:
        tables, where = (batch, length, half), []
    pair = [_vector(s, tables), _vector(s, tables)]
    s.node("RotaryEmbedding", [x, *pair, *where], bound=5 * x.size, **more)


@draw(2)
def normal(s: Sketch) -> None:
    op = s.among(["MeanVarianceNormalization", "Hardmax", "GlobalLpPool", "Det", "Swish"])
    if op == "MeanVarianceNormalization":
        # a little is added to variances of zero, and how much is the engine's choice
        x = s.input(FLOAT, (s.integer(2, 3), s.integer(2, 3), s.integer(3, 5), s.integer(3, 5)))
        s.node(op, [x], bound=9.0, axes=s.among([[0, 2, 3], [2, 3], [1]]))
    elif op == "Hardmax":
        x = s.pick(ranks=(1, 2, 3), exact=True)
        s.node(op, [x], exact=True, axis=s.integer(-x.rank, x.rank - 1), bound=1.0)
    elif op == "GlobalLpPool":
        x = _image(s, s.integer(1, 3))
        s.node(op, [x], p=s.integer(1, 3), bound=x.size * 729)
    elif op == "Det":
        n = s.integer(1, 3)
        s.node(op, [s.input(FLOAT, (*s.shape(s.integer(0, 2), 3), n, n))], bound=999.0)
    else:
        s.node(op, [s.pick(ranks=(1, 2, 3))], alpha=s.among([1.0, 0.5]))


@draw(1)
def group_norm(s: Sketch) -> None:
    """The older op has a scale of each group."""
    x = _image(s, s.integer(1, 2))
    groups = s.among([g for g in range(1, x.shape[1] + 1) if x.shape[1] % g == 0])
    shape = (x.shape[1],) if s.opset >= 21 else (groups,)
    pair = [_vector(s, shape), _vector(s, shape)]
    s.node("GroupNormalization", [x, *pair], num_groups=groups, epsilon=0.1, bound=8.0)


@draw(1)
def transform(s: Sketch) -> None:
    """DFT, along an axis of real or complex numbers."""
    width = s.among([1, 2])
    x = s.pick((FLOAT,), shape=(s.integer(1, 2), s.integer(2, 6), s.integer(1, 4), width))
    axis = s.among([1, 2])
    inverse = s.integer(0, 1) if width == 2 else 0
    more = {"inverse": inverse, "onesided": int(not inverse and width == 1 and s.chance(0.4))}
    length = s.ints(s.integer(2, 7)) if s.chance(0.4) else None
    if s.opset >= 20:
        s.node("DFT", [x, length, s.ints(axis)], bound=12 * x.size, **more)
    else:
        s.node("DFT", [x, length], bound=12 * x.size, axis=axis, **more)


@draw(1)
def crop(s: Sketch) -> None:
    x = s.pick(ANY_COMMON, (1, 2, 3, 4))
    axes = s.rng.permutation(x.rank)[: s.integer(1, x.rank)].tolist()
    shape = s.ints([s.integer(1, 8) for _ in axes])
    s.node("CenterCropPad", [x, shape], exact=True, axes=axes)


@draw(1)
def alike(s: Sketch) -> None:
    """A cast to the type of another value."""
    x, like = s.pick((FLOAT, *INTS[2:]), exact=True, small=100), s.pick((FLOAT, BOOL, *INTS))
    if x.dtype.kind == "f" and like.dtype.kind == "u":
        x = s.node("Abs", [x], exact=True)[0]
    s.node("CastLike", [x, like], exact=True)


@draw(1)
def bits_as(s: Sketch) -> None:
    """BitCast of integers: any bits are a number."""
    pairs = [(np.int8, np.uint8), (np.uint8, np.int8), (np.int32, np.uint32), (np.int64, np.uint64)]
    old, new = (np.dtype(t) for t in s.among(pairs))
    kind = helper.np_dtype_to_tensor_dtype(new)
    s.node("BitCast", [s.pick((old,), (0, 1, 2, 3))], exact=True, bound=1e5, to=kind)


@draw(1)
def running_product(s: Sketch) -> None:
    x = s.pick((FLOAT, DOUBLE), (1, 2, 3), small=5)
    axis = s.integer(-x.rank, x.rank - 1)
    more = {"exclusive": s.integer(0, 1), "reverse": s.integer(0, 1)}
    s.node("CumProd", [x, s.ints(axis)], bound=5.0 ** x.shape[axis], **more)


@draw(1)
def shape_arithmetic(s: Sketch) -> None:
    """A shape that is computed from another value's, and what is made of that shape."""
    x = s.pick(ranks=(1, 2, 3))
    shape = s.node("Shape", [x], exact=True, bound=9.0)[0]
    s.terms.remove(shape)
    if s.chance(0.5):
        filled = [("value", helper.make_tensor("v", 1, [1], [2.5]))] if s.chance(0.6) else []
        s.node("ConstantOfShape", [shape], exact=True, types=[(FLOAT, x.shape)], **dict(filled))
        return
    y = s.node("Flatten", [x], exact=True, axis=s.integer(0, x.rank))[0]
    s.node("Reshape", [y, shape], exact=True, types=[(FLOAT, x.shape)])


@draw(1)
def counted(s: Sketch) -> None:
    """Range with constant bounds, beside another value's Size."""
    first, step = s.integer(-3, 3), s.among([-2, 1, 3])
    count = s.integer(1, 6)
    bounds = [s.ints(v) for v in (first, first + step * count, step)]
    s.node("Range", bounds, exact=True, bound=21.0, types=[(INT64, (count,))])
    s.node("Size", [s.pick(ANY_COMMON)], exact=True, bound=2048.0)


@draw(1)
def compress(s: Sketch) -> None:
    """With a condition that is known."""
    x = s.pick(ANY_COMMON, (1, 2, 3))
    axis = s.integer(-x.rank, x.rank - 1)
    keep = s.rng.random(x.shape[axis]) < 0.6
    keep[-1] = True
    shape = list(x.shape)
    shape[axis] = int(keep.sum())
    kinds = [(x.dtype, tuple(shape))]
    s.node("Compress", [x, s.constant(keep)], exact=True, types=kinds, axis=axis)


@draw(1)
def dropout(s: Sketch) -> None:
    """As at inference: nothing happens."""
    x = s.pick(ranks=(1, 2, 3))
    if s.opset >= 12:
        ratio = s.constant(np.float32(0.3)) if s.chance(0.5) else None
        s.node("Dropout", [x, ratio] if ratio else [x], exact=True)
    else:
        s.node("Dropout", [x], exact=True, ratio=0.3)


@draw(1)
def dynamic_codes(s: Sketch) -> None:
    """Scale and zero point of what comes: one code more or less where sums differ."""
    x = s.pick(ranks=(1, 2, 3), exact=True)
    kinds = [(UINT8, x.shape), (FLOAT, ()), (UINT8, ())]
    codes, scale, zero = s.node("DynamicQuantizeLinear", [x], outputs=3, types=kinds, bound=255.0)
    for term in (codes, zero):
        s.terms.remove(term)
    s.node("DequantizeLinear", [codes, scale, zero], bound=x.size)


@draw(1)
def regions(s: Sketch) -> None:
    x = _image(s, 2)
    count = s.integer(1, 3)
    corners = s.rng.uniform(0, 4, (count, 2))
    boxes = np.concatenate([corners, corners + s.rng.uniform(1, 5, (count, 2))], 1)
    if s.chance(0.3):
        where = s.rng.integers(0, x.shape[0], (count, 1))
        rois = np.concatenate([where, np.round(boxes)], 1).astype(np.float32)
        s.node("MaxRoiPool", [x, s.constant(rois)], pooled_shape=s.shape(2, 3), spatial_scale=0.5)
        return
    indices = s.ints(s.rng.integers(0, x.shape[0], count))
    more: dict[str, Any] = {"mode": s.among(["avg", "avg", "max"]), "spatial_scale": 0.5}
    more |= {"sampling_ratio": s.integer(1, 2), "output_height": s.integer(1, 3)}
    more |= {"output_width": s.integer(1, 3)}
    if s.opset >= 16:
        more["coordinate_transformation_mode"] = s.among(["half_pixel", "output_half_pixel"])
    if more["mode"] == "max" and s.opset < 22:
        more["mode"] = "avg"  # the older one takes the largest of weighted terms
    s.node("RoiAlign", [x, s.constant(boxes.astype(np.float32)), indices], **more)


@draw(1)
def loss(s: Sketch) -> None:
    """Losses, of which the classes are known."""
    n, classes = s.integer(1, 4), s.integer(2, 5)
    x = s.pick((FLOAT,), shape=(n, classes, *s.shape(s.integer(0, 2), 3)), small=60)
    target = s.ints(s.rng.integers(0, classes, (n, *x.shape[2:])))
    weight = [_vector(s, (classes,), 0.5)] if s.chance(0.5) else []
    op = s.among(["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
    more = {"reduction": s.among(["none", "sum", "mean"])}
    s.node(op, [x, target, *weight], bound=60 * x.size, **more)


@draw(1)
def unpool(s: Sketch) -> None:
    """MaxPool's places, from which MaxUnpool puts the numbers back."""
    shape = (s.integer(1, 2), s.integer(1, 3), 2 * s.integer(1, 4), 2 * s.integer(1, 4))
    ramp = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    x = s.node("Add", [s.input(FLOAT, shape), s.constant(ramp)], exact=True, bound=400.0)[0]
    more = {"kernel_shape": [2, 2], "strides": [2, 2]}
    pooled, places = s.node("MaxPool", [x], outputs=2, exact=True, **more)
    s.terms.remove(places)
    s.node("MaxUnpool", [pooled, places], exact=True, types=[(FLOAT, x.shape)], **more)


@draw(1)
def stretched(s: Sketch) -> None:
    """Ops that other opsets have under other names."""
    op = s.among(["Upsample", "Scatter", "Swish"])
    if op == "Upsample":
        x = _image(s, 2)
        if s.opset < 9:
            s.node(op, [x], exact=True, mode="nearest", scales=[1.0, 1.0, 2.0, 3.0])
        elif s.opset == 9:
            scales = s.constant(np.array([1, 1, 2, 3], np.float32))
            s.node(op, [x, scales], exact=True, mode="nearest")
    elif op == "Scatter" and s.opset < 11:
        x = s.pick((FLOAT,), (1, 2, 3))
        axis = s.integer(0, x.rank - 1)
        order = np.argsort(s.rng.random(x.shape), axis)
        indices = np.take(order, range(s.integer(1, x.shape[axis])), axis).astype(np.int64)
        updates = s.input(FLOAT, indices.shape)
        s.node(op, [x, s.constant(indices), updates], exact=True, axis=axis)


@draw(1)
def older(s: Sketch) -> None:
    """Attributes that have become operands since."""
    x = s.pick(ranks=(2, 3, 4))
    op = s.among(["Clip", "Slice", "Pad", "TopK"])
    if op == "Clip" and s.opset < 11:
        s.node(op, [x], exact=True, min=-1.5, max=2.25)
    elif op == "Slice" and s.opset < 10:
        axis = s.integer(0, x.rank - 1)
        ends = s.among([-1, x.shape[axis], 99]) if x.shape[axis] > 1 else 99
        s.node(op, [x], exact=True, axes=[axis], starts=[0], ends=[ends])
    elif op == "Pad" and s.opset < 11:
        pads = [s.integer(0, 2) for _ in range(2 * x.rank)]
        s.node(op, [x], exact=True, pads=pads, mode=s.among(["constant", "edge"]))
    elif op == "TopK" and s.opset < 10:
        y = s.pick(ranks=(1, 2, 3), exact=True)
        axis = s.integer(0, y.rank - 1)
        s.node(op, [y], outputs=2, exact=True, axis=axis, k=s.integer(1, y.shape[axis]))


@draw(1)
def any_codes(s: Sketch) -> None:
    """Codes of 16 bits, and a scale for each block."""
    x = clipped(s, s.pick(ranks=(2, 3), exact=True), -9, 9)
    kind = np.dtype(s.among([np.int16, np.uint16, np.int8]))
    if s.opset < 21:
        raise Unfit("there are codes of 8 bits only")
    shape: tuple[int, ...] = ()
    more: dict[str, Any] = {}
    if s.chance(0.5):
        size = s.among([n for n in range(1, x.shape[-1] + 1) if x.shape[-1] % n == 0])
        more = {"axis": x.rank - 1, "block_size": size}
        shape = (*x.shape[:-1], x.shape[-1] // size)
    scale = s.constant(np.exp2(s.rng.integers(-4, 0, shape)).astype(np.float32))
    zero = s.constant(s.rng.integers(0, 90, shape).astype(kind))
    q = s.node("QuantizeLinear", [x, scale, zero], exact=True, bound=300.0, **more)[0]
    s.terms.remove(q)
    s.node("DequantizeLinear", [q, scale, zero], exact=True, bound=130.0, **more)


@draw(1)
def stored_codes(s: Sketch) -> None:
    """A weight that is stored as codes."""
    x = s.pick(ranks=(2,))
    n = s.integer(1, 8)
    codes = _codes(s, (x.shape[-1], n), np.int8)
    scale = s.constant(np.exp2(s.rng.integers(-9, -6, (n,))).astype(np.float32))
    if s.opset < 13:
        raise Unfit("there is one scale only")
    w = s.node("DequantizeLinear", [codes, scale], exact=True, bound=2.0, axis=1)[0]
    s.terms.remove(w)
    s.node("MatMul", [x, w], bound=4 * x.size * x.shape[-1])
