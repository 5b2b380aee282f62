"""Staging for convolutions of few channels: all kernel rows of a column side by side.

The runs of such a layer, ``kw * c`` elements of one kernel row, fill only a part of a 64-byte tile
row: 9 bytes of a 3x3 kernel over three channels. The staged copy holds for each output row and
each column of the padded input the ``kh * c`` bytes ``[i, c]`` below each other in the image, so
that a whole window ``[kw, kh, c]`` is one run. Each output row has a copy of its input rows: with
stride 2 the copy is ``kh / 2`` times as large as the input, which is small where this is used.

One step makes as many columns as fit a register. Their bytes of each input row are loaded into a
part of a register, and byte permutes (AVX512_VBMI) bring them into order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import Footprint, KernelArg, KernelStep, name_key
from targets.cpu.isa import CLOCK, Isa
from targets.cpu.kernels.skeleton import divide
from targets.cpu.kernels.spec import ConvSpec

_VECTOR = 64


@dataclass(frozen=True)
class Columns:
    """A staged copy ``[n, oh, columns, kh, c]`` of u8 images ``[n, h, w, c]``.

    Rows are ``pitch`` bytes apart. Output row r holds input rows ``r * stride + i * dilation -
    top``; column j is input column ``j - left``. What lies outside is the fill value.
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
        """Bytes of a staged row: its columns, and what vector stores write beyond them."""
        return -(-(self.columns * self.column + _VECTOR - 1) // _VECTOR) * _VECTOR

    @property
    def bytes(self) -> int:
        """Bytes of the copy."""
        return self.n * self.oh * self.pitch

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


def columns_of(spec: ConvSpec) -> Columns:
    """The staged copy for a layer."""
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
    )


def columns_function(name: str, stage: Columns) -> Any:
    """The staging kernel: parameters x, fill, y; one work item per output row."""
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", "uint8", align=1)
    fill = kb.pointer("fill", "int32")
    y = kb.pointer("y", "uint8")
    with kb.loop(kb.begin, kb.end, "item") as item:
        image, row = divide(kb, item, stage.oh, "row")
        image = image if stage.n > 1 else 0
        row = row if stage.oh > 1 else 0
        value = kb.let(kb.cast(kb.load(fill, 0), "uint8"), "fill")
        put = kb.let(item * stage.pitch, "put")
        first = kb.let(row * stage.stride - stage.top, "first")
        reach = (stage.kh - 1) * stage.dilation
        inside = tir.tirx.all(first >= 0, first + reach < stage.h)
        borders = stage.top > 0 or (stage.oh - 1) * stage.stride - stage.top + reach >= stage.h
        _fill(kb, stage, y, put, value, 0, stage.left)
        rows = [image * stage.h + first + i * stage.dilation for i in range(stage.kh)]
        with kb.when(inside if borders else True):
            starts = [kb.let(r * (stage.w * stage.c), "start") for r in rows]
            _inner(kb, stage, x, y, put, [(start, True) for start in starts], value)
        if borders:
            with kb.when(tir.tirx.Not(inside)):
                _inner(kb, stage, x, y, put, _guarded(kb, stage, image, first), value)
        _fill(kb, stage, y, put, value, stage.left + stage.w, stage.columns)
    return kb.build()


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


def columns_step(stage: Columns, source: KernelArg, fill: str, scratch: int) -> KernelStep:
    """The step that stages ``source`` into buffer ``scratch``; ``fill`` names a constant."""
    key = name_key("columns", stage)
    return KernelStep(
        key,
        lambda: columns_function(key, stage),
        (source, ("const", fill), ("scratch", scratch)),
        stage.n * stage.oh,
        stage.seconds,
        lambda: _footprint(stage),
    )


def _footprint(stage: Columns) -> Footprint:
    """Bytes that each item touches: the window's input rows, and a staged row."""
    item = np.arange(stage.n * stage.oh)
    image, row = np.divmod(item, stage.oh)
    top = row * stage.stride - stage.top
    first = np.clip(top, 0, stage.h - 1)
    end = np.clip(top + (stage.kh - 1) * stage.dilation + 1, first + 1, stage.h)
    rows = np.stack([first, end], 1) + (image * stage.h)[:, None]
    writes = np.stack([item, item + 1], 1) * stage.pitch
    return Footprint({0: rows * (stage.w * stage.c)}, {2: writes})
