"""Convolution by direct loops, for machines without vectors and for C source.

A window is cut at the input's edge by the bounds of its loops, so nothing is padded or copied: RAM
is what such machines have least of. Channels lie innermost (NHWC), and the taps of a kernel row
with all their channels are neighbours in memory; their sum is one loop. A few output channels are
computed side by side, so that an activation that is loaded once is multiplied several times.

Weights of up to 4 bits can stay 2 or 4 to a byte, for the sake of flash: each is then masked out of
its byte where it is multiplied. Sums are int32 (float32 for float layers). The input's zero point z
is folded into the bias, ``sum(x * w) + bias - z * sum(w)``, where every window sees all its taps;
else it is taken from each activation, since a tap in the padding must count nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, Overlap, name_key
from targets.kernels import epilogue
from targets.kernels.spec import NUMPY, SIZE, Borders, ConvSpec, ConvTransposeSpec, Epilogue

CHANNELS = 4
"""Output channels that are computed side by side."""

_LARGEST_CODE = 255


@dataclass(frozen=True)
class Window(Borders):
    """Where the windows of ``spec`` meet the input's edge."""

    spec: ConvSpec

    def __post_init__(self) -> None:
        for name in ("h", "w", "oh", "stride", "dilation"):
            object.__setattr__(self, name, getattr(self.spec, name))
        object.__setattr__(self, "kernel", (self.spec.kh, self.spec.kw))
        object.__setattr__(self, "pads", self.spec.pads[:2])

    @property
    def column_borders(self) -> bool:
        """Whether some tap of a kernel row lies on padding somewhere."""
        return self.touches_border(0, self.spec.ow)

    @property
    def cut(self) -> bool:
        """Whether any window lacks taps."""
        return self.row_borders or self.column_borders


def sums_fit(weights: np.ndarray, bias: np.ndarray) -> bool:
    """Whether no partial sum of codes times ``weights`` [channels, ...] can leave int32."""
    taps = np.abs(weights.astype(np.int64)).reshape(len(weights), -1).sum(axis=1)
    return int((_LARGEST_CODE * 2 * taps + np.abs(bias.astype(np.int64))).max(initial=0)) < 1 << 31


def conv2d(
    spec: ConvSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None = None,
    ratio: np.ndarray | None = None,
    *,
    bits: int = 8,
) -> KernelPlan:
    """The plan of a convolution: one step, an item for each output row.

    Args:
        spec: of codes (u8) or float32, stored as they are.
        weights: int8 or float32 ``[oc, c / groups, kh, kw]``.
        bias: int32 or float32 ``[oc]``.
        multiplier: float32 ``[oc]``, for codes.
        ratio: float32 ``[oc]``, of a residual operand of codes.
        bits: of a stored weight; 2 or 4 for codes that fit (:func:`weight_bits`).
    """
    integer = spec.in_dtype == "u8"
    offset = spec.in_zero_point if integer and Window(spec).cut else 0
    if integer and not offset:
        codes = weights.astype(np.int64).reshape(spec.oc, -1).sum(axis=1)
        bias = (bias - spec.in_zero_point * codes).astype(np.int32)
    depthwise = spec.groups == spec.c == spec.oc
    order = (2, 3, 0, 1) if depthwise else (0, 2, 3, 1)  # [kh, kw, c] or [oc, kh, kw, c / groups]
    constants = {
        "weight": np.ascontiguousarray(weights.transpose(order)),
        "bias": bias.astype(np.int32 if integer else np.float32),
    }
    constants["scalars"] = epilogue.scalars(spec.epilogue)
    if multiplier is not None:
        constants["multiplier"] = np.broadcast_to(multiplier, (spec.oc,))
    if ratio is not None:
        constants["ratio"] = np.broadcast_to(ratio, (spec.oc,))
    coded = replace(
        spec, in_zero_point=offset, epilogue=shared_epilogue(spec.epilogue), input_slack=True
    )
    kind = _kind(spec, depthwise)
    if bits < 8:
        constants["weight"] = packed(constants["weight"], bits)
    key = name_key(kind, coded, bits)
    build = _Depthwise if depthwise else _Conv
    step = KernelStep(
        key, lambda: build(key, coded, bits).build(), layer_arguments(spec), spec.n * spec.oh
    )
    stored = f", {bits}-bit weights" if bits < 8 else ""
    return KernelPlan(
        (step,),
        constants,
        overlaps=overlaps(spec),
        kernel=f"direct {kind.replace('_', ' ')}{stored}",
        compressed=bits < 8,
    )


def weight_bits(codes: np.ndarray) -> int:
    """Bits, 2, 4 or 8, in which these int8 weights can be stored."""
    lowest, highest = int(codes.min(initial=0)), int(codes.max(initial=0))
    return next(n for n in (2, 4, 8) if -(1 << n - 1) <= lowest and highest < 1 << n - 1)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of ``bits`` bits side by side in bytes, the first one lowest; the smallest is 0."""
    each = 8 // bits
    fields = np.zeros(-(-codes.size // each) * each, np.uint8)
    fields[: codes.size] = codes.ravel().astype(np.int16) + (1 << bits - 1)
    shifts = np.arange(each, dtype=np.uint8) * bits
    whole: np.ndarray = np.bitwise_or.reduce(fields.reshape(-1, each) << shifts, axis=1)
    return whole.astype(np.uint8)


def overlaps(spec: ConvSpec) -> dict[int, Overlap]:
    """How output may overwrite input: what is read from then on lies behind what is written.

    While the last channels of a pixel are summed, all others have been written. A depthwise layer
    is done with a channel of its window when it writes it, but not with those of the next window.
    """
    pixels, first = np.arange(spec.n * spec.oh * spec.ow), spec.first_read * spec.c
    source, result = SIZE[spec.in_dtype], SIZE[spec.epilogue.out]
    if spec.groups == spec.c == spec.oc:
        leads = [
            (written * result - read * source).max(initial=-first[-1] * source)
            for channel in (0, spec.c - 1)
            for written in (pixels * spec.c + channel,)
            for written, read in ((written, first + channel), (written[:-1], first[1:]))
        ]
        lead = max(leads)
    else:
        last = spec.oc // spec.groups % CHANNELS or CHANNELS
        lead = (((pixels + 1) * spec.oc - last) * result - first * source).max()
    made = {0: Overlap(int(lead))}
    if spec.epilogue.residual:
        made[1] = Overlap(exact=True)
    return made


def conv2d_transpose(
    spec: ConvTransposeSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None = None,
) -> KernelPlan:
    """The plan of a transposed convolution: each result gathers the inputs that reach it.

    Args:
        spec: of codes (u8) or float32, stored as they are.
        weights: int8 or float32 ``[c, oc / groups, kh, kw]``.
        bias: int32 or float32 ``[oc]``.
        multiplier: float32 ``[oc]``, for codes.
    """
    per_group, outs = spec.c // spec.groups, spec.oc // spec.groups
    grouped = weights.reshape(spec.groups, per_group, outs, spec.kh, spec.kw)
    packed = grouped.transpose(0, 2, 3, 4, 1).reshape(spec.oc, spec.kh, spec.kw, per_group)
    number = np.int32 if spec.in_dtype == "u8" else np.float32
    constants = {"weight": np.ascontiguousarray(packed), "bias": bias.astype(number)}
    constants["scalars"] = epilogue.scalars(spec.epilogue)
    if multiplier is not None:
        constants["multiplier"] = np.broadcast_to(multiplier, (spec.oc,))
    offset = spec.in_zero_point if spec.in_dtype == "u8" else 0
    coded = replace(spec, in_zero_point=offset, epilogue=shared_epilogue(spec.epilogue))
    kind = f"conv_transpose_{spec.kh}x{spec.kw}"
    key = name_key(kind, coded)
    step = KernelStep(
        key, lambda: _Transposed(key, coded).build(), layer_arguments(spec), spec.n * spec.size[0]
    )
    return KernelPlan((step,), constants, kernel=f"direct {kind.replace('_', ' ')}")


def layer_arguments(spec: ConvSpec | ConvTransposeSpec) -> tuple[KernelArg, ...]:
    """Arguments of a layer's kernel: input, weight, the epilogue's constants, residual, output."""
    out = spec.epilogue
    names = ("weight", *epilogue.argument_names(spec.in_dtype == "u8", out.residual))
    residual: list[KernelArg] = [("in", 1)] if out.residual is not None else []
    return (("in", 0), *(("const", name) for name in names), *residual, ("out", 0))


def shared_epilogue(made: Epilogue) -> Epilogue:
    """``made`` without what is no part of the code."""
    return replace(made, lo=-np.inf, hi=np.inf, out_zero_point=0, residual_zero_point=0)


def _kind(spec: ConvSpec, depthwise: bool) -> str:
    if spec.h == spec.kh == spec.kw == 1 and spec.groups == 1:
        return "linear"
    stem = "depthwise" if depthwise else "conv"
    return f"{stem}_{spec.kh}x{spec.kw}"


class _Sums:
    """What all loops share: parameters, and sums from the bias to the stored result."""

    def __init__(self, key: str, spec: ConvSpec | ConvTransposeSpec, bits: int = 8) -> None:
        self.bits = bits
        self.zero_point, self.epilogue = spec.in_zero_point, spec.epilogue
        self.kb = kb = tir.KernelBuilder(key)
        self.integer = spec.in_dtype == "u8"
        self.sum_type = "int32" if self.integer else "float32"
        self.x = kb.pointer("x", NUMPY[spec.in_dtype], align=1 if self.integer else 4)
        codes = "int8" if bits == 8 else "uint8"
        self.weight = kb.pointer("weight", codes if self.integer else "float32", align=1)
        self.at = epilogue.parameters(kb, self.integer, spec.epilogue.out, spec.epilogue.residual)

    def _start(self, channel: Any) -> Any:
        """A sum that starts with the bias."""
        total = self.kb.alloc(self.sum_type, 1, "sum")
        self.kb.store(total, 0, self.kb.load(self.at.bias, channel))
        return total

    def _activation(self, index: Any) -> Any:
        """An activation as the sums want it."""
        value = self.kb.load(self.x, index)
        if not self.integer:
            return self.kb.let(value, "value")
        value = self.kb.cast(value, "int32")
        return self.kb.let(value - self.zero_point, "value")

    def _add(self, total: Any, value: Any, index: Any) -> None:
        self.kb.store(total, 0, self.kb.load(total, 0) + value * self._weight(index))

    def _weight(self, index: Any) -> Any:
        kb, bits, each = self.kb, self.bits, 8 // self.bits
        if bits == 8:
            return kb.cast(kb.load(self.weight, index), self.sum_type)
        index = kb.let(index, "place")
        byte = kb.cast(kb.load(self.weight, tir.tirx.truncdiv(index, each)), "uint32")
        shift = kb.cast(tir.tirx.truncmod(index, each) * bits, "uint32")
        field = tir.tirx.shift_right(byte, shift)
        field = tir.tirx.bitwise_and(field, kb.const((1 << bits) - 1, "uint32"))
        return kb.let(kb.cast(field, "int32") - (1 << bits - 1), "code")

    def _finish(self, total: Any, channel: Any, index: Any) -> None:
        kb, at = self.kb, self.at
        channels = epilogue.Channels(None)
        if at.multiplier is not None:
            channels.multiplier = kb.load(at.multiplier, channel)
        if at.ratio is not None:
            channels.ratio = kb.load(at.ratio, channel)
        index = kb.let(index, "out")
        epilogue.finish(kb, at, channels, kb.load(total, 0), index, 1, self.epilogue.out)


class _Loops(_Sums):
    """The input's row and the bounds of its windows, for the two kinds of convolution."""

    def __init__(self, key: str, spec: ConvSpec, bits: int) -> None:
        super().__init__(key, spec, bits)
        self.spec, self.window = spec, Window(spec)

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb, spec = self.kb, self.spec
        with kb.loop(kb.begin, kb.end, "row") as item:
            image = 0 if spec.n == 1 else kb.let(item // spec.oh, "image")
            row = item if spec.n == 1 else kb.let(item % spec.oh, "out_row")
            top = kb.let(row * spec.stride[0] - spec.pads[0], "top")
            rows = self._taps(top, 0, self.window.row_borders)
            with kb.loop(0, spec.ow, "column") as column:
                left = kb.let(column * spec.stride[1] - spec.pads[1], "left")
                columns = self._taps(left, 1, self.window.column_borders)
                pixel = kb.let(item * spec.ow + column, "pixel") if spec.ow > 1 else item
                self._pixel((image * spec.h + top) * spec.w + left, rows, columns, pixel)
        return kb.build().without_attr("tirx.noalias")  # the output may lie over the input

    def _taps(self, start: Any, axis: int, cut: bool) -> tuple[Any, Any]:
        """First and end of the taps that a window from ``start`` has inside the input."""
        spec, step = self.spec, self.spec.dilation[axis]
        taps, size = (spec.kh, spec.kw)[axis], (spec.h, spec.w)[axis]
        if not cut:
            return 0, taps
        first, end = 0 - start, size - start
        if step > 1:
            first, end = (tir.tirx.floordiv(v + (step - 1), step) for v in (first, end))
        kind = ("row", "column")[axis]
        first = self.kb.let(tir.tirx.max(first, 0), f"first_{kind}")
        return first, self.kb.let(tir.tirx.min(end, taps), f"end_{kind}")

    def _pixel(self, corner: Any, rows: Any, columns: Any, pixel: Any) -> None:
        raise NotImplementedError


class _Conv(_Loops):
    """Sums over all channels of a group."""

    def _pixel(self, corner: Any, rows: Any, columns: Any, pixel: Any) -> None:
        spec, per_group = self.spec, self.spec.oc // self.spec.groups
        for group in range(spec.groups) if spec.groups <= 2 else (None,):
            with self._group(group) as number:
                whole = per_group // CHANNELS
                for first, blocks, count in (
                    (0, whole, CHANNELS),
                    (whole * CHANNELS, 1, per_group % CHANNELS),
                ):
                    if not blocks or not count:
                        continue
                    with self.kb.loop(0, blocks, "block") as block:
                        channel = number * per_group + first + block * count
                        channel = self.kb.let(channel, "channel")
                        self._block(corner, rows, columns, pixel, (number, channel, count))

    @contextmanager
    def _group(self, group: int | None) -> Iterator[Any]:
        if group is not None:
            yield group
            return
        with self.kb.loop(0, self.spec.groups, "group") as number:
            yield number

    def _block(
        self, corner: Any, rows: Any, columns: Any, pixel: Any, part: tuple[Any, Any, int]
    ) -> None:
        """``count`` channels of one pixel: ``part`` is group, first channel and count."""
        kb, spec, (group, channel, count) = self.kb, self.spec, part
        sums = [self._start(channel + i) for i in range(count)]
        depth = spec.c // spec.groups
        line = spec.kw * depth  # weights of a kernel row
        with kb.loop(rows[0], rows[1], "tap_row") as ky:
            start = (corner + ky * (spec.dilation[0] * spec.w)) * spec.c
            start = kb.let(start + group * depth, "start")
            weights = kb.let((channel * spec.kh + ky) * line, "weights")
            for source, tap in self._columns(columns, depth):
                value = self._activation(start + source)
                for i, total in enumerate(sums):
                    self._add(total, value, weights + (i * spec.kh * line) + tap)
        for i, total in enumerate(sums):
            self._finish(total, channel + i, pixel * spec.oc + channel + i)

    def _columns(self, columns: Any, depth: int) -> Iterator[tuple[Any, Any]]:
        """Runs what follows for each tap of a kernel row: its place in input and weights."""
        kb, step = self.kb, self.spec.dilation[1]
        if self.spec.groups == 1 and (step == 1 or self.spec.kw == 1):
            with kb.loop(columns[0] * depth, columns[1] * depth, "i") as i:
                yield i, i
            return
        with kb.loop(columns[0], columns[1], "tap_column") as kx, kb.loop(0, depth, "i") as i:
            yield kx * (step * self.spec.c) + i, kx * depth + i


class _Depthwise(_Loops):
    """Sums of one channel each."""

    def _pixel(self, corner: Any, rows: Any, columns: Any, pixel: Any) -> None:
        kb, spec = self.kb, self.spec
        corner = kb.let(corner * spec.c, "corner")
        down, right = spec.dilation[0] * spec.w * spec.c, spec.dilation[1] * spec.c
        with kb.loop(0, spec.c, "channel") as channel:
            total = self._start(channel)
            tap_rows = kb.loop(rows[0], rows[1], "tap_row")
            tap_columns = kb.loop(columns[0], columns[1], "tap_column")
            with tap_rows as ky, tap_columns as kx:
                value = self._activation(corner + ky * down + kx * right + channel)
                self._add(total, value, (ky * spec.kw + kx) * spec.c + channel)
            self._finish(total, channel, pixel * spec.c + channel)


class _Transposed(_Sums):
    """Sums over the taps that an input pixel lies under."""

    def __init__(self, key: str, spec: ConvTransposeSpec) -> None:
        super().__init__(key, spec)
        self.spec = spec

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb, spec, (oh, ow) = self.kb, self.spec, self.spec.size
        with kb.loop(kb.begin, kb.end, "row") as item:
            image = 0 if spec.n == 1 else kb.let(item // oh, "image")
            row = item if spec.n == 1 else kb.let(item % oh, "out_row")
            with kb.loop(0, ow, "column") as column, kb.loop(0, spec.oc, "channel") as channel:
                total = self._start(channel)
                rows, columns = self._reaching(row, 0), self._reaching(column, 1)
                with rows as (tap_row, y), columns as (tap_column, x):
                    tap = (channel * spec.kh + tap_row) * spec.kw + tap_column
                    self._channels(total, (image * spec.h + y) * spec.w + x, channel, tap)
                self._finish(total, channel, (item * ow + column) * spec.oc + channel)
        return kb.build()

    @contextmanager
    def _reaching(self, place: Any, axis: int) -> Iterator[tuple[Any, Any]]:
        """Runs what follows for each tap that brings an input line to ``place``, and that line."""
        kb, spec, kind = self.kb, self.spec, ("row", "column")[axis]
        taps, size = (spec.kh, spec.kw)[axis], (spec.h, spec.w)[axis]
        stride = spec.stride[axis]
        with kb.loop(0, taps, f"tap_{kind}") as tap:
            way = kb.let(place + spec.pads[axis] - tap * spec.dilation[axis], "way")
            inside = tir.tirx.all(way >= 0, way < size * stride)
            if stride > 1:
                inside = tir.tirx.all(inside, tir.tirx.truncmod(way, stride).equal(0))
            with kb.when(inside):
                yield tap, kb.let(tir.tirx.truncdiv(way, stride), kind)

    def _channels(self, total: Any, pixel: Any, channel: Any, tap: Any) -> None:
        spec, depth = self.spec, self.spec.c // self.spec.groups
        start = pixel * spec.c
        if spec.groups > 1:
            start = start + channel // (spec.oc // spec.groups) * depth
        start, weights = self.kb.let(start, "start"), self.kb.let(tap * depth, "weights")
        with self.kb.loop(0, depth, "i") as i:
            self._add(total, self._activation(start + i), weights + i)
