"""Layer and RMS normalisation on a GPU: the threads of a block share a row.

Of codes the numbers are those of :class:`dlcc.ops.norm.LayerNorm`, whose sums are exact; of real
numbers up to the order in which a sum is made, which is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from targets.kernels.grid_rows import BlockRow, View
from targets.kernels.spec import FLOATS, NUMPY, InType, OutType


@dataclass(frozen=True)
class NormSpec:
    """Normalisation of rows of ``length`` neighbouring elements.

    Attributes:
        kind: "layer": (x - mean) / sqrt(variance + epsilon); "rms": x / sqrt(mean(x^2) + epsilon).
        length: elements of a row.
        in_dtype: u8 for layers only.
        out: dtype of the result; codes only where the input has codes.
        scale: whether there is one; ``bias``: too.
    """

    kind: Literal["layer", "rms"]
    length: int
    in_dtype: InType = "f32"
    out: OutType = "f32"
    scale: bool = True
    bias: bool = True


def grid_norm(
    spec: NormSpec,
    rows: int,
    epsilon: float,
    scale: np.ndarray | None,
    bias: np.ndarray | None,
    in_zero_point: int = 0,
    codes: tuple[int, int, int] = (0, 0, 0),
) -> KernelPlan:
    """Plans the layer; its input 0 is ``x``.

    Args:
        spec: the layer.
        rows: of the input.
        epsilon: for u8 codes in their units (:meth:`dlcc.ops.norm.LayerNorm.epsilon_term`).
        scale: f32 ``[length]``, over the output's scale where that has codes; ``bias``: too.
        bias: what is added.
        in_zero_point: of codes.
        codes: zero point, lowest and highest code of the output.
    """
    zero, low, high = codes
    scalars = np.array([epsilon, zero, low - zero, high - zero, in_zero_point], np.float32)
    constants = {"scalars": scalars}
    if scale is not None:
        constants["scale"] = scale.astype(np.float32)
    if bias is not None:
        constants["bias"] = bias.astype(np.float32)
    key, view = name_key("grid_norm", spec), View.rows(rows, spec.length)
    names: tuple[KernelArg, ...] = tuple(("const", name) for name in constants)
    step = KernelStep(
        key,
        lambda: _Norm(key, spec, view).build(),
        (("in", 0), *names, ("out", 0)),
        rows,
        launch=view.launch(4 * view.threads),
    )
    return KernelPlan((step,), constants, kernel=f"{spec.kind} norm, {view.threads} threads a row")


class _Norm(BlockRow):
    """Parameters x, scalars, (scale), (bias), y."""

    def __init__(self, key: str, spec: NormSpec, view: View) -> None:
        super().__init__(key, view)
        kb, self.spec, self.codes = self.kb, spec, spec.in_dtype == "u8"
        self.x = kb.pointer("x", NUMPY[spec.in_dtype])
        self.scalars = kb.pointer("scalars", "float32")
        self.scale = kb.pointer("scale", "float32") if spec.scale else None
        self.bias = kb.pointer("bias", "float32") if spec.bias else None
        self.y = kb.pointer("y", NUMPY[spec.out])

    def build(self) -> Any:
        """The finished PrimFunc."""
        kb = self.kb
        self.begin()
        normalised = self._of_codes() if self.codes else self._of_reals()
        with self.results() as place:
            real = kb.let(normalised(place), "normalised")
            if self.scale is not None:
                real = kb.let(real * kb.load(self.scale, place), "scaled")
            if self.bias is not None:
                real = kb.let(real + kb.load(self.bias, place), "shifted")
            kb.store(self.y, self.index(place), self._stored(real))
        return kb.build()

    def _stored(self, real: Any) -> Any:
        kb, out = self.kb, self.spec.out
        if out in FLOATS:
            return real if out == "f32" else kb.rounded(real, out)
        zero, low, high = (kb.load(self.scalars, i) for i in (1, 2, 3))
        code = kb.lrint(kb.clamp(real, low, high)) + kb.cast(zero, "int32")
        return kb.cast(code, NUMPY[out])

    def _of_codes(self) -> Any:
        """(D q - s1) / sqrt(D s2 - s1^2 + epsilon), the sums in int32, v exact in int64."""
        kb, depth = self.kb, self.length
        zero = kb.let(kb.cast(kb.load(self.scalars, 4), "int32"), "zero")

        def q(place: Any) -> Any:
            return kb.let(kb.cast(kb.load(self.x, self.index(place)), "int32") - zero, "q")

        def square(place: Any) -> Any:
            value = q(place)
            return value * value

        s1, s2 = self.summed("int32", q), self.summed("int32", square)
        first = kb.let(kb.cast(s1, "int64"), "first")
        v = kb.cast(s2, "int64") * kb.const(depth, "int64") - first * first
        root = tir.tirx.sqrt(kb.cast(v, "float32") + kb.load(self.scalars, 0))
        r = kb.let(kb.const(1.0, "float32") / root, "r")
        return lambda place: kb.cast(q(place) * depth - s1, "float32") * r

    def _of_reals(self) -> Any:
        kb, count = self.kb, self.kb.const(self.length, "float32")

        def value(place: Any) -> Any:
            return kb.widened(kb.load(self.x, self.index(place)))

        mean = None
        if self.spec.kind == "layer":
            mean = kb.let(self.summed("float32", value) / count, "mean")

        def centred(place: Any) -> Any:
            real = value(place)
            return kb.let(real if mean is None else real - mean, "centred")

        def square(place: Any) -> Any:
            real = centred(place)
            return real * real

        squares = self.summed("float32", square)
        root = kb.let(tir.tirx.sqrt(squares / count + kb.load(self.scalars, 0)), "root")
        return lambda place: centred(place) / root
