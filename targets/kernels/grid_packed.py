"""Convolutions and linear layers on tensor cores by weights of 1 to 4 bits, unpacked in registers.

As :mod:`targets.kernels.grid_gemm` but for the weights: in the file, in memory and in shared memory
they stay packed, in the order in which the threads of a warp hold fragments. A lane has those of
two instructions side by side and of both halves of a slice in one read of 4 bytes for each bit of a
code; a shift and a mask make a register of an operand out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from dlcc.lowering.kernel import KernelPlan
from targets.kernels.conv import fold_zero_point
from targets.kernels.grid_gemm import (
    MMA_TILES,
    cheapest,
    gemm_refusal,
    packed,
    product_plan,
    slices_of,
)
from targets.kernels.grid_gemm_code import SLICE, Layer, depth_bytes
from targets.kernels.grid_machine import Machine
from targets.kernels.grid_packed_code import LANES, OPERANDS, PAIR, PackedTile, packed_function
from targets.kernels.packed_bits import Codes
from targets.kernels.spec import ConvSpec

MOST_BITS = 4

MOST_DEPTH = 1 << 16
"""Products up to which no sum of 255 times 128 leaves an int32."""

_WORD = 4


def width_of(codes: Codes) -> int:
    """Bits of a code as it is stored."""
    return {1: 1, 2: 2}.get(codes.bits, 4)


def packed_refusal(spec: ConvSpec, codes: Codes, machine: Machine) -> str:
    """Why a layer cannot be computed so; "" if it can."""
    if spec.in_dtype != "u8":
        return "the activations are not quantised"
    if not machine.mma:
        return "the architecture has no matrix instructions for these types"
    if codes.bits > MOST_BITS:
        return f"codes of {codes.bits} bits; up to {MOST_BITS} are unpacked"
    if depth_bytes(spec) > MOST_DEPTH:
        return f"sums of {depth_bytes(spec)} products may leave 32 bits"
    return gemm_refusal(spec)


@lru_cache(maxsize=1024)
def best_packed_tile(spec: ConvSpec, bits: int, machine: Machine) -> PackedTile:
    """The tile that is predicted to take the least time; ``bits`` of a code as it is stored."""
    made = [
        PackedTile(**{f.name: getattr(tile, f.name) for f in fields(tile)}, bits=bits)
        for tile in MMA_TILES
    ]
    return cheapest(made, spec, machine)


def grid_packed(
    spec: ConvSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    ratio: np.ndarray | None,
    machine: Machine,
    codes: Codes,
    tile: PackedTile | None = None,
) -> KernelPlan:
    """The plan of a layer that :func:`packed_refusal` lets pass.

    Args:
        spec: of codes.
        weights: int8 ``[oc, c, kh, kw]``.
        bias: int32 ``[oc]``.
        multiplier: float32 ``[oc]``.
        ratio: float32 ``[oc]``, of a residual operand of codes.
        machine: the GPU.
        codes: what the weights are.
        tile: None: the best.
    """
    best = tile or best_packed_tile(spec, width_of(codes), machine)

    def pack(layer: Layer) -> dict[str, np.ndarray]:
        return {"weight": packed_fragments(weights, layer.slices, best)}

    def function(key: str, layer: Layer) -> Callable[[], Any]:
        return packed_function(key, layer, best)

    if best.bits == 1:  # what fills up the depth are zero points, which no bit multiplies by 1
        filled = slices_of(spec) * SLICE - depth_bytes(spec)
        bias = bias.astype(np.int64) - spec.in_zero_point * filled
    parts = fold_zero_point(bias, weights, spec.in_zero_point), multiplier, ratio
    name = f"mma {codes.bits} bits"
    plan = product_plan(spec, best, "grid_packed", name, pack, function, *parts)
    return replace(plan, compressed=True)


def packed_fragments(weights: np.ndarray, slices: int, tile: PackedTile) -> np.ndarray:
    """Uint8 ``[blocks of columns, slices, pairs of instructions, lanes, 4 * bits]``.

    Operand ``4 * instruction + 2 * half + register`` of a lane holds column ``lane / 4`` of the
    instruction and four rows from ``32 * half + 16 * register + lane % 4 * 4`` on (PTX ISA, matrix
    fragments of mma.m16n8k32); operands follow each other from the lowest bits up.
    """
    rows = packed(weights, slices * SLICE, tile.columns)
    codes = rows >> 7 if tile.bits == 1 else rows & ((1 << tile.bits) - 1)
    blocks, pairs = len(rows) // tile.columns, tile.columns // PAIR
    # block, pair, instruction, column, slice, half, register, four of the lane, row
    parts = codes.reshape(blocks, pairs, 2, 8, slices, 2, 2, 4, _WORD)
    dealt = parts.transpose(0, 4, 1, 3, 7, 2, 5, 6, 8)
    dealt = dealt.reshape(blocks, slices, pairs, LANES, OPERANDS, _WORD)
    each = 8 // tile.bits
    places = dealt.reshape(blocks, slices, pairs, LANES, OPERANDS // each, each, _WORD)
    made = np.zeros((*places.shape[:5], _WORD), np.uint8)
    for place in range(each):
        made |= places[..., place, :] << np.uint8(place * tile.bits)
    return np.ascontiguousarray(made.reshape(blocks, slices, pairs, LANES, _WORD * tile.bits))
