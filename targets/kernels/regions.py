"""RoiAlign and MaxRoiPool in float32: loops whose bounds depend on the regions.

A work item is one bin of one region. Channels are innermost, so that the places and weights of a
sample are computed once for a vector of channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelStep, name_key
from dlcc.ops.regions import MOST
from dlcc.tir import expr

WIDE = 4
"""Vectors of channels side by side."""


@dataclass(frozen=True)
class Regions:
    """Images [n, h, w, c] and bins [regions, ph, pw, c].

    Attributes:
        shape: of the images.
        bins: regions and bins of each: (regions, ph, pw).
        scale: pixels of a region's unit.
        sampling: samples of a bin along each axis; 0: one for each pixel.
        half_pixel: regions are shifted by half a pixel.
        maximum: the largest weighted pixel instead of the mean.
        aligned: RoiAlign; else MaxRoiPool.
    """

    shape: tuple[int, int, int, int]
    bins: tuple[int, int, int]
    scale: float
    sampling: int = 0
    half_pixel: bool = True
    maximum: bool = False
    aligned: bool = True


def regions(layer: Regions, lanes: int, operands: Sequence[KernelArg]) -> KernelStep:
    """The only step; ``lanes`` float32 lanes of a vector, ``operands`` in order."""
    stem = "roi_align" if layer.aligned else "max_roi_pool"
    key = name_key(stem, layer, lanes)
    count, height, width = layer.bins
    make = _Align if layer.aligned else _Pool
    args: tuple[KernelArg, ...] = (*operands, ("out", 0))
    return KernelStep(key, lambda: make(key, layer, lanes).build(), args, count * height * width)


class _Bins:
    """What both kernels share: items, channels in vectors, state on the stack."""

    def __init__(self, name: str, layer: Regions, lanes: int) -> None:
        self.layer, self.lanes, self.kb = layer, lanes, tir.KernelBuilder(name)
        self.x = self.kb.pointer("x", "float32", align=4)
        self.rois = self.kb.pointer("rois", "float32", align=4)
        if layer.aligned:
            self.images = self.kb.pointer("images", "int64", align=8)
        self.y = self.kb.pointer("y", "float32", align=4)

    def f32(self, value: float) -> Any:
        return self.kb.const(value, "float32")

    def let(self, value: Any, name: str) -> Any:
        """A number that is computed here, and goes through memory.

        TVM looks into what bounds of loops and conditions are made of, for minutes where that is a
        chain of conditions; LLVM turns the memory into registers.
        """
        kept = self.kb.alloc(str(value.ty.dtype), 1, name)
        self.kb.store(kept, 0, value)
        return self.kb.let(self.kb.load(kept, 0), name)

    def build(self) -> Any:
        """The function."""
        kb, (_, height, width) = self.kb, self.layer.bins
        with kb.loop(kb.begin, kb.end, "item") as item:
            region = kb.let(expr.truncdiv(item, kb.const(height * width, "int32")), "region")
            rest = kb.let(item - region * (height * width), "bin")
            row = kb.let(expr.truncdiv(rest, kb.const(width, "int32")), "row")
            self.bin(item, region, (row, kb.let(rest - row * width, "column")))
        return kb.build()

    def bin(self, item: Any, region: Any, place: tuple[Any, Any]) -> None:
        """One item."""
        raise NotImplementedError

    def number(self, region: Any, column: int, columns: int) -> Any:
        return self.kb.load(self.rois, region * columns + column)

    def channels(self) -> Iterator[tuple[Any, int]]:
        """(first channel, lanes) of each block; whole blocks are a loop."""
        count, lanes = self.layer.shape[3], self.lanes * WIDE if self.lanes > 1 else 1
        if count >= lanes:
            with self.kb.loop(0, count // lanes, "block") as block:
                yield self.kb.let(block * lanes, "channel"), lanes
        at = count // lanes * lanes
        while at < count:
            while lanes > count - at:
                lanes //= 2
            yield at, lanes
            at += lanes

    def bounded(self, value: Any, low: Any, high: Any, name: str) -> Any:
        """``value`` between ``low`` and ``high`` as int32; ``low`` for NaN."""
        value = self.let(value, name)
        inside = self.let(expr.select(value > low, value, low), name)
        whole = self.kb.cast(expr.select(inside < high, inside, high), "int32")
        return self.let(whole, name)


class _Align(_Bins):
    def bin(self, item: Any, region: Any, place: tuple[Any, Any]) -> None:
        """Sums (or the maximum) over the samples of one bin."""
        kb, layer, one = self.kb, self.layer, self.f32(1)
        image = kb.load(self.images, region)
        low, high = kb.const(0, "int64"), kb.const(layer.shape[0] - 1, "int64")
        image = kb.let(expr.minimum(expr.maximum(image, low), high), "image")
        start = kb.let(
            kb.cast(image, "int32") * (layer.shape[1] * layer.shape[2] * layer.shape[3]), "start"
        )
        lines = [self.line(region, axis, place[axis]) for axis in (0, 1)]
        count = kb.let(lines[0][4] * lines[1][4], "count")
        share = kb.let(one / expr.select(count > one, count, one), "share")
        for channel, lanes in self.channels():
            total = kb.alloc("float32", lanes, "total")
            seen = kb.alloc("float32", 1, "seen")
            least = -3.4028234663852886e38 if layer.maximum else 0.0
            kb.store(total, 0, kb.const(least, "float32", lanes))
            kb.store(seen, 0, self.f32(0))
            self.samples(lines, start + channel, lanes, total, seen)
            result = kb.load(total, 0, lanes)
            zero = kb.const(0.0, "float32", lanes)
            if layer.maximum:
                some = kb.let(kb.load(seen, 0), "some")
                within = expr.select(some < count, self.f32(0), self.f32(least))
                result = expr.maximum(result, kb.splat(within, lanes))
                kb.store(total, 0, result)
                with kb.when(some < self.f32(0.5)):
                    kb.store(total, 0, zero)
                result = kb.load(total, 0, lanes)
            else:
                result = result * kb.splat(share, lanes)
            kb.store(self.y, item * layer.shape[3] + channel, result)

    def line(self, region: Any, axis: int, place: Any) -> tuple[Any, ...]:
        """Along one axis: corner, step, first and past the last sample, their number."""
        kb, layer, one = self.kb, self.layer, self.f32(1)
        shift = self.f32(0.5 if layer.half_pixel else 0.0)
        ends = [
            tir.separate(self.number(region, column - axis, 4) * self.f32(layer.scale)) - shift
            for column in (1, 3)
        ]
        start, end = (self.let(v, name) for v, name in zip(ends, ("start", "end"), strict=True))
        extent = self.let(end - start, "extent")
        if not layer.half_pixel:
            extent = self.let(expr.select(extent > one, extent, one), "extent")
        size = self.let(extent / self.f32(layer.bins[1 + axis]), "bin_size")
        corner = self.let(start + tir.separate(kb.cast(place, "float32") * size), "corner")
        if layer.sampling:
            count = self.f32(layer.sampling)
            first, last = kb.const(0, "int32"), kb.const(layer.sampling, "int32")
            return corner, self.let(size / count, "step"), first, last, count
        whole = self.let(expr.ceil(size), "samples")
        count = self.let(expr.select(whole > self.f32(0), whole, self.f32(0)), "samples")
        step = self.let(size / expr.select(count > one, count, one), "step")
        most = self.let(
            expr.select(count < self.f32(float(MOST)), count, self.f32(float(MOST))), "most"
        )
        low = expr.floor((self.f32(-1) - corner) / step) - self.f32(2)
        high = expr.ceil((self.f32(layer.shape[1 + axis]) - corner) / step) + self.f32(2)
        low, high = (
            expr.select(step > self.f32(0), v, self.f32(0))
            for v in (self.let(low, "low"), self.let(high, "high"))
        )
        first, last = (
            self.bounded(v, self.f32(0), most, n) for v, n in ((low, "first"), (high, "last"))
        )
        return corner, step, first, last, count

    def samples(
        self, lines: list[tuple[Any, ...]], start: Any, lanes: int, total: Any, seen: Any
    ) -> None:
        """Adds every sample that is not far outside."""
        kb, (_, height, width, channels) = self.kb, self.layer.shape
        rows = self.sample(lines[0], height)
        columns = self.sample(lines[1], width)
        with rows as (top, bottom, down), columns as (left, right, across):
            weights = (self.f32(1) - down, down), (self.f32(1) - across, across)
            parts = []
            for row, wy in zip((top, bottom), weights[0], strict=True):
                for column, wx in zip((left, right), weights[1], strict=True):
                    pixel = kb.load(self.x, start + (row * width + column) * channels, lanes)
                    weight = kb.let(tir.separate(wy * wx), "weight")
                    parts.append(tir.separate(kb.splat(weight, lanes) * pixel))
            value = parts[0]
            for part in parts[1:]:
                value = expr.maximum(value, part) if self.layer.maximum else value + part
            old = kb.load(total, 0, lanes)
            kb.store(total, 0, expr.maximum(old, value) if self.layer.maximum else old + value)
            kb.store(seen, 0, kb.load(seen, 0) + self.f32(1))

    @contextmanager
    def sample(self, line: tuple[Any, ...], size: int) -> Iterator[tuple[Any, Any, Any]]:
        """A loop over the samples of one axis that are inside: pixels and share of the second."""
        kb, (corner, step, first, last, _) = self.kb, line
        with kb.loop(first, last, "sample") as k:
            number = kb.cast(k, "float32") + self.f32(0.5)
            at = kb.let(corner + tir.separate(number * step), "at")
            with kb.when(expr.both(at >= self.f32(-1), at <= self.f32(size))):
                inside = kb.let(expr.maximum(at, self.f32(0)), "inside")
                low = kb.let(expr.minimum(kb.cast(inside, "int32"), size - 1), "before")
                high = kb.let(expr.minimum(low + 1, size - 1), "after")
                past = inside - kb.cast(low, "float32")
                yield low, high, kb.let(expr.select(low >= size - 1, self.f32(0), past), "past")


class _Pool(_Bins):
    def bin(self, item: Any, region: Any, place: tuple[Any, Any]) -> None:
        """The maximum over the pixels of one bin."""
        kb, layer = self.kb, self.layer
        images, height, width, channels = layer.shape
        image = self.bounded(self.number(region, 0, 5), self.f32(0), self.f32(images - 1), "image")
        rows, columns = (self.span(region, axis, place[axis]) for axis in (0, 1))
        filled = expr.both(rows[1] > rows[0], columns[1] > columns[0])
        start = kb.let(image * (height * width * channels), "start")
        for channel, lanes in self.channels():
            best = kb.alloc("float32", lanes, "best")
            kb.store(best, 0, kb.const(0.0, "float32", lanes))
            with kb.when(filled):
                kb.store(best, 0, kb.const(-float("inf"), "float32", lanes))
            with kb.loop(*rows, "row") as row, kb.loop(*columns, "column") as column:
                at = start + (row * width + column) * channels + channel
                pixel = kb.load(self.x, at, lanes)
                kb.store(best, 0, expr.maximum(kb.load(best, 0, lanes), pixel))
            kb.store(self.y, item * channels + channel, kb.load(best, 0, lanes))

    def span(self, region: Any, axis: int, place: Any) -> tuple[Any, Any]:
        """First and past the last pixel of the bin along one axis."""
        kb, layer = self.kb, self.layer
        ends = [self.pixel(self.number(region, column - axis, 5)) for column in (2, 4)]
        extent = self.let(ends[1] - ends[0] + self.f32(1), "extent")
        extent = self.let(expr.select(extent > self.f32(1), extent, self.f32(1)), "extent")
        size = self.let(extent / self.f32(layer.bins[1 + axis]), "bin_size")
        k = self.let(kb.cast(place, "float32"), "place")
        low = expr.floor(self.let(tir.separate(k * size), "low")) + ends[0]
        past = self.let(tir.separate((k + self.f32(1)) * size), "past")
        high = expr.ceil(past) + ends[0]
        limit = self.f32(layer.shape[1 + axis])
        first = self.bounded(low, self.f32(0), limit, "first")
        last = self.bounded(high, self.f32(0), limit, "last")
        return first, self.let(expr.maximum(first, last), "end")

    def pixel(self, value: Any) -> Any:
        """A region's number in pixels, half away from zero; far before the image for NaN."""
        scaled = self.let(tir.separate(value * self.f32(self.layer.scale)), "scaled")
        size = self.let(expr.absolute(scaled) + self.f32(0.5), "size")
        whole = self.let(expr.floor(size), "whole")
        signed = self.let(expr.select(scaled < self.f32(0), self.f32(0) - whole, whole), "signed")
        most = self.f32(1e6)
        low = self.let(expr.select(signed > self.f32(-1e6), signed, self.f32(-1e6)), "signed")
        return self.let(expr.select(low < most, low, most), "pixel")
