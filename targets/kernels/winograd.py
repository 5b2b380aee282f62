"""3x3 convolution of stride 1 in float32 by Winograd's minimal filtering, in NHWC.

An output tile of m x m pixels costs ``n * n`` products for each pair of channels (n = m + 2)
instead of ``9 * m * m``: 2.25 times fewer for F(2x2), 4 for F(4x4), 5.1 for F(6x6). The n * n
transformed pixels of all tiles make n * n independent matrix products (Lavin and Gray 2016,
section 4): tiles by input channels, times input channels by output channels.

Two arrangements of the same three phases:

- *banded*: a work item is a band of tiles, and one function does all three phases of it in the
  thread's own scratch, small enough for the second-level cache. Weights are read once per band.
- *phased*: three functions over all tiles with shared scratch. Where there are few tiles, all
  threads share the weights' stream, each weight read once.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import numpy as np

from dlcc.lowering.kernel import ArgumentKind, KernelArg, KernelPlan, KernelStep, name_key
from dlcc.program import FilterTransform
from targets.isa import CLOCK, Isa
from targets.kernels import epilogue
from targets.kernels.conv import STREAM_BANDWIDTH, channel_constants
from targets.kernels.gemm import pack_weights, unit_for
from targets.kernels.spec import ConvSpec
from targets.kernels.winograd_code import (
    Winograd,
    banded_function,
    input_function,
    output_function,
    products_blocking,
    products_function,
)
from targets.kernels.winograd_transform import TAPS, matrices, transform_weights

TILES = (2, 4)
"""Output tiles on offer. F(6x6) saves products, but its transforms cost as much, and its error is
twice that of F(4x4)."""

BANDS = (14, 28, 56)
"""Tiles of a band on offer: multiples of what a register block takes."""

FEWEST_BANDS = 8
"""Bands that a banded layer must have, so that threads get equal shares."""

TRANSFORM_CYCLES = {2: (140.0, 130.0), 4: (380.0, 170.0)}
"""Cycles to transform one input tile and one output tile of one channel vector."""

SPILL_BANDWIDTH = 40e9
"""Bytes per second of scratch between the second- and the third-level cache."""

L2_BYTES = 3 << 19
"""Weights and scratch up to this size stay in the second-level cache."""


def refusal(spec: ConvSpec) -> str:
    """Why Winograd's filtering does not apply to ``spec``; "" if it does."""
    if {spec.in_dtype, spec.epilogue.out, spec.epilogue.residual or "f32"} != {"f32"}:
        return "it is no float32 layer"
    if (spec.kh, spec.kw) != (TAPS, TAPS) or spec.stride != (1, 1) or spec.dilation != (1, 1):
        return "it is no 3x3 kernel of stride 1"
    if spec.groups != 1:
        return f"it has {spec.groups} groups"
    return ""


def shape_of(spec: ConvSpec, isa: Isa, m: int, band: int) -> Winograd:
    """The layer with output tiles of ``m`` pixels a side, in bands of ``band`` (0: phased)."""
    return Winograd(
        m,
        band,
        spec.n,
        spec.h,
        spec.w,
        spec.c,
        spec.oc,
        spec.oh,
        spec.ow,
        spec.pads[:2],
        spec.epilogue.residual,
        unit_for(isa, "f32"),
    )


def shape_text(shape: Winograd) -> str:
    """``winograd-4x4``, or ``winograd-4x4-band28`` for one in bands of 28 tiles."""
    band = f"-band{shape.band}" if shape.band else ""
    return f"winograd-{shape.m}x{shape.m}{band}"


def _steps(shape: Winograd) -> tuple[KernelStep, ...]:
    """The functions of a layer and their arguments."""
    cut, _ = products_blocking(shape)
    names = epilogue.argument_names(False, shape.residual)
    ends: list[KernelArg] = [("const", name) for name in names]
    ends += [("in", 1)] if shape.residual is not None else []
    ends.append(("out", 0))
    kind: ArgumentKind = "thread_scratch" if shape.band else "scratch"
    v, p = ((kind, 0), (kind, 1))
    u: KernelArg = ("const", "weight")
    if shape.band:
        key = name_key("winograd", shape, cut)
        return (
            KernelStep(
                key,
                lambda: banded_function(key, shape, cut),
                (("in", 0), u, v, p, *ends),
                ceil(shape.tiles / shape.band),
            ),
        )
    seconds = phase_seconds(shape)
    keys = [name_key(f"winograd_{phase}", shape, cut) for phase in ("in", "mul", "out")]
    return (
        KernelStep(
            keys[0],
            lambda: input_function(keys[0], shape),
            (("in", 0), v),
            shape.tiles * shape.chunks(shape.in_blocks),
            seconds[0],
        ),
        KernelStep(
            keys[1],
            lambda: products_function(keys[1], shape, cut),
            (v, u, p),
            shape.points * cut.channels.count,
            seconds[1],
        ),
        KernelStep(
            keys[2],
            lambda: output_function(keys[2], shape),
            (p, *ends),
            shape.tiles * shape.chunks(shape.out_blocks),
            seconds[2],
        ),
    )


def arrangements(spec: ConvSpec, isa: Isa) -> list[Winograd]:
    """All ways to compute ``spec`` that are worth looking at, the one predicted best first."""
    shapes = []
    for m in TILES:
        phased = shape_of(spec, isa, m, 0)
        bands = [b for b in BANDS if phased.tiles >= FEWEST_BANDS * b]
        shapes += [phased, *(shape_of(spec, isa, m, b) for b in bands)]
    return sorted(shapes, key=shape_cost)


@lru_cache(maxsize=4096)
def phase_seconds(shape: Winograd) -> tuple[float, float, float]:
    """Predicted seconds of the three phases on one thread."""
    bands = ceil(shape.tiles / shape.band) if shape.band else 1
    into, out = TRANSFORM_CYCLES[shape.m]
    tiles = shape.tiles * (1.0 if shape.unit.registers > 16 else 1.3)  # spills
    weights = 4 * shape.points * shape.out_blocks * shape.lanes * shape.c
    v_bytes, p_bytes = shape.scratch
    passes = bands if weights + v_bytes + p_bytes > L2_BYTES else 1
    multiply = shape.points * bands * products_blocking(shape)[1] / CLOCK
    seconds = [
        tiles * shape.in_blocks * into / CLOCK,
        multiply + passes * weights / STREAM_BANDWIDTH,
        tiles * shape.out_blocks * out / CLOCK,
    ]
    if v_bytes + p_bytes > L2_BYTES:  # written by one phase, read by the next
        seconds[0] += bands * v_bytes / SPILL_BANDWIDTH
        seconds[1] += bands * (v_bytes + p_bytes) / SPILL_BANDWIDTH
        seconds[2] += bands * p_bytes / SPILL_BANDWIDTH
    return seconds[0], seconds[1], seconds[2]


def shape_cost(shape: Winograd) -> float:
    """Predicted seconds on one thread."""
    return sum(phase_seconds(shape))


def winograd_cost(spec: ConvSpec, isa: Isa) -> float:
    """Predicted seconds of :func:`winograd` on one thread."""
    return shape_cost(arrangements(spec, isa)[0])


def winograd(
    spec: ConvSpec,
    isa: Isa,
    weights: np.ndarray,
    bias: np.ndarray,
    shape: Winograd | None = None,
) -> KernelPlan:
    """Plans a 3x3 convolution of stride 1 without groups, in float32.

    Args:
        spec: the layer; :func:`refusal` must have nothing against it.
        isa: the instruction set.
        weights: ``[oc, c, 3, 3]`` f32.
        bias: ``[oc]`` f32.
        shape: the arrangement (None: the one predicted best).

    The plan's inputs: 0 the activation, 1 the residual if there is one.

    Raises:
        ValueError: the layer is of another kind.
    """
    why = refusal(spec)
    if why:
        raise ValueError(why)
    shape = shape or arrangements(spec, isa)[0]
    unit = unit_for(isa, "f32")
    runs = transform_weights(weights, shape.m)[:, :, None]
    constants = {"weight": pack_weights(runs, unit)}
    constants |= channel_constants(spec.epilogue, 1, isa.lanes, bias, None, None)
    return KernelPlan(
        _steps(shape),
        constants,
        scratch=() if shape.band else shape.scratch,
        thread_scratch=shape.scratch if shape.band else (),
        features=isa.vector_flags(),
        kernel=shape_text(shape),
        transforms={"weight": _source(spec, isa, weights, shape.m)},
    )


def _source(spec: ConvSpec, isa: Isa, weights: np.ndarray, m: int) -> FilterTransform:
    """What the transformed weights were made from."""
    filters = np.ascontiguousarray(weights, "<f4").tobytes()
    return FilterTransform(filters, spec.oc, spec.c, isa.lanes, matrices(m)[1])
