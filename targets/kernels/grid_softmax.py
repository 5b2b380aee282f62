"""Softmax on a GPU: the threads of a block share a row.

The numbers are those of :mod:`targets.kernels.softmax`: of codes exactly, since their exponentials
are integers; of real numbers up to the order in which a sum is made, which is fixed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.kernels.grid_rows import BlockRow, View
from targets.kernels.softmax import SoftmaxSpec
from targets.kernels.spec import FLOATS, NUMPY


def grid_softmax(
    spec: SoftmaxSpec,
    tables: tuple[np.ndarray, np.ndarray] | None = None,
    unit: float = 1.0,
    zero_point: int = 0,
    high: int = 0,
    view: View | None = None,
) -> KernelPlan:
    """Plans the layer; its input 0 is ``x``.

    Args:
        spec: the layer.
        tables: f32 ``coarse`` and ``fine``, for u8 codes.
        unit: f32(1 / output scale), for u8 codes.
        zero_point: the output's.
        high: the output's largest code.
        view: where rows lie; None: one behind the other.
    """
    shape = SoftmaxSpec(1, spec.length, spec.in_dtype, spec.out)
    constants: dict[str, np.ndarray] = {}
    if tables is not None:
        scalars = np.array([unit, high - zero_point, zero_point], np.float32)
        constants = {"coarse": tables[0], "fine": tables[1], "scalars": scalars}
    view = view or View.rows(spec.rows, spec.length)
    key = name_key("grid_softmax", shape, view.code)
    names: tuple[KernelArg, ...] = tuple(("const", name) for name in constants)
    step = KernelStep(
        key,
        lambda: _Softmax(key, shape, view).build(),
        (("in", 0), *names, ("out", 0)),
        spec.rows,
        launch=view.launch(4 * view.threads),
    )
    return KernelPlan((step,), constants, kernel=f"softmax, {view.depth} threads a row")


class _Softmax(BlockRow):
    """Parameters x, (u8: coarse, fine, scalars), y."""

    def __init__(self, key: str, spec: SoftmaxSpec, view: View) -> None:
        super().__init__(key, view)
        kb, self.spec, self.codes = self.kb, spec, spec.in_dtype == "u8"
        self.x = kb.pointer("x", NUMPY[spec.in_dtype])
        names = ("coarse", "fine", "scalars") if self.codes else ()
        self.tables = [kb.pointer(name, "float32") for name in names]
        self.y = kb.pointer("y", NUMPY[spec.out])
        self.kind = "int32" if self.codes else "float32"

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb = self.kb
        self.begin()
        lowest = 0 if self.codes else float("-inf")
        best = self.folded(self.kind, self._value, lowest, tir.tirx.max)
        total = self.summed(self.kind, lambda place: self._power(place, best))
        if self.codes:
            unit, room, zero = (kb.load(self.tables[2], i) for i in range(3))
            factor = kb.let(unit / kb.cast(total, "float32"), "factor")
        else:
            factor, room, zero = kb.let(kb.const(1.0, "float32") / total, "factor"), None, None
        with self.results() as place:
            real = kb.let(kb.cast(self._power(place, best), "float32") * factor, "real")
            if self.spec.out not in FLOATS:
                code = kb.lrint(tir.tirx.min(real, room)) + kb.cast(zero, "int32")
                real = kb.cast(code, NUMPY[self.spec.out])
            elif self.spec.out != "f32":
                real = kb.rounded(real, self.spec.out)
            kb.store(self.y, self.index(place), real)
        return kb.build()

    def _value(self, place: Any) -> Any:
        value = self.kb.load(self.x, self.index(place))
        return self.kb.cast(value, "int32") if self.codes else self.kb.widened(value)

    def _power(self, place: Any, best: Any) -> Any:
        kb, value = self.kb, self._value(place)
        if not self.codes:
            return kb.let(tir.exp(kb.let(value - best, "below"), tir.Statements(kb)), "e")
        below = kb.let(best - value, "below")
        coarse = kb.load(self.tables[0], tir.tirx.shift_right(below, kb.const(4, "int32")))
        fine = kb.load(self.tables[1], tir.tirx.bitwise_and(below, kb.const(15, "int32")))
        return kb.let(kb.lrint(coarse * fine), "e")
