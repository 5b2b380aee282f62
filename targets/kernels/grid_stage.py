"""Staging on a GPU: windows written out in rows, and float32 rounded to 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelStep, name_key
from targets.kernels.grid_items import thread_each
from targets.kernels.spec import NUMPY, SIZE, ConvSpec


@dataclass(frozen=True)
class Columns:
    """A copy of a layer's input: a row of ``depth`` elements for each pixel.

    ``written_out``: rows are the windows of output pixels (im2col), filled up with zeros to a
    multiple of 16 bytes; else input pixels as they are.
    """

    image: tuple[int, int, int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int]
    depth: int
    src: str
    dst: str
    fill: int
    written_out: bool

    @staticmethod
    def of(spec: ConvSpec, *, written_out: bool) -> Columns:
        """The copy that the kernels of ``spec`` read."""
        size = SIZE[spec.in_dtype]
        depth = spec.kh * spec.kw * spec.c if written_out else spec.c
        out, kernel, stride, dilation, pads = (spec.h, spec.w), (1, 1), (1, 1), (1, 1), (0, 0)
        if written_out:
            out, kernel = (spec.oh, spec.ow), (spec.kh, spec.kw)
            stride, dilation, pads = spec.stride, spec.dilation, spec.pads[:2]
            depth = -(-depth * size // 16) * 16 // size
        fill = spec.in_zero_point if spec.in_dtype == "u8" else 0
        return Columns(
            (spec.n, spec.h, spec.w, spec.c),
            out,
            kernel,
            stride,
            dilation,
            pads,
            depth,
            spec.stored or spec.in_dtype,
            spec.in_dtype,
            fill,
            written_out,
        )

    @property
    def elements(self) -> int:
        """Of the copy."""
        return self.image[0] * self.out[0] * self.out[1] * self.depth

    @property
    def bytes(self) -> int:
        """Of the copy."""
        return self.elements * SIZE[self.dst]


def stage_step(columns: Columns, source: KernelArg, to: KernelArg) -> KernelStep:
    """Makes the copy, a thread for each of its elements."""
    key = name_key("grid_columns", columns)

    def build() -> Any:
        return _function(key, columns)

    return thread_each(KernelStep(key, build, (source, to), columns.elements))


def _function(key: str, columns: Columns) -> Any:
    kb = tir.KernelBuilder(key)
    x, y = kb.pointer("x", NUMPY[columns.src], 1), kb.pointer("y", NUMPY[columns.dst])
    with kb.loop(kb.begin, kb.end, "element") as element:
        if columns.written_out:
            kb.store(y, element, kb.const(columns.fill, NUMPY[columns.dst]))
            inside, source = _place(kb, columns, element)
        else:
            inside, source = True, element
        with kb.when(inside):
            value = kb.load(x, source)
            if columns.src == "f32" and columns.dst != "f32":
                value = kb.rounded(kb.let(value, "value"), columns.dst)
            kb.store(y, element, value)
    return kb.build()


def _place(kb: Any, columns: Columns, element: Any) -> tuple[Any, Any]:
    """Whether an element of a window lies on the input, and where."""
    _, height, width, channels = columns.image
    (oh, ow), (kh, kw) = columns.out, columns.kernel
    place = kb.let(element % columns.depth, "place")
    pixel = kb.let(element // columns.depth, "pixel")
    column, line = kb.let(pixel % ow, "column"), kb.let(pixel // ow, "line")
    row, image = kb.let(line % oh, "row"), kb.let(line // oh, "image")
    channel, tap = kb.let(place % channels, "channel"), kb.let(place // channels, "tap")
    dy, dx = tap // kw * columns.dilation[0], tap % kw * columns.dilation[1]
    y = kb.let(row * columns.stride[0] - columns.pads[0] + dy, "y")
    x = kb.let(column * columns.stride[1] - columns.pads[1] + dx, "x")
    inside = tir.tirx.all(y >= 0, y < height, x >= 0, x < width, tap < kh * kw)
    return inside, ((image * height + y) * width + x) * channels + channel
