"""Product of one row of activations and weights with some zeros: a bit for each place.

For half to a fifth of the weights, and for 2:4 pruning, a bit per weight says where the stored ones
belong in less room than distances do. A vector's bits are a mask register; ``vexpandps``, or
``vpexpandb`` for codes, takes the next weights from one stream to the places whose bit is set, and
the number of bits moves the stream on. What is multiplied is a dense vector: 16 outputs, of codes
four columns each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels import epilogue
from targets.kernels.gemm import unit_for
from targets.kernels.sparse_gemv import refusal as gemv_refusal
from targets.kernels.sparse_layer import Layer, staged_plan
from targets.kernels.sparse_pack import weight_matrix
from targets.kernels.spec import ConvSpec, OutType, ResidualType
from targets.kernels.stage import Stage, rows_stage

LANES = 16
"""Outputs of a vector."""

AHEAD = 2048
"""Bytes that weights are fetched ahead of their use."""

STEP_CYCLES = 2.6
"""Cycles of a vector."""

_EXPAND = """
declare <16 x float> @llvm.masked.expandload.v16f32(ptr, <16 x i1>, <16 x float>)
define <16 x float> @dlcc_expand_float32(ptr %from, i16 %bits) {
  %mask = bitcast i16 %bits to <16 x i1>
  %x = call <16 x float> @llvm.masked.expandload.v16f32(
    ptr %from, <16 x i1> %mask, <16 x float> zeroinitializer)
  ret <16 x float> %x
}
"""

_EXPAND_BYTES = """
declare <64 x i8> @llvm.masked.expandload.v64i8(ptr, <64 x i1>, <64 x i8>)
define <64 x i8> @dlcc_expand_int8(ptr %from, i64 %bits) {
  %mask = bitcast i64 %bits to <64 x i1>
  %x = call <64 x i8> @llvm.masked.expandload.v64i8(
    ptr %from, <64 x i1> %mask, <64 x i8> zeroinitializer)
  ret <64 x i8> %x
}
"""


@dataclass(frozen=True)
class SparseMask:
    """What determines the code.

    Attributes:
        n: outputs.
        k: columns.
        vectors: vectors of outputs side by side: a work item.
        integer: codes, four columns of each output in a vector.
    """

    n: int
    k: int
    vectors: int
    integer: bool
    out: OutType
    residual: ResidualType | None

    @property
    def depth(self) -> int:
        """Columns of a vector."""
        return 4 if self.integer else 1

    @property
    def steps(self) -> int:
        """Vectors along the columns."""
        return ceil(self.k / self.depth)

    @property
    def items(self) -> int:
        """Work items."""
        return ceil(self.n / (self.vectors * LANES))

    @property
    def places(self) -> int:
        """Weights of a vector, and bits of its mask."""
        return LANES * self.depth


def pack_masked(matrix: np.ndarray, kernel: SparseMask) -> dict[str, np.ndarray]:
    """Stored weights, a mask for each vector, and where the weights of each item start."""
    outputs = kernel.items * kernel.vectors * LANES
    full = np.zeros((outputs, kernel.steps * kernel.depth), matrix.dtype)
    full[: len(matrix), : matrix.shape[1]] = matrix
    split = full.reshape(kernel.items, kernel.vectors, LANES, kernel.steps, kernel.depth)
    tiles = split.transpose(0, 3, 1, 2, 4).reshape(kernel.items, -1, kernel.places)
    kept = tiles != 0
    bits = np.packbits(np.ascontiguousarray(kept), axis=-1, bitorder="little")
    counts = kept.reshape(kernel.items, -1).sum(axis=1)
    return {
        "weight": tiles[kept],
        "mask": np.ascontiguousarray(bits).view(np.int64 if kernel.integer else np.uint16),
        "groups": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    }


def mask_function(name: str, kernel: SparseMask) -> Any:
    """The PrimFunc: parameters x, weight, mask, groups, then the epilogue's, residual, y."""
    integer, dtype = kernel.integer, "int32" if kernel.integer else "float32"
    kb = tir.KernelBuilder(name, llvm=_EXPAND_BYTES if integer else _EXPAND)
    x = kb.pointer("x", "uint8" if integer else "float32", align=1)
    weights = kb.pointer("weight", "int8" if integer else "float32", align=1)
    masks = kb.pointer("mask", "int64" if integer else "uint16")
    groups = kb.pointer("groups", "int32")
    out = epilogue.parameters(kb, integer, kernel.out, kernel.residual)
    whole, rest = divmod(kernel.n, kernel.vectors * LANES)
    with kb.loop(kb.begin, kb.end, "item") as item:
        acc, at = kb.alloc(dtype, kernel.vectors * LANES), kb.alloc("int32", 1)
        for v in range(kernel.vectors):
            kb.store(acc, v * LANES, kb.const(0, dtype, LANES))
        kb.store(at, 0, kb.load(groups, item))
        first = kb.let(item * (kernel.steps * kernel.vectors), "first")
        with kb.loop(0, kernel.steps, "step") as step:
            number = _number(kb, kernel, x, step)
            start = kb.let(first + step * kernel.vectors, "start")
            kb.prefetch(masks, start + AHEAD // (8 if integer else 2), level=1)
            for v in range(kernel.vectors):
                _vector(kb, kernel, (weights, masks), (acc, at), v, start + v, number)
        for inside, outputs in ((item < whole, kernel.vectors * LANES), (item >= whole, rest)):
            if outputs and (whole or outputs == rest):
                with kb.when(inside if whole and rest else True):
                    for v in range(ceil(outputs / LANES)):
                        place = kb.let((item * kernel.vectors + v) * LANES, "output")
                        channel = epilogue.load_channels(kb, out, place, LANES)
                        total = kb.load(acc, v * LANES, LANES)
                        count = min(LANES, outputs - v * LANES)
                        epilogue.finish(kb, out, channel, total, place, count, kernel.out)
    return kb.build()


def _number(kb: tir.KernelBuilder, kernel: SparseMask, x: Any, step: Any) -> Any:
    """The activations of a step in every lane."""
    if not kernel.integer:
        return kb.let(kb.splat(kb.load(x, step), LANES), "x")
    word = kb.let(kb.reinterpret(kb.load(x, step * 4, 4), "int32"), "word")
    return kb.let(kb.reinterpret(kb.splat(word, LANES), "int8", 4 * LANES), "x")


def _vector(
    kb: tir.KernelBuilder,
    kernel: SparseMask,
    source: tuple[Any, Any],
    state: tuple[Any, Any],
    v: int,
    place: Any,
    number: Any,
) -> None:
    """One vector: expand, multiply, move on."""
    (weights, masks), (acc, at) = source, state
    bits = kb.let(kb.load(masks, place), "bits")
    here = kb.let(kb.load(at, 0), "here")
    for line in range(0, kernel.places * (1 if kernel.integer else 4), 64):
        kb.prefetch(weights, here + (AHEAD + line) // (1 if kernel.integer else 4), level=1)
    address, total = kb.address(weights, here), kb.load(acc, v * LANES, LANES)
    if kernel.integer:
        w = kb.extern("dlcc_expand_int8", "int8", 4 * LANES, address, bits)
        dot = "llvm.x86.avx512.vpdpbusd.512"
        kb.store(acc, v * LANES, kb.pure(dot, "int32", LANES, total, number, w))
    else:
        w = kb.extern("dlcc_expand_float32", "float32", LANES, address, bits)
        kb.store(acc, v * LANES, kb.pure("llvm.fma", "float32", LANES, number, w, total))
    wide = bits if kernel.integer else kb.cast(bits, "int32")
    count = kb.pure("llvm.ctpop", "int64" if kernel.integer else "int32", 1, wide)
    kb.store(at, 0, here + kb.cast(count, "int32"))


def refusal(spec: ConvSpec, isa: Isa) -> str:
    """Why the kernel cannot take a layer; "" if it can."""
    if isa.lanes != LANES:
        return "the instruction set cannot expand"
    if spec.in_dtype == "u8" and not isa.byte_expand:
        return "the instruction set cannot expand bytes"
    return gemv_refusal(spec)


def _kernel(spec: ConvSpec) -> SparseMask:
    vectors, epi = min(4, ceil(spec.oc / LANES)), spec.epilogue
    return SparseMask(spec.oc, spec.c, vectors, spec.in_dtype == "u8", epi.out, epi.residual)


def _stage(spec: ConvSpec) -> Stage | None:
    """A copy where a word would reach past the caller's input."""
    if spec.in_dtype == "f32" or spec.input_slack or spec.c % 4 == 0:
        return None
    return rows_stage(1, spec.c, "u8", "u8")


def sparse_mask_cost(spec: ConvSpec, isa: Isa, weights: np.ndarray) -> float:
    """Predicted seconds of :func:`sparse_mask` on one thread."""
    kernel, stage = _kernel(spec), _stage(spec)
    vectors = kernel.items * kernel.vectors * kernel.steps
    stored = int(np.count_nonzero(weights)) * (1 if kernel.integer else 4)
    cycles = vectors * STEP_CYCLES + kernel.items * 60.0
    read = isa.read_seconds(stored + vectors * kernel.places // 8)
    return max(cycles / CLOCK, read) + (stage.seconds if stage else 0.0)


def sparse_mask(layer: Layer, isa: Isa) -> KernelPlan:
    """Plans a linear layer of one row."""
    spec, kernel = layer.spec, _kernel(layer.spec)
    unit = unit_for(isa, spec.in_dtype, amx=False)
    constants = pack_masked(weight_matrix(layer.weights), kernel)
    constants |= layer.channels(kernel.vectors * LANES)
    key = name_key("sparse_mask", kernel)

    def step(args: tuple[KernelArg, ...]) -> KernelStep:
        return KernelStep(key, partial(mask_function, key, kernel), args, kernel.items)

    name = f"sparse-mask {kernel.vectors}"
    stored = ("weight", "mask", "groups")
    return staged_plan(layer, isa, unit, _stage(spec), constants, step, name, stored)
