"""Convolutions and linear layers of 8-bit codes by the dot products of Cortex-M.

For a block of up to three output pixels the windows are gathered from the image as the dot products
want them: centred and in 16 bits for ``smlad`` (:mod:`targets.kernels.dsp`), bytes for ``vmladava``
(:mod:`targets.kernels.mve`). Then all output channels are computed from them, a few at a time.
There is no padded copy, and a block's inputs are read before its outputs are written: see
:func:`overlaps`.

What belongs to a block of channels is one stream of words: biases, weights, multipliers, ratios of
the residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, Overlap, name_key
from targets.kernels import mve as mve_dot
from targets.kernels.dsp import GROUP, LOADS, Dot, channels_share_words, load
from targets.kernels.dsp_packed import WIDTHS, PackedDot, stored_codes
from targets.kernels.mve import MveDot
from targets.kernels.mve_packed import PackedMveDot
from targets.kernels.packed_bits import Codes
from targets.kernels.scalar_epilogue import Finish
from targets.kernels.spec import NUMPY, SIZE, ConvSpec

Block = Dot | PackedDot | MveDot | PackedMveDot
"""A loop of dot products."""

BLOCKS = ((3, 1), (2, 1), (1, 2), (1, 1))
"""Pixels and pairs of channels that fit the registers."""

MVE_BLOCKS = ((3, 2), (2, 3), (2, 2), (1, 6), (1, 4), (1, 2))
"""Pixels and channels that fit the even registers."""


@dataclass(frozen=True)
class DspConv:
    """What determines the code of a layer: its shape and the block of its dot products."""

    spec: ConvSpec
    dot: Block

    @property
    def pixels(self) -> int:
        """Output pixels of all images."""
        return self.spec.n * self.spec.oh * self.spec.ow

    @property
    def blocks(self) -> int:
        """Work items: blocks of pixels."""
        return -(-self.pixels // self.dot.pixels)

    @property
    def channel_blocks(self) -> int:
        """Blocks of output channels."""
        return -(-self.spec.oc // self.dot.channels)

    @property
    def weight_words(self) -> int:
        """Words of a channel block's weights."""
        return self.dot.weight_words

    @property
    def stream_words(self) -> int:
        """Words of a channel block."""
        rows = 3 if self.spec.epilogue.residual else 2
        return self.weight_words + rows * self.dot.channels

    @property
    def taps(self) -> int:
        """Products of an output."""
        return self.spec.kh * self.spec.kw * self.spec.c

    @property
    def pointwise(self) -> bool:
        """Whether output pixels are input pixels, in the same order."""
        s = self.spec
        return (s.kh, s.kw, *s.stride, *s.pads) == (1, 1, 1, 1, 0, 0, 0, 0)

    @property
    def staged(self) -> bool:
        """Whether windows are put together as bytes before they are expanded."""
        if self.dot.unit == 1:
            return False
        return self.spec.c % GROUP != 0 and not (self.pointwise and self.spec.input_slack)


def dsp_conv(
    spec: ConvSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    ratio: np.ndarray | None,
    *,
    mve: bool = False,
    codes: Codes | None = None,
) -> KernelPlan:
    """The plan of a convolution without groups.

    Args:
        spec: u8 activations.
        weights: int8[oc, c, kh, kw].
        bias: int32[oc].
        multiplier: float32[oc].
        ratio: float32[oc], of a residual.
        mve: use the vectors of M-profile.
        codes: what the weights are, if they are to stay packed.
    """
    rows = np.ascontiguousarray(weights.transpose(0, 2, 3, 1)).reshape(spec.oc, -1)
    layer = DspConv(_without_images(spec), choose_dot(spec, rows, mve, codes))
    key = name_key("dsp_conv", layer)
    args: list[KernelArg] = [("in", 0), ("const", "stream")]
    if spec.epilogue.residual:
        args.append(("in", 1))
    args += [("out", 0), ("scratch", 0)]
    if layer.staged:
        args.append(("scratch", 1))
    step = KernelStep(key, partial(conv_function, key, layer), tuple(args), layer.blocks)
    scratch = [layer.dot.patch_bytes]
    if layer.staged:
        scratch.append(layer.dot.group * layer.dot.groups)
    return KernelPlan(
        (step,),
        {"stream": _stream(layer, rows, bias, multiplier, ratio)},
        tuple(scratch),
        overlaps=overlaps(layer),
        compressed=layer.dot.compressed,
        kernel=f"{layer.dot.title} {layer.dot.pixels}x{layer.dot.channels}",
    )


def _without_images(spec: ConvSpec) -> ConvSpec:
    """Pixels of a pointwise layer are one row, so that equal layers share their code."""
    layer = DspConv(spec, Dot(1, 1, 1, True))
    if not layer.pointwise:
        return spec
    return replace(spec, n=1, h=1, w=layer.pixels)


def overlaps(layer: DspConv) -> dict[int, Overlap]:
    """How output may overwrite input: a block's windows are read before its results are written.

    What the blocks after it read must lie behind what is written by then.
    """
    spec = layer.spec
    later = spec.first_read * spec.c
    starts = np.arange(layer.dot.pixels, layer.pixels, layer.dot.pixels)
    written = starts * spec.oc * SIZE[spec.epilogue.out]
    size = spec.n * spec.h * spec.w * spec.c
    made = {0: Overlap(int((written - later[starts]).max(initial=-size)))}
    if spec.epilogue.residual:
        made[1] = Overlap(exact=True)
    return made


def choose_dot(
    spec: ConvSpec, rows: np.ndarray | None, mve: bool, codes: Codes | None = None
) -> Block:
    """The block with the fewest instructions for int8[oc, taps]; None: weights not known yet."""
    taps = spec.kh * spec.kw * spec.c
    dots: Sequence[Block]
    if codes is not None:
        dots = _packed_dots(spec, taps, mve, codes)
    elif mve:
        groups = -(-taps // mve_dot.GROUP)
        dots = [MveDot(*block, groups) for block in mve_blocks(spec.oc)]
    else:
        groups = -(-taps // GROUP)
        shared = rows is None or channels_share_words(rows, spec.in_zero_point)
        blocks = [b for b in BLOCKS if shared or b[0] < 3]
        dots = [Dot(pixels, pairs, groups, shared) for pixels, pairs in blocks]
    return min(dots, key=lambda dot: instructions(DspConv(spec, dot)))


def mve_blocks(channels: int) -> list[tuple[int, int]]:
    """Blocks of the vectors that leave no channel unused, and the smallest."""
    return [b for b in MVE_BLOCKS if channels % b[1] == 0 or b == MVE_BLOCKS[-1]]


def _packed_dots(spec: ConvSpec, taps: int, mve: bool, codes: Codes) -> list[Block]:
    """The blocks that read packed weights."""
    stored = stored_codes(codes, taps, 1 if mve else GROUP)
    if stored is None:
        raise ValueError(f"weights of {codes.bits} bits have no packed form")
    if mve:
        groups = -(-taps * stored.bits // (WIDTHS[-1] * mve_dot.GROUP))
        blocks = [b for b in mve_blocks(spec.oc) if b[1] % 2 == 0]
        return [PackedMveDot(*block, groups, stored) for block in blocks]
    groups = -(-taps * stored.bits // (WIDTHS[-1] * GROUP))
    return [PackedDot(pixels, pairs, groups, stored) for pixels, pairs in BLOCKS]


def instructions(layer: DspConv) -> float:
    """Instructions of a layer, roughly: gathering, dot products, epilogues."""
    dot = layer.dot
    loops = len(dot.instructions()) * dot.iterations + 20 + 10 * dot.sums
    copies = dot.units * dot.unit / (dot.unit if dot.unit > 1 else mve_dot.GROUP)
    gather = dot.pixels * (6 * copies + 12 * layer.spec.kh + 20)
    return layer.blocks * (gather + loops * layer.channel_blocks)


def _stream(
    layer: DspConv,
    rows: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    ratio: np.ndarray | None,
) -> np.ndarray:
    """int32[channel blocks, words]: everything that is constant."""
    dot, step = layer.dot, layer.dot.channels
    channels = layer.channel_blocks * step
    full = np.full((channels, dot.group * dot.groups), dot.filler, np.int8)
    full[: layer.spec.oc, : layer.taps] = rows

    def words(values: np.ndarray) -> np.ndarray:
        padded = np.zeros(channels, values.dtype)
        padded[: layer.spec.oc] = values
        return padded.view(np.int32).reshape(-1, step)

    offsets = words(dot.bias(rows, bias, layer.spec.in_zero_point))
    parts = [offsets, dot.packed(full), words(multiplier.astype(np.float32))]
    if layer.spec.epilogue.residual and ratio is not None:
        parts.append(words(ratio.astype(np.float32)))
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def conv_function(name: str, layer: DspConv) -> Any:
    """The kernel: parameters x, stream, [residual], y, patch, [bytes]. Items: blocks of pixels.

    Buffers of input and output may overlap (:func:`overlaps`).
    """
    kb = tir.KernelBuilder(name, llvm=layer.dot.llvm() + LOADS)
    spec = layer.spec
    x = kb.pointer("x", "uint8", align=1)
    stream = kb.pointer("stream", "int32", align=4)
    residual = kb.pointer("residual", "uint8", align=1) if spec.epilogue.residual else None
    y = kb.pointer("y", NUMPY[spec.epilogue.out], align=4 if spec.epilogue.out == "f32" else 1)
    patch = kb.pointer("patch", "uint8" if layer.dot.unit == 1 else "int32", align=4)
    staging = kb.pointer("bytes", "uint8", align=4) if layer.staged else None
    emit = _Emitter(kb, layer, x, patch, staging)
    finish = Finish(kb, spec.epilogue, y, residual)
    written = -(-layer.taps // layer.dot.unit)
    if layer.dot.filler and written < layer.dot.units:
        for m in range(layer.dot.pixels):
            count = layer.dot.units - written
            layer.dot.clear(kb, patch, m, written, count, mve_dot.CENTRE)
    with kb.loop(kb.begin, kb.end, "block") as block:
        first, last = kb.let(block * layer.dot.pixels, "first"), _i32(layer.pixels - 1)
        uneven = layer.pixels % layer.dot.pixels > 0
        with kb.loop(0, layer.dot.pixels, "m") as m:
            pixel = kb.let(first + m, "pixel")
            emit.window(m, kb.let(tir.tirx.min(pixel, last), "pixel") if uneven else pixel)
        starts: list[tuple[Any, Any]] = [(kb.let(first * spec.oc, "start"), True)]
        for m in range(1, layer.dot.pixels):
            pixel = kb.let(first + m, "pixel")
            # the last block repeats the last pixel; not over a residual that it has replaced
            once = pixel <= last if uneven and spec.epilogue.residual else True
            pixel = kb.let(tir.tirx.min(pixel, last), "pixel") if uneven else pixel
            starts.append((kb.let(pixel * spec.oc, "start"), once))
        sums = layer.dot.pixel_sums(kb, patch)
        with kb.loop(0, layer.channel_blocks, "channels") as channels:
            _channels(kb, layer, stream, patch, finish, starts, sums, channels)
    return kb.build().without_attr("tirx.noalias")


def _channels(
    kb: Any,
    layer: DspConv,
    stream: Any,
    patch: Any,
    finish: Finish,
    starts: list[tuple[Any, Any]],
    pixel_sums: list[Any],
    block: Any,
) -> None:
    """One block of channels of all pixels of the block."""
    dot, spec, n = layer.dot, layer.spec, layer.dot.channels
    base = kb.let(block * layer.stream_words, "base")
    biases = [kb.let(kb.load(stream, base + i), "bias") for i in range(n)]
    weights = kb.address(stream, base + n)
    count = kb.const(dot.iterations, "int32")
    address = kb.address(patch, 0)
    made = kb.extern(dot.name, "int32", dot.sums, address, weights, count, *dot.starts(kb, biases))
    totals = dot.totals(kb, kb.let(made, "sums"), biases, pixel_sums)
    tail = kb.let(base + n + layer.weight_words, "tail")
    for index in range(n):
        at = block * n + index
        with kb.when(True if spec.oc % n == 0 else kb.let(at, "channel") < spec.oc):
            word = kb.let(kb.load(stream, tail + index), "multiplier")
            multiplier, ratio = kb.reinterpret(word, "float32"), None
            if spec.epilogue.residual:
                word = kb.let(kb.load(stream, tail + n + index), "ratio")
                ratio = kb.reinterpret(word, "float32")
            for total, (start, once) in zip(totals[index], starts, strict=True):
                with kb.when(once):
                    finish.store(total, multiplier, ratio, start + at)


@dataclass
class _Emitter:
    """Emits the gathering of windows."""

    kb: Any
    layer: DspConv
    x: Any
    patch: Any
    staging: Any

    def window(self, m: Any, pixel: Any) -> None:
        """The window of an output pixel becomes number ``m`` of the patch."""
        spec, kb = self.layer.spec, self.kb
        if self.layer.pointwise and not self.layer.staged:
            count = -(-spec.c // self.layer.dot.unit)
            self._expand(m, 0, count, self.x, kb.let(pixel * spec.c, "from"))
            return
        column = kb.let(tir.tirx.truncmod(pixel, _i32(spec.ow)), "column")
        row = kb.let(tir.tirx.truncdiv(pixel, _i32(spec.ow)), "row")
        image: Any = 0
        if spec.n > 1:
            image = kb.let(tir.tirx.truncdiv(row, _i32(spec.oh)) * spec.h, "image")
            row = kb.let(tir.tirx.truncmod(row, _i32(spec.oh)), "row")
        top = kb.let(row * spec.stride[0] - spec.pads[0], "top")
        left = kb.let(column * spec.stride[1] - spec.pads[1], "left")
        if self.staging is None:
            self._rows(m, image, top, left)
        else:
            self._staged(m, image, top, left)

    def _rows(self, m: Any, image: Any, top: Any, left: Any) -> None:
        """Whole units of channels at a time; what lies outside is zero."""
        spec, kb = self.layer.spec, self.kb
        groups = spec.c // self.layer.dot.unit
        with kb.loop(0, spec.kh, "ky") as ky:
            y = kb.let(top + ky * spec.dilation[0], "y")
            start = kb.let(((image + y) * spec.w + left) * spec.c, "from")
            to = kb.let(ky * (spec.kw * groups), "to")
            inside = self._inside(y, left, (spec.kw - 1) * spec.dilation[1])
            whole = spec.dilation[1] == 1
            if whole:
                with kb.when(inside):
                    self._expand(m, to, spec.kw * groups, self.x, start)
            with kb.when(_not(inside) if whole else True), kb.loop(0, spec.kw, "kx") as kx:
                column = kb.let(left + kx * spec.dilation[1], "at")
                there = kb.let(self._inside(y, column, 0), "there")
                place = kb.let(to + kx * groups, "to")
                with kb.when(there):
                    source = start + kx * (spec.dilation[1] * spec.c)
                    self._expand(m, place, groups, self.x, kb.let(source, "from"))
                with kb.when(_not(there)):
                    self._clear(m, place, groups)

    def _staged(self, m: Any, image: Any, top: Any, left: Any) -> None:
        """Byte by byte; what lies outside is the zero point."""
        spec, kb = self.layer.spec, self.kb
        with kb.loop(0, spec.kh, "ky") as ky:
            y = kb.let(top + ky * spec.dilation[0], "y")
            start = kb.let(((image + y) * spec.w + left) * spec.c, "from")
            to = kb.let(ky * (spec.kw * spec.c), "to")
            with kb.loop(0, spec.kw, "kx") as kx:
                column = kb.let(left + kx * spec.dilation[1], "at")
                there = kb.let(self._inside(y, column, 0), "there")
                source = kb.let(start + kx * (spec.dilation[1] * spec.c), "from")
                place = kb.let(to + kx * spec.c, "to")
                with kb.when(there):
                    for c in range(spec.c):
                        code = load(kb, "byte", self.x, source + c)
                        kb.store(self.staging, place + c, kb.cast(code, "uint8"))
                with kb.when(_not(there)):
                    for c in range(spec.c):
                        kb.store(self.staging, place + c, kb.const(spec.in_zero_point, "uint8"))
        count = -(-self.layer.taps // self.layer.dot.unit)
        self._expand(m, 0, count, self.staging, 0)

    def _inside(self, y: Any, column: Any, reach: int) -> Any:
        """Whether a row is inside the image, from ``column`` to ``reach`` columns on."""
        spec = self.layer.spec
        if spec.w <= reach:
            return _i32(0) > 0
        return tir.tirx.all(y >= 0, y < spec.h, column >= 0, column < spec.w - reach)

    def _expand(self, m: Any, to: Any, count: int, source: Any, start: Any) -> None:
        zero = self.layer.spec.in_zero_point
        self.layer.dot.expand(self.kb, self.patch, m, to, count, source, start, zero)

    def _clear(self, m: Any, to: Any, count: int) -> None:
        zero = self.layer.spec.in_zero_point
        self.layer.dot.clear(self.kb, self.patch, m, to, count, zero)


def _i32(value: int) -> Any:
    return tir.tirx.IntImm("int32", value)


def _not(condition: Any) -> Any:
    return tir.tirx.Not(condition)
