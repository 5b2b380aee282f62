"""Product of one row of float32 activations and weights with a scale per group of columns.

The look-ups are those of :mod:`targets.kernels.lookup_gemv`: of four-bit codes in the table of
their numbers, of two and three bits as planes of signs. Behind each group the sums of its look-ups
are scaled and added to the output's; the activations of a group are added up beforehand where codes
are signs, whose zero lies half a step off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from targets.kernels.lookup_gemv import (
    AHEAD,
    CODES,
    ENTRIES,
    Emitter,
    LookupGemv,
    lookup_gemv_cost,
    make_kernel,
    pack_codes,
    tables_function,
)
from targets.kernels.spec import ConvSpec


@dataclass(frozen=True)
class GroupedCodes:
    """The weight of a layer.

    Attributes:
        planes: uint8 ``[planes, outputs, runs]``, codes below 16.
        book: float32 ``[1, length, 16]``: number i of the run that each code stands for.
        scales: float32 ``[outputs, groups]``.
        group: columns of a group.
    """

    planes: np.ndarray
    book: np.ndarray
    scales: np.ndarray
    group: int


@dataclass(frozen=True)
class GroupedGemv:
    """What determines the code.

    Attributes:
        gemv: the look-ups; ``offset`` where codes are signs.
        group: columns of a group.
    """

    gemv: LookupGemv
    group: int

    @property
    def words(self) -> int:
        """32-bit words of the codes of a group."""
        return self.group // (self.gemv.length * CODES)

    @property
    def whole(self) -> int:
        """Groups of full length."""
        return self.gemv.k // self.group

    @property
    def groups(self) -> int:
        """All groups of a row."""
        return ceil(self.gemv.k / self.group)


def refusal(group: int, length: int) -> str:
    """Why groups cannot be computed one after the other; "" if they can."""
    if group % (length * CODES):
        return f"groups of {group} columns are no multiple of {length * CODES}"
    return ""


class _Groups:
    """Emits one function."""

    def __init__(self, kb: tir.KernelBuilder, kernel: GroupedGemv) -> None:
        self.kb, self.kernel, self.gemv = kb, kernel, kernel.gemv
        self.lanes = kernel.gemv.lanes
        self.emitter = Emitter(kb, kernel.gemv)

    def totals(self, x: Any) -> Any:
        """The sums of the activations of every group."""
        kb, kernel = self.kb, self.kernel
        made = kb.alloc("float32", kernel.groups)
        acc = kb.alloc("float32", self.lanes)
        if kernel.whole:
            with kb.loop(0, kernel.whole, "group") as group:
                self._total(x, made, acc, group, kernel.group)
        if kernel.whole != kernel.groups:
            self._total(x, made, acc, kernel.whole, self.gemv.k % kernel.group)
        return made

    def _total(self, x: Any, made: Any, acc: Any, group: Any, count: int) -> None:
        kb, lanes = self.kb, self.lanes
        kb.store(acc, 0, kb.const(0.0, "float32", lanes))
        start = group * self.kernel.group
        for piece in range(0, count - count % lanes, lanes):
            kb.store(acc, 0, kb.load(acc, 0, lanes) + kb.load(x, start + piece, lanes))
        if count % lanes:
            last = kb.load_first(x, start + (count - count % lanes), lanes, count % lanes)
            kb.store(acc, 0, kb.load(acc, 0, lanes) + last)
        total = kb.load(acc, 0)
        for lane in range(1, lanes):
            total = total + kb.load(acc, lane)
        kb.store(made, group, total)

    def item(
        self, source: Any, book: list[Any], arrays: tuple[Any, Any, Any], item: Any, outputs: int
    ) -> tuple[Any, Any]:
        """The sums of an item's outputs, and its first block."""
        kb, kernel, gemv, lanes = self.kb, self.kernel, self.gemv, self.lanes
        weights, scales, totals = arrays
        vectors = ceil(outputs / lanes)
        sums = kb.alloc("float32", vectors * lanes)
        acc = kb.alloc("float32", vectors * gemv.planes * lanes)
        for s in range(vectors):
            kb.store(sums, s * lanes, kb.const(0.0, "float32", lanes))
        first = kb.let(item * gemv.vectors, "first")
        starts = [kb.let((first + s) * gemv.block_words, "start") for s in range(vectors)]

        def group(number: Any, words: int, left: bool) -> None:
            for i in range(vectors * gemv.planes):
                kb.store(acc, i * lanes, kb.const(0.0, "float32", lanes))
            with kb.loop(0, words, "word") as word:
                at = kb.let(number * kernel.words + word, "at")
                step = gemv.planes * lanes
                for start in starts:
                    for line in range(0, step, 16):
                        kb.prefetch(weights, start + (at * step + AHEAD // 4 + line), level=1)
                self.emitter.word(source, book, weights, acc, at, starts)
            if left:
                self.emitter.word(source, book, weights, acc, gemv.runs // CODES, starts)
            place = (item * kernel.groups + number) * (gemv.vectors * lanes)
            self._scale(acc, sums, scales, totals, (number, place), vectors)

        if kernel.whole:
            with kb.loop(0, kernel.whole, "group") as number:
                group(number, kernel.words, False)
        if kernel.whole != kernel.groups:
            rest = gemv.runs - kernel.whole * kernel.words * CODES
            group(kernel.whole, rest // CODES, bool(rest % CODES))
        return sums, first

    def _scale(
        self, acc: Any, sums: Any, scales: Any, totals: Any, at: tuple[Any, Any], vectors: int
    ) -> None:
        """Add the scaled sums of a group; ``at``: its number, and where its scales lie."""
        kb, gemv, lanes = self.kb, self.gemv, self.lanes
        number, place = at
        for s in range(vectors):
            value = kb.load(acc, s * gemv.planes * lanes, lanes)
            if totals is not None:
                half = kb.const(-0.5, "float32", lanes)
                value = kb.splat(kb.load(totals, number), lanes) * half
                for p in range(gemv.planes):
                    plane = kb.load(acc, (s * gemv.planes + p) * lanes, lanes)
                    weight = kb.const(2.0 ** (p - 1), "float32", lanes)
                    value = kb.pure("llvm.fma", "float32", lanes, plane, weight, value)
            scale = kb.load(scales, place + s * lanes, lanes)
            total = kb.load(sums, s * lanes, lanes)
            kb.store(sums, s * lanes, kb.pure("llvm.fma", "float32", lanes, scale, value, total))


def groups_function(name: str, kernel: GroupedGemv) -> Any:
    """The PrimFunc: parameters source, x, weight, scales, book, the epilogue's, residual, y.

    ``source``: tables, or x where codes stand for single weights; else x comes next, and there is
    no book.
    """
    kb, gemv = tir.KernelBuilder(name), kernel.gemv
    lanes = gemv.lanes
    source = kb.pointer("source", "float32", align=1 if gemv.length == 1 else 64)
    x = kb.pointer("x", "float32", align=1) if gemv.offset else None
    weights = kb.pointer("weight", "int32")
    scales = kb.pointer("scales", "float32")
    entries = kb.pointer("book", "float32") if gemv.length == 1 else None
    out = epilogue.parameters(kb, False, "f32", gemv.residual)
    made = _Groups(kb, kernel)
    book = made.emitter.table(entries, 0) if entries is not None else []
    totals = made.totals(x) if gemv.offset else None
    whole, rest = divmod(gemv.n, gemv.vectors * lanes)
    with kb.loop(kb.begin, kb.end, "item") as item:
        for inside, outputs in ((item < whole, gemv.vectors * lanes), (item >= whole, rest)):
            if outputs and (whole or outputs == rest):
                with kb.when(inside if whole and rest else True):
                    arrays = (weights, scales, totals)
                    sums, first = made.item(source, book, arrays, item, outputs)
                    for s in range(ceil(outputs / lanes)):
                        at = kb.let((first + s) * lanes, "output")
                        channel = epilogue.load_channels(kb, out, at, lanes)
                        value = kb.let(kb.load(sums, s * lanes, lanes), "value")
                        count = min(lanes, outputs - s * lanes)
                        epilogue.finish(kb, out, channel, value, at, count, "f32")
    return kb.build()


def _kernel(spec: ConvSpec, isa: Isa, length: int, planes: int, group: int) -> GroupedGemv:
    made = make_kernel(spec, isa, length, planes, True, length > 1)
    return GroupedGemv(replace(made, scaled=False), group)


def grouped_gemv_cost(spec: ConvSpec, isa: Isa, length: int, planes: int, group: int) -> float:
    """Predicted seconds of :func:`grouped_gemv` on one thread."""
    kernel = _kernel(spec, isa, length, planes, group)
    scaling = kernel.gemv.blocks * kernel.groups * (planes + 2.0)
    return lookup_gemv_cost(spec, isa, length, planes) + scaling / CLOCK


def grouped_gemv(spec: ConvSpec, isa: Isa, coded: GroupedCodes, bias: np.ndarray) -> KernelPlan:
    """Plans a linear layer of one row of float32 activations.

    Args:
        spec: the layer.
        isa: the instruction set.
        coded: the weight.
        bias: float32 [outputs].
    """
    length = coded.book.shape[1]
    kernel = _kernel(spec, isa, length, len(coded.planes), coded.group)
    gemv, pad = kernel.gemv, kernel.gemv.vectors * isa.lanes
    scales = np.stack([pad_channels(row.astype(np.float32), 1, pad) for row in coded.scales.T])
    items = scales.reshape(kernel.groups, gemv.items, pad).transpose(1, 0, 2)
    constants = {
        "weight": pack_codes(coded.planes, isa.lanes),
        "scales": np.ascontiguousarray(items),  # in the order in which they are read
        "book": np.ascontiguousarray(coded.book, np.float32),
    }
    constants |= channel_constants(spec.epilogue, 1, pad, bias.astype(np.float32), None, None)
    steps = []
    args: list[KernelArg] = [("in", 0)]
    if length > 1:
        args, key = [("scratch", 0), ("in", 0)], name_key("lookup_tables", gemv, True)
        inputs: tuple[KernelArg, ...] = (("in", 0), ("const", "book"), ("scratch", 0))
        build = partial(tables_function, key, gemv, True)
        steps.append(KernelStep(key, build, inputs, gemv.runs, gemv.runs * length / CLOCK))
    args += [("const", "weight"), ("const", "scales")]
    args += [("const", "book")] if length == 1 else []
    args += [("const", name) for name in epilogue.argument_names(False, gemv.residual)]
    args += [("in", 1)] if gemv.residual is not None else []
    key = name_key("grouped_gemv", kernel)
    build = partial(groups_function, key, kernel)
    steps.append(KernelStep(key, build, (*args, ("out", 0)), gemv.items))
    return KernelPlan(
        tuple(steps),
        constants,
        scratch=(gemv.runs * ENTRIES * 4,) if length > 1 else (),
        features=isa.vector_flags(),
        kernel=f"grouped-gemv {coded.group}: {length} x {gemv.planes}",
        compressed=True,
    )
