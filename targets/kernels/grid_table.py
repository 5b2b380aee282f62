"""Convolutions and linear layers of float32 by weights of a few bits, which a table stands for.

As :mod:`targets.kernels.grid_gemm` but for the weights: in the file and in memory they are places
in a table of up to 256 numbers (shared weights), or of the few that codes stand for, with a factor
for each output channel. Slices come to shared memory as they are, where a block looks them up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from dlcc.lowering.kernel import KernelPlan
from targets.kernels.grid_gemm import (
    SIMT_TILES,
    cheapest,
    gemm_refusal,
    product_plan,
)
from targets.kernels.grid_gemm_code import Layer
from targets.kernels.grid_machine import Machine
from targets.kernels.grid_table_code import NUMBERS, TableTile, table_function
from targets.kernels.spec import ConvSpec


def table_refusal(spec: ConvSpec, machine: Machine) -> str:
    """Why a layer cannot be computed so; "" if it can."""
    if spec.in_dtype != "f32":
        return "the activations are not float32"
    if machine.tf32:
        return "products in TF32 take decoded weights"
    return gemm_refusal(spec)


@lru_cache(maxsize=1024)
def best_table_tile(spec: ConvSpec, bits: int, scaled: bool, machine: Machine) -> TableTile:
    """The tile that is predicted to take the least time."""
    made = [
        TableTile(**{f.name: getattr(tile, f.name) for f in fields(tile)}, bits=bits, scaled=scaled)
        for tile in SIMT_TILES
    ]
    return cheapest([tile for tile in made if tile.weight_bytes >= 32], spec, machine)


def grid_table(
    spec: ConvSpec,
    places: np.ndarray,
    book: np.ndarray,
    factors: np.ndarray | None,
    bias: np.ndarray,
    machine: Machine,
    tile: TableTile | None = None,
) -> KernelPlan:
    """The plan of a layer that :func:`table_refusal` lets pass.

    Args:
        spec: of float32.
        places: uint8 ``[oc, c, kh, kw]``.
        book: float32 ``[2^bits]``.
        factors: float32 ``[oc]``; None: 1.
        bias: float32 ``[oc]``.
        machine: the GPU.
        tile: None: the best.
    """
    bits, scaled = len(book).bit_length() - 1, factors is not None
    best = tile or best_table_tile(spec, bits, scaled, machine)

    def pack(layer: Layer) -> dict[str, np.ndarray]:
        made = {"weight": packed_places(places, layer.slices, best)}
        made["book"] = book.astype(np.float32).view(np.uint32)
        if factors is not None:
            room = -len(factors) % best.columns
            made["factors"] = np.pad(factors.astype(np.float32), (0, room))
        return made

    def function(key: str, layer: Layer) -> Callable[[], Any]:
        return table_function(key, layer, best)

    name = f"simt table of {len(book)}"
    plan = product_plan(spec, best, "grid_table", name, pack, function, bias, None, None)
    return replace(plan, compressed=True)


def packed_places(places: np.ndarray, slices: int, tile: TableTile) -> np.ndarray:
    """Uint8 ``[blocks of columns, slices, columns, 2 * bits]``: 16 places from the low bits up."""
    rows = places.transpose(0, 2, 3, 1).reshape(len(places), -1)
    blocks = -(-len(rows) // tile.columns)
    full = np.zeros((blocks * tile.columns, slices * NUMBERS), np.uint8)
    full[: len(rows), : rows.shape[1]] = rows
    each = 8 // tile.bits
    fields = full.reshape(blocks, tile.columns, slices, NUMBERS // each, each)
    made = np.zeros(fields.shape[:4], np.uint8)
    for place in range(each):
        made |= fields[..., place] << np.uint8(place * tile.bits)
    return np.ascontiguousarray(made.transpose(0, 2, 1, 3))
