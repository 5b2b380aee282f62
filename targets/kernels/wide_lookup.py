"""Product of one row of float32 activations and codes of up to 8 bits, by tables of 256 numbers.

As in :mod:`lookup_gemv` a code stands for a weight, or for a run of weights, whose products with
every entry of its codebook are a table that a step of its own makes. Codes of several *stages*
stand for parts of a sum (Chen et al. 2010, "Approximate nearest neighbor search by residual vector
quantization"): they are further runs with the same activations.

Lanes are outputs. A 32-bit lane holds as many codes as fit, the first run in the lowest bits.
Tables are permuted, gathered from, or read number by number (:mod:`tables`).
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
from targets.kernels.conv import channel_constants
from targets.kernels.spec import SHORT_FLOATS, ConvSpec, ResidualType
from targets.kernels.tables import load_table, look_up, look_up_lanes

AHEAD = 1024
"""Bytes that codes are fetched ahead of their use."""

MOST_BITS = 8
"""Width of the widest codes."""

READ_CYCLES = 2.0
"""Cycles of a number that is read by itself: its place, the load, the sum."""


@dataclass(frozen=True)
class WideCodes:
    """The weight of a layer.

    Attributes:
        codes: ``[outputs, runs]``, those of each stage side by side.
        book: float32 ``[books, length, entries]``, for each run of columns, for each stage, or one.
        stages: codes that are added up.
    """

    codes: np.ndarray
    book: np.ndarray
    stages: int = 1


def width_of(bits: int) -> int:
    """Bits that a code of ``bits`` bits takes: as many codes fill a word."""
    return next(width for width in (4, 5, 6, 8) if bits <= width)


@dataclass(frozen=True)
class WideLookup:
    """What determines the code.

    Attributes:
        n: outputs.
        k: columns.
        length: columns of a run; 1: a code stands for a weight.
        stages: codes that are added up.
        books: codebooks.
        bits: of a code, at least 4; ``width``: those it takes.
        vectors: vectors of outputs side by side: a work item.
        lanes: of look-ups, 1 where numbers are read one by one; ``simd``: of vectors elsewhere.
    """

    n: int
    k: int
    length: int
    stages: int
    books: int
    bits: int
    vectors: int
    lanes: int
    simd: int
    residual: ResidualType | None

    @property
    def width(self) -> int:
        """Bits that a code takes in a word."""
        return width_of(self.bits)

    @property
    def entries(self) -> int:
        """Numbers of a table."""
        return 1 << self.bits

    @property
    def codes(self) -> int:
        """Codes of a word."""
        return 32 // self.width

    @property
    def base_runs(self) -> int:
        """Runs of columns."""
        return self.k // self.length

    @property
    def runs(self) -> int:
        """Codes of an output."""
        return self.base_runs * self.stages

    @property
    def words(self) -> int:
        """Words of an output."""
        return ceil(self.runs / self.codes)

    @property
    def items(self) -> int:
        """Work items."""
        return ceil(self.n / (self.vectors * self.lanes))

    @property
    def bytes(self) -> int:
        """Bytes of the packed codes."""
        return 4 * self.items * self.vectors * self.lanes * self.words


def pack_words(codes: np.ndarray, kernel: WideLookup) -> np.ndarray:
    """Codes [outputs, runs] as uint32 ``[items, words, outputs of an item]``."""
    group = kernel.vectors * kernel.lanes
    full = np.zeros((kernel.items * group, kernel.words * kernel.codes), np.uint32)
    full[: len(codes), : kernel.runs] = codes
    split = full.reshape(kernel.items, group, kernel.words, kernel.codes)
    packed = np.zeros(split.shape[:-1], np.uint32)
    for i in range(kernel.codes):
        packed |= split[..., i] << np.uint32(kernel.width * i)
    return np.ascontiguousarray(packed.transpose(0, 2, 1))


def tables_function(name: str, kernel: WideLookup) -> Any:
    """The PrimFunc x, book, tables: the products of each run; one work item per run."""
    kb, lanes, length = tir.KernelBuilder(name), kernel.simd, kernel.length
    x, book = kb.pointer("x", "float32", align=4), kb.pointer("book", "float32")
    tables = kb.pointer("tables", "float32")
    with kb.loop(kb.begin, kb.end, "run") as run:
        stage = kb.let(tir.tirx.truncdiv(run, kernel.base_runs), "stage")
        first = kb.let((run - stage * kernel.base_runs) * length, "first")
        which = {1: 0, kernel.stages: stage}.get(kernel.books, run)
        start = kb.let(which * (length * kernel.entries), "start")
        numbers = [kb.let(kb.splat(kb.load(x, first + i), lanes), "x") for i in range(length)]
        with kb.loop(0, kernel.entries // lanes, "part") as part:
            at = kb.let(part * lanes, "at")
            total = kb.const(0.0, "float32", lanes)
            for i, number in enumerate(numbers):
                factor = kb.load(book, start + (at + i * kernel.entries), lanes)
                total = kb.pure("llvm.fma", "float32", lanes, number, factor, total)
            kb.store(tables, run * kernel.entries + at, total)
    return kb.build()


def wide_function(name: str, kernel: WideLookup) -> Any:
    """The PrimFunc: parameters source, x, weight, the epilogue's, residual, y.

    ``source``: tables; where codes stand for weights the codebook, and only then x is there.
    """
    kb, lanes, simd = tir.KernelBuilder(name), kernel.lanes, kernel.simd
    source = kb.pointer("source", "float32")
    x = kb.pointer("x", "float32", align=4) if kernel.length == 1 else None
    weights = kb.pointer("weight", "int32")
    out = epilogue.parameters(kb, False, "f32", kernel.residual)
    whole, rest = divmod(kernel.n, kernel.vectors * lanes)
    with kb.loop(kb.begin, kb.end, "item") as item:
        for inside, outputs in ((item < whole, kernel.vectors * lanes), (item >= whole, rest)):
            if outputs and (whole or outputs == rest):
                with kb.when(inside if whole and rest else True):
                    acc = _sums(kb, kernel, source, x, weights, item, ceil(outputs / lanes))
                    for first in range(0, outputs, simd):
                        at = kb.let(item * (kernel.vectors * lanes) + first, "output")
                        channel = epilogue.load_channels(kb, out, at, simd)
                        value = kb.let(kb.load(acc, first, simd), "value")
                        count = min(simd, outputs - first)
                        epilogue.finish(kb, out, channel, value, at, count, "f32")
    return kb.build()


def _sums(
    kb: tir.KernelBuilder,
    kernel: WideLookup,
    source: Any,
    x: Any,
    weights: Any,
    item: Any,
    vectors: int,
) -> Any:
    """All look-ups of an item."""
    lanes, entries = kernel.lanes, kernel.entries
    simd = kernel.simd
    acc = kb.alloc("float32", ceil(vectors * lanes / simd) * simd)
    for at in range(0, vectors * lanes, simd):
        kb.store(acc, at, kb.const(0.0, "float32", simd))
    book = load_table(kb, source, 0, entries, lanes) if x is not None else []
    step = kernel.vectors * lanes
    start = kb.let(item * (kernel.words * step), "start")

    def word(number: Any, count: int) -> None:
        at = kb.let(start + number * step, "at")
        for line in range(0, step if lanes > 1 else 0, 16):
            kb.prefetch(weights, at + (AHEAD // 4 + line), level=1)
        codes = [kb.let(kb.load(weights, at + v * lanes, lanes), "codes") for v in range(vectors)]
        for place in range(count):
            run = kb.let(number * kernel.codes + place, "run")
            where = 0 if x is not None else kb.let(run * entries, "where")
            table = book or load_table(kb, source, where, entries, lanes)
            number_x = None if x is None else kb.let(kb.splat(kb.load(x, run), lanes), "x")
            for v, value in enumerate(codes):
                shift = kb.const(kernel.width * place, "int32", lanes)
                index = tir.tirx.shift_right(value, shift) if place else value
                found = look_up(kb, source, where, table, index, entries)
                total = kb.load(acc, v * lanes, lanes)
                if number_x is None:
                    total = total + found
                else:
                    total = kb.pure("llvm.fma", "float32", lanes, found, number_x, total)
                kb.store(acc, v * lanes, total)

    whole, rest = divmod(kernel.runs, kernel.codes)
    if whole:
        with kb.loop(0, whole, "word") as number:
            word(number, kernel.codes)
    if rest:
        word(kb.const(whole, "int32"), rest)
    return acc


def refusal(spec: ConvSpec, isa: Isa) -> str:
    """Why the kernel cannot take a layer; "" if it can."""
    if spec.n * spec.oh * spec.ow != 1 or spec.kh * spec.kw != 1 or spec.groups != 1:
        return "it is no product of one row of activations and a matrix"
    if (
        spec.in_dtype != "f32"
        or spec.epilogue.out != "f32"
        or spec.epilogue.residual in SHORT_FLOATS
    ):
        return "the activations are not float32"
    return "" if look_up_lanes(isa) else "the instruction set neither permutes nor gathers numbers"


def _kernel(
    spec: ConvSpec, isa: Isa, length: int, stages: int, books: int, bits: int
) -> WideLookup:
    """Tables of runs are read again for each item: many outputs share them."""
    lanes = look_up_lanes(isa)
    vectors = 4 if length == 1 and lanes > 1 else 8
    if lanes > 1:
        vectors = max(1, min(vectors, ceil(spec.oc / lanes)))
    return WideLookup(
        spec.oc, spec.c, length, stages, books, max(4, bits), vectors, lanes, isa.lanes,
        spec.epilogue.residual,
    )  # fmt: skip


def wide_lookup_cost(
    spec: ConvSpec, isa: Isa, length: int, stages: int, books: int, bits: int
) -> float:
    """Predicted seconds of :func:`wide_lookup` on one thread."""
    kernel = _kernel(spec, isa, length, stages, books, bits)
    # large tables of runs come from the second-level cache
    largest = 11.0 if length == 1 else 15.0
    each = 7.0 if isa.lanes < 16 else {4: 1.5, 5: 1.6, 6: 3.2, 7: 6.0, 8: largest}[kernel.bits]
    if kernel.lanes == 1:
        each = READ_CYCLES
    lookups = ceil(spec.oc / kernel.lanes) * kernel.runs
    cycles = lookups * each + kernel.items * 40.0
    made = 0.0
    if length > 1:
        made = kernel.runs * kernel.entries / isa.lanes * (length + 1.0) / CLOCK
        made += isa.read_seconds(4 * kernel.books * length * kernel.entries)
    return max(cycles / CLOCK, isa.read_seconds(kernel.bytes)) + made


def wide_lookup(
    spec: ConvSpec, isa: Isa, weight: WideCodes, bits: int, bias: np.ndarray
) -> KernelPlan:
    """Plans a linear layer of one row of float32 activations.

    Args:
        spec: the layer.
        isa: the instruction set.
        weight: its codes and codebooks.
        bits: width of the codes.
        bias: float32 [outputs].
    """
    books, length, entries = weight.book.shape
    kernel = _kernel(spec, isa, length, weight.stages, books, bits)
    book = np.zeros((books, length, kernel.entries), np.float32)
    book[:, :, :entries] = weight.book
    constants = {"weight": pack_words(weight.codes, kernel), "book": book}
    pad = kernel.vectors * kernel.lanes
    constants |= channel_constants(spec.epilogue, 1, pad, bias.astype(np.float32), None, None)
    steps: list[KernelStep] = []
    args: list[KernelArg] = [("const", "book"), ("in", 0)]
    if length > 1:
        key = name_key("wide_tables", kernel)
        made: tuple[KernelArg, ...] = (("in", 0), ("const", "book"), ("scratch", 0))
        seconds = kernel.runs * length * kernel.entries / isa.lanes / CLOCK
        build = partial(tables_function, key, kernel)
        steps.append(KernelStep(key, build, made, kernel.runs, seconds))
        args = [("scratch", 0)]
    args.append(("const", "weight"))
    args += [("const", name) for name in epilogue.argument_names(False, spec.epilogue.residual)]
    args += [("in", 1)] if spec.epilogue.residual is not None else []
    key = name_key("wide_lookup", kernel)
    build = partial(wide_function, key, kernel)
    steps.append(KernelStep(key, build, (*args, ("out", 0)), kernel.items))
    return KernelPlan(
        tuple(steps),
        constants,
        scratch=(kernel.runs * kernel.entries * 4,) if length > 1 else (),
        features=isa.vector_flags(),
        kernel=f"wide-lookup {kernel.width} bits, {length} x {weight.stages}",
        compressed=True,
    )
