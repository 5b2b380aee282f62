"""Product of one row of u8 activations and a matrix of codes of 1 to 7 bits, read packed.

Lanes are outputs. A vector of packed codes (:mod:`packed_bits`) is masked in place: a field that
does not start at bit 0 counts a power of two more, which its sums lose once, at the end. Since
fields are multiplied as they are stored, u >= 0, the sum of the activations makes up for the codes'
base. (``and`` and ``vpdpbusd`` for each 4 x lanes products; without VNNI ``pmaddubsw``, whose
16-bit sums cannot saturate: 4 * 255 * 15 < 2^15.)
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
from targets.kernels.byte_products import code_unit, is_arm, products_of
from targets.kernels.gemm import Unit
from targets.kernels.packed_bits import STEP, WORD, Codes, pack_planes, steps_of
from targets.kernels.sparse_layer import Layer, staged_plan
from targets.kernels.sparse_pack import weight_matrix
from targets.kernels.spec import ConvSpec, OutType, ResidualType
from targets.kernels.stage import rows_stage

AHEAD = 2048
"""Bytes that codes are fetched ahead of their use."""

MOST_COLUMNS = 1 << 19
"""Columns up to which no sum of masked fields (below 16 * 255 each) leaves an int32."""

MADD_CYCLES = {4: 1.7, 8: 1.0, 16: 1.7}
"""Cycles of a product of two vectors without byte dot products, by lanes."""


@dataclass(frozen=True)
class PackedGemv:
    """What determines the code.

    Attributes:
        n: outputs.
        k: columns.
        codes: what the codes stand for.
        vectors: vectors of outputs that are computed side by side: a work item.
        unit: of :func:`~targets.kernels.byte_products.code_unit`.
    """

    n: int
    k: int
    codes: Codes
    vectors: int
    unit: Unit
    out: OutType
    residual: ResidualType | None

    @property
    def blocks(self) -> int:
        """Vectors of outputs of the layer."""
        return ceil(self.n / self.unit.lanes)

    @property
    def items(self) -> int:
        """Work items."""
        return ceil(self.blocks / self.vectors)

    @property
    def one_stream(self) -> bool:
        """Whether an item's blocks take turns in memory, step by step.

        Small cores follow few streams, and load two neighbours with one instruction.
        """
        return is_arm(self.unit)

    @property
    def bytes(self) -> int:
        """Bytes of the packed codes."""
        return self.blocks * steps_of(self.k) * self.step_bytes

    @property
    def step_bytes(self) -> int:
        """Bytes of one step of one block."""
        return self.codes.bits * self.unit.lanes * WORD


class _Emitter:
    """Emits the inner products of one function."""

    def __init__(self, kb: tir.KernelBuilder, kernel: PackedGemv) -> None:
        self.kb, self.kernel = kb, kernel
        self.lanes = kernel.unit.lanes
        self.products = products_of(kernel.unit)(kb, self.lanes)

    def zeros(self, sums: int) -> Any:
        """``sums`` sums of a vector of outputs."""
        kb, lanes = self.kb, self.lanes
        acc = kb.alloc("int32", self.products.vectors * sums * lanes)
        for i in range(self.products.vectors * sums):
            kb.store(acc, i * lanes, kb.const(0, "int32", lanes))
        return acc

    def total(self, x: Any) -> Any:
        """The sum of all activations, int32."""
        kb, lanes, k, products = self.kb, self.lanes, self.kernel.k, self.products
        size, acc = WORD * lanes, self.zeros(1)
        ones = products.codes(kb.const(1, "uint8", size))
        with kb.loop(0, k // size, "piece") as piece:
            self._count(acc, kb.load(x, piece * size, size), ones)
        if k % size:
            self._count(acc, kb.load_first(x, k // size * size, size, k % size), ones)
        return kb.let(kb.pure("llvm.vector.reduce.add", "int32", 1, products.value(acc, 0)), "sum")

    def _count(self, acc: Any, x: Any, ones: Any) -> None:
        self.products.add(acc, 0, [(self.products.activations(x), ones)])
        self.products.flush(acc)

    def step(self, x: Any, weights: Any, acc: Any, step: Any, starts: list[Any]) -> None:
        """One step of several blocks; ``starts``: where each one's codes of the step lie."""
        kb, products = self.kb, self.products
        size, vector = WORD * self.lanes, 0
        words = products.words(x, step * STEP)
        for plane, (width, _) in enumerate(self.kernel.codes.planes):
            half = WORD // width
            for v in range(width):
                mine = words[v * 2 * half : (v + 1) * 2 * half]
                for s, start in enumerate(starts):
                    halves = products.halves(kb.load(weights, start + vector * size, size))
                    for field in range(half):
                        mask = kb.const(((1 << width) - 1) << (width * field), "uint8", size)
                        parts = [tir.tirx.bitwise_and(part, mask) for part in halves]
                        codes = [kb.let(products.codes(part), "field") for part in parts]
                        at = self.place(s, plane, field)
                        products.add(
                            acc, at, [(mine[field], codes[0]), (mine[half + field], codes[1])]
                        )
                vector += 1

    def place(self, block: int, plane: int, field: int) -> int:
        """Where the sums of a field lie."""
        before = sum(WORD // width for width, _ in self.kernel.codes.planes[:plane])
        return (block * fields_of(self.kernel.codes) + before + field) * self.lanes

    def value(self, acc: Any, block: int, total: Any) -> Any:
        """The sum of codes times activations of a block."""
        kb, lanes, codes = self.kb, self.lanes, self.kernel.codes
        value = kb.splat(total * codes.base, lanes)
        for plane, (width, low) in enumerate(codes.planes):
            for field in range(WORD // width):
                part = self.products.value(acc, self.place(block, plane, field))
                if width * field:
                    shift = kb.const(width * field, "int32", lanes)
                    part = tir.tirx.shift_right(part, shift)
                value = value + part * kb.const(codes.step << low, "int32", lanes)
        return kb.let(value, "value")


def fields_of(codes: Codes) -> int:
    """Sums of a vector of outputs: one for each place that a field has in half a byte."""
    return sum(WORD // width for width, _ in codes.planes)


def packed_function(name: str, kernel: PackedGemv) -> Any:
    """The PrimFunc: parameters x, weight, then the epilogue's, residual, y."""
    kb = tir.KernelBuilder(name)
    x, weights = kb.pointer("x", "uint8", align=1), kb.pointer("weight", "uint8")
    out = epilogue.parameters(kb, True, kernel.out, kernel.residual)
    emitter = _Emitter(kb, kernel)
    total = emitter.total(x)
    whole, rest = divmod(kernel.n, kernel.vectors * kernel.unit.lanes)
    with kb.loop(kb.begin, kb.end, "item") as item:
        if whole:
            with kb.when(item < whole if rest else True):
                _item(emitter, x, weights, out, total, item, kernel.vectors * kernel.unit.lanes)
        if rest:
            with kb.when(item >= whole if whole else True):
                _item(emitter, x, weights, out, total, item, rest)
    return kb.build()


def _item(
    emitter: _Emitter, x: Any, weights: Any, out: Any, total: Any, item: Any, outputs: int
) -> None:
    """All steps of the blocks of ``outputs`` outputs, and their epilogue."""
    kb, kernel, lanes = emitter.kb, emitter.kernel, emitter.lanes
    steps, size, vectors = steps_of(kernel.k), kernel.step_bytes, ceil(outputs / lanes)
    acc = emitter.zeros(fields_of(kernel.codes) * vectors)
    first = kb.let(item * kernel.vectors, "first")
    if kernel.one_stream:
        panel = kb.let(first * (steps * size), "panel")
        at_once = emitter.products.steps
        whole = steps // at_once
        stream = partial(_stream, emitter, x, weights, acc, panel, vectors)
        if whole:
            with kb.loop(0, whole, "steps") as some:
                stream(kb.let(some * at_once, "step"), at_once)
        if steps % at_once:
            stream(whole * at_once, steps % at_once)
    else:
        blocks = [kb.let((first + s) * (steps * size), "block") for s in range(vectors)]
        with kb.loop(0, steps, "step") as step:
            starts = [kb.let(block + step * size, "start") for block in blocks]
            for start in starts:
                for line in range(0, size, 64):
                    kb.prefetch(weights, start + (AHEAD + line), level=1)
            emitter.step(x, weights, acc, step, starts)
    for s in range(vectors):
        at = kb.let((first + s) * lanes, "output")
        channel = epilogue.load_channels(kb, out, at, lanes)
        value = emitter.value(acc, s, total)
        epilogue.finish(kb, out, channel, value, at, min(lanes, outputs - s * lanes), kernel.out)


def _stream(
    emitter: _Emitter,
    x: Any,
    weights: Any,
    acc: Any,
    panel: Any,
    vectors: int,
    step: Any,
    count: int,
) -> None:
    """``count`` steps of all blocks of a panel."""
    kb, size = emitter.kb, emitter.kernel.step_bytes
    for i in range(count):
        start = kb.let(panel + (step + i) * (vectors * size), "start")
        emitter.step(x, weights, acc, step + i, [start + s * size for s in range(vectors)])
    emitter.products.flush(acc)


def refusal(spec: ConvSpec) -> str:
    """Why the kernel cannot take a layer; "" if it can."""
    if spec.n * spec.oh * spec.ow != 1 or spec.kh * spec.kw != 1 or spec.groups != 1:
        return "it is no product of one row of activations and a matrix"
    if spec.in_dtype != "u8":
        return "the activations are not quantised"
    if spec.c > MOST_COLUMNS:
        return f"sums of {spec.c} products may leave an int32"
    return ""


def _kernel(spec: ConvSpec, isa: Isa, codes: Codes) -> PackedGemv:
    """As many blocks side by side as the registers hold the sums of."""
    unit = code_unit(isa)
    room = isa.registers // 2 // (fields_of(codes) * products_of(unit).vectors)
    vectors = max(1, min(4, room, ceil(spec.oc / unit.lanes)))
    epi = spec.epilogue
    return PackedGemv(spec.oc, spec.c, codes, vectors, unit, epi.out, epi.residual)


def _arm_cycles(kernel: PackedGemv, dots: int) -> float:
    """Cycles of a step of a block on two vector pipes; ``dots``: vectors of codes."""
    codes = kernel.codes
    shared = STEP // (WORD * kernel.unit.lanes) / kernel.vectors  # loads of activations
    if kernel.unit.kind == "umlal":  # two products each; words in every lane; sums to 32 bits
        arithmetic = 3.0 * dots + STEP // WORD / kernel.vectors + 2.0 * fields_of(codes)
    else:
        arithmetic = 2.0 * dots
    return 0.5 * (arithmetic + 1.5 * codes.bits + shared)


def packed_gemv_cost(spec: ConvSpec, isa: Isa, codes: Codes) -> float:
    """Predicted seconds of :func:`packed_gemv` on one thread."""
    kernel = _kernel(spec, isa, codes)
    dots = STEP // WORD * len(codes.planes)
    if is_arm(kernel.unit):
        cycles = _arm_cycles(kernel, dots)
    else:
        each = 1.0 if kernel.unit.kind == "vnni" else MADD_CYCLES[kernel.unit.lanes]
        cycles = dots * each + codes.bits + STEP // WORD / (2 * kernel.vectors)
    cycles = kernel.blocks * steps_of(kernel.k) * cycles + kernel.blocks * 20.0
    return max(cycles / CLOCK, isa.read_seconds(kernel.bytes))


def _one_stream(packed: np.ndarray, vectors: int) -> np.ndarray:
    """Codes [blocks, steps, ...] item by item: [steps, blocks of the item, ...], flat."""
    items = [packed[at : at + vectors] for at in range(0, len(packed), vectors)]
    return np.concatenate([item.swapaxes(0, 1).reshape(-1) for item in items])


def packed_gemv(layer: Layer, isa: Isa, codes: Codes) -> KernelPlan:
    """Plans a linear layer of one row."""
    spec = layer.spec
    kernel = _kernel(spec, isa, codes)
    unit = kernel.unit
    key = name_key(f"packed_gemv_{unit.kind}", kernel)

    def step(args: tuple[KernelArg, ...]) -> KernelStep:
        return KernelStep(key, partial(packed_function, key, kernel), args, kernel.items)

    stage = None if spec.input_slack else rows_stage(1, spec.c, "u8", "u8")
    packed = pack_planes(weight_matrix(layer.weights), codes, unit.lanes)
    constants = {"weight": _one_stream(packed, kernel.vectors) if kernel.one_stream else packed}
    constants |= layer.channels(kernel.vectors * unit.lanes)
    name = f"packed-gemv-{unit.kind} {codes.bits} bits"
    return staged_plan(layer, isa, unit, stage, constants, step, name, ("weight",))
