"""Staging for convolutions of few channels: all kernel rows of a column side by side.

The runs of such a layer, ``kw * c`` elements of one kernel row, fill only a part of a 64-byte tile
row: 9 bytes of a 3x3 kernel over three channels. A staged row holds for each column of the padded
input the ``kh * c`` bytes ``[i, c]`` that one row of outputs sees below each other, so that a whole
window ``[kw, kh, c]`` is one run. The kernel stages the rows of each work item itself: they stay in
the first-level cache.

One step makes as many columns as fit a register. Their bytes of each input row are loaded into a
part of a register, and byte permutes (AVX512_VBMI) bring them into order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcc import tir
from targets.isa import CLOCK, Isa
from targets.kernels.skeleton import divide
from targets.kernels.spec import ConvSpec

_VECTOR = 64

BAND_BYTES = 24 << 10
"""Bytes staged at a time: half of the first-level cache. A single row would be read by tile loads
while its stores are on their way."""

LEAST_BANDS = 4
"""Bands that a layer is cut into at least, where it has so many rows. Each one waits for its first
products and its last epilogue by itself."""


@dataclass(frozen=True)
class Columns:
    """Staged rows ``[columns, kh, c]`` of u8 images ``[n, h, w, c]``, one for each output row.

    Row r holds input rows ``r * stride + i * dilation - top``; column j is input column ``j -
    left``. What lies outside is the fill value. ``band`` rows are staged at a time.
    """

    n: int
    h: int
    w: int
    c: int
    kh: int
    stride: int
    dilation: int
    top: int
    left: int
    oh: int
    columns: int
    band: int

    @property
    def column(self) -> int:
        """Bytes of a column."""
        return self.kh * self.c

    @property
    def at_once(self) -> int:
        """Columns that one step makes."""
        return min(_VECTOR // self.column, self.w)

    @property
    def pitch(self) -> int:
        """Bytes of a row, with what vector stores write beyond it."""
        return _pitch(self.columns, self.column)

    @property
    def bytes(self) -> int:
        """Bytes of a band, with what tile loads read beyond it."""
        return self.band * self.pitch + _VECTOR

    def sources(self, bands: np.ndarray) -> np.ndarray:
        """The bytes of the images that bands ``[k]`` are made of: ``[k, 2]``, first and end."""
        per_image = self.oh // self.band
        image, band = np.divmod(bands, per_image)
        top = band * self.band * self.stride - self.top
        reach = (self.band - 1) * self.stride + (self.kh - 1) * self.dilation + 1
        first = np.clip(top, 0, self.h - 1)
        end = np.clip(top + reach, first + 1, self.h)
        rows = np.stack([first, end], 1) + (image * self.h)[:, None]
        return np.asarray(rows * (self.w * self.c))

    @property
    def part(self) -> int:
        """Bytes of a register that each input row has: 16, 32 or 64."""
        return next(size for size in (16, 32, 64) if size >= self.at_once * self.c)

    @property
    def registers(self) -> int:
        """Registers that hold the parts of all rows."""
        return -(-self.kh * self.part // _VECTOR)

    @property
    def seconds(self) -> float:
        """Predicted time on one thread: loads, their insertion, permutes, stores across lines."""
        step = self.kh + max(self.registers - 1, 1) + 1.0
        return self.n * self.oh * (-(-self.w // self.at_once) * step + 20.0) / CLOCK


def columns_refusal(spec: ConvSpec, isa: Isa) -> str:
    """Why a layer cannot be staged so on ``isa``; "" if it can."""
    if not isa.byte_permute:
        return "the instruction set has no byte permutation"
    if spec.in_dtype != "u8" or spec.groups > 1 or spec.kh < 2 or spec.dilation[1] > 1:
        return "it is no dense u8 convolution of several rows"
    if spec.kh * spec.c > _VECTOR:
        return f"a column of {spec.kh * spec.c} bytes does not fit a register"
    return "" if spec.input_slack else "the bytes after the caller's input may not be read"


def _pitch(columns: int, column: int) -> int:
    return -(-(columns * column + _VECTOR) // _VECTOR) * _VECTOR


def columns_of(spec: ConvSpec) -> Columns:
    """The staged rows of a layer."""
    pitch = _pitch(spec.padded[1], spec.kh * spec.c)
    most = min(BAND_BYTES // pitch, spec.n * spec.oh // LEAST_BANDS)
    band = max(r for r in range(1, max(most, 1) + 1) if spec.oh % r == 0)
    return Columns(
        spec.n,
        spec.h,
        spec.w,
        spec.c,
        spec.kh,
        spec.stride[0],
        spec.dilation[0],
        spec.pads[0],
        spec.pads[1],
        spec.oh,
        spec.padded[1],
        band,
    )


class StagedRows:
    """The staging of bands of rows inside a kernel; declares the parameters x, fill, a."""

    def __init__(self, kb: tir.KernelBuilder, stage: Columns) -> None:
        self.kb, self.stage = kb, stage
        self.x = kb.pointer("x", "uint8", align=1)
        self.fill = kb.pointer("fill", "int32")
        self.y = kb.pointer("a", "uint8")

    def emit(self, item: Any) -> None:
        """Stages band ``item`` (images one after the other) at the start of ``a``."""
        kb, stage = self.kb, self.stage
        image, band = divide(kb, item, stage.oh // stage.band, "band")
        image = image if stage.n > 1 else 0
        start = band * stage.band if stage.oh > stage.band else 0
        with kb.loop(0, stage.band, "row") as row:
            self._row(image, kb.let(start + row, "row"), kb.let(row * stage.pitch, "put"))

    def _row(self, image: Any, row: Any, put: Any) -> None:
        """Stages one output row from byte ``put`` of ``a``."""
        kb, stage = self.kb, self.stage
        value = kb.let(kb.cast(kb.load(self.fill, 0), "uint8"), "fill")
        first = kb.let(row * stage.stride - stage.top, "first")
        reach = (stage.kh - 1) * stage.dilation
        inside = tir.tirx.all(first >= 0, first + reach < stage.h)
        borders = stage.top > 0 or (stage.oh - 1) * stage.stride - stage.top + reach >= stage.h
        _fill(kb, stage, self.y, put, value, 0, stage.left)
        rows = [image * stage.h + first + i * stage.dilation for i in range(stage.kh)]
        with kb.when(inside if borders else True):
            starts = [kb.let(r * (stage.w * stage.c), "start") for r in rows]
            _inner(kb, stage, self.x, self.y, put, [(start, True) for start in starts], value)
        if borders:
            with kb.when(tir.tirx.Not(inside)):
                guarded = _guarded(kb, stage, image, first)
                _inner(kb, stage, self.x, self.y, put, guarded, value)
        _fill(kb, stage, self.y, put, value, stage.left + stage.w, stage.columns)


def _guarded(kb: tir.KernelBuilder, stage: Columns, image: Any, first: Any) -> list[Any]:
    """Start of each input row, moved into the image, and whether it lies there."""
    made = []
    for i in range(stage.kh):
        row = kb.let(first + i * stage.dilation, "row")
        near = tir.tirx.min(tir.tirx.max(row, _i32(0)), _i32(stage.h - 1))
        start = kb.let((image * stage.h + near) * (stage.w * stage.c), "start")
        made.append((start, kb.let(tir.tirx.all(row >= 0, row < stage.h), "inside")))
    return made


def _i32(value: int) -> Any:
    return tir.tirx.IntImm("int32", value)


def _fill(
    kb: tir.KernelBuilder, stage: Columns, y: Any, put: Any, value: Any, begin: int, end: int
) -> None:
    """Fills columns ``[begin, end)``, and bytes of the row after them."""
    for at in range(begin * stage.column, end * stage.column, _VECTOR):
        kb.store(y, put + at, kb.splat(value, _VECTOR))


def _inner(
    kb: tir.KernelBuilder,
    stage: Columns,
    x: Any,
    y: Any,
    put: Any,
    rows: list[tuple[Any, Any]],
    value: Any,
) -> None:
    """The columns of the input; ``rows``: start of each, and whether it lies in the image."""
    part, per_register = stage.part, _VECTOR // stage.part
    source, byte = _places(stage)
    with kb.loop(0, -(-stage.w // stage.at_once), "step") as i:
        column = kb.let(tir.tirx.min(i * stage.at_once, _i32(stage.w - stage.at_once)), "column")
        parts = []
        for start, inside in rows:
            loaded = kb.load(x, start + column * stage.c, part)
            if inside is not True:
                loaded = tir.tirx.Select(inside, loaded, kb.splat(value, part))
            parts.append(kb.let(loaded, "part"))
        parts += parts[-1:] * (-len(parts) % per_register)
        made = None
        for r in range(stage.registers):
            register = parts[r * per_register : (r + 1) * per_register]
            whole = kb.let(_joined(register), "register")
            if made is None:
                made, places = whole, np.where(source == 0, byte, 0)
                if stage.registers > 1:
                    continue
                made = tir.tirx.Shuffle([made, made], _indices(places))
            else:
                places = np.where(source == r, _VECTOR + byte, places)
                made = kb.let(tir.tirx.Shuffle([made, whole], _indices(places)), "columns")
                places = np.arange(_VECTOR)
        kb.store(y, put + (column + stage.left) * stage.column, made)


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else tir.tirx.Shuffle(parts, _indices(range(_VECTOR)))


def _indices(places: Any) -> list[Any]:
    return [_i32(int(place)) for place in places]


def _places(stage: Columns) -> tuple[np.ndarray, np.ndarray]:
    """For each byte of a step's result: the register and the byte of it that it comes from."""
    column, rest = np.divmod(np.arange(_VECTOR), stage.column)
    row, channel = np.divmod(rest, stage.c)
    row[column >= stage.at_once] = column[column >= stage.at_once] = 0
    register, place = np.divmod(row, _VECTOR // stage.part)
    return register, place * stage.part + column * stage.c + channel
