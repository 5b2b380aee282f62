"""What the kernels of sparse layers share: from entries and constants to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep
from targets.isa import Isa
from targets.kernels import epilogue
from targets.kernels.conv import (
    Geometry,
    channel_constants,
    features_of,
    fold_zero_point,
    geometry,
)
from targets.kernels.gemm import Unit, word_unit
from targets.kernels.planes import Planes, planes_step
from targets.kernels.spec import ConvSpec
from targets.kernels.stage import Stage, fill_constant, stage_step


@dataclass(frozen=True)
class Layer:
    """A layer's dense constants, as :func:`targets.kernels.conv.conv2d` takes them."""

    spec: ConvSpec
    weights: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray | None = None
    ratio: np.ndarray | None = None

    def folded_bias(self, code_offset: int = 0) -> np.ndarray:
        """The bias with the input's zero point in it; ``code_offset`` is off the codes already."""
        if self.spec.in_dtype != "u8":
            return self.bias.astype(np.float32)
        return fold_zero_point(self.bias, self.weights, self.spec.in_zero_point - code_offset)

    @property
    def products_fit(self) -> bool:
        """Whether channel blocks may be requantised in bundles."""
        return self.multiplier is not None and epilogue.products_fit(
            self.weights, self.folded_bias(), self.multiplier, self.ratio
        )

    def channels(
        self, lanes: int, *, interleave: int = 1, code_offset: int = 0
    ) -> dict[str, np.ndarray]:
        """The epilogue's constants, filled up to multiples of ``lanes``.

        ``code_offset``: what is taken off codes before they are multiplied.
        """
        multiplier = self.multiplier if self.spec.in_dtype == "u8" else None
        return channel_constants(
            self.spec.epilogue,
            1,
            lanes,
            self.folded_bias(code_offset),
            multiplier,
            self.ratio,
            interleave=interleave,
        )


def word_geometry(spec: ConvSpec, isa: Isa) -> Geometry:
    """The layer as an implicit GEMM on the vector unit, whose steps may lie anywhere."""
    geo = geometry(spec, isa, amx=False)
    return replace(geo, unit=word_unit(geo.unit))


Kernel = TypeVar("Kernel")

NEARLY = 1.25
"""Predicted times within this factor are as good as equal."""


def frugal(ranked: Sequence[tuple[Kernel, float, int]]) -> tuple[Kernel, float]:
    """Of (kernel, seconds, bytes) one of nearly the least time, the one with the fewest bytes."""
    least = min(seconds for _, seconds, _ in ranked)
    near = [entry for entry in ranked if entry[1] <= NEARLY * least]
    kernel, seconds, _ = min(near, key=lambda entry: (entry[2], entry[1]))
    return kernel, seconds


def staged_plan(
    layer: Layer,
    isa: Isa,
    unit: Unit,
    stage: Stage | Planes | None,
    constants: Mapping[str, np.ndarray],
    step: Callable[[tuple[KernelArg, ...]], KernelStep],
    kernel: str,
    stored: Sequence[str] = ("weight", "index", "groups"),
) -> KernelPlan:
    """Staging where it is needed, then one step.

    Its arguments: the input, the weight's constants (``stored``), the epilogue's constants,
    residual, output.
    """
    spec, steps, made = layer.spec, [], dict(constants)
    source: KernelArg = ("in", 0)
    if stage is not None:
        made["fill"] = fill_constant(spec.in_zero_point, spec.in_dtype)
        if isinstance(stage, Planes):
            steps.append(planes_step(stage, source, "fill", 0))
        else:
            steps.append(stage_step(stage, isa, source, "fill", 0))
        source = ("scratch", 0)
    names = epilogue.argument_names(spec.in_dtype == "u8", spec.epilogue.residual)
    args = [source, *(("const", name) for name in (*stored, *names))]
    args += [("in", 1)] if spec.epilogue.residual is not None else []
    steps.append(step((*args, ("out", 0))))
    return KernelPlan(
        tuple(steps),
        made,
        scratch=(stage.bytes,) if stage is not None else (),
        features=features_of(isa, unit),
        kernel=kernel,
        compressed=True,
    )
