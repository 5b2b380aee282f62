"""Emits the three phases of Winograd convolution: input transform, products, output transform."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any

from dlcc import tir
from targets.kernels import by_element, epilogue
from targets.kernels.gemm import MIN_ITEMS, Cut, Unit, even_cut, tail_cut
from targets.kernels.skeleton import divide
from targets.kernels.spec import ResidualType
from targets.kernels.winograd_transform import (
    TAPS,
    apply_2d,
    apply_a,
    apply_b,
)

LINE = 16
"""Floats of a cache line."""


@dataclass(frozen=True)
class Winograd:
    """What determines the code.

    ``m``: output tile; ``band``: tiles of a work item (0: phased); ``pads``: top and left;
    ``unit``: what computes the products.
    """

    m: int
    band: int
    n: int
    h: int
    w: int
    c: int
    oc: int
    oh: int
    ow: int
    pads: tuple[int, int]
    residual: ResidualType | None
    unit: Unit

    @property
    def lanes(self) -> int:
        """Channels of a vector."""
        return self.unit.lanes

    @property
    def side(self) -> int:
        """Pixels of an input tile's side."""
        return self.m + TAPS - 1

    @property
    def points(self) -> int:
        """Matrix products: one for each transformed pixel of a tile."""
        return self.side * self.side

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles in an image."""
        return ceil(self.oh / self.m), ceil(self.ow / self.m)

    @property
    def tiles(self) -> int:
        """Tiles of all images."""
        return self.n * self.grid[0] * self.grid[1]

    @property
    def slots(self) -> int:
        """Tiles that the scratch buffers hold."""
        return self.band or self.tiles

    @property
    def in_blocks(self) -> int:
        """Vectors of input channels."""
        return ceil(self.c / self.lanes)

    @property
    def out_blocks(self) -> int:
        """Vectors of output channels."""
        return ceil(self.oc / self.lanes)

    @property
    def v_point(self) -> int:
        """Distance of the points in the transformed input, off powers of two."""
        return self.slots * self.in_blocks * self.lanes + LINE

    @property
    def p_point(self) -> int:
        """Distance of the points in the products."""
        return self.slots * self.out_blocks * self.lanes + LINE

    @property
    def scratch(self) -> tuple[int, int]:
        """Bytes of the transformed input and of the products."""
        return 4 * self.points * self.v_point, 4 * self.points * self.p_point

    def chunks(self, blocks: int) -> int:
        """Parts that ``blocks`` channel vectors are cut into in a phase over tiles."""
        return min(blocks, ceil(MIN_ITEMS / self.tiles))


@dataclass(frozen=True)
class Products:
    """Register blocks of the matrix products: tiles by channel vectors."""

    tiles: Cut
    channels: Cut


def _step_cycles(shape: Winograd, tiles: int, vectors: int) -> float:
    """Cycles of one reduction step of a register block."""
    if shape.unit.elements > 1:
        return by_element.step_cycles(shape.unit, tiles, vectors)
    arithmetic = (0.5 if shape.unit.fused else 1.0) * tiles * vectors
    loads = 0.5 * (tiles + vectors)
    return max(arithmetic, loads, 4.0) + 0.1 * loads


def most_tiles(unit: Unit, vectors: int) -> int:
    """Tiles by ``vectors`` channel vectors that fit the registers."""
    if unit.elements > 1:
        return by_element.most_pixels(unit, vectors)
    return (unit.registers - 1 - vectors) // vectors


def products_blocking(shape: Winograd) -> tuple[Products, float]:
    """The register blocking of one point's product, and its predicted cycles."""
    best: tuple[float, Products] | None = None
    for vectors in {min(v, shape.out_blocks) for v in (1, 2, 3, 4, 6)}:
        most = most_tiles(shape.unit, vectors)
        if most < 1:
            continue
        cut = Products(even_cut(shape.slots, most), tail_cut(shape.out_blocks, vectors))
        cycles = 0.0
        pieces = product((cut.tiles.first, cut.tiles.rest), (cut.channels.first, cut.channels.rest))
        for (tc, ts), (cc, cs) in pieces:
            if tc * cc:
                cycles += tc * cc * (shape.c * _step_cycles(shape, ts, cs) + 20 + 1.5 * ts * cs)
        if best is None or cycles < best[0]:
            best = (cycles, cut)
    assert best is not None
    return best[1], best[0]


@dataclass
class _Emitter:
    """The function being emitted; pointers that it does not take are None."""

    kb: tir.KernelBuilder
    shape: Winograd
    x: Any = None
    v: Any = None
    u: Any = None
    p: Any = None
    out: Any = None


@dataclass(frozen=True)
class _Tile:
    """Where a tile is: expressions."""

    image: Any
    row: Any
    col: Any
    slot: Any


def _locate(em: _Emitter, tile: Any, slot: Any) -> _Tile:
    """The image and first output pixel of tile number ``tile``."""
    kb, shape = em.kb, em.shape
    rest, col = divide(kb, tile, shape.grid[1], "tile_col")
    image, row = divide(kb, rest, shape.grid[0], "tile_row")
    image = image if shape.n > 1 else 0
    return _Tile(image, kb.let(row * shape.m, "row"), kb.let(col * shape.m, "col"), slot)


def _blocks(em: _Emitter, span: tuple[Any, Any], channels: int, emit: Any) -> None:
    """``emit(block, valid lanes)`` for the channel vectors of ``span``, a partial one apart."""
    kb, lanes = em.kb, em.shape.lanes
    whole = channels // lanes
    start, stop = span
    if whole:
        stop_whole = tir.tirx.min(stop, tir.tirx.IntImm("int32", whole))
        constant = isinstance(stop, int)
        with kb.loop(start, min(stop, whole) if constant else stop_whole, "block") as block:
            emit(kb.let(block, "block"), lanes)
    if channels % lanes:
        inside = tir.tirx.all(start <= whole, stop > whole) if not isinstance(stop, int) else True
        with kb.when(inside):
            emit(whole, channels % lanes)


def _patch(em: _Emitter, at: _Tile, block: Any, valid: int) -> tuple[Any, Any]:
    """An input tile that reaches over the border, copied with zeros around what is inside."""
    kb, shape, lanes = em.kb, em.shape, em.shape.lanes
    side = shape.side
    patch, start = kb.alloc_aligned("float32", side * side * lanes)
    for i in range(side * side):
        kb.store(patch, start + i * lanes, kb.const(0.0, "float32", lanes))
    zero, end = tir.tirx.IntImm("int32", 0), tir.tirx.IntImm("int32", side)
    top, left = kb.let(at.row - shape.pads[0], "top"), kb.let(at.col - shape.pads[1], "left")
    rows = kb.let(tir.tirx.max(zero, zero - top)), kb.let(tir.tirx.min(end, shape.h - top))
    cols = kb.let(tir.tirx.max(zero, zero - left)), kb.let(tir.tirx.min(end, shape.w - left))
    with kb.loop(*rows, "r") as r:
        x_at = kb.let(((at.image * shape.h + top + r) * shape.w + left) * shape.c + block * lanes)
        with kb.loop(*cols, "c") as c:
            value = kb.load_first(em.x, x_at + c * shape.c, lanes, valid)
            kb.store(patch, start + (r * side + c) * lanes, value)
    return patch, start


def _transform_input(em: _Emitter, at: _Tile, block: Any, valid: int, inner: bool) -> None:
    """One tile and channel vector: ``B^T d B``."""
    kb, shape, lanes = em.kb, em.shape, em.shape.lanes
    side = shape.side
    if inner:
        row, col = at.row - shape.pads[0], at.col - shape.pads[1]
        start = ((at.image * shape.h + row) * shape.w + col) * shape.c + block * lanes
        source, start = em.x, kb.let(start, "x_at")
        steps = (shape.w * shape.c, shape.c)
    else:
        source, start = _patch(em, at, block, valid)
        valid, steps = lanes, (side * lanes, lanes)
    d = [
        [
            kb.let(kb.load_first(source, start + (i * steps[0] + j * steps[1]), lanes, valid), "d")
            for j in range(side)
        ]
        for i in range(side)
    ]
    v_at = kb.let((at.slot * shape.in_blocks + block) * lanes, "v_at")
    for i, line in enumerate(apply_2d(kb, shape.m, apply_b, d)):
        for j, value in enumerate(line):
            kb.store(em.v, v_at + (i * side + j) * shape.v_point, value)


def emit_input(em: _Emitter, tile: Any, slot: Any, span: tuple[Any, Any]) -> None:
    """Phase 1 of one tile: the channel vectors of ``span`` to slot ``slot``."""
    kb, shape = em.kb, em.shape
    at = _locate(em, tile, slot)
    top, left = at.row - shape.pads[0], at.col - shape.pads[1]
    inner = kb.let(
        tir.tirx.all(
            top >= 0, left >= 0, top + shape.side <= shape.h, left + shape.side <= shape.w
        ),
        "inner",
    )
    for case, inside in ((inner, True), (tir.tirx.Not(inner), False)):
        with kb.when(case):
            _blocks(
                em, span, shape.c, lambda b, valid, i=inside: _transform_input(em, at, b, valid, i)
            )


def emit_products(em: _Emitter, point: Any, groups: tuple[Any, Any] | None, cut: Products) -> None:
    """Phase 2 of one point, for groups of channel vectors ``groups`` (None: all)."""
    kb, shape = em.kb, em.shape
    v_at, p_at = kb.let(point * shape.v_point, "v_point"), kb.let(point * shape.p_point, "p_point")
    u_at = kb.let(point * (shape.out_blocks * shape.c * shape.lanes), "u_point")
    (count, size), (rest, rest_size) = cut.channels.first, cut.channels.rest
    start, stop = groups or (0, count)
    if groups is not None:
        stop = tir.tirx.min(stop, tir.tirx.IntImm("int32", count))
    with kb.loop(start, stop, "group") as group:
        _tile_blocks(em, (v_at, u_at, p_at), kb.let(group * size, "block"), size, cut.tiles)
    if rest:
        inside = True if groups is None else groups[1] > count
        with kb.when(inside):
            _tile_blocks(em, (v_at, u_at, p_at), count * size, rest_size, cut.tiles)


def _tile_blocks(
    em: _Emitter, at: tuple[Any, Any, Any], block: Any, vectors: int, cut: Cut
) -> None:
    """One group of channel vectors times all tiles."""
    kb, start = em.kb, 0
    for count, size in (cut.first, cut.rest):
        if count:
            with kb.loop(0, count, "tiles") as i:
                first = kb.let(i * size + start, "slot")
                _register_block(em, at, first, block, size, vectors)
        start += count * size


def _register_block(
    em: _Emitter, at: tuple[Any, Any, Any], slot: Any, block: Any, tiles: int, vectors: int
) -> None:
    """``tiles`` tiles by ``vectors`` channel vectors, accumulated in registers."""
    kb, shape, lanes = em.kb, em.shape, em.shape.lanes
    row, panel = shape.in_blocks * lanes, shape.c * lanes
    v_at = kb.let(at[0] + slot * row, "v_at")
    u_at = kb.let(at[1] + block * panel, "u_at")
    acc = kb.alloc("float32", tiles * vectors * lanes)
    for i in range(tiles * vectors):
        kb.store(acc, i * lanes, kb.const(0.0, "float32", lanes))
    unroll = shape.unit.unroll
    whole = shape.c // unroll
    if whole:
        with kb.loop(0, whole, "k") as k:
            v_k = kb.let(v_at + k * unroll, "v_k")
            u_k = kb.let(u_at + k * (unroll * lanes), "u_k")
            held = _held(em, v_k, tiles)
            for i in range(unroll):
                _step(em, acc, v_k + i, u_k + i * lanes, tiles, vectors, held[i] if held else None)
    for i in range(whole * unroll, shape.c):
        _step(em, acc, v_at + i, u_at + i * lanes, tiles, vectors)
    p_row = shape.out_blocks * lanes
    p_at = kb.let(at[2] + slot * p_row + block * lanes, "p_at")
    for i in range(tiles):
        for j in range(vectors):
            value = kb.load(acc, (i * vectors + j) * lanes, lanes)
            kb.store(em.p, p_at + (i * p_row + j * lanes), value)


def _held(em: _Emitter, v_at: Any, tiles: int) -> list[list[Any]]:
    """What written-out steps multiply by, for each tile, where one load brings it."""
    kb, shape = em.kb, em.shape
    count = shape.unit.elements
    if count == 1:
        return []
    row = shape.in_blocks * shape.lanes
    loaded = [kb.let(kb.load(em.v, v_at + i * row, count), "v") for i in range(tiles)]
    return [
        [kb.let(kb.shuffle(value, [i] * shape.lanes), "element") for value in loaded]
        for i in range(count)
    ]


def _step(
    em: _Emitter,
    acc: Any,
    v_at: Any,
    u_at: Any,
    tiles: int,
    vectors: int,
    held: list[Any] | None = None,
) -> None:
    """One reduction step of a register block; ``held``: each tile's number in every lane."""
    kb, shape, lanes = em.kb, em.shape, em.shape.lanes
    row, panel = shape.in_blocks * lanes, shape.c * lanes
    weights = [kb.let(kb.load(em.u, u_at + j * panel, lanes), "u") for j in range(vectors)]
    for i in range(tiles):
        splat = kb.splat(kb.load(em.v, v_at + i * row), lanes)
        value = held[i] if held else kb.let(splat, "v")
        for j in range(vectors):
            at = (i * vectors + j) * lanes
            kb.store(acc, at, _multiply_add(em, value, weights[j], kb.load(acc, at, lanes)))


def _multiply_add(em: _Emitter, a: Any, b: Any, total: Any) -> Any:
    if not em.shape.unit.fused:
        return total + a * b
    return em.kb.pure("llvm.fma", "float32", em.shape.lanes, a, b, total)


def _transform_output(em: _Emitter, at: _Tile, block: Any, valid: int, inner: bool) -> None:
    """One tile and channel vector: ``A^T p A``, bias, residual and clamp."""
    kb, shape, lanes = em.kb, em.shape, em.shape.lanes
    m, side = shape.m, shape.side
    p_at = kb.let((at.slot * shape.out_blocks + block) * lanes, "p_at")
    tile = [
        [
            kb.let(kb.load(em.p, p_at + (i * side + j) * shape.p_point, lanes), "p")
            for j in range(side)
        ]
        for i in range(side)
    ]
    made = apply_2d(kb, m, apply_a, tile)
    channels = epilogue.load_channels(kb, em.out, block * lanes, lanes)
    first = kb.let(((at.image * shape.oh + at.row) * shape.ow + at.col) * shape.oc + block * lanes)
    if inner:
        for i, line in enumerate(made):
            for j, value in enumerate(line):
                index = kb.let(first + (i * shape.ow + j) * shape.oc, "y_at")
                epilogue.finish(kb, em.out, channels, value, index, valid, "f32")
        return
    spill, start = kb.alloc_aligned("float32", m * m * lanes)
    for i, line in enumerate(made):
        for j, value in enumerate(line):
            kb.store(spill, start + (i * m + j) * lanes, value)
    end = tir.tirx.IntImm("int32", m)
    rows = kb.let(tir.tirx.min(end, shape.oh - at.row))
    cols = kb.let(tir.tirx.min(end, shape.ow - at.col))
    with kb.loop(0, rows, "r") as r, kb.loop(0, cols, "c") as c:
        index = kb.let(first + (r * shape.ow + c) * shape.oc, "y_at")
        value = kb.load(spill, start + (r * m + c) * lanes, lanes)
        epilogue.finish(kb, em.out, channels, value, index, valid, "f32")


def emit_output(em: _Emitter, tile: Any, slot: Any, span: tuple[Any, Any]) -> None:
    """Phase 3 of one tile: the channel vectors of ``span`` from slot ``slot``."""
    kb, shape = em.kb, em.shape
    at = _locate(em, tile, slot)
    cases: list[tuple[Any, bool]] = [(True, True)]
    if shape.oh % shape.m or shape.ow % shape.m:
        inner = tir.tirx.all(at.row + shape.m <= shape.oh, at.col + shape.m <= shape.ow)
        inner = kb.let(inner, "inner")
        cases = [(inner, True), (tir.tirx.Not(inner), False)]
    for case, inside in cases:
        with kb.when(case):
            _blocks(
                em,
                span,
                shape.oc,
                lambda b, valid, i=inside: _transform_output(em, at, b, valid, i),
            )


def _pointers(kb: tir.KernelBuilder, shape: Winograd, names: str) -> _Emitter:
    """Parameters in the order of ``names``: x, v, u, p, and o for the epilogue's."""
    em = _Emitter(kb, shape)
    for name in names:
        if name == "o":
            em.out = epilogue.parameters(kb, False, "f32", shape.residual)
        else:
            setattr(em, name, kb.pointer(name, "float32", align=4 if name == "x" else 64))
    return em


def banded_function(name: str, shape: Winograd, cut: Products) -> Any:
    """All three phases; one work item per band. Parameters x, u, v, p, the epilogue's, y."""
    kb = tir.KernelBuilder(name)
    em = _pointers(kb, shape, "xuvpo")
    with kb.loop(kb.begin, kb.end, "item") as item:
        first = kb.let(item * shape.band, "first")
        count = kb.let(tir.tirx.min(tir.tirx.IntImm("int32", shape.band), shape.tiles - first))
        with kb.loop(0, count, "slot") as slot:
            emit_input(em, kb.let(first + slot, "tile"), slot, (0, shape.in_blocks))
        with kb.loop(0, shape.points, "point") as point:
            emit_products(em, point, None, cut)
        with kb.loop(0, count, "slot") as slot:
            emit_output(em, kb.let(first + slot, "tile"), slot, (0, shape.out_blocks))
    return kb.build()


def _over_tiles(kb: tir.KernelBuilder, shape: Winograd, blocks: int, emit: Any) -> None:
    """``emit(tile, span of channel vectors)`` for every work item."""
    chunks = shape.chunks(blocks)
    size = ceil(blocks / chunks)
    with kb.loop(kb.begin, kb.end, "item") as item:
        tile, chunk = divide(kb, item, chunks, "chunk")
        if chunks == 1:
            emit(tile, (0, blocks))
        else:
            start = kb.let(chunk * size, "start")
            stop = tir.tirx.min(start + size, tir.tirx.IntImm("int32", blocks))
            emit(tile, (start, kb.let(stop, "stop")))


def input_function(name: str, shape: Winograd) -> Any:
    """Phase 1 alone: parameters x, v."""
    kb = tir.KernelBuilder(name)
    em = _pointers(kb, shape, "xv")
    _over_tiles(kb, shape, shape.in_blocks, lambda tile, span: emit_input(em, tile, tile, span))
    return kb.build()


def products_function(name: str, shape: Winograd, cut: Products) -> Any:
    """Phase 2 alone: parameters v, u, p; one work item per point and group of channels."""
    kb = tir.KernelBuilder(name)
    em = _pointers(kb, shape, "vup")
    with kb.loop(kb.begin, kb.end, "item") as item:
        point, group = divide(kb, item, cut.channels.count, "group")
        emit_products(em, point, (group, kb.let(group + 1, "stop")), cut)
    return kb.build()


def output_function(name: str, shape: Winograd) -> Any:
    """Phase 3 alone: parameters p, the epilogue's, y."""
    kb = tir.KernelBuilder(name)
    em = _pointers(kb, shape, "po")
    _over_tiles(kb, shape, shape.out_blocks, lambda tile, span: emit_output(em, tile, tile, span))
    return kb.build()
