"""Transposed convolution on a GPU as ordinary convolutions, one for each phase of the stride.

Results whose place is the same modulo the stride are reached by the same taps, whose inputs are
neighbours: they are a convolution of stride 1 over the input (sub-pixel convolution, Shi et al.
2016, "Is the deconvolution layer the same as a convolutional layer?", section 2). Each is a blocked
product (:mod:`targets.kernels.grid_gemm`); a last kernel puts the phases between each other.

Along an axis, result ``stride * q + phase`` is the sum over the taps t for which ``way = phase +
pad - t * dilation`` is a multiple of the stride, of inputs ``q + way / stride``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels import grid_lanes
from targets.kernels.grid_gemm import best_tile, gemm_refusal, grid_gemm, predicted
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.kernels.spec import NUMPY, SIZE, ConvSpec, ConvTransposeSpec

_THREADS = 128
_MOST_PHASES = 16
_BYTES_PER_SECOND = 1e12


@dataclass(frozen=True)
class Line:
    """A phase along one axis.

    Attributes:
        taps: of the kernel, in the order of the inputs they are multiplied by.
        first: input of the first of them for the first result; ``dilation``: between them.
        count: results.
    """

    taps: tuple[int, ...]
    first: int
    dilation: int
    count: int

    @staticmethod
    def of(spec: ConvTransposeSpec, axis: int) -> tuple[Line, ...]:
        """All phases of an axis that have results."""
        stride, pad, dilation = spec.stride[axis], spec.pads[axis], spec.dilation[axis]
        made = []
        for phase in range(min(stride, spec.size[axis])):
            reach = [phase + pad - tap * dilation for tap in range((spec.kh, spec.kw)[axis])]
            hits = [(way // stride, t) for t, way in enumerate(reach) if way % stride == 0]
            hits.sort()
            count = -(-(spec.size[axis] - phase) // stride)
            apart = hits[1][0] - hits[0][0] if len(hits) > 1 else 1
            first = hits[0][0] if hits else 0
            made.append(Line(tuple(tap for _, tap in hits), first, apart, count))
        return tuple(made)

    def pads(self, size: int) -> tuple[int, int]:
        """Before and behind an input of ``size``; negative where some of it is not read."""
        behind = self.first + (len(self.taps) - 1) * self.dilation + self.count - size
        return -self.first, behind


def phases(spec: ConvTransposeSpec) -> list[tuple[Line, Line]]:
    """Rows and columns of each phase, those of a row of phases together."""
    return list(product(Line.of(spec, 0), Line.of(spec, 1)))


def transposed_refusal(spec: ConvTransposeSpec) -> str:
    """Why a layer cannot be computed so; "" if it can."""
    if spec.groups > 1:
        return f"it has {spec.groups} groups"
    made = phases(spec)
    if len(made) > _MOST_PHASES:
        return f"its strides have {len(made)} phases; {_MOST_PHASES} can be"
    if any(not rows.taps or not columns.taps for rows, columns in made):
        return "some results are reached by no tap"
    if spec.oc * SIZE[spec.epilogue.out] % 4:
        return "the channels of a result fill no word"
    if spec.n * spec.size[0] * spec.size[1] * spec.oc * 4 >= 1 << 31:
        return "a tensor has 2 GiB or more"
    return next(filter(None, (gemm_refusal(_layer(spec, *each)) for each in made)), "")


def _layer(spec: ConvTransposeSpec, rows: Line, columns: Line) -> ConvSpec:
    """The convolution of one phase."""
    (top, bottom), (left, right) = rows.pads(spec.h), columns.pads(spec.w)
    return ConvSpec(
        spec.n,
        spec.h,
        spec.w,
        spec.c,
        spec.oc,
        len(rows.taps),
        len(columns.taps),
        dilation=(rows.dilation, columns.dilation),
        pads=(top, left, bottom, right),
        in_dtype=spec.in_dtype,
        in_zero_point=spec.in_zero_point,
        epilogue=spec.epilogue,
        stored=spec.stored,
    )


def transposed_cost(spec: ConvTransposeSpec, machine: Machine) -> float:
    """Predicted seconds of all phases, and of putting them together."""
    made = phases(spec)
    seconds = 0.0
    for each in made:
        layer = _layer(spec, *each)
        seconds += predicted(layer, best_tile(layer, machine), machine)
    if len(made) == 1:
        return seconds
    moved = 2 * spec.n * spec.size[0] * spec.size[1] * spec.oc * SIZE[spec.epilogue.out]
    return seconds + LAUNCH_SECONDS + moved / _BYTES_PER_SECOND


def grid_transposed(
    spec: ConvTransposeSpec,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    machine: Machine,
) -> KernelPlan:
    """The plan of a transposed convolution of one group.

    Args:
        spec: of any type.
        weights: ``[c, oc, kh, kw]``.
        bias: int32 or float32 ``[oc]``.
        multiplier: float32 ``[oc]``, for codes.
        machine: the GPU.
    """
    made, turned = phases(spec), weights.transpose(1, 0, 2, 3)
    steps: list[KernelStep] = []
    constants: dict[str, np.ndarray] = {}
    scratch: list[int] = []
    results: list[KernelArg] = []
    names = []
    for number, (rows, columns) in enumerate(made):
        layer = _layer(spec, rows, columns)
        taken = np.ascontiguousarray(turned[:, :, list(rows.taps)][..., list(columns.taps)])
        plan = grid_gemm(layer, taken, bias, multiplier, None, machine)
        result: KernelArg = ("out", 0)
        if len(made) > 1:
            result = ("scratch", len(scratch))
            scratch.append(layer.n * layer.oh * layer.ow * spec.oc * SIZE[spec.epilogue.out])
        results.append(result)
        first = len(scratch)
        scratch += plan.scratch
        constants |= {f"{name}{number}": array for name, array in plan.constants.items()}
        for step in plan.steps:
            args = tuple(_moved(arg, number, first, result) for arg in step.args)
            steps.append(replace(step, args=args))
        names.append(plan.kernel)
    if len(made) > 1:
        steps.append(_together(spec, results))
    name = f"{len(made)} phases by {' and '.join(dict.fromkeys(names))}"
    return KernelPlan(tuple(steps), constants, scratch=tuple(scratch), kernel=name)


def _moved(arg: KernelArg, number: int, first: int, result: KernelArg) -> KernelArg:
    """An argument of a phase's step as one of the whole plan."""
    kind, which = arg
    if kind == "const":
        return kind, f"{which}{number}"
    if kind == "scratch":
        return kind, first + int(which)
    return result if kind == "out" else arg


def _together(spec: ConvTransposeSpec, results: list[KernelArg]) -> KernelStep:
    """Brings results of all phases to their places, up to 16 bytes a thread."""
    out = spec.epilogue.out
    each = grid_lanes.widest(spec.oc * SIZE[out]) // SIZE[out]
    shape = (spec.n, *spec.size, spec.oc // each)
    items = int(np.prod(shape))
    launch = Launch((-(-items // _THREADS), 1, 1), (min(_THREADS, items), 1, 1))
    key = name_key("grid_phases", shape, spec.stride, out, each, launch.block)

    def build() -> Any:
        from dlcc.tir.cuda import GridBuilder

        kb = GridBuilder(key, launch.block[0])
        sources = [kb.pointer(f"phase{i}", NUMPY[out]) for i in range(len(results))]
        y = kb.pointer("y", NUMPY[out])
        item = kb.let(kb.block * kb.threads + kb.thread, "item")
        with kb.when(True if items % kb.threads == 0 else item < items):
            part, pixel = kb.let(item % shape[3], "part"), kb.let(item // shape[3], "pixel")
            column, line = kb.let(pixel % shape[2], "column"), kb.let(pixel // shape[2], "line")
            row, image = kb.let(line % shape[1], "row"), kb.let(line // shape[1], "image")
            held = kb.alloc(NUMPY[out], each, "held")
            places = product(
                *(range(min(s, n)) for s, n in zip(spec.stride, shape[1:3], strict=True))
            )
            for source, (down, across) in zip(sources, places, strict=True):
                tests = [
                    (row % spec.stride[0]).equal(down),
                    (column % spec.stride[1]).equal(across),
                ]
                height = -(-(shape[1] - down) // spec.stride[0])
                width = -(-(shape[2] - across) // spec.stride[1])
                with kb.when(tests[0]), kb.when(tests[1]):
                    at = (image * height + row // spec.stride[0]) * width + column // spec.stride[1]
                    grid_lanes.load(kb, held, 0, source, at * spec.oc + part * each, each)
            grid_lanes.store(kb, y, item * each, held)
        return kb.build()

    return KernelStep(key, build, (*results, ("out", 0)), items, launch=launch)
