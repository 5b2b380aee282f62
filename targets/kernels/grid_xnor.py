"""Layers of binary activations by binary weights on a GPU: xor, and counting bits.

As :mod:`targets.kernels.xnor`, with the blocked product of :mod:`targets.kernels.grid_gemm` (or the
few rows of :mod:`targets.kernels.grid_gemv`) over bytes of eight signs each: ``mma`` on single bits
from sm_80 on, else ``popc``. Fragments of ``m16n8k256`` lie in bytes as those of ``m16n8k32`` do,
so slices, tiles and copies are the same. Sums, which are counts, go to memory; a second kernel
makes numbers or signs of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels.grid_gemm import best_tile, gemm_refusal, packed, predicted
from targets.kernels.grid_gemm_code import PART, SIGNS, SLICE, Layer, Tile, gemm_function
from targets.kernels.grid_gemv import Form, arranged, best, gemv_cost, gemv_refusal
from targets.kernels.grid_gemv_code import gemv_function
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.kernels.grid_signs import Counted, counted_step
from targets.kernels.grid_stage import Columns, stage_step
from targets.kernels.sign_words import WORD, pack_signs, real_constants, words_of
from targets.kernels.spec import ConvSpec, Epilogue
from targets.kernels.xnor import BinaryLayer
from targets.kernels.xnor_pack import base_of, classes_of, limits_of

_BYTES = 4
"""Of a word."""

_DENSE = Form.dense("u8")


def _bytes_spec(spec: ConvSpec) -> ConvSpec:
    """The layer over bytes of signs; its results are counts."""
    return replace(
        spec,
        c=words_of(spec.c) * _BYTES,
        in_dtype="u8",
        in_zero_point=0,
        stored="u8",
        epilogue=Epilogue("f32"),
        input_slack=True,
    )


def xnor_refusal(spec: ConvSpec) -> str:
    """Why a layer cannot be computed so; "" if it can."""
    return f"it has {spec.groups} groups" if spec.groups > 1 else gemm_refusal(_bytes_spec(spec))


def xnor_cost(spec: ConvSpec, machine: Machine) -> float:
    """Predicted seconds of :func:`grid_xnor`."""
    made = _bytes_spec(spec)
    counts = 8 * spec.n * spec.oh * spec.ow * spec.oc
    return _product_cost(made, machine) + LAUNCH_SECONDS + counts / machine.memory


def _product_cost(made: ConvSpec, machine: Machine) -> float:
    if not gemv_refusal(made, _DENSE):
        return gemv_cost(made, _DENSE, machine)
    return predicted(made, best_tile(made, machine), machine)


@dataclass(frozen=True)
class _Product:
    """What gives the counts."""

    steps: tuple[KernelStep, ...]
    constants: dict[str, np.ndarray]
    scratch: tuple[int, ...]
    splits: int
    name: str


def grid_xnor(layer: BinaryLayer, machine: Machine, tile: Tile | None = None) -> KernelPlan:
    """Plans a convolution or linear layer of one group; a residual is input 1.

    Args:
        layer: with its constants.
        machine: the GPU.
        tile: of a blocked product; None: the best way.
    """
    spec = layer.spec
    made, weights = _bytes_spec(spec), _weight_bytes(layer.negative)
    few = tile is None and not gemv_refusal(made, _DENSE)
    product = _few_rows(made, weights, machine) if few else _blocked(made, weights, machine, tile)
    pixels, padded = spec.n * spec.oh * spec.ow, words_of(spec.oc) * WORD
    base, constants = base_of(spec, layer.negative), dict(product.constants)
    names = ["base"]
    if any(spec.pads):
        rows, cols, _ = classes_of(spec)
        constants["row_class"] = (rows * (cols.max() + 1) * padded).astype(np.int32)
        constants["col_class"] = (cols * padded).astype(np.int32)
        names += ["row_class", "col_class"]
    residual = spec.epilogue.residual is not None
    if layer.signs:
        constants["base"] = limits_of(layer.multiplier, layer.bias, spec, base, padded)
    else:
        constants["base"] = np.pad(base, ((0, 0), (0, padded - spec.oc))).astype(np.int32)
        constants |= real_constants(spec.epilogue, layer.multiplier, layer.bias, padded)
        names += ["multiplier", "bias", "limits"]
    counted = Counted(
        pixels,
        spec.oc,
        product.splits,
        spec.oh,
        spec.ow,
        any(spec.pads),
        layer.signs,
        residual,
    )
    more: tuple[KernelArg, ...] = (("in", 1),) if residual else ()
    consts: tuple[KernelArg, ...] = tuple(("const", name) for name in names)
    counts: KernelArg = ("scratch", len(product.scratch))
    last = counted_step(counted, (counts, *consts, *more, ("out", 0)))
    return KernelPlan(
        (*product.steps, last),
        constants,
        scratch=(*product.scratch, 4 * product.splits * pixels * spec.oc),
        kernel=product.name,
        compressed=True,
    )


def _weight_bytes(negative: np.ndarray) -> np.ndarray:
    """Bits ``[oc, c, kh, kw]`` as bytes ``[oc, c / 8 up to words, kh, kw]``."""
    words = pack_signs(negative.transpose(0, 2, 3, 1))
    content: np.ndarray = words.view(np.int8).transpose(0, 3, 1, 2)
    return content


def _staged(made: ConvSpec) -> tuple[tuple[KernelStep, ...], tuple[int, ...], KernelArg, int]:
    """The copy of windows that do not fill 16 bytes: steps, scratch, and what is read then."""
    if made.c % PART == 0:
        return (), (), ("in", 0), made.c
    columns = Columns.of(made, written_out=True)
    return (
        (stage_step(columns, ("in", 0), ("scratch", 0)),),
        (columns.bytes,),
        ("scratch", 0),
        columns.depth,
    )


def _few_rows(made: ConvSpec, weights: np.ndarray, machine: Machine) -> _Product:
    steps, scratch, source, _ = _staged(made)
    gemv = replace(best(made, _DENSE, machine), signs=True)
    key = name_key("grid_gemv", gemv)
    launch = Launch((gemv.blocks, 1, 1), (gemv.threads, 1, 1), gemv.shared_bytes)
    args: tuple[KernelArg, ...] = (source, ("const", "weight"), ("scratch", len(scratch)))
    step = KernelStep(key, gemv_function(key, gemv), args, gemv.blocks, launch=launch)
    matrix = weights.reshape(made.oc, made.c)
    constants = {"weight": arranged((matrix,), gemv)}
    return _Product((*steps, step), constants, scratch, 1, f"xnor gemv, {gemv.lanes} threads")


def _blocked(made: ConvSpec, weights: np.ndarray, machine: Machine, tile: Tile | None) -> _Product:
    steps, scratch, source, depth = _staged(made)
    tile = tile or best_tile(made, replace(machine, wgmma=False))
    whole = Layer.rows(made, depth) if steps else Layer.of(made)
    layer = replace(whole, in_dtype=SIGNS)
    unit = machine.unit("u8")
    key = name_key(f"grid_xnor_{unit}", layer, tile)
    blocks = -(-layer.pixels // tile.rows) * -(-layer.channels // tile.columns) * tile.splits
    launch = Launch((blocks, 1, 1), (tile.threads, 1, 1), tile.shared_bytes)
    reads: tuple[KernelArg, ...] = (source, ("const", "weight"), ("const", "pad"))
    args = (*reads, ("scratch", len(scratch)))
    build: Any = gemm_function(key, layer, tile, unit)
    step = KernelStep(key, build, args, blocks, launch=launch)
    constants = {
        "weight": packed(weights, layer.slices * SLICE, tile.columns),
        "pad": np.zeros(PART, np.uint8),
    }
    name = f"xnor {unit} {tile.rows}x{tile.columns}"
    return _Product((*steps, step), constants, scratch, tile.splits, name)
