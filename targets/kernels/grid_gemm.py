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

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels import epilogue
from targets.kernels.conv import fold_zero_point
from targets.kernels.direct import shared_epilogue
from targets.kernels.grid_gemm_code import (
    PART,
    SLICE,
    GroupTile,
    Layer,
    Tile,
    depth_bytes,
    finish,
    gemm_function,
)
from targets.kernels.grid_items import thread_each
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine, Unit
from targets.kernels.grid_stage import Columns, stage_step
from targets.kernels.spec import SIZE, ConvSpec

T = TypeVar("T", bound=Tile)
MMA_TILES = (
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
GROUP_TILES = (
    GroupTile(128, 256, (8, 1), 4),
    GroupTile(256, 128, (16, 1), 4),
    GroupTile(192, 128, (12, 1), 4),
    GroupTile(128, 128, (8, 1), 3),
    GroupTile(128, 64, (8, 1), 4),
    GroupTile(64, 128, (4, 1), 4),
    GroupTile(64, 64, (4, 1), 4),
)
"""Three stages are the fewest: products of one slice run, those of another end, a third comes."""

SIMT_TILES = (
    Tile(128, 128, (8, 1), 3),
    Tile(64, 128, (8, 1), 3),
    Tile(128, 64, (8, 1), 3),
    Tile(64, 64, (8, 1), 4),
    Tile(32, 64, (8, 1), 4),
    Tile(32, 32, (8, 1), 4),
    Tile(16, 32, (8, 1), 4),
    Tile(16, 16, (8, 1), 4),
)
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
_BYTES_PER_CYCLE = 48
"""That a multiprocessor brings to its shared memory."""

_SHARED_BYTES_PER_CYCLE = 128
"""That it reads there."""

_SLICE_CYCLES = 40
"""Least cycles of a slice: two barriers' worth of waiting."""

_BLOCK_CYCLES = 1000
"""Cycles until the first slice is there, and to store results."""


def slices_of(spec: ConvSpec) -> int:
    """Slices of a layer's depth."""
    return -(-depth_bytes(spec) // SLICE)


def predicted(
    spec: ConvSpec, tile: Tile, machine: Machine, slices: tuple[float, int] | None = None
) -> float:
    """Seconds: of the products, but no less than memory takes for all that is read and written.

    ``slices``: of the depth that a tile walks, on the average and at most; None: all.
    """
    slices = slices or (tile.slices(depth_bytes(spec)),) * 2
    weights = -(-spec.oc // tile.columns) * tile.weight_bytes * slices[0]
    image = spec.n * spec.h * spec.w * spec.c * SIZE[spec.stored or spec.in_dtype]
    out, added = spec.epilogue.out, spec.epilogue.residual
    each = SIZE[out] + (SIZE[added] if added else 0)
    moved = weights + image + spec.n * spec.oh * spec.ow * spec.oc * each
    products = product_seconds(spec, tile, machine, slices)
    return max(products, LAUNCH_SECONDS + moved / machine.memory)


def product_seconds(
    spec: ConvSpec, tile: Tile, machine: Machine, walked: tuple[float, int]
) -> float:
    """Seconds of the products, where operands are in the second-level cache."""
    pixels = spec.n * spec.oh * spec.ow
    blocks = -(-pixels // tile.rows) * -(-spec.oc // tile.columns) * tile.splits
    resident = max(1, min(2048 // tile.threads, 8, machine.shared_bytes // tile.shared_bytes))
    busy = min(resident, -(-blocks // machine.multiprocessors))
    waves = -(-blocks // (machine.multiprocessors * busy))
    slices = -(-walked[waves == 1] // tile.splits)  # the last block of one wave ends it
    values = tile.rows * tile.columns * tile.slice_bytes // SIZE[spec.in_dtype]
    multiply = values / machine.products(spec.in_dtype) / tile.speedup
    copy = (tile.rows * tile.slice_bytes + tile.weight_bytes) / _BYTES_PER_CYCLE
    read = _read_bytes(tile, machine.unit(spec.in_dtype)) / _SHARED_BYTES_PER_CYCLE
    cycles = slices * max(busy * max(multiply, copy, read), _SLICE_CYCLES) + _BLOCK_CYCLES
    seconds = waves * cycles / machine.clock + LAUNCH_SECONDS
    if tile.splits > 1:
        moved = (2 * tile.splits + 1) * 4 * pixels * spec.oc
        seconds += LAUNCH_SECONDS + moved / 1e12
    return seconds


def _read_bytes(tile: Tile, unit: Unit) -> int:
    """What a block's warps or threads read of a slice in shared memory."""
    if unit == "simt":
        return tile.threads * (tile.rows + tile.columns) // 16 * SLICE
    down, across = tile.warps
    down = down // 4 if isinstance(tile, GroupTile) else down
    return tile.rows * across * tile.slice_bytes + tile.weight_bytes * down


@lru_cache(maxsize=1024)
def best_tile(spec: ConvSpec, machine: Machine) -> Tile:
    """The tile that is predicted to take the least time."""
    tiles: tuple[Tile, ...] = MMA_TILES if machine.unit(spec.in_dtype) == "mma" else SIMT_TILES
    if machine.wgmma and spec.in_dtype != "f32":
        tiles += GROUP_TILES
    return cheapest(tiles, spec, machine)


def cheapest(tiles: Sequence[T], spec: ConvSpec, machine: Machine) -> T:
    """Of ``tiles``, and of parts of the depth, those that are predicted to take the least time."""
    depth = depth_bytes(spec)
    candidates = [
        replace(tile, splits=splits)
        for tile in tiles
        if tile.shared_bytes <= machine.shared_bytes
        for splits in SPLITS
        if splits == 1 or tile.slices(depth) >= 3 * splits
    ]

    def seconds(tile: T) -> float:
        return product_seconds(spec, tile, machine, (tile.slices(depth),) * 2)

    return min(candidates, key=seconds)


def gemm_refusal(spec: ConvSpec) -> str:
    """Why a layer cannot be computed so; "" if it can."""
    if spec.groups > 1:
        return f"it has {spec.groups} groups"
    pixels = spec.n * spec.oh * spec.ow
    largest = max(pixels * spec.oc * 4, spec.n * spec.h * spec.w * spec.c * 4)
    if max(largest, pixels * depth_bytes(spec) if _staged(spec) else 0) >= 1 << 31:
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
    unit, best = machine.unit(spec.in_dtype), tile or best_tile(spec, machine)

    def pack(layer: Layer) -> dict[str, np.ndarray]:
        return {"weight": packed(weights, best.row_bytes(layer.depth), best.columns)}

    def function(key: str, layer: Layer) -> Callable[[], Any]:
        return gemm_function(key, layer, best, unit)

    if spec.in_dtype == "u8":
        bias = fold_zero_point(bias, weights, spec.in_zero_point)
    return product_plan(
        spec,
        best,
        f"grid_gemm_{unit}",
        product_name(spec.in_dtype, best, machine),
        pack,
        function,
        bias,
        multiplier,
        ratio,
    )


def product_name(in_dtype: str, tile: Tile, machine: Machine) -> str:
    """What multiplies, for reports."""
    return "wgmma" if isinstance(tile, GroupTile) else machine.unit_name(in_dtype)


def product_plan(
    spec: ConvSpec,
    tile: Tile,
    stem: str,
    name: str,
    pack: Callable[[Layer], dict[str, np.ndarray]],
    function: Callable[[str, Layer], Callable[[], Any]],
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    ratio: np.ndarray | None,
) -> KernelPlan:
    """The steps of a blocked product: a copy of the input, the product, and the sum of its parts.

    Args:
        spec: as :func:`grid_gemm` has it.
        tile: how it is cut.
        stem: of the kernel's key.
        name: of the product, for reports.
        pack: the weights as the kernel reads them; its constants between input and pad, in order.
        function: makes the kernel, from its key and what it knows of the layer.
        bias: with the input's zero point in it.
        multiplier: of codes.
        ratio: of a residual operand of codes.
    """
    integer, size = spec.in_dtype == "u8", SIZE[spec.in_dtype]
    steps: list[KernelStep] = []
    scratch: list[int] = []
    source: KernelArg = ("in", 0)
    layer = Layer.of(spec)
    if _staged(spec) or spec.stored not in (None, spec.in_dtype):
        columns = Columns.of(spec, written_out=_staged(spec))
        steps.append(stage_step(columns, source, ("scratch", 0)))
        scratch.append(columns.bytes)
        source = ("scratch", 0)
        layer = Layer.rows(spec, columns.depth * size) if _staged(spec) else layer
    content = pack(layer)
    constants = content | {
        "pad": np.full(PART, spec.in_zero_point if integer else 0, np.uint8),
        "bias": bias.astype(np.int32 if integer else np.float32),
        "scalars": epilogue.scalars(spec.epilogue),
    }
    if multiplier is not None:
        constants["multiplier"] = np.broadcast_to(multiplier, (spec.oc,))
    if ratio is not None:
        constants["ratio"] = np.broadcast_to(ratio, (spec.oc,))
    shared = replace(layer, epilogue=shared_epilogue(spec.epilogue))
    key = name_key(stem, shared, tile)
    blocks = -(-layer.pixels // tile.rows) * -(-layer.channels // tile.columns) * tile.splits
    launch = Launch((blocks, 1, 1), (tile.threads, 1, 1), tile.shared_bytes)
    finish_args = _finish_arguments(layer, integer)
    read: list[KernelArg] = [("const", each) for each in (*content, "pad")]
    build = function(key, shared)
    if tile.splits == 1:
        args = (source, *read, *finish_args)
        steps.append(KernelStep(key, build, args, blocks, launch=launch))
    else:
        part: KernelArg = ("scratch", len(scratch))
        scratch.append(tile.splits * layer.pixels * layer.channels * 4)
        steps.append(KernelStep(key, build, (source, *read, part), blocks, launch=launch))
        steps.append(_sum_step(shared, tile.splits, (part, *finish_args)))
    cut = f" in {tile.splits} parts" if tile.splits > 1 else ""
    name = f"{name} {tile.rows}x{tile.columns}{cut}"
    return KernelPlan(tuple(steps), constants, scratch=tuple(scratch), kernel=name)


def packed(weights: np.ndarray, depth: int, columns: int) -> np.ndarray:
    """``[oc, c, kh, kw]`` as bytes ``[oc up to a multiple of columns, depth]``, taps outermost."""
    rows = np.ascontiguousarray(weights.transpose(0, 2, 3, 1)).reshape(len(weights), -1)
    content = rows.view(np.uint8)
    made = np.zeros((-(-len(content) // columns) * columns, depth), np.uint8)
    made[: len(content), : content.shape[1]] = content
    return made


def _finish_arguments(layer: Layer, integer: bool) -> tuple[KernelArg, ...]:
    names = epilogue.argument_names(integer, layer.epilogue.residual)
    residual: list[KernelArg] = [("in", 1)] if layer.epilogue.residual is not None else []
    return (*(("const", name) for name in names), *residual, ("out", 0))


def _sum_step(layer: Layer, splits: int, args: tuple[KernelArg, ...]) -> KernelStep:
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
            finish(kb, at, layer, total, channel, index)
        return kb.build()

    return thread_each(KernelStep(key, build, args, items))
