"""Convolutions and linear layers on a GPU as products of blocked matrices.

Rows are output pixels, columns output channels, and the depth runs over taps and, innermost, input
channels. A block of threads computes a tile of rows and columns. Slices of 64 bytes of the depth
come to shared memory by copies that run ahead of the products by ``stages - 1`` slices; which
pixels a tap reads is computed on the way (implicit im2col), and what lies in the padding is copied
from a line of zero points. Each slice is multiplied by the warps' matrix instructions, or by
threads with 4-byte dot products and fused multiply-adds where there are none for the type.

Shared memory holds rows of 64 bytes, whose four 16-byte parts are exchanged by a function of the
row, so that eight neighbouring rows never meet in a bank. A depth that fills too few blocks is cut
in parts (split-K); a second kernel adds these in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels import epilogue
from targets.kernels.grid_direct import shared_epilogue
from targets.kernels.grid_items import thread_each
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine, Unit
from targets.kernels.grid_stage import Columns, stage_step
from targets.kernels.spec import SIZE, ConvSpec

SLICE = 64
"""Bytes of the depth of a slice."""

PART = 16
"""Bytes of one copy."""


@dataclass(frozen=True)
class Tile:
    """How a layer is cut.

    Attributes:
        rows: of a block, a multiple of 16 for each of its ``warps[0]`` warps.
        columns: of a block, a multiple of 16 for each of its ``warps[1]`` warps.
        warps: down and across; 16 x 16 threads where threads multiply.
        stages: slices in shared memory.
        splits: parts of the depth.
    """

    rows: int
    columns: int
    warps: tuple[int, int]
    stages: int = 4
    splits: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps[0] * self.warps[1]

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self.stages * (self.rows + self.columns) * SLICE


_MMA_TILES = (
    Tile(128, 128, (2, 4)),
    Tile(128, 64, (4, 2)),
    Tile(64, 128, (2, 4)),
    Tile(64, 64, (2, 2)),
    Tile(64, 32, (4, 1)),
    Tile(32, 64, (1, 4)),
    Tile(32, 32, (2, 2)),
    Tile(16, 64, (1, 4)),
    Tile(16, 32, (1, 2)),
)
_SIMT_TILES = (
    Tile(128, 128, (8, 1), 3),
    Tile(64, 128, (8, 1), 3),
    Tile(128, 64, (8, 1), 3),
    Tile(64, 64, (8, 1), 4),
    Tile(32, 64, (8, 1), 4),
    Tile(32, 32, (8, 1), 4),
    Tile(16, 32, (8, 1), 4),
    Tile(16, 16, (8, 1), 4),
)
_SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_BYTES_PER_CYCLE = 48
"""That a multiprocessor brings to its shared memory."""

_SLICE_CYCLES = 40
"""Least cycles of a slice: two barriers' worth of waiting."""

_BLOCK_CYCLES = 1200
"""Cycles until the first slice is there, and to store results."""


def slices_of(spec: ConvSpec) -> int:
    """Slices of a layer's depth."""
    return -(-_depth_bytes(spec) // SLICE)


def _depth_bytes(spec: ConvSpec) -> int:
    return spec.kh * spec.kw * spec.c * SIZE[spec.in_dtype]


def predicted(spec: ConvSpec, tile: Tile, machine: Machine) -> float:
    """Seconds."""
    pixels, slices = spec.n * spec.oh * spec.ow, -(-slices_of(spec) // tile.splits)
    blocks = -(-pixels // tile.rows) * -(-spec.oc // tile.columns) * tile.splits
    resident = max(1, min(2048 // tile.threads, 8, machine.shared_bytes // tile.shared_bytes))
    busy = min(resident, -(-blocks // machine.multiprocessors))
    waves = -(-blocks // (machine.multiprocessors * busy))
    values = tile.rows * tile.columns * SLICE // SIZE[spec.in_dtype]
    multiply = values / machine.products(spec.in_dtype)
    copy = (tile.rows + tile.columns) * SLICE / _BYTES_PER_CYCLE
    cycles = slices * max(busy * multiply, busy * copy, _SLICE_CYCLES) + _BLOCK_CYCLES
    seconds = waves * cycles / machine.clock + LAUNCH_SECONDS
    if tile.splits > 1:
        moved = (2 * tile.splits + 1) * 4 * pixels * spec.oc
        seconds += LAUNCH_SECONDS + moved / 1e12
    return seconds


@lru_cache(maxsize=1024)
def best_tile(spec: ConvSpec, machine: Machine) -> Tile:
    """The tile that is predicted to take the least time."""
    tiles = _MMA_TILES if machine.unit(spec.in_dtype) == "mma" else _SIMT_TILES
    slices = slices_of(spec)
    candidates = [
        replace(tile, splits=splits)
        for tile in tiles
        if tile.shared_bytes <= machine.shared_bytes
        for splits in _SPLITS
        if splits == 1 or slices >= 3 * splits
    ]
    return min(candidates, key=lambda tile: predicted(spec, tile, machine))


def gemm_refusal(spec: ConvSpec) -> str:
    """Why a layer cannot be computed so; "" if it can."""
    if spec.groups > 1:
        return f"it has {spec.groups} groups"
    pixels = spec.n * spec.oh * spec.ow
    largest = max(pixels * spec.oc * 4, spec.n * spec.h * spec.w * spec.c * 4)
    if max(largest, pixels * _depth_bytes(spec) if _staged(spec) else 0) >= 1 << 31:
        return "a tensor has 2 GiB or more"
    return ""


def _staged(spec: ConvSpec) -> bool:
    """Whether the windows are written out before: pixels do not fill whole copies."""
    return bool(spec.c * SIZE[spec.in_dtype] % PART)


def grid_gemm(
    spec: ConvSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    ratio: np.ndarray | None,
    machine: Machine,
    tile: Tile | None = None,
) -> KernelPlan:
    """The plan of a convolution or linear layer of one group.

    Args:
        spec: of any type.
        weights: ``[oc, c, kh, kw]``: int8 codes, float32, float16 or bits of bfloat16.
        bias: int32 or float32 ``[oc]``.
        multiplier: float32 ``[oc]``, for codes.
        ratio: float32 ``[oc]``, of a residual operand of codes.
        machine: the GPU.
        tile: None: the best.
    """
    integer, size = spec.in_dtype == "u8", SIZE[spec.in_dtype]
    tile = tile or best_tile(spec, machine)
    steps: list[KernelStep] = []
    scratch: list[int] = []
    source: KernelArg = ("in", 0)
    layer = _Layer.of(spec)
    if _staged(spec) or spec.stored not in (None, spec.in_dtype):
        columns = Columns.of(spec, written_out=_staged(spec))
        steps.append(stage_step(columns, source, ("scratch", 0)))
        scratch.append(columns.bytes)
        source = ("scratch", 0)
        layer = _Layer.rows(spec, columns.depth * size) if _staged(spec) else layer
    if integer:
        sums = weights.astype(np.int64).reshape(spec.oc, -1).sum(axis=1)
        bias = bias - spec.in_zero_point * sums
    constants = {
        "weight": packed(weights, layer.slices * SLICE, tile.columns),
        "pad": np.full(PART, spec.in_zero_point if integer else 0, np.uint8),
        "bias": bias.astype(np.int32 if integer else np.float32),
        "scalars": epilogue.scalars(spec.epilogue),
    }
    if multiplier is not None:
        constants["multiplier"] = np.broadcast_to(multiplier, (spec.oc,))
    if ratio is not None:
        constants["ratio"] = np.broadcast_to(ratio, (spec.oc,))
    unit = machine.unit(spec.in_dtype)
    shared = replace(layer, epilogue=shared_epilogue(spec.epilogue))
    key = name_key(f"grid_gemm_{unit}", shared, tile)
    blocks = -(-layer.pixels // tile.rows) * -(-layer.channels // tile.columns) * tile.splits
    launch = Launch((blocks, 1, 1), (tile.threads, 1, 1), tile.shared_bytes)
    finish_args = _finish_arguments(layer, integer)
    reads: tuple[KernelArg, ...] = (source, ("const", "weight"), ("const", "pad"))
    if tile.splits == 1:
        build = _build(key, shared, tile, unit)
        steps.append(KernelStep(key, build, (*reads, *finish_args), blocks, launch=launch))
    else:
        part: KernelArg = ("scratch", len(scratch))
        scratch.append(tile.splits * layer.pixels * layer.channels * 4)
        build = _build(key, shared, tile, unit)
        steps.append(KernelStep(key, build, (*reads, part), blocks, launch=launch))
        steps.append(_sum_step(shared, tile.splits, (part, *finish_args)))
    cut = f" in {tile.splits} parts" if tile.splits > 1 else ""
    name = f"{unit} {tile.rows}x{tile.columns}{cut}"
    return KernelPlan(tuple(steps), constants, scratch=tuple(scratch), kernel=name)


def packed(weights: np.ndarray, depth: int, columns: int) -> np.ndarray:
    """``[oc, c, kh, kw]`` as bytes ``[oc up to a multiple of columns, depth]``, taps outermost."""
    rows = np.ascontiguousarray(weights.transpose(0, 2, 3, 1)).reshape(len(weights), -1)
    content = rows.view(np.uint8)
    made = np.zeros((-(-len(content) // columns) * columns, depth), np.uint8)
    made[: len(content), : content.shape[1]] = content
    return made


def _finish_arguments(layer: _Layer, integer: bool) -> tuple[KernelArg, ...]:
    names = epilogue.argument_names(integer, layer.epilogue.residual)
    residual: list[KernelArg] = [("in", 1)] if layer.epilogue.residual is not None else []
    return (*(("const", name) for name in names), *residual, ("out", 0))


@dataclass(frozen=True)
class _Layer:
    """What the kernel knows of a layer; bytes in place of channels.

    ``kernel`` (1, 1) with ``stride`` 1 and no pads: rows of ``width`` bytes.
    """

    pixels: int
    channels: int
    depth: int
    in_dtype: str
    epilogue: Any
    image: tuple[int, int] = (1, 1)
    out: tuple[int, int] = (1, 1)
    width: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    @staticmethod
    def of(spec: ConvSpec) -> _Layer:
        """A convolution that reads its input as it is."""
        if spec.kh == spec.kw == 1 and spec.stride == (1, 1) and not any(spec.pads):
            return _Layer.rows(spec, spec.c * SIZE[spec.in_dtype])
        return _Layer(
            spec.n * spec.oh * spec.ow,
            spec.oc,
            _depth_bytes(spec),
            spec.in_dtype,
            spec.epilogue,
            (spec.h, spec.w),
            (spec.oh, spec.ow),
            spec.c * SIZE[spec.in_dtype],
            (spec.kh, spec.kw),
            spec.stride,
            spec.dilation,
            spec.pads,
        )

    @staticmethod
    def rows(spec: ConvSpec, depth: int) -> _Layer:
        """Rows of ``depth`` bytes, one for each pixel."""
        pixels = spec.n * spec.oh * spec.ow
        return _Layer(pixels, spec.oc, depth, spec.in_dtype, spec.epilogue, width=depth)

    @property
    def plain(self) -> bool:
        """Whether a pixel's bytes are one row."""
        return self.image == (1, 1) and self.kernel == (1, 1)

    @property
    def slices(self) -> int:
        """Slices of the depth."""
        return -(-self.depth // SLICE)

    @property
    def sum_type(self) -> str:
        """Type of the sums."""
        return "int32" if self.in_dtype == "u8" else "float32"


def _build(key: str, layer: _Layer, tile: Tile, unit: Unit) -> Callable[[], Any]:
    def build() -> Any:
        return (_Mma if unit == "mma" else _Simt)(key, layer, tile).build()

    return build


class _Gemm:
    """Emits the kernel but for its products."""

    def __init__(self, key: str, layer: _Layer, tile: Tile) -> None:
        from dlcc.tir.cuda import GridBuilder

        self.layer, self.tile = layer, tile
        self.kb = kb = GridBuilder(key, tile.threads)
        self.x = kb.pointer("x", "uint8")
        self.weight = kb.pointer("weight", "uint8")
        self.pad = kb.pointer("pad", "uint8")
        self.at: Any = None
        if tile.splits == 1:
            integer, out = layer.in_dtype == "u8", layer.epilogue
            self.at = epilogue.parameters(kb, integer, out.out, out.residual)
        else:
            self.part = kb.pointer("part", layer.sum_type)

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb, tile, layer = self.kb, self.tile, self.layer
        across = -(-layer.channels // tile.columns)
        down = -(-layer.pixels // tile.rows)
        column = kb.let(kb.block % across, "tile_column")
        rest = kb.let(kb.block // across, "tile_row")
        self.split = kb.let(rest // down, "split") if tile.splits > 1 else 0
        row = kb.let(rest % down, "tile_row") if tile.splits > 1 else rest
        self.first_row = kb.let(row * tile.rows, "first_row")
        self.first_column = kb.let(column * tile.columns, "first_column")
        self.a = kb.shared("uint8", tile.stages * tile.rows * SLICE, "a", 128)
        self.b = kb.shared("uint8", tile.stages * tile.columns * SLICE, "b", 128)
        self._places()
        self.sums = kb.alloc(layer.sum_type, self._sum_count(), "sums")
        for i in range(self._sum_count()):
            kb.store(self.sums, i, kb.const(0, layer.sum_type))
        self._slices()
        self._store()
        return kb.build()

    # -- from global to shared memory ---------------------------------------------------------

    def _places(self) -> None:
        """What each thread copies: a 16-byte part of some rows of both operands."""
        kb, layer, tile = self.kb, self.layer, self.tile
        self.part_number = kb.let(kb.thread % (SLICE // PART), "part_number")
        self.line = kb.let(kb.thread // (SLICE // PART), "line")
        self.lines = tile.threads // (SLICE // PART)
        self.corners = []
        for i in range(-(-tile.rows // self.lines)):
            pixel = self.first_row + self.line + i * self.lines
            pixel = kb.let(tir.tirx.min(pixel, layer.pixels - 1), "pixel")
            if layer.plain:
                self.corners.append((kb.let(pixel * layer.width, "start"), None, None))
                continue
            (height, width), (oh, ow) = layer.image, layer.out
            image = kb.let(pixel // (oh * ow), "image")
            place = kb.let(pixel % (oh * ow), "place")
            y = kb.let(place // ow * layer.stride[0] - layer.pads[0], "y")
            x = kb.let(place % ow * layer.stride[1] - layer.pads[1], "x")
            start = ((image * height + y) * width + x) * layer.width
            self.corners.append((kb.let(start, "start"), y, x))

    def _copies(self, rows: int) -> Iterator[tuple[int, Any]]:
        """The rows of a tile that a thread copies, and whether it does."""
        for i in range(-(-rows // self.lines)):
            inside = rows >= (i + 1) * self.lines
            yield i, True if inside else self.line + i * self.lines < rows

    def _load(self, index: Any, stage: Any) -> None:
        """Starts the copies of slice ``index`` to ``stage``."""
        kb, layer, tile = self.kb, self.layer, self.tile
        depth = kb.let(index * SLICE + self.part_number * PART, "depth")
        whole = layer.depth % SLICE == 0
        inside = True if whole else depth < layer.depth
        offset, dy, dx = depth, None, None
        if not layer.plain:
            tap = kb.let(depth // layer.width, "tap")
            ky = kb.let(tap // layer.kernel[1], "ky")
            dy = kb.let(ky * layer.dilation[0], "dy")
            dx = kb.let((tap - ky * layer.kernel[1]) * layer.dilation[1], "dx")
            moved = (dy * layer.image[1] + dx - tap) * layer.width
            offset = kb.let(moved + depth, "offset")
        for i, copies in self._copies(tile.rows):
            start, y, x = self.corners[i]
            test = inside
            if y is not None and self._leaves():
                over = (y + dy >= 0, y + dy < layer.image[0], x + dx >= 0, x + dx < layer.image[1])
                test = tir.tirx.all(*over) if inside is True else tir.tirx.all(inside, *over)
            to = kb.address(self.a, self._place(stage * tile.rows, i))
            source = kb.address(self.x, start + offset)
            with kb.when(copies):
                if test is True:
                    kb.call("dlcc_copy16", to, source)
                else:
                    number = kb.cast(test, "int32")
                    kb.call("dlcc_copy16_if", to, source, kb.address(self.pad, 0), number)
        for i, copies in self._copies(tile.columns):
            to = kb.address(self.b, self._place(stage * tile.columns, i))
            channel = self.first_column + self.line + i * self.lines
            source = kb.address(self.weight, channel * (layer.slices * SLICE) + depth)
            with kb.when(copies):
                kb.call("dlcc_copy16", to, source)

    def _leaves(self) -> bool:
        """Whether some window reaches into the padding."""
        layer = self.layer
        reach = [
            (out - 1) * stride + (taps - 1) * dilation - pad >= size
            for out, stride, taps, dilation, pad, size in zip(
                layer.out,
                layer.stride,
                layer.kernel,
                layer.dilation,
                layer.pads[:2],
                layer.image,
                strict=True,
            )
        ]
        return any(layer.pads[:2]) or any(reach)

    def _place(self, first: Any, i: int) -> Any:
        """Where a thread's part of row ``i`` of its own goes, rows counted from ``first``."""
        row = self.line + i * self.lines
        return (first + row) * SLICE + self._exchanged(row, self.part_number) * PART

    @staticmethod
    def _exchanged(row: Any, part: Any) -> Any:
        return tir.tirx.bitwise_xor(part, row // 2 % 4)

    def _slices(self) -> None:
        """All slices of this block's part of the depth."""
        kb, tile, layer = self.kb, self.tile, self.layer
        each = -(-layer.slices // tile.splits)
        first, count = 0, layer.slices
        if tile.splits > 1:
            first = kb.let(self.split * each, "first_slice")
            count = kb.let(tir.tirx.max(tir.tirx.min(layer.slices - first, each), 0), "slices")
        ahead = tile.stages - 1
        for stage in range(ahead):
            with kb.when(True if tile.splits == 1 and stage < layer.slices else stage < count):
                self._load(first + stage, stage)
            kb.call("dlcc_copy_commit")
        with kb.loop(0, count, "slice") as index:
            kb.call(f"dlcc_copy_wait_{ahead - 1}")
            kb.sync()
            following = kb.let(index + ahead, "following")
            with kb.when(following < count):
                self._load(first + following, kb.let(following % tile.stages, "stage"))
            kb.call("dlcc_copy_commit")
            self._multiply(kb.let(index % tile.stages, "stage"))

    # -- products -----------------------------------------------------------------------------

    def _sum_count(self) -> int:
        """Sums of a thread."""
        return self.tile.rows * self.tile.columns // self.tile.threads

    def _multiply(self, stage: Any) -> None:
        """Adds the products of a slice to the sums."""
        raise NotImplementedError

    def _results(self) -> Iterator[tuple[int, Any, Any]]:
        """Each sum of a thread: its number, row and column in the tile."""
        raise NotImplementedError

    # -- results ------------------------------------------------------------------------------

    def _store(self) -> None:
        kb, layer, tile = self.kb, self.layer, self.tile
        pixels, channels = layer.pixels, layer.channels
        for number, row, column in self._results():
            row = kb.let(self.first_row + row, "row")
            column = kb.let(self.first_column + column, "column")
            tests = []
            if pixels % tile.rows:
                tests.append(row < pixels)
            if channels % tile.columns:
                tests.append(column < channels)
            with kb.when(tir.tirx.all(*tests) if tests else True):
                index = kb.let(row * channels + column, "index")
                total = kb.load(self.sums, number)
                if tile.splits > 1:
                    kb.store(self.part, self.split * (pixels * channels) + index, total)
                else:
                    _finish(kb, self.at, layer, total, column, index)


class _Mma(_Gemm):
    """Products by matrix instructions of warps: 16 rows, 8 columns, 32 bytes of the depth."""

    def _warp(self) -> tuple[Any, Any, Any]:
        """The lane, and the first row and column of its warp in the tile."""
        kb, tile = self.kb, self.tile
        warp = kb.thread // 32
        row = warp % tile.warps[0] * (tile.rows // tile.warps[0])
        column = warp // tile.warps[0] * (tile.columns // tile.warps[1])
        return kb.thread % 32, row, column

    @property
    def _counts(self) -> tuple[int, int]:
        """Instructions down and across."""
        tile = self.tile
        return tile.rows // tile.warps[0] // 16, tile.columns // tile.warps[1] // 8

    def _multiply(self, stage: Any) -> None:
        kb, tile, (down, across) = self.kb, self.tile, self._counts
        lane, first_row, first_column = self._warp()
        row = kb.let(first_row + lane % 16, "row")
        column = kb.let(first_column + lane % 8 + lane // 16 * 8, "column")
        a = kb.alloc("uint32", 4 * down, "a")
        b = kb.alloc("uint32", 2 * across, "b")
        for half in range(SLICE // 32):
            for i in range(down):
                part = self._exchanged(row, lane // 16 + 2 * half)
                place = (stage * tile.rows + row + 16 * i) * SLICE + part * PART
                kb.call("dlcc_ldmatrix4", kb.address(a, 4 * i), kb.address(self.a, place))
            for j in range(0, across, 2):
                part = self._exchanged(column, lane // 8 % 2 + 2 * half)
                place = (stage * tile.columns + column + 8 * j) * SLICE + part * PART
                kb.call("dlcc_ldmatrix4", kb.address(b, 2 * j), kb.address(self.b, place))
            name = {"u8": "u8s8"}.get(self.layer.in_dtype, self.layer.in_dtype)
            for i in range(down):
                for j in range(across):
                    sums = kb.address(self.sums, 4 * (i * across + j))
                    kb.call(f"dlcc_mma_{name}", sums, kb.address(a, 4 * i), kb.address(b, 2 * j))

    def _results(self) -> Iterator[tuple[int, Any, Any]]:
        down, across = self._counts
        lane, first_row, first_column = self._warp()
        for i in range(down):
            for j in range(across):
                for n in range(4):
                    row = first_row + lane // 4 + (16 * i + 8 * (n // 2))
                    column = first_column + lane % 4 * 2 + (8 * j + n % 2)
                    yield 4 * (i * across + j) + n, row, column


class _Simt(_Gemm):
    """Products by threads: 16 down and 16 across, each with every 16th row and column."""

    @property
    def _counts(self) -> tuple[int, int]:
        """Rows and columns of a thread."""
        return self.tile.rows // 16, self.tile.columns // 16

    def _multiply(self, stage: Any) -> None:
        kb, tile, (down, across) = self.kb, self.tile, self._counts
        row, column = kb.let(kb.thread // 16, "row"), kb.let(kb.thread % 16, "column")
        a = kb.alloc("uint32", 4 * down, "a")
        b = kb.alloc("uint32", 4 * across, "b")
        name = {"u8": "u8s8"}.get(self.layer.in_dtype, self.layer.in_dtype)
        for part in range(SLICE // PART):
            for held, memory, count, line, rows in (
                (a, self.a, down, row, tile.rows),
                (b, self.b, across, column, tile.columns),
            ):
                offset = kb.let(self._exchanged(line, part) * PART, "offset")
                for i in range(count):
                    place = (stage * rows + line + 16 * i) * SLICE + offset
                    kb.call("dlcc_load16", kb.address(held, 4 * i), kb.address(memory, place))
            for i in range(down):
                for j in range(across):
                    total = kb.address(self.sums, i * across + j)
                    operands = kb.address(a, 4 * i), kb.address(b, 4 * j)
                    kb.call(f"dlcc_dot16_{name}", total, *operands)

    def _results(self) -> Iterator[tuple[int, Any, Any]]:
        down, across = self._counts
        for i in range(down):
            for j in range(across):
                yield (
                    i * across + j,
                    self.kb.thread // 16 + 16 * i,
                    self.kb.thread % 16 + 16 * j,
                )


def _finish(kb: Any, at: Any, layer: _Layer, total: Any, channel: Any, index: Any) -> None:
    """Stores one finished result."""
    channels = epilogue.Channels(kb.load(at.bias, channel))
    if at.multiplier is not None:
        channels.multiplier = kb.load(at.multiplier, channel)
    if at.ratio is not None:
        channels.ratio = kb.load(at.ratio, channel)
    epilogue.finish(kb, at, channels, total, index, 1, layer.epilogue.out)


def _sum_step(layer: _Layer, splits: int, args: tuple[KernelArg, ...]) -> KernelStep:
    """Adds the parts of the depth, in order, and stores results: a thread for each."""
    key = name_key("grid_sum", layer, splits)
    items = layer.pixels * layer.channels

    def build() -> Any:
        kb, integer = tir.KernelBuilder(key), layer.in_dtype == "u8"
        part = kb.pointer("part", layer.sum_type)
        at = epilogue.parameters(kb, integer, layer.epilogue.out, layer.epilogue.residual)
        with kb.loop(kb.begin, kb.end, "index") as index:
            total = kb.load(part, index)
            for split in range(1, splits):
                total = kb.let(total + kb.load(part, index + split * items), "total")
            channel = kb.let(index % layer.channels, "channel")
            _finish(kb, at, layer, total, channel, index)
        return kb.build()

    return thread_each(KernelStep(key, build, args, items))
