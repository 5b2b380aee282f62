"""Linear layers of few rows on a GPU: the time is that of reading the weights, so they stay packed.

Threads of a warp share an output (or a few), each multiplies 16 bytes of its weights, of 1 to 8
bits or dense, by activations that come from the first-level cache, and their sums are added by
exchanges between lanes. Where outputs are few, warps of a block share the depth, too. All sums are
added in one order.

Weights lie as they are read: for each warp and step, 16 bytes for each lane and output. Columns of
a step are dealt to the lanes 16 bytes of activations at a time, so that neighbouring lanes read
neighbouring activations.

8-bit activations meet unsigned codes u >= 0 by 4-byte dot products; the sum of the activations
makes up for the codes' base. Codes of float32 activations become float32 by placing them below the
bits of 2^23, or by a table in shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from dlcc.lowering.kernel import KernelArg, KernelPlan, KernelStep, name_key
from dlcc.program import Launch
from targets.kernels import epilogue
from targets.kernels.direct import shared_epilogue
from targets.kernels.grid_gemv_code import WARP, Gemv, Kind, Plane, gemv_function
from targets.kernels.grid_machine import LAUNCH_SECONDS, Machine
from targets.kernels.grid_stage import Columns, stage_step
from targets.kernels.packed_bits import Codes
from targets.kernels.spec import SIZE, ConvSpec

MOST_ROWS = 8
"""Rows up to which a thread keeps all sums in registers."""

MOST_COLUMNS = 1 << 16
"""Columns up to which no sum of codes can leave 32 bits."""

_SUMS = 48
"""Sums of codes of a thread; of real numbers, whose weights take registers too, a sixth."""

_FILLED = 1.07
"""How much larger than the smallest an arrangement of the weights may be: steps are filled up."""

_LATENCY = 800
"""Cycles from asking for weights to having them."""

_WARPS = 32
"""Warps of a multiprocessor, as far as registers go."""

_RAMP = 700
"""Cycles of a block beside its loads: the first activations, the reduction, the results."""


@dataclass(frozen=True)
class Form:
    """How weights are held; see :class:`~targets.kernels.grid_gemv_code.Gemv`."""

    kind: Kind
    planes: tuple[Plane, ...]
    entries: int = 0
    factors: int = 0
    group: int = 0

    @staticmethod
    def dense(in_dtype: str) -> Form:
        """Numbers as wide as the activations."""
        return Form("dense", (Plane(8 * SIZE[in_dtype]),))

    @staticmethod
    def codes(codes: Codes, factors: int = 0, group: int = 0) -> Form:
        """Planes of 4, 2 and 1 bits."""
        planes = tuple(
            Plane(width, 0 if low else codes.base, codes.step << low) for width, low in codes.planes
        )
        return Form("codes", planes, factors=factors, group=group)


@dataclass(frozen=True)
class Weights:
    """Weights in a form: codes u of each plane, uint8 ``[outputs, columns]``, or numbers.

    ``book``: float32 table. ``factors``: float32 ``[factors, outputs]``, or ``[outputs, groups]``.
    ``sums``: int64 ``[outputs]``, of the weights of 8-bit activations.
    """

    form: Form
    planes: tuple[np.ndarray, ...]
    book: np.ndarray | None = None
    factors: np.ndarray | None = None
    sums: np.ndarray | None = None


def split_planes(u: np.ndarray, codes: Codes) -> tuple[np.ndarray, ...]:
    """Codes u of ``codes.bits`` bits as those of each plane, uint8."""
    return tuple((u >> low & ((1 << width) - 1)).astype(np.uint8) for width, low in codes.planes)


def gemv_refusal(spec: ConvSpec, form: Form) -> str:
    """Why a layer cannot be computed so; "" if it can."""
    rows = spec.n * spec.h * spec.w
    taps = spec.kh * spec.kw
    if taps > 1 or spec.groups > 1 or spec.stride != (1, 1) or any(spec.pads):
        return "it is no product of rows of activations and a matrix"
    if rows > MOST_ROWS:
        return f"{rows} rows of activations; up to {MOST_ROWS} are multiplied at once"
    if spec.c > MOST_COLUMNS:
        return f"sums of {spec.c} products may leave 32 bits"
    if form.kind != "dense" and spec.in_dtype not in ("u8", "f32"):
        return "the activations are neither float32 nor quantised"
    part = 16 // SIZE[spec.in_dtype]
    if form.group and form.group % part:
        return f"groups of {form.group} columns are no multiple of {part}"
    return ""


def _depth(spec: ConvSpec) -> int:
    """Columns, up to a multiple of what 16 bytes of activations hold."""
    part = 16 // SIZE[spec.in_dtype]
    return -(-spec.c // part) * part


def _staged(spec: ConvSpec) -> bool:
    """Whether the activations are copied first."""
    return _depth(spec) != spec.c or spec.stored not in (None, spec.in_dtype)


@lru_cache(maxsize=1024)
def best(spec: ConvSpec, form: Form, machine: Machine) -> Gemv:
    """The kernel that is predicted to take the least time."""
    epi = shared_epilogue(spec.epilogue)
    plain = Gemv(
        spec.n * spec.h * spec.w,
        _depth(spec),
        spec.oc,
        spec.in_dtype,
        form.kind,
        form.planes,
        epi,
        form.entries,
        form.factors,
        form.group,
    )
    candidates = [
        made
        for lanes in (32, 16, 8, 4, 2, 1)
        for each in (1, 2, 4)
        for warps in (1, 2, 4, 8)
        if _fits(
            made := replace(plain, lanes=lanes, each=each, warps=warps, side=max(1, 4 // warps))
        )
    ]
    least = min(gemv.weight_bytes for gemv in candidates)
    small = [gemv for gemv in candidates if gemv.weight_bytes <= _FILLED * least]
    return min(small, key=lambda gemv: (_seconds(gemv, machine), _cycles(gemv, machine)))


def _fits(gemv: Gemv) -> bool:
    sums = gemv.each * gemv.rows * gemv.fields
    most = _SUMS if gemv.integer else _SUMS // 6
    if gemv.each > 1 and (sums > most or gemv.each > gemv.outputs):
        return False
    return gemv.warps == 1 or gemv.steps % gemv.warps == 0


def _seconds(gemv: Gemv, machine: Machine) -> float:
    """Predicted, of one launch."""
    bound = max(_cycles(gemv, machine) / machine.clock, gemv.weight_bytes / machine.memory)
    return LAUNCH_SECONDS + bound


def _cycles(gemv: Gemv, machine: Machine) -> float:
    """Where memory is no bound: of what can be under way at once, or of instructions."""
    each = -(-gemv.blocks // machine.multiprocessors)
    warps = gemv.warps * gemv.side
    resident = min(each, max(1, _WARPS // warps))
    waves = -(-each // resident)
    asked = WARP * 16 * max(gemv.loads * gemv.each, min(8, -(-gemv.steps // gemv.warps)))
    rate = resident * warps * asked / _LATENCY
    size = gemv.weight_bytes / gemv.blocks
    elements = gemv.steps * gemv.columns * gemv.each * WARP * gemv.side
    unpacking = {"dense": 0.25, "codes": 1.0, "table": 4.0}[gemv.kind] * len(gemv.planes)
    unpacking += gemv.rows * (0.3 if gemv.integer else 1.0) + (0.5 if gemv.group else 0.0)
    compute = elements * (unpacking / (4 if gemv.integer else 1) + 1 / gemv.each) / 64
    return waves * (resident * max(size / rate, compute) + _RAMP)


def gemv_cost(spec: ConvSpec, form: Form, machine: Machine) -> float:
    """Predicted seconds of :func:`grid_gemv`."""
    copy = LAUNCH_SECONDS if _staged(spec) else 0.0
    return copy + _seconds(best(spec, form, machine), machine)


def grid_gemv(
    spec: ConvSpec,
    weights: Weights,
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    ratio: np.ndarray | None,
    machine: Machine,
    gemv: Gemv | None = None,
) -> KernelPlan:
    """The plan of a layer of up to ``MOST_ROWS`` rows.

    Args:
        spec: the layer.
        weights: in the form that the kernel reads.
        bias: int32 or float32 ``[oc]``.
        multiplier: float32 ``[oc]``, for codes.
        ratio: float32 ``[oc]``, of a residual operand of codes.
        machine: the GPU.
        gemv: None: the best.
    """
    form, integer = weights.form, spec.in_dtype == "u8"
    gemv = gemv or best(spec, form, machine)
    steps: list[KernelStep] = []
    scratch: tuple[int, ...] = ()
    source: KernelArg = ("in", 0)
    if _staged(spec):
        columns = Columns.of(spec, written_out=_depth(spec) != spec.c)
        steps.append(stage_step(columns, source, ("scratch", 0)))
        scratch, source = (columns.bytes,), ("scratch", 0)
    if integer:
        assert weights.sums is not None
        # beyond the last column there are zero points, which meet weights of the base
        base = sum(plane.base for plane in form.planes) * (gemv.depth - spec.c)
        bias = bias - spec.in_zero_point * (weights.sums + base)
    constants = {"weight": arranged(weights.planes, gemv)}
    if weights.book is not None:
        book = np.zeros(gemv.entries, np.float32)
        book[: len(weights.book)] = weights.book
        constants["book"] = book
    if weights.factors is not None:
        padded = gemv.tiles * gemv.warp_outputs
        axis = 0 if gemv.group else 1
        room = [(0, 0), (0, 0)]
        room[axis] = (0, padded - spec.oc)
        constants["factors"] = np.pad(weights.factors.astype(np.float32), room)
    names = [*constants]
    constants |= {
        "bias": bias.astype(np.int32 if integer else np.float32),
        "scalars": epilogue.scalars(spec.epilogue),
    }
    if multiplier is not None:
        constants["multiplier"] = np.broadcast_to(multiplier, (spec.oc,))
    if ratio is not None:
        constants["ratio"] = np.broadcast_to(ratio, (spec.oc,))
    names += epilogue.argument_names(integer, spec.epilogue.residual)
    residual: list[KernelArg] = [("in", 1)] if spec.epilogue.residual is not None else []
    args: tuple[KernelArg, ...] = (source, *(("const", n) for n in names), *residual, ("out", 0))
    key = name_key("grid_gemv", gemv)
    launch = Launch((gemv.blocks, 1, 1), (gemv.threads, 1, 1), gemv.shared_bytes)
    steps.append(KernelStep(key, gemv_function(key, gemv), args, gemv.blocks, launch=launch))
    return KernelPlan(
        tuple(steps),
        constants,
        scratch=scratch,
        kernel=_name(gemv),
        compressed=form.kind != "dense",
    )


def _name(gemv: Gemv) -> str:
    """For the report."""
    bits = sum(plane.width for plane in gemv.planes)
    what = f"{bits} bits" + {"table": " by table"}.get(gemv.kind, "")
    groups = f", groups of {gemv.group}" if gemv.group else ""
    return f"gemv {what}{groups}, {gemv.lanes * gemv.warps} threads for {gemv.each}"


def arranged(planes: tuple[np.ndarray, ...], gemv: Gemv) -> np.ndarray:
    """Weights as they are read: uint8 ``[tiles, steps, loads, each, 32, 16]``.

    Args:
        planes: ``[outputs, columns]``: codes, or numbers.
        gemv: the kernel.
    """
    teams = WARP // gemv.lanes
    columns = gemv.lanes * gemv.columns
    made = []
    for plane, codes in zip(gemv.planes, planes, strict=True):
        n, k = codes.shape
        full = np.zeros((gemv.tiles * gemv.warp_outputs, gemv.steps * columns), codes.dtype)
        full[:n, :k] = codes
        parts = gemv.columns // gemv.part
        shape = (gemv.tiles, teams, gemv.each, gemv.steps, parts, gemv.lanes, gemv.part)
        # [tile, step, output of a thread, team, lane, part, element]
        dealt = full.reshape(shape).transpose(0, 3, 2, 1, 5, 4, 6).reshape(-1, gemv.columns)
        words = dealt if gemv.kind == "dense" else _fields(dealt, plane.width, gemv.integer)
        content = np.ascontiguousarray(words).view(np.uint8)
        loads = content.reshape(gemv.tiles, gemv.steps, gemv.each, WARP, -1, 16)
        made.append(loads.transpose(0, 1, 4, 2, 3, 5))
    return np.ascontiguousarray(np.concatenate(made, axis=2))


def _fields(codes: np.ndarray, width: int, integer: bool) -> np.ndarray:
    """Codes ``[threads, columns]`` packed into words, uint32.

    Of 8-bit activations each byte of a word holds every fourth column, groups of four columns from
    the lowest bits up; else a word holds neighbouring columns from the lowest bits up.
    """
    each = 4 if integer else 1
    places = 32 // width // each
    threads, columns = codes.shape
    fields = codes.reshape(threads, columns // (places * each), places, each).astype(np.uint32)
    made = np.zeros((threads, columns // (places * each)), np.uint32)
    for place in range(places):
        for byte in range(each):
            made |= fields[:, :, place, byte] << np.uint32(place * width + 8 * byte)
    return made
