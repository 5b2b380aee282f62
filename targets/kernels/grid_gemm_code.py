"""The kernel of :mod:`targets.kernels.grid_gemm`: a block's tile of a product of matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dlcc import tir
from targets.kernels import epilogue
from targets.kernels.grid_machine import Unit
from targets.kernels.grid_results import Place, Results, Run
from targets.kernels.spec import SIZE, ConvSpec

SLICE = 64
"""Bytes of the depth of a slice."""

PART = 16
"""Bytes of one copy."""

SIGNS = "b1"
"""Type of operands that are signs, a bit each: sums count the bits that differ, and are stored."""

ALIGNMENT = 1024
"""Bytes, of the stages: warpgroup products find exchanged parts by the address itself."""


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
    def slice_bytes(self) -> int:
        """Of the depth of a slice."""
        return SLICE

    def slices(self, depth: int) -> int:
        """Slices of ``depth`` bytes."""
        return -(-depth // self.slice_bytes)

    def row_bytes(self, depth: int) -> int:
        """Of a row of whole slices with ``depth`` bytes in it."""
        return self.slices(depth) * self.slice_bytes

    @property
    def weight_bytes(self) -> int:
        """Of the weights of a slice."""
        return self.columns * self.slice_bytes

    @property
    def speedup(self) -> float:
        """Of its products over those of :meth:`Machine.products`."""
        return 1.0

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self.stages * (self.rows * self.slice_bytes + self.weight_bytes)


@dataclass(frozen=True)
class GroupTile(Tile):
    """A tile whose products are those of warpgroups, four warps each, 64 rows.

    ``warps``: down, one for 16 rows, and across. Slices are rows of 128 bytes.
    """

    @property
    def slice_bytes(self) -> int:
        """Of the depth of a slice: what the instructions' widest exchange of parts is made for."""
        return 2 * SLICE

    @property
    def speedup(self) -> float:
        """H100's dense peak is twice what ``mma`` is counted at (A100's); white paper, table 2."""
        return 2.0


def depth_bytes(spec: ConvSpec) -> int:
    """Bytes of the depth: of the window of a pixel."""
    return spec.kh * spec.kw * spec.c * SIZE[spec.in_dtype]


@dataclass(frozen=True)
class Layer:
    """What the kernel knows of a layer; bytes in place of channels.

    ``kernel`` (1, 1) with ``stride`` 1 and no pads: rows of ``width`` bytes. ``batch``: so many
    products of ``pixels`` rows each. ``activations``: both operands are; of codes every product
    has biases of its own then, and every row a term, in the constant ``terms``.
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
    batch: int = 1
    activations: bool = False

    @staticmethod
    def of(spec: ConvSpec) -> Layer:
        """A convolution that reads its input as it is."""
        if spec.kh == spec.kw == 1 and spec.stride == (1, 1) and not any(spec.pads):
            return Layer.rows(spec, spec.c * SIZE[spec.in_dtype])
        return Layer(
            spec.n * spec.oh * spec.ow,
            spec.oc,
            depth_bytes(spec),
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
    def rows(spec: ConvSpec, depth: int) -> Layer:
        """Rows of ``depth`` bytes, one for each pixel."""
        pixels = spec.n * spec.oh * spec.ow
        return Layer(pixels, spec.oc, depth, spec.in_dtype, spec.epilogue, width=depth)

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
        return "int32" if self.in_dtype in ("u8", SIGNS) else "float32"


def gemm_function(key: str, layer: Layer, tile: Tile, unit: Unit) -> Callable[[], Any]:
    """What makes the kernel; it takes input, weight and pad, and what the epilogue takes.

    Where the depth is cut, it writes its sums in place of an epilogue: ``[splits, rows, columns]``.
    """

    def build() -> Any:
        if isinstance(tile, GroupTile):
            from targets.kernels.grid_wgmma import WgmmaGemm

            return WgmmaGemm(key, layer, tile).build()
        return (MmaGemm if unit == "mma" else SimtGemm)(key, layer, tile).build()

    return build


MMA_NAMES = {"u8": "u8s8", "f32": "tf32"}
"""Matrix instructions of the types whose name is not theirs."""


class Gemm:
    """Emits the kernel but for its products.

    Weights in another form: a subclass says how slices of them lie in shared memory
    (:meth:`_share_columns`), get there (:meth:`_load_columns`) and become operands.
    """

    def __init__(self, key: str, layer: Layer, tile: Tile) -> None:
        from dlcc.tir.cuda import GridBuilder

        self.layer, self.tile = layer, tile
        self.kb = kb = GridBuilder(key, tile.threads)
        self.x = kb.pointer("x", "uint8")
        self.weight = kb.pointer("weight", "uint8")
        self._declare()
        self.pad = kb.pointer("pad", "uint8")
        integer, out = layer.in_dtype == "u8", layer.epilogue
        self.terms = kb.pointer("terms", "int32") if layer.activations and integer else None
        self.at: Any = None
        if tile.splits == 1 and layer.in_dtype != SIGNS:
            self.at = epilogue.parameters(kb, integer, out.out, out.residual)
        else:
            self.part = kb.pointer("part", layer.sum_type)

    def _declare(self) -> None:
        """Parameters beside the weights: constants in the order of the plan."""

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb, tile, layer = self.kb, self.tile, self.layer
        across = -(-layer.channels // tile.columns)
        down = -(-layer.pixels // tile.rows)
        column = kb.let(kb.block % across, "tile_column")
        rest = kb.let(kb.block // across, "tile_row")
        self.product: Any = 0
        if layer.batch > 1:
            self.product = kb.let(rest // down, "product")
            rest = kb.let(rest % down, "tile_row")
        self.split = kb.let(rest // down, "split") if tile.splits > 1 else 0
        row = kb.let(rest % down, "tile_row") if tile.splits > 1 else rest
        self.first_row = kb.let(row * tile.rows, "first_row")
        self.first_column = kb.let(column * tile.columns, "first_column")
        self.a = kb.shared("uint8", tile.stages * tile.rows * tile.slice_bytes, "a", ALIGNMENT)
        self._share_columns()
        self._places()
        self.sums = kb.alloc(layer.sum_type, self._sum_count(), "sums")
        for i in range(self._sum_count()):
            kb.store(self.sums, i, kb.const(0, layer.sum_type))
        self._slices()
        self._store()
        return kb.build()

    # -- from global to shared memory ---------------------------------------------------------

    def _share_columns(self) -> None:
        """Shared memory of the second operand."""
        self.b = self.kb.shared("uint8", self.tile.stages * self.tile.weight_bytes, "b", 128)

    def _columns_memory(self, stage: Any) -> tuple[Any, Any]:
        """Where the second operand of a slice is read: the array, and its first row."""
        return self.b, stage * self.tile.columns

    def _places(self) -> None:
        """What each thread copies: a 16-byte part of some rows of both operands."""
        kb, layer, tile = self.kb, self.layer, self.tile
        parts = tile.slice_bytes // PART
        self.part_number = kb.let(kb.thread % parts, "part_number")
        self.line = kb.let(kb.thread // parts, "line")
        self.lines = tile.threads // parts
        self.corners = []
        for i in range(-(-tile.rows // self.lines)):
            pixel = self.first_row + self.line + i * self.lines
            pixel = kb.let(tir.tirx.min(pixel, layer.pixels - 1), "pixel")
            if layer.plain:
                row = pixel + self.product * layer.pixels
                self.corners.append((kb.let(row * layer.width, "start"), None, None))
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
        depth = index * self.tile.slice_bytes + self.part_number * PART
        depth = self.kb.let(depth, "depth")
        self._load_rows(depth, stage)
        self._load_columns(depth, stage)

    def _load_rows(self, depth: Any, stage: Any) -> None:
        """Of the first operand, from byte ``depth`` of each row on."""
        kb, layer, tile = self.kb, self.layer, self.tile
        whole = layer.depth % tile.slice_bytes == 0
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

    def _load_columns(self, depth: Any, stage: Any) -> None:
        """Of the second operand."""
        kb, layer, tile = self.kb, self.layer, self.tile
        for i, copies in self._copies(tile.columns):
            to = kb.address(self.b, self._place(stage * tile.columns, i))
            channel = self.first_column + self.line + i * self.lines
            channel = channel + self.product * (-(-layer.channels // tile.columns) * tile.columns)
            source = kb.address(self.weight, channel * tile.row_bytes(layer.depth) + depth)
            with kb.when(copies):
                kb.call("dlcc_copy16", to, source)

    def _load_arranged(self, depth: Any, stage: Any) -> None:
        """A slice of weights that lie in the file as they will in shared memory."""
        kb, layer, tile = self.kb, self.layer, self.tile
        parts = tile.weight_bytes // PART
        block = self.first_column // tile.columns * layer.slices + depth // SLICE
        start = kb.let(block * tile.weight_bytes, "start")
        for first in range(0, parts, tile.threads):
            part = kb.thread + first
            with kb.when(True if first + tile.threads <= parts else part < parts):
                to = kb.address(self.b, stage * tile.weight_bytes + part * PART)
                kb.call("dlcc_copy16", to, kb.address(self.weight, start + part * PART))

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
        part = self._exchanged(row, self.part_number)
        return (first + row) * self.tile.slice_bytes + part * PART

    @staticmethod
    def _exchanged(row: Any, part: Any) -> Any:
        return tir.tirx.bitwise_xor(part, row // 2 % 4)

    def _span(self) -> tuple[Any, Any]:
        """The first slice of this block's part of the depth, and their number."""
        kb, tile = self.kb, self.tile
        count = tile.slices(self.layer.depth)
        if tile.splits == 1:
            return 0, count
        each = -(-count // tile.splits)
        first = kb.let(self.split * each, "first_slice")
        return first, kb.let(tir.tirx.max(tir.tirx.min(count - first, each), 0), "slices")

    def _first_loads(self, first: Any, count: Any, ahead: int) -> None:
        """Starts the copies of the slices that come before all products."""
        for stage in range(ahead):
            with self.kb.when(stage < count):
                self._load(first + stage, stage)
            self.kb.call("dlcc_copy_commit")

    def _slices(self) -> None:
        """All slices of this block's part of the depth."""
        kb, tile = self.kb, self.tile
        first, count = self._span()
        ahead = tile.stages - 1
        self._first_loads(first, count, ahead)
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

    @property
    def _groups(self) -> int:
        """Groups of rows that :meth:`_runs` speaks of."""
        return 1

    def _runs(self) -> Iterator[Run]:
        """The sums of a thread."""
        raise NotImplementedError

    # -- results ------------------------------------------------------------------------------

    def _store(self) -> None:
        layer, tile = self.layer, self.tile
        place = Place(
            tile.rows,
            self._groups,
            tile.columns,
            tile.threads,
            self.kb.shared_bytes,
            layer.sum_type,
            layer.pixels,
            layer.channels,
            (self.first_row, self.first_column),
            self.product,
        )
        results = Results(self.kb, place, self._runs, self.sums)
        if self.at is None:
            results.store(self.part, self.split * (layer.pixels * layer.channels))
        else:
            results.finish(self.at, layer.epilogue, self.terms, self.terms is not None)


class MmaGemm(Gemm):
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
        lane, first_row, _ = self._warp()
        row = kb.let(first_row + lane % 16, "row")
        a = kb.alloc("uint32", 4 * down, "a")
        b = kb.alloc("uint32", 2 * across, "b")
        for half in range(SLICE // 32):
            for i in range(down):
                part = self._exchanged(row, lane // 16 + 2 * half)
                place = (stage * tile.rows + row + 16 * i) * SLICE + part * PART
                kb.call("dlcc_ldmatrix4", kb.address(a, 4 * i), kb.address(self.a, place))
            self._columns_operand(b, stage, half)
            name = MMA_NAMES.get(self.layer.in_dtype, self.layer.in_dtype)
            if name == "tf32":
                for held, count in ((a, 4 * down), (b, 2 * across)):
                    for i in range(0, count, 4):
                        kb.call("dlcc_round4_tf32", kb.address(held, i))
            for i in range(down):
                for j in range(across):
                    sums = kb.address(self.sums, 4 * (i * across + j))
                    kb.call(f"dlcc_mma_{name}", sums, kb.address(a, 4 * i), kb.address(b, 2 * j))

    def _columns_operand(self, b: Any, stage: Any, half: int) -> None:
        """32 bytes of the depth of the warp's columns to registers, two for 8 columns."""
        kb = self.kb
        lane, _, first_column = self._warp()
        column = kb.let(first_column + lane % 8 + lane // 16 * 8, "column")
        part = self._exchanged(column, lane // 8 % 2 + 2 * half)
        memory, first = self._columns_memory(stage)
        for j in range(0, self._counts[1], 2):
            place = (first + column + 8 * j) * SLICE + part * PART
            kb.call("dlcc_ldmatrix4", kb.address(b, 2 * j), kb.address(memory, place))

    @property
    def _groups(self) -> int:
        return self.tile.warps[0]

    def _runs(self) -> Iterator[Run]:
        down, across = self._counts
        lane, _, first_column = self._warp()
        group = self.kb.thread // 32 % self.tile.warps[0]
        for i in range(down):
            for j in range(across):
                for half in range(2):
                    number = 4 * (i * across + j) + 2 * half
                    column = first_column + lane % 4 * 2 + 8 * j
                    yield Run(number, 2, group, i, lane // 4 + 8 * half, column)


class SimtGemm(Gemm):
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
        columns = self._columns_memory(stage)
        for part in range(SLICE // PART):
            for held, (memory, first), count, line in (
                (a, (self.a, stage * tile.rows), down, row),
                (b, columns, across, column),
            ):
                offset = kb.let(self._exchanged(line, part) * PART, "offset")
                for i in range(count):
                    place = (first + line + 16 * i) * SLICE + offset
                    kb.call("dlcc_load16", kb.address(held, 4 * i), kb.address(memory, place))
            for i in range(down):
                for j in range(across):
                    total = kb.address(self.sums, i * across + j)
                    operands = kb.address(a, 4 * i), kb.address(b, 4 * j)
                    kb.call(f"dlcc_dot16_{name}", total, *operands)

    def _runs(self) -> Iterator[Run]:
        down, across = self._counts
        thread = self.kb.thread
        for i in range(down):
            for j in range(across):
                column = thread % 16 + 16 * j
                yield Run(i * across + j, 1, 0, i, thread // 16, column)


def finish(kb: Any, at: Any, layer: Layer, total: Any, channel: Any, index: Any) -> None:
    """Stores one finished result."""
    channels = epilogue.Channels(kb.load(at.bias, channel))
    if at.multiplier is not None:
        channels.multiplier = kb.load(at.multiplier, channel)
    if at.ratio is not None:
        channels.ratio = kb.load(at.ratio, channel)
    epilogue.finish(kb, at, channels, total, index, 1, layer.epilogue.out)
