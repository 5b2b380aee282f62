"""Draws of rarer ops: audio, word counts, caches, group norms, and codes of 4 bits."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.fuzz.layers import _image, _vector
from tests.fuzz.sketch import FLOAT, Sketch, Unfit, draw

INT64 = np.dtype(np.int64)


@draw(1)
def grouped(s: Sketch) -> None:
    """The newer GroupNormalization, which has a scale of each channel."""
    if s.opset < 21:
        raise Unfit("the older one has scales of groups, and is withdrawn")
    x = _image(s, s.integer(1, 2))
    channels = x.shape[1]
    groups = s.among([g for g in range(1, channels + 1) if channels % g == 0])
    pair = [_vector(s, (channels,)), _vector(s, (channels,))]
    kinds = [(FLOAT, x.shape)]
    s.node("GroupNormalization", [x, *pair], types=kinds, num_groups=groups, epsilon=0.1, bound=8.0)


@draw(1)
def spectra(s: Sketch) -> None:
    """STFT of real signals, with a window or only its length."""
    batch, length = s.integer(1, 2), s.integer(8, 20)
    x = s.pick((FLOAT,), shape=(batch, length, 1))
    frame, step = s.integer(2, 8), s.integer(1, 4)
    onesided = s.integer(0, 1)
    windowed = s.chance(0.6)
    window = s.constant(s.rng.uniform(0.2, 1, frame).astype(np.float32)) if windowed else None
    size = None if windowed and s.chance(0.5) else s.ints(frame)
    bins = frame // 2 + 1 if onesided else frame
    kinds = [(FLOAT, (batch, (length - frame) // step + 1, bins, 2))]
    operands = [x, s.ints(step), window, *([size] if size is not None else [])]
    s.node("STFT", operands, types=kinds, bound=8 * x.size, onesided=onesided)


@draw(1)
def mel_weights(s: Sketch) -> None:
    """The matrix of known numbers, and a product by it."""
    bands, size, rate = s.integer(2, 6), s.among([8, 16, 32]), 8000
    ends = [s.constant(np.float32(f)) for f in (20.0, 3500.0)]
    operands = [s.ints(bands), s.ints(size), s.ints(rate), *ends]
    kinds = [(FLOAT, (size // 2 + 1, bands))]
    weights = s.node("MelWeightMatrix", operands, types=kinds, bound=1.0)[0]
    s.node("MatMul", [s.pick((FLOAT,), shape=(2, size // 2 + 1)), weights], bound=40.0)


@draw(1)
def cache(s: Sketch) -> None:
    """TensorScatter: rows written into a cache at a place of each image."""
    batch, heads, most, width = s.integer(1, 3), s.integer(1, 2), s.integer(3, 6), s.integer(1, 4)
    rows = s.integer(1, 2)
    mode = s.among(["linear", "circular"])
    past = s.pick((FLOAT,), shape=(batch, heads, most, width))
    update = s.input(FLOAT, (batch, heads, rows, width))
    where = s.ints(s.rng.integers(0, most - rows + 1, batch)) if s.chance(0.7) else None
    operands = [past, update, *([where] if where is not None else [])]
    s.node("TensorScatter", operands, exact=True, bound=past.size + 4, mode=mode, axis=2)


@draw(1)
def words(s: Sketch) -> None:
    """TfIdfVectorizer on integers: counts of single ones and of pairs."""
    x = s.input(INT64, (s.integer(1, 3), s.integer(3, 8)))
    s.feeds[x.name] = np.asarray(s.rng.integers(0, 4, x.shape))
    s.terms.remove(x)
    kinds = [(FLOAT, (x.shape[0], 5))]
    s.node(
        "TfIdfVectorizer", [x], exact=True, bound=16.0, types=kinds, mode=s.among(["TF", "IDF"]),
        min_gram_length=1, max_gram_length=2, max_skip_count=s.integer(0, 1),
        ngram_counts=[0, 3], ngram_indexes=[0, 1, 2, 3, 4],
        pool_int64s=[0, 1, 2, 0, 1, 2, 3], weights=[1.0, 0.5, 2.0, 1.0, 0.25],
    )  # fmt: skip


@draw(1)
def nibbles(s: Sketch) -> None:
    """A weight of 4-bit codes, with a scale of each column or of each block of rows."""
    if s.opset < 21:
        raise Unfit("there are no codes of 4 bits")
    x = s.pick((FLOAT,), (2,))
    k, n = x.shape[-1], s.integer(1, 8)
    kind = s.among([TensorProto.INT4, TensorProto.UINT4])
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    low = 0 if kind == TensorProto.UINT4 else -8
    codes = s.constant(s.rng.integers(low, low + 16, (k, n)).astype(dtype))
    zero = s.integer(low, low + 15)
    if s.chance(0.5):
        size = s.among([d for d in range(1, k + 1) if k % d == 0])
        shape, more = (k // size, n), {"axis": 0, "block_size": size}
    else:
        shape, more = (n,), {"axis": 1}
    scale = s.constant(np.exp2(s.rng.integers(-7, -4, shape)).astype(np.float32))
    zeros = [s.constant(np.full(shape, zero).astype(dtype))] if s.chance(0.6) else []
    kinds = [(FLOAT, (k, n))]
    operands = [codes, scale, *zeros]
    w = s.node("DequantizeLinear", operands, exact=True, types=kinds, bound=2.0, **more)[0]
    s.terms.remove(w)
    s.node("MatMul", [x, w], bound=4 * x.size * k)
