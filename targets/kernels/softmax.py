"""Softmax along contiguous rows: of codes by two short tables, of floats by a polynomial.

A work item is a row: its maximum, the exponentials and their sum, the quotients. Rows of up to
``UNROLLED`` vectors keep the exponentials in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CLOCK, Isa
from targets.kernels.spec import FLOATS, NUMPY, SHORT_FLOATS, InType, OutType

UNROLLED = 16
"""Vectors of a row up to which the code has no loops inside a row."""

TABLE = 16
"""Entries of each of the two tables, whose product is an exponential."""

CYCLES = 8.0
"""Predicted cycles for one vector of a row."""


@dataclass(frozen=True)
class SoftmaxSpec:
    """Softmax of ``rows`` rows of ``length`` contiguous elements.

    u8 codes: ``e = rint(coarse[d >> 4] * fine[d & 15])`` of ``d = max - x``, and ``y =
    min(rint(f32(e) * (unit / f32(sum e))), high - zero) + zero`` (:class:`dlcc.ops.softmax.Softmax`
    defines the constants). f32 and bf16 are computed in f32 and give f32 or bf16.
    """

    rows: int
    length: int
    in_dtype: InType = "f32"
    out: OutType = "f32"

    def __post_init__(self) -> None:
        if self.in_dtype in FLOATS and self.out not in FLOATS:
            raise ValueError("a softmax of f32 gives f32")


@dataclass
class _Row:
    """The row being emitted: parameters, and the index of its first element."""

    kb: tir.KernelBuilder
    spec: SoftmaxSpec
    isa: Isa
    x: Any
    y: Any
    coarse: Any
    fine: Any
    scalars: Any
    start: Any = 0

    @property
    def lanes(self) -> int:
        """Lanes of a vector."""
        return self.isa.lanes

    def vectors(self) -> Iterator[tuple[Any, int]]:
        """Runs what follows for each vector of the row: its index, and how many lanes count."""
        kb, lanes, length = self.kb, self.lanes, self.spec.length
        whole = length // lanes
        if ceil(length / lanes) <= UNROLLED:
            yield from ((self.start + i * lanes, lanes) for i in range(whole))
        elif whole:
            with kb.loop(0, whole, "v") as v:
                yield kb.let(self.start + v * lanes, "at"), lanes
        if length % lanes:
            yield self.start + whole * lanes, length % lanes

    def real(self, at: Any, count: int) -> Any:
        """The numbers at ``at`` as float32; the first ``count`` lanes are loaded."""
        value = self.kb.load_first(self.x, at, self.lanes, count)
        return self.kb.widened(value)

    def put(self, at: Any, value: Any, count: int) -> None:
        """Stores the first ``count`` lanes of float32 numbers."""
        if self.spec.out in SHORT_FLOATS:
            value = self.kb.rounded(self.kb.let(value, "share"), self.spec.out)
        self.kb.store_first(self.y, at, value, count)

    def kept(self, value: Any, other: Any, count: int) -> Any:
        """``value`` in the first ``count`` lanes, the constant ``other`` behind them."""
        if count >= self.lanes:
            return value
        number = tir.tirx.Ramp(tir.tirx.IntImm("int32", 0), 1, self.lanes)
        inside = number < self.kb.const(count, "int32", self.lanes)
        return tir.tirx.Select(inside, value, self.kb.splat(other, self.lanes))


def _folded(kb: tir.KernelBuilder, value: Any, join: Callable[[Any, Any], Any]) -> Any:
    """All lanes of ``value`` joined into one number."""
    lanes = tir.lanes_of(value)
    while lanes > 1:
        dtype = str(value.ty.dtype).partition("x")[0]
        spare = kb.alloc(dtype, lanes)
        kb.store(spare, 0, value)
        lanes //= 2
        value = kb.let(join(kb.load(spare, 0, lanes), kb.load(spare, lanes, lanes)), "half")
    return value


def _largest_code(row: _Row) -> Any:
    """The row's maximum as int32, over byte vectors four times as long as the others."""
    kb, length = row.kb, row.spec.length
    lanes = min(4 * row.lanes, 1 << (length - 1).bit_length())
    best = kb.alloc("uint8", lanes)
    kb.store(best, 0, kb.const(0, "uint8", lanes))

    def add(value: Any) -> None:
        kb.store(best, 0, tir.tirx.max(kb.load(best, 0, lanes), value))

    with kb.loop(0, length // lanes, "m") as m:
        add(kb.load(row.x, row.start + m * lanes, lanes))
    if length % lanes:
        at = row.start + length // lanes * lanes
        add(kb.load_first(row.x, at, lanes, length % lanes))
    return kb.cast(_folded(kb, kb.load(best, 0, lanes), tir.tirx.max), "int32")


def _largest_real(row: _Row) -> Any:
    """The row's maximum; NaN where there is one."""
    kb, lanes = row.kb, row.lanes
    lowest = kb.const(float("-inf"), "float32")
    best = kb.alloc("float32", lanes)
    kb.store(best, 0, kb.splat(lowest, lanes))
    for at, count in row.vectors():
        value = row.kept(row.real(at, count), lowest, count)
        kb.store(best, 0, tir.tirx.max(kb.load(best, 0, lanes), value))
    return _folded(kb, kb.load(best, 0, lanes), tir.tirx.max)


def _lookup(row: _Row, table: Any, index: Any) -> Any:
    """``table[index]`` in every lane, ``index`` int32 in 0..15 (only its low bits count)."""
    kb, lanes = row.kb, row.lanes
    if row.isa.arch != "x86":
        entries = [
            kb.let(kb.reinterpret(kb.load(table, at, lanes), "uint8", 4 * lanes), "entries")
            for at in range(0, TABLE, lanes)
        ]
        # the places of each entry's four bytes
        places = kb.cast(index, "uint32") * kb.const(0x04040404, "uint32", lanes)
        places = kb.reinterpret(places + kb.const(0x03020100, "uint32", lanes), "uint8", 4 * lanes)
        found = tir.neon.look_up(entries, kb.let(places, "places"))
        return kb.reinterpret(found, "float32", lanes)
    if lanes == 16:
        entries = kb.load(table, 0, lanes)
        return kb.pure("llvm.x86.avx512.permvar.sf.512", "float32", lanes, entries, index)
    if lanes == 8:
        halves = [
            kb.pure("llvm.x86.avx2.permps", "float32", lanes, kb.load(table, at, lanes), index)
            for at in (0, lanes)
        ]
        upper = tir.tirx.bitwise_and(index, kb.const(8, "int32", lanes))
        return tir.tirx.Select(upper.equal(kb.const(0, "int32", lanes)), *halves)
    return tir.tirx.BufferLoad(table, [index])


def _code_power(row: _Row, best: Any, at: Any, count: int) -> Any:
    """The int32 exponentials of a vector of codes; 0 past the row's end."""
    kb, lanes = row.kb, row.lanes
    codes = kb.cast(kb.load_first(row.x, at, lanes, count), "int32")
    below = kb.let(kb.splat(best, lanes) - codes, "d")
    high = kb.let(tir.tirx.shift_right(below, kb.const(4, "int32", lanes)), "high")
    low = kb.let(tir.tirx.bitwise_and(below, kb.const(TABLE - 1, "int32", lanes)), "low")
    real = _lookup(row, row.coarse, high) * _lookup(row, row.fine, low)
    power = kb.lrint(real)
    return kb.let(row.kept(power, kb.const(0, "int32"), count), "e")


def _code_row(row: _Row) -> None:
    kb, lanes = row.kb, row.lanes
    best = kb.let(_largest_code(row), "best")
    total = kb.alloc("int32", lanes)
    kb.store(total, 0, kb.const(0, "int32", lanes))
    powers = []
    for at, count in row.vectors():
        powers.append(_code_power(row, best, at, count))
        kb.store(total, 0, kb.load(total, 0, lanes) + powers[-1])
    whole = _folded(kb, kb.load(total, 0, lanes), lambda a, b: a + b)
    unit, room, zero = (kb.load(row.scalars, i) for i in range(3))
    factor = kb.let(unit / kb.cast(whole, "float32"), "factor")
    unrolled = ceil(row.spec.length / lanes) <= UNROLLED
    for i, (at, count) in enumerate(row.vectors()):
        power = powers[i] if unrolled else _code_power(row, best, at, count)
        real = kb.cast(power, "float32") * kb.splat(factor, lanes)
        if row.spec.out == "f32":
            kb.store_first(row.y, at, real, count)
            continue
        real = tir.tirx.min(real, kb.splat(room, lanes))
        code = kb.lrint(real)
        code = code + kb.splat(kb.cast(zero, "int32"), lanes)
        kb.store_first(row.y, at, kb.cast(code, NUMPY[row.spec.out]), count)


def _real_row(row: _Row) -> None:
    kb, lanes = row.kb, row.lanes
    best = kb.let(_largest_real(row), "best")
    total = kb.alloc("float32", lanes)
    kb.store(total, 0, kb.const(0.0, "float32", lanes))
    powers = []
    unrolled = ceil(row.spec.length / lanes) <= UNROLLED
    held = not unrolled and row.spec.out == "f32"  # by the output, until the sum is known

    def power_at(at: Any, count: int) -> Any:
        shifted = row.real(at, count) - kb.splat(best, lanes)
        power = tir.exp(shifted, tir.Statements(kb))
        return kb.let(row.kept(power, kb.const(0.0, "float32"), count), "e")

    for at, count in row.vectors():
        power = power_at(at, count)
        kb.store(total, 0, kb.load(total, 0, lanes) + power)
        powers.append(power)
        if held:
            kb.store_first(row.y, at, power, count)
    whole = _folded(kb, kb.load(total, 0, lanes), lambda a, b: a + b)
    factor = kb.let(kb.const(1.0, "float32") / whole, "factor")
    for i, (at, count) in enumerate(row.vectors()):
        if held:
            power = kb.load_first(row.y, at, lanes, count)
        else:
            power = powers[i] if unrolled else power_at(at, count)
        row.put(at, power * kb.splat(factor, lanes), count)


def softmax_function(name: str, spec: SoftmaxSpec, isa: Isa, *, native: bool = False) -> Any:
    """The kernel: parameters x, (u8: coarse, fine, scalars), y; one work item per row.

    ``native``: the CPU has the instructions of AVX512-BF16.
    """
    kb = tir.KernelBuilder(name, bfloat16=native)
    x = kb.pointer("x", NUMPY[spec.in_dtype], align=1)
    codes = spec.in_dtype == "u8"
    tables = [kb.pointer(n, "float32") for n in ("coarse", "fine", "scalars") if codes]
    y = kb.pointer("y", NUMPY[spec.out], align=1)
    row = _Row(kb, spec, isa, x, y, *(tables or (None, None, None)))
    with kb.loop(kb.begin, kb.end, "row") as item:
        row.start = kb.let(item * spec.length, "start")
        (_code_row if codes else _real_row)(row)
    return kb.build()


def softmax(
    spec: SoftmaxSpec,
    isa: Isa,
    tables: tuple[np.ndarray, np.ndarray] | None = None,
    unit: float = 1.0,
    zero_point: int = 0,
    high: int = 0,
) -> KernelPlan:
    """Plans the layer; the plan's input 0 is ``x``.

    Args:
        spec: the layer.
        isa: the instruction set.
        tables: f32 ``coarse`` and ``fine`` of up to 16 entries, for u8 codes.
        unit: f32(1 / output scale), for u8 codes.
        zero_point: the output's.
        high: the output's largest code.
    """
    shape = SoftmaxSpec(1, spec.length, spec.in_dtype, spec.out)
    native = spec.out == "bf16" and isa.bfloat16 != "widen"
    key = name_key("softmax", shape, isa.arch, isa.lanes, isa.fma, native)
    constants: dict[str, np.ndarray] = {}
    if spec.in_dtype == "u8":
        if tables is None:
            raise ValueError("a softmax of codes needs its tables")
        padded = [np.zeros(TABLE, np.float32) for _ in tables]
        for full, table in zip(padded, tables, strict=True):
            full[: table.size] = table
        scalars = np.array([unit, high - zero_point, zero_point], np.float32)
        constants = {"coarse": padded[0], "fine": padded[1], "scalars": scalars}
    names: tuple[KernelArg, ...] = tuple(("const", name) for name in constants)
    step = KernelStep(
        key,
        lambda: softmax_function(key, shape, isa, native=native),
        (("in", 0), *names, ("out", 0)),
        spec.rows,
    )
    return KernelPlan(
        (step,), constants, features=isa.vector_flags(bfloat16=native), kernel="softmax rows"
    )


def softmax_cost(spec: SoftmaxSpec, isa: Isa) -> float:
    """Predicted seconds on one thread (only good for comparison)."""
    return spec.rows * (ceil(spec.length / isa.lanes) * CYCLES + 40.0) / CLOCK
