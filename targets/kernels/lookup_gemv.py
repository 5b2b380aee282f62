"""Product of one row of float32 activations and four-bit codes, by tables of 16 numbers.

A vector permutation looks 16 numbers up at once, so that a code may stand for

* a weight: the table is the codebook, and what is found is multiplied by the activation; or
* a run of weights: the table holds the run's products with every entry of its codebook, made from
  the activations in a step of their own (product quantisation: Jegou et al. 2011, section III; bits
  of four neighbouring weights, whose runs are all the signs: Wei et al. 2024, "T-MAC").

Weights of several bits are several such matrices of signs, *planes*, each with a factor per output.
Lanes are outputs; a 32-bit lane holds the codes of eight runs, the first in the lowest bits.
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
from targets.kernels.gemm import pad_channels
from targets.kernels.spec import SHORT_FLOATS, ConvSpec, ResidualType

ENTRIES = 16
"""Numbers of a table: one for each four-bit code."""

CODES = 8
"""Codes of a 32-bit word."""

AHEAD = 1024
"""Bytes that codes are fetched ahead of their use."""

ARM_LANES = 4
"""Lanes of AArch64, which looks bytes up in four registers (tbl)."""

_PERMUTE = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}


@dataclass(frozen=True)
class Coded:
    """The weight of a layer in four-bit codes.

    Attributes:
        planes: uint8 ``[planes, outputs, runs]``, codes below 16.
        book: float32 ``[runs or 1, length, 16]``: number i of the run that each code stands for,
            for each run of columns or for all of them. The last run may stick out.
        factors: float32 ``[planes + 1, outputs]``: weight = sum of factor times plane, plus the
            last factor. None: there is one plane, and it holds the weights themselves.
    """

    planes: np.ndarray
    book: np.ndarray
    factors: np.ndarray | None = None


@dataclass(frozen=True)
class LookupGemv:
    """What determines the code.

    Attributes:
        n: outputs.
        k: columns.
        length: columns of a run; 1: a code stands for one weight.
        planes: matrices of codes.
        scaled: planes have factors.
        offset: a multiple of the sum of all activations is added.
        vectors: vectors of outputs side by side: a work item.
    """

    n: int
    k: int
    length: int
    planes: int
    scaled: bool
    offset: bool
    vectors: int
    lanes: int
    residual: ResidualType | None

    @property
    def runs(self) -> int:
        """Runs of columns."""
        return ceil(self.k / self.length)

    @property
    def blocks(self) -> int:
        """Vectors of outputs of the layer."""
        return ceil(self.n / self.lanes)

    @property
    def items(self) -> int:
        """Work items."""
        return ceil(self.blocks / self.vectors)

    @property
    def block_words(self) -> int:
        """32-bit words of a vector of outputs."""
        return ceil(self.runs / CODES) * self.planes * self.lanes


def pack_codes(planes: np.ndarray, lanes: int) -> np.ndarray:
    """Codes [planes, outputs, runs] below 16 as uint32 ``[blocks, words, planes, lanes]``."""
    count, n, runs = planes.shape
    blocks, words = ceil(n / lanes), ceil(runs / CODES)
    full = np.zeros((count, blocks * lanes, words * CODES), np.uint32)
    full[:, :n, :runs] = planes
    split = full.reshape(count, blocks, lanes, words, CODES)
    packed = np.zeros(split.shape[:-1], np.uint32)
    for i in range(CODES):
        packed |= split[..., i] << np.uint32(4 * i)
    return np.ascontiguousarray(packed.transpose(1, 3, 0, 2))


def sign_book() -> np.ndarray:
    """The book of signs, [1, 4, 16]: bit i of a code says whether weight i of the run is +1."""
    bits = np.arange(16)[None, :] >> np.arange(4)[:, None] & 1
    return (2 * bits - 1).astype(np.float32)[None]


def sign_codes(planes: np.ndarray) -> np.ndarray:
    """Bits [planes, outputs, columns] as codes of four columns each."""
    padded = np.pad(planes.astype(np.uint8), ((0, 0), (0, 0), (0, -planes.shape[-1] % 4)))
    fours = padded.reshape(*planes.shape[:2], -1, 4)
    return np.asarray((fours << np.arange(4, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8))


def tables_function(name: str, kernel: LookupGemv, shared: bool) -> Any:
    """The PrimFunc x, book, tables: 16 products of each run; one work item per run."""
    kb, lanes, length = tir.KernelBuilder(name), kernel.lanes, kernel.length
    x, book = kb.pointer("x", "float32", align=1), kb.pointer("book", "float32")
    tables = kb.pointer("tables", "float32")
    left = kernel.k % length
    with kb.loop(kb.begin, kb.end, "run") as run:
        for inside, count in ((run < kernel.runs - 1, length), (run == kernel.runs - 1, left)):
            with kb.when(inside if left else True):
                start = 0 if shared else kb.let(run * (length * ENTRIES), "entry")
                for half in range(0, ENTRIES, lanes):
                    total = kb.const(0.0, "float32", lanes)
                    for i in range(count):
                        number = kb.splat(kb.load(x, run * length + i), lanes)
                        factor = kb.load(book, start + (i * ENTRIES + half), lanes)
                        total = kb.pure("llvm.fma", "float32", lanes, number, factor, total)
                    kb.store(tables, run * ENTRIES + half, total)
            if not left:
                break
    return kb.build()


class Emitter:
    """Emits the look-ups of one function."""

    def __init__(self, kb: tir.KernelBuilder, kernel: LookupGemv) -> None:
        self.kb, self.kernel, self.lanes = kb, kernel, kernel.lanes

    def table(self, source: Any, at: Any) -> list[Any]:
        """The vectors of a table."""
        kb, lanes = self.kb, self.lanes
        return [kb.let(kb.load(source, at + h, lanes), "table") for h in range(0, ENTRIES, lanes)]

    def found(self, table: list[Any], codes: Any) -> Any:
        """What the table holds for the lowest four bits of each lane."""
        kb, lanes = self.kb, self.lanes
        if lanes == ARM_LANES:
            return self._found_by_bytes(table, codes)
        if lanes == ENTRIES:
            return kb.pure(_PERMUTE[lanes], "float32", lanes, table[0], codes)
        low, high = (kb.pure(_PERMUTE[lanes], "float32", lanes, half, codes) for half in table)
        top = tir.tirx.shift_left(codes, kb.const(28, "int32", lanes))
        sign = kb.reinterpret(top, "float32", lanes)
        return kb.pure("llvm.x86.avx.blendv.ps.256", "float32", lanes, low, high, sign)

    def _found_by_bytes(self, table: list[Any], codes: Any) -> Any:
        """A code below 16 becomes the places of its number's four bytes in 64."""
        kb, lanes = self.kb, self.lanes
        code = tir.tirx.bitwise_and(codes, kb.const(ENTRIES - 1, "int32", lanes))
        places = code * kb.const(0x04040404, "int32", lanes)
        places = places + kb.const(0x03020100, "int32", lanes)
        index = kb.let(kb.reinterpret(places, "uint8", 4 * lanes), "places")
        rows = [kb.let(kb.reinterpret(row, "uint8", 4 * lanes), "row") for row in table]
        return kb.reinterpret(tir.neon.look_up(rows, index), "float32", lanes)

    def total(self, x: Any) -> Any:
        """The sum of all activations."""
        kb, lanes, k = self.kb, self.lanes, self.kernel.k
        acc = kb.alloc("float32", lanes)
        kb.store(acc, 0, kb.const(0.0, "float32", lanes))
        with kb.loop(0, k // lanes, "piece") as piece:
            kb.store(acc, 0, kb.load(acc, 0, lanes) + kb.load(x, piece * lanes, lanes))
        if k % lanes:
            last = kb.load_first(x, k // lanes * lanes, lanes, k % lanes)
            kb.store(acc, 0, kb.load(acc, 0, lanes) + last)
        total = kb.load(acc, 0)
        for lane in range(1, lanes):
            total = total + kb.load(acc, lane)
        return kb.let(total, "total")

    def word(
        self, source: Any, book: list[Any], weights: Any, acc: Any, word: Any, starts: list[Any]
    ) -> None:
        """The runs of one word of some blocks; ``word`` counts them from 0, or is the last."""
        kb, kernel, lanes = self.kb, self.kernel, self.lanes
        step = kernel.planes * lanes
        codes = []
        for start in starts:
            for plane in range(kernel.planes):
                at = start + (word * step + plane * lanes)
                codes.append(kb.let(kb.load(weights, at, lanes), "codes"))
        whole = kernel.runs // CODES
        count = kernel.runs % CODES if isinstance(word, int) and word == whole else CODES
        for i in range(count):
            table = book or self.table(source, (word * CODES + i) * ENTRIES)
            x = kb.let(kb.splat(kb.load(source, word * CODES + i), lanes), "x") if book else None
            for at, value in enumerate(codes):
                shift = kb.const(4 * i, "int32", lanes)
                index = kb.let(tir.tirx.shift_right(value, shift), "index") if i else value
                found, total = self.found(table, index), kb.load(acc, at * lanes, lanes)
                if x is not None:
                    total = kb.pure("llvm.fma", "float32", lanes, found, x, total)
                else:
                    total = total + found
                kb.store(acc, at * lanes, total)


def lookup_function(name: str, kernel: LookupGemv) -> Any:
    """The PrimFunc: parameters source, x, weight, factors, book, the epilogue's, residual, y.

    ``source``: tables, or x where codes stand for single weights. Of the next, x is there for an
    offset, factors where planes are scaled, the book where ``source`` is x.
    """
    kb, lanes = tir.KernelBuilder(name), kernel.lanes
    source = kb.pointer("source", "float32", align=1 if kernel.length == 1 else 64)
    x = kb.pointer("x", "float32", align=1) if kernel.offset else None
    weights = kb.pointer("weight", "int32")
    factors = kb.pointer("factors", "float32") if kernel.scaled else None
    entries = kb.pointer("book", "float32") if kernel.length == 1 else None
    out = epilogue.parameters(kb, False, "f32", kernel.residual)
    emitter = Emitter(kb, kernel)
    book = emitter.table(entries, 0) if entries is not None else []
    total = emitter.total(x) if kernel.offset else None
    whole, rest = divmod(kernel.n, kernel.vectors * lanes)
    with kb.loop(kb.begin, kb.end, "item") as item:
        for inside, outputs in ((item < whole, kernel.vectors * lanes), (item >= whole, rest)):
            if outputs and (whole or outputs == rest):
                with kb.when(inside if whole and rest else True):
                    acc, first = _sums(emitter, source, book, weights, item, outputs)
                    _finish(emitter, acc, factors, total, out, first, outputs)
    return kb.build()


def _sums(
    emitter: Emitter, source: Any, book: list[Any], weights: Any, item: Any, outputs: int
) -> tuple[Any, Any]:
    """All look-ups of an item: the sums of its planes, and its first block."""
    kb, kernel, lanes = emitter.kb, emitter.kernel, emitter.lanes
    vectors = ceil(outputs / lanes)
    acc = kb.alloc("float32", vectors * kernel.planes * lanes)
    for i in range(vectors * kernel.planes):
        kb.store(acc, i * lanes, kb.const(0.0, "float32", lanes))
    first = kb.let(item * kernel.vectors, "first")
    starts = [kb.let((first + s) * kernel.block_words, "start") for s in range(vectors)]
    step, whole = kernel.planes * lanes, kernel.runs // CODES
    if whole:
        with kb.loop(0, whole, "word") as word:
            for start in starts:
                for line in range(0, step, 16):
                    ahead = word * step + AHEAD // 4 + line
                    kb.prefetch(weights, start + ahead, level=1)
            emitter.word(source, book, weights, acc, word, starts)
    if kernel.runs % CODES:
        emitter.word(source, book, weights, acc, whole, starts)
    return acc, first


def _finish(
    emitter: Emitter, acc: Any, factors: Any, total: Any, out: Any, first: Any, outputs: int
) -> None:
    """Factors and epilogue of an item."""
    kb, kernel, lanes = emitter.kb, emitter.kernel, emitter.lanes
    row = kernel.items * kernel.vectors * lanes
    for s in range(ceil(outputs / lanes)):
        at = kb.let((first + s) * lanes, "output")
        planes = [
            kb.load(acc, (s * kernel.planes + p) * lanes, lanes) for p in range(kernel.planes)
        ]
        value = planes[0]
        if kernel.scaled:
            value = kb.const(0.0, "float32", lanes)
            if total is not None:
                planes.append(kb.splat(total, lanes))
            for p, plane in enumerate(planes):
                factor = kb.load(factors, at + p * row, lanes)
                value = kb.pure("llvm.fma", "float32", lanes, factor, plane, value)
        channel = epilogue.load_channels(kb, out, at, lanes)
        count = min(lanes, outputs - s * lanes)
        epilogue.finish(kb, out, channel, kb.let(value, "value"), at, count, "f32")


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
    if isa.lanes not in _PERMUTE and isa.arch != "aarch64":
        return "the instruction set does not permute 32-bit lanes"
    return ""


def make_kernel(
    spec: ConvSpec, isa: Isa, length: int, planes: int, scaled: bool, offset: bool
) -> LookupGemv:
    """The kernel of a layer: the more planes, the fewer outputs in an item."""
    # ARM: more sums than four leave no registers for the four of a table; LLVM 22 then spills them,
    # and at -O3 has made code with wrong sums of some
    room = isa.registers // 2 // (2 * planes) if isa.lanes == ENTRIES else 4 // planes
    vectors = max(1, min(4, room, ceil(spec.oc / isa.lanes)))
    residual = spec.epilogue.residual
    return LookupGemv(spec.oc, spec.c, length, planes, scaled, offset, vectors, isa.lanes, residual)


def lookup_gemv_cost(spec: ConvSpec, isa: Isa, length: int, planes: int) -> float:
    """Predicted seconds of :func:`lookup_gemv` on one thread."""
    kernel = make_kernel(spec, isa, length, planes, False, False)
    each = 1.6 if isa.lanes == ENTRIES else 2.2
    if isa.arch == "aarch64":  # tbl of four registers takes several cycles, most on old cores
        each = 8.2 if isa.dot == "mlal" else 5.0
    cycles = kernel.blocks * (kernel.runs * planes * each + 20.0)
    made = kernel.runs * (length + 2.0) if length > 1 else 0.0
    read = isa.read_seconds(kernel.blocks * kernel.block_words * 4)
    return max(cycles / CLOCK, read) + made / CLOCK


def lookup_gemv(spec: ConvSpec, isa: Isa, coded: Coded, bias: np.ndarray) -> KernelPlan:
    """Plans a linear layer of one row of float32 activations.

    Args:
        spec: the layer.
        isa: the instruction set.
        coded: the weight.
        bias: float32 [outputs].
    """
    length, factors = coded.book.shape[1], coded.factors
    offset = factors is not None and bool(factors[-1].any())
    kernel = make_kernel(spec, isa, length, len(coded.planes), factors is not None, offset)
    pad = kernel.vectors * isa.lanes
    constants = {"weight": pack_codes(coded.planes, isa.lanes)}
    constants["book"] = np.ascontiguousarray(coded.book, np.float32)
    constants |= channel_constants(spec.epilogue, 1, pad, bias.astype(np.float32), None, None)
    steps, shared = [], len(coded.book) == 1
    args: list[KernelArg] = [("in", 0)]
    if length > 1:
        args, key = [("scratch", 0)], name_key("lookup_tables", kernel, shared)
        made: tuple[KernelArg, ...] = (("in", 0), ("const", "book"), ("scratch", 0))
        build = partial(tables_function, key, kernel, shared)
        steps.append(KernelStep(key, build, made, kernel.runs, kernel.runs * length / CLOCK))
    args += [("in", 0)] if offset else []
    args.append(("const", "weight"))
    if factors is not None:
        padded = [pad_channels(row.astype(np.float32), 1, pad) for row in factors]
        constants["factors"] = np.stack(padded)
        args.append(("const", "factors"))
    args += [("const", "book")] if length == 1 else []
    args += [("const", name) for name in epilogue.argument_names(False, spec.epilogue.residual)]
    args += [("in", 1)] if spec.epilogue.residual is not None else []
    key = name_key("lookup_gemv", kernel)
    build = partial(lookup_function, key, kernel)
    steps.append(KernelStep(key, build, (*args, ("out", 0)), kernel.items))
    return KernelPlan(
        tuple(steps),
        constants,
        scratch=(kernel.runs * ENTRIES * 4,) if length > 1 else (),
        features=isa.vector_flags(),
        kernel=f"lookup-gemv {length} x {kernel.planes}",
        compressed=True,
    )
