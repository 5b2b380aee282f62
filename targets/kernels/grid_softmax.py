"""Softmax on a GPU: the threads of a block share a row.

The numbers are those of :mod:`targets.kernels.softmax`: of codes exactly, since their exponentials
are integers; of real numbers up to the order in which a sum is made, which is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.kernels.softmax import SoftmaxSpec
from targets.kernels.spec import FLOATS, NUMPY

_MOST_THREADS = 256
_ROW_SECONDS = 1.5e-6
_BYTES_PER_SECOND = 5e11


def grid_softmax(
    spec: SoftmaxSpec,
    tables: tuple[np.ndarray, np.ndarray] | None = None,
    unit: float = 1.0,
    zero_point: int = 0,
    high: int = 0,
) -> KernelPlan:
    """Plans the layer; its input 0 is ``x``.

    Args:
        spec: the layer.
        tables: f32 ``coarse`` and ``fine``, for u8 codes.
        unit: f32(1 / output scale), for u8 codes.
        zero_point: the output's.
        high: the output's largest code.
    """
    shape = SoftmaxSpec(1, spec.length, spec.in_dtype, spec.out)
    threads = 32
    while threads < min(spec.length // 2, _MOST_THREADS):
        threads *= 2
    constants: dict[str, np.ndarray] = {}
    if tables is not None:
        scalars = np.array([unit, high - zero_point, zero_point], np.float32)
        constants = {"coarse": tables[0], "fine": tables[1], "scalars": scalars}
    key = name_key("grid_softmax", shape, threads)
    names: tuple[KernelArg, ...] = tuple(("const", name) for name in constants)
    step = KernelStep(
        key,
        lambda: _Row(key, shape, threads).build(),
        (("in", 0), *names, ("out", 0)),
        spec.rows,
        launch=Launch((spec.rows, 1, 1), (threads, 1, 1), 4 * threads),
    )
    return KernelPlan((step,), constants, kernel=f"softmax, {threads} threads a row")


def grid_softmax_cost(spec: SoftmaxSpec, machine: Machine) -> float:
    """Predicted seconds."""
    waves = -(-spec.rows // (8 * machine.multiprocessors))
    return LAUNCH_SECONDS + waves * _ROW_SECONDS + 12 * spec.rows * spec.length / _BYTES_PER_SECOND


class _Row:
    """Emits the kernel: parameters x, (u8: coarse, fine, scalars), y; a block for each row."""

    def __init__(self, key: str, spec: SoftmaxSpec, threads: int) -> None:
        from dlcc.tir.cuda import GridBuilder

        self.spec, self.threads = spec, threads
        self.kb = kb = GridBuilder(key, threads)
        self.codes = spec.in_dtype == "u8"
        self.x = kb.pointer("x", NUMPY[spec.in_dtype])
        names = ("coarse", "fine", "scalars") if self.codes else ()
        self.tables = [kb.pointer(name, "float32") for name in names]
        self.y = kb.pointer("y", NUMPY[spec.out])
        self.start: Any = None

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb = self.kb
        self.start = kb.let(kb.block * self.spec.length, "start")
        kind = "int32" if self.codes else "float32"
        self.shared = kb.shared(kind, self.threads, "shared")
        lowest = kb.const(0, kind) if self.codes else kb.const(float("-inf"), kind)
        best = self._folded(self._value, lowest, tir.tirx.max)
        total = self._folded(
            lambda at: self._power(self._value(at), best), kb.const(0, kind), lambda a, b: a + b
        )
        if self.codes:
            unit, room, zero = (kb.load(self.tables[2], i) for i in range(3))
            factor = kb.let(unit / kb.cast(total, "float32"), "factor")
        else:
            factor, room, zero = kb.let(kb.const(1.0, "float32") / total, "factor"), None, None
        with self._elements() as at:
            real = self._power(self._value(at), best)
            real = (kb.cast(real, "float32") if self.codes else real) * factor
            if self.spec.out in FLOATS:
                self._store_real(at, real)
            else:
                code = kb.lrint(tir.tirx.min(real, room)) + kb.cast(zero, "int32")
                kb.store(self.y, at, kb.cast(code, NUMPY[self.spec.out]))
        return kb.build()

    @contextmanager
    def _elements(self) -> Iterator[Any]:
        """Runs what follows for each element of the thread's: every ``threads``-th."""
        kb, length = self.kb, self.spec.length
        with kb.loop(0, -(-length // self.threads), "turn") as turn:
            place = kb.let(turn * self.threads + kb.thread, "place")
            with kb.when(True if length % self.threads == 0 else place < length):
                yield kb.let(self.start + place, "at")

    def _value(self, at: Any) -> Any:
        value = self.kb.load(self.x, at)
        return self.kb.cast(value, "int32") if self.codes else self.kb.widened(value)

    def _power(self, value: Any, best: Any) -> Any:
        kb = self.kb
        if not self.codes:
            return kb.let(tir.exp(kb.let(value - best, "below"), tir.Statements(kb)), "e")
        below = kb.let(best - value, "below")
        coarse = kb.load(self.tables[0], tir.tirx.shift_right(below, kb.const(4, "int32")))
        fine = kb.load(self.tables[1], tir.tirx.bitwise_and(below, kb.const(15, "int32")))
        return kb.let(kb.lrint(coarse * fine), "e")

    def _folded(
        self, term: Callable[[Any], Any], first: Any, join: Callable[[Any, Any], Any]
    ) -> Any:
        """All terms of the row joined, the same in every thread."""
        kb = self.kb
        own = kb.alloc("int32" if self.codes else "float32", 1, "own")
        kb.store(own, 0, first)
        with self._elements() as at:
            value = term(at)
            kb.store(own, 0, join(kb.load(own, 0), value))
        kb.store(self.shared, kb.thread, kb.load(own, 0))
        half = self.threads // 2
        while half:
            kb.sync()
            with kb.when(kb.thread < half):
                pair = kb.load(self.shared, kb.thread), kb.load(self.shared, kb.thread + half)
                kb.store(self.shared, kb.thread, join(*pair))
            half //= 2
        kb.sync()
        result = kb.let(kb.load(self.shared, 0), "result")
        kb.sync()
        return result

    def _store_real(self, at: Any, real: Any) -> None:
        kb, out = self.kb, self.spec.out
        kb.store(self.y, at, real if out == "f32" else kb.rounded(kb.let(real, "real"), out))
