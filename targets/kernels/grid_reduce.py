"""Reductions and group normalisation on a GPU: the threads of a block share rows.

Sums of integers are exact; of real numbers they are made in an order that is always the same:
every thread adds its elements from the first to the last, and halves of the threads are added to
each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.kernels.grid_rows import BlockRow, View
from targets.kernels.spec import FLOATS, NUMPY, InType, OutType

Kind = Literal[
    "mean", "sum", "max", "min", "prod", "l1", "l2", "sum_square", "argmax", "argmin", "lp_norm"
]


@dataclass(frozen=True)
class ReduceSpec:
    """A number for each row, or (``lp_norm``) each row over its length.

    Attributes:
        kind: what is made of a row; ``mean``, ``max``, ``min`` and places also of u8 codes.
        in_dtype: of elements; ``out``: of results (int64 for places).
        power: of an ``lp_norm``, 1 or 2.
        last: of equal elements the last one's place.
    """

    kind: Kind
    in_dtype: InType = "f32"
    out: OutType = "f32"
    power: int = 2
    last: bool = False


def grid_reduce(
    spec: ReduceSpec,
    view: View,
    factor: float = 1.0,
    in_zero_point: int = 0,
    codes: tuple[int, int, int] = (0, 0, 0),
) -> KernelPlan:
    """Plans a reduction; its input 0 is ``x``.

    Args:
        spec: the reduction.
        view: its rows.
        factor: of a mean of codes, what sums are multiplied by.
        in_zero_point: of codes whose mean is made.
        codes: zero point, lowest and highest code of the mean.
    """
    zero, low, high = codes
    scalars = np.array([factor, zero, low - zero, high - zero, in_zero_point], np.float32)
    coded = spec.kind == "mean" and spec.in_dtype == "u8"
    constants = {"scalars": scalars} if coded else {}
    key = name_key("grid_reduce", spec, view.code)
    names: tuple[KernelArg, ...] = tuple(("const", name) for name in constants)
    step = KernelStep(
        key,
        lambda: _Reduce(key, spec, view).build(),
        (("in", 0), *names, ("out", 0)),
        view.count,
        launch=view.launch((8 if spec.kind.startswith("arg") else 4) * view.threads),
    )
    return KernelPlan((step,), constants, kernel=f"{spec.kind}, {view.depth} threads a row")


class _Reduce(BlockRow):
    """Parameters x, (mean of codes: scalars), y."""

    def __init__(self, key: str, spec: ReduceSpec, view: View) -> None:
        super().__init__(key, view)
        kb, self.spec = self.kb, spec
        self.x = kb.pointer("x", NUMPY[spec.in_dtype])
        self.coded = spec.in_dtype == "u8"
        self.scalars = None
        if spec.kind == "mean" and self.coded:
            self.scalars = kb.pointer("scalars", "float32")
        places = spec.kind.startswith("arg")
        self.y = kb.pointer("y", "int64" if places else NUMPY[spec.out])

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb = self.kb
        self.begin()
        if self.spec.kind == "lp_norm":
            self._over_length()
            return kb.build()
        if self.spec.kind.startswith("arg"):
            made = kb.cast(self._place(), "int64")
        else:
            made = self._number()
        with self.once():
            kb.store(self.y, self.outer * self.view.inner + self.inner, made)
        return kb.build()

    def _value(self, place: Any) -> Any:
        value = self.kb.load(self.x, self.index(place))
        return self.kb.cast(value, "int32") if self.coded else self.kb.widened(value)

    def _extreme(self, largest: bool) -> Any:
        kind = "int32" if self.coded else "float32"
        bounds: tuple[float, float] = (0, 255)
        if not self.coded:
            bounds = float("-inf"), float("inf")
        first, pick = (bounds[0], tir.expr.maximum) if largest else (bounds[1], tir.expr.minimum)

        def join(a: Any, b: Any) -> Any:
            return pick(self.kb.let(a, "a"), self.kb.let(b, "b"))

        return self.folded(kind, self._value, first, join)

    def _place(self) -> Any:
        """Of the extreme element; of a row where nothing equals it, what lies before or behind."""
        kb, last = self.kb, self.spec.last
        best = self._extreme(self.spec.kind == "argmax")
        absent = kb.const(-1 if last else self.length, "int32")

        def place_of(place: Any) -> Any:
            value = kb.let(self._value(place), "value")
            return tir.tirx.Select(tir.expr.same(value, best), place, absent)

        join = tir.tirx.max if last else tir.tirx.min
        return self.folded("int32", place_of, -1 if last else self.length, join)

    def _term(self, kind: str) -> Callable[[Any], Any]:
        """What is added, or multiplied, of an element."""
        kb = self.kb

        def term(place: Any) -> Any:
            value = kb.let(self._value(place), "value")
            if kind == "l1":
                return tir.tirx.abs(value)
            return value * value if kind in ("l2", "sum_square") else value

        return term

    def _number(self) -> Any:
        kb, spec = self.kb, self.spec
        if spec.kind in ("max", "min"):
            best = self._extreme(spec.kind == "max")
            return kb.cast(best, NUMPY[spec.out]) if self.coded else self._rounded(best)
        if self.scalars is not None:
            return self._mean_of_codes()
        if spec.kind == "prod":
            total = self.folded("float32", self._term("prod"), 1, lambda a, b: a * b)
            return self._rounded(total)
        total = self.summed("float32", self._term(spec.kind))
        if spec.kind == "mean":
            total = total / kb.const(self.length, "float32")
        return self._rounded(tir.tirx.sqrt(total) if spec.kind == "l2" else total)

    def _mean_of_codes(self) -> Any:
        """As :class:`dlcc.ops.reduce.ReduceMean` defines it."""
        kb, out = self.kb, self.spec.out
        factor, zero, low, high, given = (kb.load(self.scalars, i) for i in range(5))
        given = kb.let(kb.cast(given, "int32"), "given_zero")
        total = self.summed("int32", lambda place: self._value(place) - given)
        real = kb.let(kb.cast(total, "float32") * factor, "real")
        if out in FLOATS:
            return self._rounded(real)
        return kb.cast(kb.lrint(kb.clamp(real, low, high)) + kb.cast(zero, "int32"), NUMPY[out])

    def _rounded(self, real: Any) -> Any:
        out = self.spec.out
        return real if out == "f32" else self.kb.rounded(self.kb.let(real, "real"), out)

    def _over_length(self) -> None:
        """Each element over the row's length; rows of zeros stay."""
        kb = self.kb
        total = self.summed("float32", self._term("l1" if self.spec.power == 1 else "l2"))
        length = total if self.spec.power == 1 else kb.let(tir.tirx.sqrt(total), "length")
        length = tir.tirx.Select(
            length == kb.const(0.0, "float32"), kb.const(1.0, "float32"), length
        )
        length = kb.let(length, "length")
        with self.results() as place:
            kb.store(self.y, self.index(place), self._rounded(self._value(place) / length))


@dataclass(frozen=True)
class GroupNormSpec:
    """Normalisation of groups of ``channels`` channels of ``pixels`` pixels.

    ``last``: channels lie innermost. Scale and bias are by channel.
    """

    channels: int
    pixels: int
    last: bool
    in_dtype: InType = "f32"
    out: OutType = "f32"
    scale: bool = True
    bias: bool = True

    def view(self, images: int, groups: int) -> View:
        """The rows: groups of all images."""
        length, each = self.channels * self.pixels, self.channels * groups
        if not self.last:
            return View(length, images, length * groups, groups, length, length)
        if self.channels == 1:
            return View.of(images, length, groups)
        return View(length, images, each * self.pixels, groups, self.channels, self.channels, each)


def grid_group_norm(
    spec: GroupNormSpec,
    images: int,
    groups: int,
    epsilon: float,
    scale: np.ndarray | None,
    bias: np.ndarray | None,
) -> KernelPlan:
    """Plans the layer; its input 0 is ``x``.

    Args:
        spec: the layer.
        images: of the input.
        groups: of an image.
        epsilon: added to variances.
        scale: f32 ``[groups * channels]``; ``bias``: too.
        bias: what is added.
    """
    constants = {"scalars": np.array([epsilon], np.float32)}
    for name, array in (("scale", scale), ("bias", bias)):
        if array is not None:
            constants[name] = array.astype(np.float32)
    view = spec.view(images, groups)
    key = name_key("grid_group_norm", spec, view.code)
    names: tuple[KernelArg, ...] = tuple(("const", name) for name in constants)
    step = KernelStep(
        key,
        lambda: _GroupNorm(key, spec, view).build(),
        (("in", 0), *names, ("out", 0)),
        view.count,
        launch=view.launch(4 * view.threads),
    )
    return KernelPlan((step,), constants, kernel=f"group norm, {view.depth} threads a row")


class _GroupNorm(BlockRow):
    """Parameters x, scalars, (scale), (bias), y."""

    def __init__(self, key: str, spec: GroupNormSpec, view: View) -> None:
        super().__init__(key, view)
        kb, self.spec = self.kb, spec
        self.x = kb.pointer("x", NUMPY[spec.in_dtype])
        self.scalars = kb.pointer("scalars", "float32")
        self.scale = kb.pointer("scale", "float32") if spec.scale else None
        self.bias = kb.pointer("bias", "float32") if spec.bias else None
        self.y = kb.pointer("y", NUMPY[spec.out])

    def build(self) -> Any:
        """Two passes for the statistics, mean and then variance, as the reference makes them."""
        kb, count = self.kb, self.kb.const(self.length, "float32")
        self.begin()

        def value(place: Any) -> Any:
            return kb.widened(kb.load(self.x, self.index(place)))

        mean = kb.let(self.summed("float32", value) / count, "mean")

        def square(place: Any) -> Any:
            centred = kb.let(value(place) - mean, "centred")
            return centred * centred

        variance = self.summed("float32", square) / count
        root = kb.let(tir.tirx.sqrt(variance + kb.load(self.scalars, 0)), "root")
        with self.results() as place:
            channel = kb.let(self._channel(place), "channel")
            real = kb.let((value(place) - mean) / root, "normalised")
            if self.scale is not None:
                real = kb.let(real * kb.load(self.scale, channel), "scaled")
            if self.bias is not None:
                real = kb.let(real + kb.load(self.bias, channel), "shifted")
            real = real if self.spec.out == "f32" else kb.rounded(real, self.spec.out)
            kb.store(self.y, self.index(place), real)
        return kb.build()

    def _channel(self, place: Any) -> Any:
        channels = self.spec.channels
        if channels == 1:
            return self.inner + 0
        each = place % channels if self.spec.last else place // self.spec.pixels
        return self.inner * channels + each
