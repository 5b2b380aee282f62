"""Signs of numbers, a bit each: packed from float32, unpacked to bytes, made by an epilogue.

Bits lie as :attr:`dlcc.ir.TensorType.bytes` says: each pixel's channels fill words of 32 bits, the
first channel in the lowest bit; 1 is negative. The bits beyond the last channel are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcc import tir
from targets.kernels.skeleton import divide
from targets.kernels.spec import Epilogue

WORD = 32
"""Channels of a word."""

_PLACES = sum(1 << 9 * i for i in range(8)) - (1 << 64)
"""Of eight bytes, byte i has bit i, as an int64."""

_MASK = {4: "llvm.x86.sse.movmsk.ps", 8: "llvm.x86.avx.movmsk.ps.256"}


def words_of(channels: int) -> int:
    """Words of a pixel."""
    return -(-channels // WORD)


def pack_signs(negative: np.ndarray) -> np.ndarray:
    """Bits ``[..., channels]`` as int32 ``[..., words]``."""
    count = negative.shape[-1]
    wide = [(0, 0)] * (negative.ndim - 1) + [(0, words_of(count) * WORD - count)]
    padded = np.pad(negative.astype(np.uint8), wide)
    packed = np.packbits(padded, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view(np.int32)


def sign_word(kb: tir.KernelBuilder, vectors: list[Any], *, arm: bool = False) -> Any:
    """The sign bits of vectors of int32 (at most 32 lanes in all) as one word.

    ``arm``: by NEON, from vectors of four lanes.
    """
    if arm:
        return _added_bits(kb, vectors)
    word, at = None, 0
    for vector in vectors:
        lanes = tir.lanes_of(vector)
        for half in range(0, lanes, 8):
            size = min(lanes, 8)
            part = kb.shuffle(vector, range(half, half + 8)) if lanes > 8 else vector
            real = kb.reinterpret(part, "float32", size)
            bits = kb.pure(_MASK[size], "int32", 1, real)
            bits = tir.tirx.shift_left(bits, kb.const(at, "int32")) if at else bits
            word = bits if word is None else tir.tirx.bitwise_or(word, bits)
            at += size
    return kb.let(word, "word")


def _added_bits(kb: tir.KernelBuilder, vectors: list[Any]) -> Any:
    """Numbers are narrowed to the bytes that hold their signs; each is left its place's bit."""
    vectors = vectors + [kb.const(0, "int32", 4)] * (WORD // 4 - len(vectors))
    for dtype, lanes in (("int16", 8), ("int8", 16)):
        halves = [kb.reinterpret(vector, dtype, lanes) for vector in vectors]
        odd = range(1, 2 * lanes, 2)  # the upper halves, on little-endian machines
        pairs = zip(halves[::2], halves[1::2], strict=True)
        vectors = [kb.let(kb.shuffle(low, odd, high), "signs") for low, high in pairs]
    bits = kb.reinterpret(kb.const(_PLACES, "int64", 2), "uint8", 16)
    both = []
    for vector in vectors:
        negative = tir.tirx.shift_right(vector, kb.const(7, "int8", 16))
        kept = tir.tirx.bitwise_and(kb.reinterpret(negative, "uint8", 16), bits)
        both.append(kb.let(kept, "bits"))
    total = kb.let(tir.neon.add_pairs(*both), "bits")
    for _ in range(2):
        total = kb.let(tir.neon.add_pairs(total, total), "bits")
    words = kb.let(kb.reinterpret(total, "int32", 4), "words")
    return kb.let(kb.shuffle(words, [0]), "word")


def below_zero(kb: tir.KernelBuilder, value: Any) -> Any:
    """-1 where a float32 vector is less than 0, else 0 (for -0 and NaN too)."""
    lanes = tir.lanes_of(value)
    yes, no = kb.const(-1, "int32", lanes), kb.const(0, "int32", lanes)
    return tir.tirx.Select(value < kb.const(0.0, "float32", lanes), yes, no)


@dataclass(frozen=True)
class _Order:
    """How signs and numbers lie.

    Attributes:
        shape: of the signs in memory; along the last axis words are filled.
        strides: of the numbers along those axes.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def pixels(self) -> int:
        """Rows of words: the work items."""
        return int(np.prod(self.shape[:-1], dtype=np.int64))

    @property
    def channels(self) -> int:
        """Numbers of a row."""
        return self.shape[-1]

    @property
    def contiguous(self) -> bool:
        """Whether both have the same order."""
        lengths = np.cumprod((1, *self.shape[:0:-1]))[::-1]
        return all(
            size == 1 or stride == length
            for size, stride, length in zip(self.shape, self.strides, lengths, strict=True)
        )

    def start(self, kb: tir.KernelBuilder, pixel: Any) -> Any:
        """Where the numbers of a row start."""
        rest, start = pixel, kb.const(0, "int32")
        for size, stride in zip(self.shape[-2::-1], self.strides[-2::-1], strict=True):
            rest, place = divide(kb, rest, size, "place")
            start = start + place * stride
        return kb.let(start, "start")


@dataclass(frozen=True)
class SignPack(_Order):
    """Signs of float32 numbers.

    ``lanes``: float32 lanes of a vector, at most 8; ``arm``: by NEON.
    """

    lanes: int
    arm: bool


def pack_function(name: str, spec: SignPack) -> Any:
    """The PrimFunc: parameters x (float32), y (words)."""
    kb = tir.KernelBuilder(name)
    x, y = kb.pointer("x", "float32", align=4), kb.pointer("y", "int32", align=4)
    words = words_of(spec.channels)
    with kb.loop(kb.begin, kb.end, "pixel") as pixel:
        if not spec.contiguous:
            _pack_strided(kb, spec, x, y, pixel)
        else:
            whole, rest = divmod(spec.channels, WORD)
            with kb.loop(0, whole, "word") as word:
                at = pixel * spec.channels + word * WORD
                kb.store(y, pixel * words + word, _packed(kb, spec, x, at, WORD))
            if rest:
                at = pixel * spec.channels + whole * WORD
                kb.store(y, pixel * words + whole, _packed(kb, spec, x, at, rest))
    return kb.build()


def _packed(kb: tir.KernelBuilder, spec: SignPack, x: Any, at: Any, count: int) -> Any:
    lanes, vectors = spec.lanes, []
    for first in range(0, WORD, lanes):
        if first < count:
            part = kb.load_first(x, at + first, lanes, min(lanes, count - first))
            vectors.append(below_zero(kb, kb.let(part, "x")))
    return sign_word(kb, vectors, arm=spec.arm)


def _pack_strided(kb: tir.KernelBuilder, spec: SignPack, x: Any, y: Any, pixel: Any) -> None:
    """One pixel, a channel at a time."""
    start = spec.start(kb, pixel)
    words, bits = words_of(spec.channels), kb.alloc("int32", 1)
    with kb.loop(0, words, "word") as word:
        kb.store(bits, 0, kb.const(0, "int32"))
        first = kb.let(word * WORD, "first")
        size = tir.tirx.min(kb.const(WORD, "int32"), spec.channels - first)
        with kb.loop(0, kb.let(size, "size"), "bit") as bit:
            value = kb.load(x, start + (first + bit) * spec.strides[-1])
            one = kb.cast(value < kb.const(0.0, "float32"), "int32")
            grown = tir.tirx.bitwise_or(kb.load(bits, 0), tir.tirx.shift_left(one, bit))
            kb.store(bits, 0, grown)
        kb.store(y, pixel * words + word, kb.load(bits, 0))


@dataclass(frozen=True)
class SignUnpack(_Order):
    """Signs as float32 ``scale`` and ``-scale``; as bytes, 0 for a negative one, else 2, for 0."""

    scale: float = 0.0


def unpack_function(name: str, spec: SignUnpack) -> Any:
    """The PrimFunc: parameters x (words), y (bytes or float32)."""
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", "int32", align=4)
    y = kb.pointer("y", "float32" if spec.scale else "uint8", align=1)
    words, (whole, rest) = words_of(spec.channels), divmod(spec.channels, WORD)
    with kb.loop(kb.begin, kb.end, "pixel") as pixel:
        if not spec.contiguous:
            _unpack_strided(kb, spec, x, y, pixel)
            whole = rest = 0
        with kb.loop(0, whole, "word") as word:
            value = _unpacked(kb, spec, kb.load(x, pixel * words + word))
            kb.store(y, pixel * spec.channels + word * WORD, value)
        if rest:
            value = _unpacked(kb, spec, kb.load(x, pixel * words + whole))
            kb.store_first(y, pixel * spec.channels + whole * WORD, value, rest)
    return kb.build()


def _unpacked(kb: tir.KernelBuilder, spec: SignUnpack, word: Any) -> Any:
    places = tir.tirx.Ramp(tir.tirx.IntImm("int32", 0), tir.tirx.IntImm("int32", 1), WORD)
    shifted = tir.tirx.shift_right(kb.splat(kb.let(word, "word"), WORD), places)
    bits = kb.let(tir.tirx.bitwise_and(shifted, kb.const(1, "int32", WORD)), "bits")
    if not spec.scale:
        two = kb.const(2, "int32", WORD)
        return kb.cast(two - bits * two, "uint8")
    up, down = (kb.const(s, "float32", WORD) for s in (spec.scale, -spec.scale))
    return tir.tirx.Select(bits > kb.const(0, "int32", WORD), down, up)


def _unpack_strided(kb: tir.KernelBuilder, spec: SignUnpack, x: Any, y: Any, pixel: Any) -> None:
    """One pixel, a word at a time."""
    start, spare = spec.start(kb, pixel), kb.alloc(str(y.dtype), WORD)
    with kb.loop(0, words_of(spec.channels), "word") as word:
        first = kb.let(word * WORD, "first")
        at = pixel * words_of(spec.channels) + word
        kb.store(spare, 0, _unpacked(kb, spec, kb.load(x, at)))
        size = tir.tirx.min(kb.const(WORD, "int32"), spec.channels - first)
        with kb.loop(0, kb.let(size, "size"), "bit") as bit:
            kb.store(y, start + (first + bit) * spec.strides[-1], kb.load(spare, bit))


@dataclass
class RealPointers:
    """Parameters of the epilogue of binary activations."""

    multiplier: Any
    bias: Any
    limits: list[Any]
    residual: Any


def real_parameters(kb: tir.KernelBuilder, residual: bool) -> RealPointers:
    """Declares multiplier, bias, limits and residual."""
    multiplier, bias = kb.pointer("multiplier", "float32"), kb.pointer("bias", "float32")
    limits = kb.pointer("limits", "float32")
    extra = kb.pointer("residual", "float32", align=4) if residual else None
    bounds = [kb.let(kb.load(limits, i), "limit") for i in range(2)]
    return RealPointers(multiplier, bias, bounds, extra)


def real_constants(
    epilogue: Epilogue, multiplier: np.ndarray, bias: np.ndarray, padded: int
) -> dict[str, np.ndarray]:
    """The constants of :func:`real_parameters`, filled up to ``padded`` channels."""
    fill = (0, padded - multiplier.size)
    return {
        "multiplier": np.pad(multiplier.astype(np.float32), fill),
        "bias": np.pad(bias.astype(np.float32), fill),
        "limits": np.array([epilogue.lo, epilogue.hi], np.float32),
    }


def real_value(
    kb: tir.KernelBuilder, at: RealPointers, sums: Any, channel: Any, index: Any, count: int
) -> Any:
    """clamp(sums * multiplier + bias + residual), each operation rounded by itself.

    Args:
        kb: the kernel.
        at: parameters.
        sums: a vector of exact sums in float32, of ``channel`` and those after it.
        channel: the first channel.
        index: where their residual lies.
        count: lanes that belong to channels.
    """
    lanes = tir.lanes_of(sums)
    product = sums * kb.load(at.multiplier, channel, lanes)
    real = kb.pure("llvm.arithmetic.fence", "float32", lanes, product)
    real = real + kb.load(at.bias, channel, lanes)
    if at.residual is not None:
        real = real + kb.load_first(at.residual, index, lanes, count)
    low, high = (kb.splat(limit, lanes) for limit in at.limits)
    return kb.let(kb.between(real, low, high), "real")


@dataclass(frozen=True)
class Finish:
    """Epilogue of sums in float32 ``[pixels, channels]``.

    ``signs``: it gives words; ``lanes``, ``arm``: as of :class:`SignPack`.
    """

    pixels: int
    channels: int
    signs: bool
    residual: bool
    lanes: int
    arm: bool


def finish_function(name: str, spec: Finish) -> Any:
    """The PrimFunc: parameters sums, multiplier, bias, limits, residual, y."""
    kb = tir.KernelBuilder(name)
    sums = kb.pointer("sums", "float32", align=4)
    at = real_parameters(kb, spec.residual)
    y = kb.pointer("y", "int32" if spec.signs else "float32", align=4)
    lanes, words = spec.lanes, words_of(spec.channels)

    def value(pixel: Any, channel: Any, count: int) -> Any:
        index = kb.let(pixel * spec.channels + channel, "index")
        loaded = kb.load_first(sums, index, lanes, count)
        return real_value(kb, at, loaded, channel, index, count)

    def step(pixel: Any, first: Any, count: int) -> None:
        """The outputs of a word."""
        vectors = []
        for v in range(0, count, lanes):
            some = min(lanes, count - v)
            real = value(pixel, first + v, some)
            if spec.signs:
                vectors.append(below_zero(kb, real))
            else:
                kb.store_first(y, pixel * spec.channels + first + v, real, some)
        if spec.signs:
            at_word = pixel * words + tir.tirx.truncdiv(first, WORD)
            mask = kb.const(-1 if count == WORD else (1 << count) - 1, "int32")
            kb.store(y, at_word, tir.tirx.bitwise_and(sign_word(kb, vectors, arm=spec.arm), mask))

    whole, rest = divmod(spec.channels, WORD)
    with kb.loop(kb.begin, kb.end, "pixel") as pixel:
        with kb.loop(0, whole, "word") as word:
            step(pixel, word * WORD, WORD)
        if rest:
            step(pixel, kb.const(whole * WORD, "int32"), rest)
    return kb.build()
