"""Convolution and linear layers as implicit GEMM, transposed convolution included."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from dlcc.analysis.accumulators import Bounds
from dlcc.lowering.kernel import ARENA_SLACK, Footprint, KernelArg, KernelPlan, KernelStep, name_key
from targets.isa import CACHED_WEIGHTS, CLOCK, Isa
from targets.kernels import arm_blocks, arm_frame, bfloat16, epilogue, sve, sve_blocks
from targets.kernels.arm_mlal import USUAL_PRODUCTS, proven_unit
from targets.kernels.blocking import L2_BYTES, choose_blocking, item_spans
from targets.kernels.code_panel import Packing
from targets.kernels.coded_gemm import CodedGemm
from targets.kernels.columns import Columns, columns_of
from targets.kernels.gemm import (
    Blocking,
    Gemm,
    Unit,
    pack_weights,
    pad_channels,
    pair_unit,
    unit_for,
    word_unit,
)
from targets.kernels.implicit import gemm_function
from targets.kernels.packed_bits import Codes
from targets.kernels.pairs import (
    BITS,
    EXTRA_BYTES,
    EXTRA_CYCLES,
    EXTRA_STEPS,
    PairSums,
    best_sums,
    pair_constants,
    summed_text,
)
from targets.kernels.real_panel import RealCodes
from targets.kernels.spec import FLOATS, SIZE, ConvSpec, ConvTransposeSpec, Epilogue, rounding
from targets.kernels.stage import Stage, aligned, fill_constant, rows_stage, stage_step


@dataclass(frozen=True)
class Geometry:
    """A convolution reduced to an implicit GEMM: what is staged, and the GEMM over it."""

    spec: ConvSpec
    stage: Stage | Columns | None
    gemm: Gemm
    unit: Unit
    merged: int
    """Groups of the layer that one group of the GEMM computes (the others' weights are zero)."""


def _merged_groups(spec: ConvSpec, unit: Unit) -> int:
    """How many small groups to compute as one, so that a channel block is not mostly empty."""
    n = spec.oc // spec.groups
    fitting = [d for d in range(1, spec.groups + 1) if spec.groups % d == 0 and d * n <= unit.lanes]
    return max(fitting, default=1)


def _runs(spec: ConvSpec, width: int, merged: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """The loops over runs and the length of a run, for an input row of ``width`` pixels."""
    per_group = spec.c // spec.groups * merged
    down, right = spec.dilation[0] * width * spec.c, spec.dilation[1] * spec.c
    if spec.kw == 1 or (per_group == spec.c and spec.dilation[1] == 1):
        return ((spec.kh, down),), spec.kw * per_group
    return ((spec.kh, down), (spec.kw, right)), per_group


def _stage_of(spec: ConvSpec, unit: Unit, spare: int) -> Stage | None:
    """The staged copy that this kernel needs, if any; ``spare`` of its channels are not stored."""
    source, dst = spec.stored or spec.in_dtype, unit.reads(spec.in_dtype)
    rounded = rounding(source, spec.in_dtype)
    overrun = unit.k > 1 and not spec.input_slack and not unit.short
    if not (any(spec.pads) or dst != source or rounded or spare or overrun):
        return None
    height, width = spec.padded
    top, left = spec.pads[:2]
    c = spec.c - spare
    if not any(spec.pads) and spec.h == 1:  # a linear layer: its rows are the work items
        return rows_stage(spec.n * spec.w, c, source, dst, rounded=rounded, spare=spare)
    stage = Stage(
        spec.n, spec.h, spec.w, c, height, width, top, left, (1, 1), source, dst, rounded, spare,
        slack=spare > 0 and spec.input_slack,
    )  # fmt: skip
    return aligned(stage) if dst == "u8" and spec.kh * spec.kw > 1 else stage


def geometry(
    spec: ConvSpec,
    isa: Isa,
    *,
    amx: bool = True,
    columns: bool = False,
    pairs: PairSums | None = None,
    block: tuple[int, int, int] | None = None,
) -> Geometry:
    """Reduces ``spec`` to an implicit GEMM on ``isa`` (``amx=False``: on its vector unit).

    ``columns``: over a copy with kernel rows side by side (:mod:`columns`). ``pairs``: summed in 16
    bits (:mod:`pairs`). ``block``: as :attr:`Gemm.block`.
    """
    spare = bfloat16.spare_channels(spec, isa, amx=amx)
    spec = replace(spec, c=spec.c + spare) if spare else spec
    paired = None if pairs is None else pair_unit(isa, pairs.steps, pairs.extra > 0)
    pixels = spec.n * spec.oh * spec.ow
    unit = paired or unit_for(isa, spec.in_dtype, amx=amx, pixels=pixels)
    if columns:
        return _columns_geometry(spec, isa, amx, block)
    merged = _merged_groups(spec, unit)
    height, width = spec.padded
    run = _runs(spec, width, merged)[1]
    unit = paired or unit_for(isa, spec.in_dtype, amx=amx, run=run, pixels=pixels)
    stage = _stage_of(spec, unit, spare)
    width = stage.out_w if any(spec.pads) and stage else width
    loops, run = _runs(spec, width, merged)
    images, rows, cols = spec.n, spec.oh, spec.ow
    strides = (height * width * spec.c, spec.stride[0] * width * spec.c, spec.stride[1] * spec.c)
    if spec.kh == spec.kw == 1 and spec.stride == (1, 1):  # all pixels are one long row
        images, rows, cols = 1, 1, spec.n * height * width
        strides = (0, 0, spec.c)
    gemm = Gemm(
        images,
        rows,
        cols,
        *strides,
        loops,
        run,
        n=spec.oc // spec.groups * merged,
        groups=spec.groups // merged,
        a_group=spec.c // spec.groups * merged,
        a_dtype=stage.dst if stage else spec.in_dtype,
        out=spec.epilogue.out,
        residual=spec.epilogue.residual,
        a_start=stage.lead if stage else 0,
        block=block,
    )
    gemm = _bundling_pixels(gemm, unit)
    unit = _without_matrices(gemm, unit)
    if unit.kind == "amx" and rows > 1 and spec.stride == (1, 1):
        running = _running_columns(gemm, width)
        if choose_blocking(running, unit)[1] < choose_blocking(gemm, unit)[1]:
            gemm = running
    return Geometry(spec, stage, gemm, unit, merged)


def _without_matrices(gemm: Gemm, unit: Unit) -> Unit:
    """ARM's dot products in place of its products of matrices, where runs are short for these."""
    if unit.kind != "mmla":
        return unit
    words = word_unit(unit)
    return min(unit, words, key=lambda one: choose_blocking(gemm, one)[1])


def _columns_geometry(
    spec: ConvSpec, isa: Isa, amx: bool, block: tuple[int, int, int] | None
) -> Geometry:
    """The GEMM whose one run is a whole window: its images are bands of staged output rows."""
    stage = columns_of(spec)
    run = spec.kw * stage.column
    unit = unit_for(isa, spec.in_dtype, amx=amx, run=run)
    gemm = Gemm(
        spec.n * spec.oh // stage.band,
        stage.band,
        spec.ow,
        0,
        stage.pitch,
        spec.stride[1] * stage.column,
        ((1, 0),),
        run,
        n=spec.oc,
        groups=1,
        a_group=0,
        a_dtype=spec.in_dtype,
        out=spec.epilogue.out,
        residual=spec.epilogue.residual,
        whole_images=True,
        block=block,
    )
    return Geometry(spec, stage, _bundling_pixels(gemm, unit), unit, 1)


def _bundling_pixels(gemm: Gemm, unit: Unit) -> Gemm:
    """``gemm`` by four pixels at a time, where it has few channels and a fitting epilogue."""
    few = gemm.groups == 1 and gemm.n <= unit.lanes
    packs = unit.kind in ("vnni", "amx") and unit.lanes == epilogue.BUNDLE_LANES
    packs = packs and gemm.out not in FLOATS
    return replace(gemm, pixel_bundles=True) if few and packs else gemm


def _interleaved(geo: Geometry) -> Geometry:
    """``geo`` with channel blocks in bundles, as large as a register block allows."""
    gemm, unit = geo.gemm, geo.unit
    if gemm.out in FLOATS or unit.lanes != epilogue.BUNDLE_LANES:
        return geo
    nr = choose_blocking(gemm, unit)[0].channels.first[1]
    size = next(size for size in (4, 2, 1) if nr % size == 0)
    return replace(geo, gemm=replace(gemm, interleave=size))


def _running_columns(gemm: Gemm, width: int) -> Gemm:
    """``gemm`` with columns that run on over its rows, so that narrow images fill tiles."""
    cols = (gemm.rows - 1) * width + gemm.cols
    return replace(gemm, rows=1, cols=cols, pitch=width, kept=gemm.cols, pixel_bundles=False)


def _weight_runs(weights: np.ndarray, geo: Geometry) -> np.ndarray:
    """Weights ``[oc, c/groups, kh, kw]`` as ``[groups, n, runs, run]`` of the merged GEMM."""
    spec, merged, gemm = geo.spec, geo.merged, geo.gemm
    if isinstance(geo.stage, Columns):
        return weights.transpose(0, 3, 2, 1).reshape(1, spec.oc, 1, gemm.run)
    per_group, n = spec.c // spec.groups, spec.oc // spec.groups
    if weights.shape[1] < per_group:  # of spare channels
        weights = np.pad(weights, ((0, 0), (0, per_group - weights.shape[1]), (0, 0), (0, 0)))
    split = weights.transpose(0, 2, 3, 1).reshape(
        gemm.groups, merged, n, spec.kh, spec.kw, per_group
    )
    full = np.zeros((gemm.groups, merged, n, spec.kh, spec.kw, merged, per_group), weights.dtype)
    for member in range(merged):
        full[:, member, :, :, :, member, :] = split[:, member]
    return full.reshape(gemm.groups, merged * n, gemm.runs, gemm.run)


def fold_zero_point(bias: np.ndarray, weights: np.ndarray, zero_point: int) -> np.ndarray:
    """``bias - zero_point * sum(weights)`` per output channel (axis 0), modulo 2**32."""
    sums = weights.astype(np.int64).reshape(weights.shape[0], -1).sum(axis=1)
    folded: np.ndarray = (bias.astype(np.int64) - zero_point * sums).astype(np.uint32)
    return folded.view(np.int32)


def channel_constants(
    epi: Epilogue,
    groups: int,
    lanes: int,
    bias: np.ndarray,
    multiplier: np.ndarray | None,
    ratio: np.ndarray | None,
    *,
    interleave: int = 1,
) -> dict[str, np.ndarray]:
    """The constants of the epilogue, per channel and filled up to whole blocks."""
    bias = pad_channels(bias, groups, lanes, interleave=interleave)
    made = {"bias": bias, "scalars": epilogue.scalars(epi)}
    if multiplier is not None:
        factors = multiplier.astype(np.float32)
        made["multiplier"] = pad_channels(factors, groups, lanes, interleave=interleave)
    if epi.residual == "u8":
        if ratio is None:
            raise ValueError("a u8 residual needs its ratio per channel")
        made["ratio"] = pad_channels(ratio.astype(np.float32), groups, lanes, interleave=interleave)
    return made


def conv2d(
    spec: ConvSpec,
    isa: Isa,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None = None,
    ratio: np.ndarray | None = None,
    *,
    amx: bool = True,
    columns: bool = False,
    pairs: PairSums | None = None,
    block: tuple[int, int, int] | None = None,
    codes: Codes | RealCodes | None = None,
) -> KernelPlan:
    """Plans a convolution (or linear layer) of any groups, stride, dilation and padding.

    Args:
        spec: the layer.
        isa: the instruction set.
        weights: ``[oc, c / groups, kh, kw]``, s8, f32, the bits of bf16, or f16.
        bias: ``[oc]``, s32 or f32. The input's zero point is folded in here: pass it unfolded.
        multiplier: ``[oc]`` f32, for u8 activations only: accumulator -> output units.
        ratio: ``[oc]`` f32, for a u8 residual: residual units -> accumulator units.
        amx: use AMX tiles where the instruction set has them; else its vector unit.
        columns: stage kernel rows side by side (:func:`geometry`).
        pairs: sum products in 16 bits, as :func:`pair_sums` has found to be right.
        block: the register block to use (:attr:`Gemm.block`; None: by predicted cycles).
        codes: what the weights are stored as, to be unpacked by the kernel (None: as they are);
            ``weights`` are the codes themselves where they stand for float32 numbers.

    The plan's inputs: 0 the activation, 1 the residual if there is one.
    """
    geo = geometry(spec, isa, amx=amx, columns=columns, pairs=pairs, block=block)
    if spec.in_dtype == "u8":
        if multiplier is None:
            raise ValueError("u8 activations need a multiplier")
        bias = fold_zero_point(bias, weights, spec.in_zero_point - geo.unit.code_offset)
        if epilogue.products_fit(weights, bias, multiplier, ratio):
            geo = _interleaved(geo)
        else:
            geo = replace(geo, gemm=replace(geo.gemm, pixel_bundles=False))
    else:
        bias, multiplier = bias.astype(np.float32), None
    interleave = geo.gemm.interleave
    if geo.unit.kind in arm_blocks.KINDS | sve_blocks.KINDS | {"half"}:
        geo, packed = _packed_for_arm(geo, weights, block)
    else:
        packed = pack_weights(_weight_runs(weights, geo), geo.unit, interleave=interleave)
    coded = None if codes is None else CodedGemm.of(geo.gemm, geo.unit, codes, isa)
    panel = None if coded is None else coded.panel
    if geo.unit.kind == "mlal" and coded is None:  # its loop loads ahead, past the last weights
        packed = np.pad(packed.reshape(-1), (0, ARENA_SLACK))
    constants = {"weight": packed} if pairs is None else pair_constants(packed, pairs, geo.gemm)
    constants |= {} if coded is None else coded.constants(packed)
    channels = (geo.gemm.groups, geo.unit.lanes, bias, multiplier, ratio)
    constants |= channel_constants(spec.epilogue, *channels, interleave=interleave)
    if geo.stage is not None:
        constants["fill"] = fill_constant(spec.in_zero_point, spec.in_dtype)
    fused = geo.stage if isinstance(geo.stage, Columns) else None
    copied = geo.stage if isinstance(geo.stage, Stage) else None
    steps: list[KernelStep] = []
    source: KernelArg = ("in", 0)
    if copied is not None:
        steps.append(stage_step(copied, isa, source, "fill", 0))
        source = ("scratch", 0)
    weight: KernelArg = ("const", "weight")
    steps.append(gemm_step(geo.gemm, geo.unit, source, weight, columns=fused, panel=panel))
    private = fused.bytes if fused else coded.buffer_bytes if coded else 0
    form = "-columns" if columns else f" {coded.bits} bits" if coded else ""
    return KernelPlan(
        tuple(steps),
        constants,
        scratch=(copied.bytes,) if copied else (),
        thread_scratch=(private,) if private else (),
        features=features_of(isa, geo.unit),
        kernel=f"conv-{geo.unit.kind}{form}{summed_text(pairs)}",
        compressed=coded is not None,
        sum_bits=32 if pairs is None else BITS,
    )


def _packed_for_arm(
    geo: Geometry, weights: np.ndarray, block: tuple[int, int, int] | None
) -> tuple[Geometry, np.ndarray]:
    """The weights in panels, and ``geo`` with the 16-bit sums that they allow."""
    geo, runs = _signed(geo), _weight_runs(weights, geo)
    if geo.unit.kind == "mlal":
        geo = replace(geo, unit=proven_unit(geo.unit, runs, block))
    blocks = choose_blocking(geo.gemm, geo.unit)[0].channels.first[1]
    packed = pack_weights(runs, geo.unit)
    packed = sve.in_order(packed, geo.unit) if geo.unit.kind in sve_blocks.KINDS else packed
    return geo, arm_frame.panels(packed, blocks)


def _signed(geo: Geometry) -> Geometry:
    """``geo`` with a staged copy of signed codes, where these are multiplied (on ARM)."""
    if not geo.unit.code_offset or not isinstance(geo.stage, Stage):
        return geo
    stage = replace(geo.stage, flip=True)
    return replace(geo, stage=stage, gemm=replace(geo.gemm, a_dtype="s8"))


def _expected(unit: Unit) -> Unit:
    """``unit`` as nearly all weights allow it, before they are looked at."""
    return replace(unit, sums=USUAL_PRODUCTS) if unit.kind == "mlal" else unit


def pair_sums(spec: ConvSpec, isa: Isa, weights: np.ndarray, data: Bounds) -> PairSums:
    """How :func:`conv2d` may sum products of these weights and codes of a range in 16 bits."""
    geo = geometry(spec, isa, pairs=PairSums(1))
    return best_sums(pack_weights(_weight_runs(weights, geo), geo.unit), data)


def features_of(isa: Isa, unit: Unit) -> tuple[str, ...]:
    """CPU features that code for ``unit`` needs."""
    if unit.kind in sve_blocks.KINDS:
        return isa.flags
    return (isa.tile_flags if unit.kind == "amx" else isa.vector_flags)(bfloat16=unit.bf16)


def gemm_step(
    gemm: Gemm,
    unit: Unit,
    a: KernelArg,
    b: KernelArg,
    bias: KernelArg = ("const", "bias"),
    row_terms: KernelArg | None = None,
    *,
    columns: Columns | None = None,
    panel: Packing | None = None,
) -> KernelStep:
    """The step of an implicit GEMM; a residual is the layer's input 1.

    ``columns``: how the rows of ``a`` are staged, which the step does itself. ``panel``: how ``b``
    is unpacked, which the step does too, once for all items in succession that share channels.
    """
    blocking, _ = choose_blocking(gemm, unit)
    if panel is not None:
        blocking = replace(blocking, blocks=1, m_major=False)
    special = [form for form in (columns, panel) if form is not None]
    key = name_key(f"gemm_{unit.kind}", gemm, unit, blocking, *special)
    names = epilogue.argument_names(gemm.integer, gemm.residual)
    args: list[KernelArg] = [a, ("const", "fill"), ("thread_scratch", 0)] if columns else [a]
    args.append(b)
    args += [("const", "tables"), ("thread_scratch", 0)] if panel else []
    args += [("const", name) for name, _ in EXTRA_STEPS] if unit.extra else []
    args += [row_terms] if row_terms is not None else []
    args += [bias if name == "bias" else ("const", name) for name in names]
    args += [("in", 1)] if gemm.residual is not None else []
    args.append(("out", 0))
    return KernelStep(
        key,
        lambda: gemm_function(key, gemm, unit, blocking, columns, panel),
        tuple(args),
        blocking.items(gemm),
        footprint=(lambda: gemm_footprint(gemm, unit, blocking, columns, len(args)))
        if b[0] == "const" and (panel is None or panel.form != "panel")  # unpacked in each band
        else None,
    )


def gemm_footprint(
    gemm: Gemm, unit: Unit, blocking: Blocking, columns: Columns | None, arguments: int
) -> Footprint:
    """Bytes that each item touches; the arguments are A, constants, the residual, the output."""
    elements, pixels = item_spans(gemm, unit, blocking)
    reads = {0: elements * SIZE[gemm.a_dtype]}
    if columns is not None:
        reads = {0: columns.sources(pixels[:, 0] // (gemm.rows * gemm.cols))}
    channels = gemm.groups * gemm.n
    if gemm.residual is not None:
        reads[arguments - 2] = pixels * (channels * SIZE[gemm.residual])
    return Footprint(reads, {arguments - 1: pixels * (channels * SIZE[gemm.out])})


def conv2d_transpose(
    spec: ConvTransposeSpec,
    isa: Isa,
    weights: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray | None = None,
    ratio: np.ndarray | None = None,
    *,
    amx: bool = True,
) -> KernelPlan:
    """Plans a transposed convolution: zero points inserted, then a convolution of stride 1.

    All arguments are as for :func:`conv2d`, but ``weights`` is ``[c, oc / groups, kh, kw]``, as in
    ONNX.
    """
    conv, stage = _as_convolution(spec, isa, amx)
    per_group = spec.oc // spec.groups
    grouped = weights.reshape(spec.groups, spec.c // spec.groups, per_group, spec.kh, spec.kw)
    flipped = np.ascontiguousarray(grouped[..., ::-1, ::-1].transpose(0, 2, 1, 3, 4)).reshape(
        spec.oc, spec.c // spec.groups, spec.kh, spec.kw
    )
    inner = conv2d(conv, isa, flipped, bias, multiplier, ratio, amx=amx)
    constants = inner.constants | {"fill": fill_constant(spec.in_zero_point, spec.in_dtype)}
    last = inner.steps[-1]
    reads = tuple(("scratch", 0) if arg == ("in", 0) else arg for arg in last.args)
    steps = (stage_step(stage, isa, ("in", 0), "fill", 0), replace(last, args=reads))
    return replace(
        inner, steps=steps, constants=constants, scratch=(stage.bytes,), kernel=f"{inner.kernel}-t"
    )


def _as_convolution(spec: ConvTransposeSpec, isa: Isa, amx: bool) -> tuple[ConvSpec, Stage]:
    """The stride-1 convolution over the spread-out input, and the staging that spreads it."""
    (sh, sw), (dh, dw), (top, left, bottom, right) = spec.stride, spec.dilation, spec.pads
    edge_h, edge_w = dh * (spec.kh - 1), dw * (spec.kw - 1)
    if min(edge_h - max(top, bottom), edge_w - max(left, right)) < 0:
        raise ValueError("padding larger than the kernel's reach is not supported")
    height = (spec.h - 1) * sh + 1 + 2 * edge_h - top - bottom + spec.output_padding[0]
    width = (spec.w - 1) * sw + 1 + 2 * edge_w - left - right + spec.output_padding[1]
    conv = ConvSpec(
        spec.n,
        height,
        width,
        spec.c,
        spec.oc,
        spec.kh,
        spec.kw,
        dilation=spec.dilation,
        groups=spec.groups,
        in_dtype=spec.in_dtype,
        in_zero_point=spec.in_zero_point,
        epilogue=spec.epilogue,
    )
    spare = bfloat16.spare_channels(conv, isa, amx=amx)
    conv = replace(conv, c=conv.c + spare)
    source = spec.stored or spec.in_dtype
    stage = Stage(
        spec.n,
        spec.h,
        spec.w,
        spec.c,
        height,
        width,
        edge_h - top,
        edge_w - left,
        spec.stride,
        source,
        geometry(conv, isa, amx=amx).unit.reads(spec.in_dtype),
        rounding(source, spec.in_dtype),
        spare,
    )
    return conv, stage


def conv_cost(
    spec: ConvSpec,
    isa: Isa,
    *,
    amx: bool = True,
    columns: bool = False,
    codes: Codes | RealCodes | None = None,
    pairs: PairSums | None = None,
) -> float:
    """Predicted seconds of :func:`conv2d` on one thread (only good for comparison)."""
    geo = geometry(spec, isa, amx=amx, columns=columns, pairs=pairs)
    _, cycles = choose_blocking(geo.gemm, _expected(geo.unit))
    if pairs is not None:
        cycles += pairs.extra * geo.gemm.pixels * EXTRA_CYCLES[isa.lanes]
    packed = geo.gemm.groups * ceil(geo.gemm.n / geo.unit.lanes) * geo.unit.lanes
    packed *= geo.gemm.runs * ceil(geo.gemm.run / geo.unit.k) * geo.unit.k
    moved = packed * np.dtype(geo.unit.packed).itemsize
    if pairs is not None:
        moved += ceil(pairs.extra * EXTRA_BYTES * isa.lanes)
    seconds = cycles / CLOCK
    if codes is not None:
        coded = CodedGemm.of(geo.gemm, geo.unit, codes, isa)
        seconds, moved = seconds + coded.seconds, coded.waits_for
    tiles = geo.unit.kind == "amx"
    waits = geo.unit.kind in ("fma", "sve_fmla", "madd", "pairs") and moved > L2_BYTES
    if waits or (tiles and moved > CACHED_WEIGHTS):
        seconds += moved / (STREAM_BANDWIDTH if moved <= NEAR_MEMORY else MEMORY_BANDWIDTH)
    seconds = max(seconds, isa.read_seconds(moved))
    if tiles:
        seconds += TILE_SETUP
        if _activation_bytes(spec) > NEAR_ACTIVATIONS:
            seconds += _activation_bytes(spec) / ACTIVATION_BANDWIDTH
    if geo.stage is not None:
        seconds += geo.stage.seconds
    return seconds


def _activation_bytes(spec: ConvSpec) -> int:
    """Bytes of the input and the output in memory."""
    read = spec.n * spec.h * spec.w * spec.c * SIZE[spec.stored or spec.in_dtype]
    return read + spec.n * spec.oh * spec.ow * spec.oc * SIZE[spec.epilogue.out]


def conv_transpose_cost(spec: ConvTransposeSpec, isa: Isa, *, amx: bool = True) -> float:
    """Predicted seconds of :func:`conv2d_transpose` on one thread (only good for comparison)."""
    conv, stage = _as_convolution(spec, isa, amx)
    return conv_cost(conv, isa, amx=amx) + stage.seconds


STREAM_BANDWIDTH = 30e9
"""Bytes per second of weights beyond the second-level cache, while they are multiplied: in float32,
by pmaddwd or by tiles, whose loads wait for them."""

NEAR_MEMORY = 64 << 20
"""Bytes of weights up to which a cache shared with other cores may hold them."""

MEMORY_BANDWIDTH = 16e9
"""Bytes per second of larger weights, while they are multiplied."""

ACTIVATION_BANDWIDTH = 100e9
"""Bytes per second of a layer's input and output, beside the products of tiles."""

NEAR_ACTIVATIONS = 128 << 10
"""Bytes of both up to which they take no time beside the products."""
TILE_SETUP = 0.1e-6
"""Seconds of a call on AMX tiles beyond its products: configuration and release of the tiles."""
