"""Packing at run time: the second operand of a product of two activations, and its sums.

u8 operands become s8 (``b - 128``; i16 ``b - zero_point`` for pmaddwd). With ``s`` the value taken
off, and ``t`` what the unit takes off the codes of ``a``, ``sum (a - za) (b - zb) = sum (a - t)
(b - s) - (za - t) sum (b - s) - za k (s - zb) + (s - zb) sum a``: a product of the packed operands,
a number per column and a number per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from targets.kernels.skeleton import divide


@dataclass(frozen=True)
class Pack:
    """What determines the code: ``b`` is [batch, k, n], or [batch, n, k] if ``transposed``.

    ``step`` elements of a column are packed side by side; the packed run is filled up with zeros to
    a multiple of ``run_step``. ``dtype``: of the packed elements.
    """

    batch: int
    k: int
    n: int
    transposed: bool
    lanes: int
    step: int
    run_step: int
    dtype: str

    @property
    def blocks(self) -> int:
        """Column blocks of one matrix."""
        return ceil(self.n / self.lanes)

    @property
    def steps(self) -> int:
        """Steps of a packed column."""
        return ceil(self.k / self.run_step) * self.run_step // self.step

    @property
    def elements(self) -> int:
        """Packed elements of one matrix."""
        return self.blocks * self.steps * self.step * self.lanes

    @property
    def items(self) -> int:
        """Work items: column blocks of all matrices."""
        return self.batch * self.blocks


def terms_constant(
    a_zero_point: int, b_zero_point: int, shift: int, k: int, a_shift: int = 0
) -> np.ndarray:
    """``s, za - t, -za k (s - zb), s - zb``: what the packing and row-sum kernels take.

    ``shift`` is s and ``a_shift`` is t; modulo 2**32.
    """
    extra = shift - b_zero_point
    terms = np.array([shift, a_zero_point - a_shift, -a_zero_point * k * extra, extra])
    return terms.astype(np.uint32).view(np.int32)


def _rows(kb: tir.KernelBuilder, pack: Pack, b: Any, y: Any, at: Any, put: Any, first: Any) -> Any:
    """Packs a block of columns of a row-major operand; returns the buffer of column sums."""
    lanes, step = pack.lanes, pack.step
    sums = kb.alloc("int32", lanes)
    kb.store(sums, 0, kb.const(0, "int32", lanes))
    bits = 16 if pack.dtype == "int16" else 8
    each = 32 // bits  # elements of a word

    def word(k: Any, count: int) -> Any:
        """``count`` rows from ``k``, those of a column in one word."""
        made = None
        for i in range(count):
            value = kb.cast(kb.load(b, at + (k + i) * pack.n, lanes), "int32")
            value = kb.let(value - kb.splat(first, lanes), "b")
            kb.store(sums, 0, kb.load(sums, 0, lanes) + value)
            part = (
                value
                if i == each - 1
                else tir.tirx.bitwise_and(value, kb.const((1 << bits) - 1, "int32", lanes))
            )
            part = part if i == 0 else tir.tirx.shift_left(part, kb.const(bits * i, "int32", lanes))
            made = part if made is None else tir.tirx.bitwise_or(made, part)
        return made

    def one(k: Any, count: int) -> None:
        words = [word(k * step + i, min(each, count - i)) for i in range(0, count, each)]
        words += [kb.const(0, "int32", lanes)] * (step // each - len(words))
        whole = words[0]
        if len(words) > 1:  # the words of a column next to each other
            order = [i * lanes + lane for lane in range(lanes) for i in range(len(words))]
            whole = kb.shuffle(words[0], order, *words[1:])
        kb.store(y, put + k * (lanes * step), kb.reinterpret(whole, pack.dtype, lanes * step))

    with kb.loop(0, pack.k // step, "k") as k:
        one(k, step)
    done = pack.k // step
    if pack.k % step:
        one(done, pack.k % step)
        done += 1
    if done < pack.steps:
        with kb.loop(done, pack.steps, "zero") as k:
            kb.store(y, put + k * (lanes * step), kb.const(0, pack.dtype, lanes * step))
    return sums


def _columns(
    kb: tir.KernelBuilder, pack: Pack, b: Any, y: Any, at: Any, put: Any, first: Any, valid: Any
) -> Any:
    """Packs a block of columns that lie contiguous; returns the buffer of column sums."""
    lanes, step = pack.lanes, pack.step
    sums = kb.alloc("int32", lanes)
    kb.store(sums, 0, kb.const(0, "int32", lanes))
    partial = kb.alloc("int32", step)
    with kb.loop(0, valid, "lane") as lane:
        kb.store(partial, 0, kb.const(0, "int32", step))
        with kb.loop(0, pack.k // step, "k") as k:
            value = kb.cast(kb.load(b, at + lane * pack.k + k * step, step), "int32")
            value = kb.let(value - kb.splat(first, step), "b")
            kb.store(partial, 0, kb.load(partial, 0, step) + value)
            kb.store(y, put + (k * lanes + lane) * step, kb.cast(value, pack.dtype))
        for j in range(pack.k - pack.k % step, pack.steps * step):
            place = put + (j // step * lanes + lane) * step + j % step
            value = kb.const(0, "int32")
            if j < pack.k:
                value = kb.let(kb.cast(kb.load(b, at + lane * pack.k + j), "int32") - first, "b")
                kb.store(partial, 0, kb.load(partial, 0) + value)
            kb.store(y, place, kb.cast(value, pack.dtype))
        total = kb.load(partial, 0)
        for j in range(1, step):
            total = total + kb.load(partial, j)
        kb.store(sums, lane, total)
    return sums


def pack_function(name: str, pack: Pack) -> Any:
    """The u8 packing kernel: parameters b, terms, y (packed), bias (int32 per packed column)."""
    kb = tir.KernelBuilder(name)
    b = kb.pointer("b", "uint8", align=1)
    terms = kb.pointer("terms", "int32")
    y = kb.pointer("y", pack.dtype)
    bias = kb.pointer("bias", "int32")
    with kb.loop(kb.begin, kb.end, "item") as item:
        image, block = divide(kb, item, pack.blocks, "block")
        column = kb.let(block * pack.lanes if pack.blocks > 1 else 0, "column")
        image = image * (pack.k * pack.n) if pack.batch > 1 else 0
        put = kb.let(item * (pack.steps * pack.step * pack.lanes), "put")
        first = kb.let(kb.load(terms, 0), "first")
        if pack.transposed:
            valid = kb.let(tir.tirx.min(pack.n - column, _i32(pack.lanes)), "valid")
            at = kb.let(image + column * pack.k, "at")
            sums = _columns(kb, pack, b, y, at, put, first, valid)
        else:
            sums = _rows(kb, pack, b, y, kb.let(image + column, "at"), put, first)
        zero = kb.splat(kb.const(0, "int32") - kb.load(terms, 1), pack.lanes)
        total = kb.load(sums, 0, pack.lanes) * zero
        total = total + kb.splat(kb.load(terms, 2), pack.lanes)
        kb.store(bias, item * pack.lanes, total)
    return kb.build()


def _i32(value: int) -> Any:
    return tir.tirx.IntImm("int32", value)


def transpose_function(name: str, pack: Pack) -> Any:
    """The f32 packing kernel of a transposed operand: parameters b, y."""
    kb = tir.KernelBuilder(name)
    b = kb.pointer("b", "float32", align=1)
    y = kb.pointer("y", "float32")
    with kb.loop(kb.begin, kb.end, "item") as item:
        image, block = divide(kb, item, pack.blocks, "block")
        column = kb.let(block * pack.lanes if pack.blocks > 1 else 0, "column")
        image = image * (pack.k * pack.n) if pack.batch > 1 else 0
        at = kb.let(image + column * pack.k, "at")
        put = kb.let(item * (pack.k * pack.lanes), "put")
        valid = kb.let(tir.tirx.min(pack.n - column, _i32(pack.lanes)), "valid")
        with kb.loop(0, pack.k, "k") as k:
            kb.store(y, put + k * pack.lanes, kb.const(0, "float32", pack.lanes))
        with kb.loop(0, valid, "lane") as lane, kb.loop(0, pack.k, "k") as k:
            kb.store(y, put + k * pack.lanes + lane, kb.load(b, at + lane * pack.k + k))
    return kb.build()


def row_sums_function(name: str, k: int) -> Any:
    """Row terms of a u8 matrix ``[rows, k]``: parameters a, terms, y (int32 per row)."""
    kb = tir.KernelBuilder(name)
    a = kb.pointer("a", "uint8", align=1)
    terms = kb.pointer("terms", "int32")
    y = kb.pointer("y", "int32")
    lanes = 16
    with kb.loop(kb.begin, kb.end, "row") as row:
        at = kb.let(row * k, "at")
        sums = kb.alloc("int32", lanes)
        kb.store(sums, 0, kb.const(0, "int32", lanes))
        if k >= lanes:
            with kb.loop(0, k // lanes, "v") as v:
                value = kb.cast(kb.load(a, at + v * lanes, lanes), "int32")
                kb.store(sums, 0, kb.load(sums, 0, lanes) + value)
        if k % lanes:
            with kb.loop(k - k % lanes, k, "j") as j:
                value = kb.cast(kb.load(a, at + j), "int32")
                kb.store(sums, 0, kb.load(sums, 0) + value)
        total = kb.load(sums, 0)
        for i in range(1, lanes):
            total = total + kb.load(sums, i)
        kb.store(y, row, total * kb.load(terms, 3))
    return kb.build()
