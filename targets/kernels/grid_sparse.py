"""Convolutions and linear layers on sparse tensor cores: 2 of every 4 weights in a row are 0.

As :mod:`targets.kernels.grid_gemm` but for the weights: 2 of every 4 neighbouring input channels of
a tap are stored, with 2 bits each for their places, in the order in which the threads of a warp
hold them: a fragment is one 16-byte load, and its places are one word. An instruction multiplies 64
bytes of the depth, a whole slice, in the time in which a dense one multiplies 32.

Source: PTX ISA, section "Matrix multiply-accumulate operation using mma.sp instruction with sparse
matrix A"; Mishra et al. 2021, "Accelerating sparse deep neural networks".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from dlcc.lowering.kernel import KernelPlan
from targets.kernels.conv import fold_zero_point
from targets.kernels.grid_gemm import cheapest, gemm_refusal, packed, product_plan
from targets.kernels.grid_gemm_code import SLICE, Layer
from targets.kernels.grid_machine import Machine
from targets.kernels.grid_sparse_code import KEPT, SparseTile, places_bytes, sparse_function
from targets.kernels.spec import ConvSpec

SPARSE_TILES = (
    SparseTile(128, 128, (2, 2)),
    SparseTile(128, 128, (4, 2)),
    SparseTile(128, 64, (4, 1)),
    SparseTile(64, 128, (2, 2)),
    SparseTile(64, 64, (2, 2)),
    SparseTile(64, 32, (4, 1)),
    SparseTile(32, 128, (1, 4)),
    SparseTile(32, 64, (2, 2)),
    SparseTile(32, 32, (2, 1)),
    SparseTile(16, 128, (1, 4)),
    SparseTile(16, 64, (1, 2)),
    SparseTile(16, 32, (1, 1)),
)
_GROUP = 4
_ROWS = 16
"""Channels of an instruction."""


def sparse_refusal(spec: ConvSpec, weights: np.ndarray, machine: Machine) -> str:
    """Why a layer cannot be computed so; "" if it can."""
    if spec.in_dtype == "f32" or machine.unit(spec.in_dtype) != "mma":
        return "the architecture has no sparse tensor cores for these types"
    if why := gemm_refusal(spec):
        return why
    present = weights_present(weights)
    present = np.pad(present, ((0, 0), (0, -present.shape[1] % _GROUP)))
    most = int(present.reshape(-1, _GROUP).sum(axis=1).max())
    return f"{most} of some {_GROUP} neighbouring weights are not zero" if most > 2 else ""


def weights_present(weights: np.ndarray) -> np.ndarray:
    """Which of ``[oc, c, kh, kw]`` are not 0, as bool ``[oc, kh * kw * c]``."""
    rows: np.ndarray = weights.transpose(0, 2, 3, 1).reshape(len(weights), -1)
    # bits of bfloat16: -0.0, too
    present: np.ndarray = (rows & 0x7FFF if rows.dtype == np.uint16 else rows) != 0
    return present


@lru_cache(maxsize=1024)
def best_sparse_tile(spec: ConvSpec, machine: Machine) -> SparseTile:
    """The tile that is predicted to take the least time."""
    size = places_bytes(spec.in_dtype)
    return cheapest([replace(tile, places=size) for tile in SPARSE_TILES], spec, machine)


def grid_sparse(
    spec: ConvSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    ratio: np.ndarray | None,
    machine: Machine,
    tile: SparseTile | None = None,
) -> KernelPlan:
    """The plan of a layer that :func:`sparse_refusal` lets pass.

    Args:
        spec: of codes or 16-bit floats.
        weights: ``[oc, c, kh, kw]``: int8 codes, float16 or bits of bfloat16.
        bias: int32 or float32 ``[oc]``.
        multiplier: float32 ``[oc]``, for codes.
        ratio: float32 ``[oc]``, of a residual operand of codes.
        machine: the GPU.
        tile: None: the best.
    """
    best = tile or best_sparse_tile(spec, machine)

    def pack(layer: Layer) -> dict[str, np.ndarray]:
        return {"weight": packed_sparse(weights, layer.slices, best)}

    def function(key: str, layer: Layer) -> Callable[[], Any]:
        return sparse_function(key, layer, best)

    if spec.in_dtype == "u8":
        bias = fold_zero_point(bias, weights, spec.in_zero_point)
    parts = bias, multiplier, ratio
    plan = product_plan(spec, best, "grid_sparse", "mma.sp", pack, function, *parts)
    return replace(plan, compressed=True)


def packed_sparse(weights: np.ndarray, slices: int, tile: SparseTile) -> np.ndarray:
    """The kept weights and their places, uint8 ``[blocks of channels, slices, bytes]``.

    Each block has the fragments of its groups of 16 channels, 16 bytes for each lane, and after
    them the places, a word for each lane.
    """
    size, dtype = weights.dtype.itemsize, weights.dtype
    rows = packed(weights, slices * SLICE, tile.columns).view(dtype)
    blocks = len(rows) // tile.columns
    values, places = _kept(rows.reshape(len(rows), -1, _GROUP))
    values = values.view(np.uint8).reshape(blocks, tile.columns, slices, KEPT)
    places = places.reshape(blocks, tile.columns, slices, -1)
    fragments = _fragments(values.swapaxes(1, 2))
    words = _places_words(places.swapaxes(1, 2), size)
    return np.ascontiguousarray(np.concatenate([fragments, words], axis=2))


def _kept(fours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two of every four ``[rows, fours, 4]``, those that are not 0, and the 4 bits of their places.

    Returns:
        ``[rows, 2 * fours]`` of the same type, and uint8 ``[rows, fours]``.
    """
    absent = (fours & 0x7FFF if fours.dtype == np.uint16 else fours) == 0
    # what is not 0 first, each in its order; then the two that were found in their order
    first = np.sort(np.argsort(absent, axis=2, kind="stable")[:, :, :2], axis=2)
    values = np.take_along_axis(fours, first, axis=2).reshape(len(fours), -1)
    return np.ascontiguousarray(values), (first[:, :, 0] | first[:, :, 1] << 2).astype(np.uint8)


def _fragments(values: np.ndarray) -> np.ndarray:
    """``[blocks, slices, channels, 32]`` bytes in the order of lanes: ``[blocks, slices, bytes]``.

    Lane 4 g + t has four words: bytes 4 t of rows g and g + 8, bytes 16 + 4 t of both.
    """
    blocks, slices, channels, _ = values.shape
    cut = values.reshape(blocks, slices, channels // _ROWS, 2, 8, 2, 4, 4)
    # group, row half, g, byte half, t, byte -> group, g, t, byte half, row half, byte
    return cut.transpose(0, 1, 2, 4, 6, 5, 3, 7).reshape(blocks, slices, -1)


def _places_words(places: np.ndarray, size: int) -> np.ndarray:
    """4 bits for every four, ``[blocks, slices, channels, fours]``, as bytes in the order of lanes.

    Of bytes lanes t = 0 and 1 have the first 8 fours of rows g and g + 8, lanes 2 and 3 the others.
    Of 16-bit numbers lanes 0 and 1 have 4 fours each, of row g in the lower half and of g + 8 in
    the upper one; lanes 2 and 3 those of the next group of channels.
    """
    blocks, slices, channels, fours = places.shape
    halves = (places[..., 0::2] | places[..., 1::2] << 4).reshape(
        blocks, slices, channels // _ROWS, 2, 8, 2, fours // 4
    )
    # group, row half, g, depth half, byte
    if size == 1:
        ordered = halves.transpose(0, 1, 2, 4, 5, 3, 6)
    else:
        pairs = halves.reshape(blocks, slices, channels // (2 * _ROWS), 2, 2, 8, 2, fours // 4)
        # pair, group, row half, g, depth half, byte -> pair, g, group, depth half, row half, byte
        ordered = pairs.transpose(0, 1, 2, 5, 3, 6, 4, 7)
    words: np.ndarray = ordered.reshape(blocks, slices, -1)
    return words


__all__ = [
    "SPARSE_TILES",
    "best_sparse_tile",
    "grid_sparse",
    "packed_sparse",
    "sparse_refusal",
    "weights_present",
]
