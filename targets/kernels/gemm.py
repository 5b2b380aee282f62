"""Implicit GEMM by runs: the shape that convolution, linear and matmul layers are reduced to.

In NHWC the bytes (kw, c) of one kernel row are contiguous, so the reduction of a convolution is
``kh`` *runs* of length ``kw * c`` at fixed distances (``kh * kw`` runs of ``c / groups`` where it
is dilated or grouped). A block of output pixels by channels is accumulated in registers; the second
operand is packed ``[group][channel block][run][step][lane][k]`` with zeros past each run's
end, so reading past a run is harmless.

This module decides the blocking and the work items; :mod:`skeleton` emits the frame,
:mod:`registers` and :mod:`amx` the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, prod

import numpy as np

from targets.isa import Isa
from targets.kernels.spec import FLOATS, NUMPY, SHORT_FLOATS, OutType, ResidualType

MIN_ITEMS = 32
"""Work items that a layer is cut into at least, where its shape allows: twice 16 threads."""

TILE = 16
"""AMX: rows of a tile, and 32-bit columns of an accumulator tile."""

LINE = 64
"""Bytes of a cache line."""

UNROLL = 4
"""Reduction steps of an fp32 or VNNI block that are written out: the loop's own instructions take
issue slots and ports from the multiplications."""


@dataclass(frozen=True)
class Gemm:
    """What determines the code of an implicit GEMM.

    Output pixel (image, row, col) of group g reads A at ``a_start + image * a_image + row * a_row
    + col * a_col + g * a_group`` (elements) plus, for each combination of ``loops`` (count,
    distance), a run of ``run`` elements. ``n``: output channels of one group; the output is dense
    ``[images, rows, cols, groups * n]``.

    ``b_image``: distance of the second operand between images (0: weights); ``b_row``: its row
    distance where it is read in place, row-major ``[k, n]`` f32 (0: packed); ``row_terms``: an
    int32 per output pixel is added to the accumulators; ``bias_image``: distance of the bias.

    ``pitch``: the GEMM's columns run on over all image rows, ``pitch`` columns a row, of which the
    first ``kept`` are output pixels and the others are computed and dropped (0: no such columns).

    ``interleave``: so many channel blocks (1, 2 or 4) share their channels out in turns
    (:func:`channel_order`) and are requantised together, which takes fewer instructions.

    ``whole_images``: a work item is an image with all its channels.

    ``pixel_bundles``: there is one channel block, and pixels are requantised four at a time
    (:mod:`narrow`).

    ``block``: the register (tile) block asked for: rows, columns, channel blocks (None: the one
    with the fewest predicted cycles).
    """

    images: int
    rows: int
    cols: int
    a_image: int
    a_row: int
    a_col: int
    loops: tuple[tuple[int, int], ...]
    run: int
    n: int
    groups: int
    a_group: int
    a_dtype: str
    out: OutType
    residual: ResidualType | None
    b_image: int = 0
    b_row: int = 0
    row_terms: bool = False
    bias_image: int = 0
    pitch: int = 0
    kept: int = 0
    interleave: int = 1
    whole_images: bool = False
    pixel_bundles: bool = False
    a_start: int = 0
    block: tuple[int, int, int] | None = None

    @property
    def integer(self) -> bool:
        """Whether the operands are codes."""
        return self.a_dtype not in FLOATS

    @property
    def runs(self) -> int:
        """Runs in one reduction."""
        return prod(count for count, _ in self.loops)

    @property
    def pixels(self) -> int:
        """Output pixels of all images."""
        return self.images * self.rows * self.cols

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer."""
        return self.pixels * self.groups * self.n * self.runs * self.run


_REAL = ("fma", "sve_fmla")
"""Units of float32."""


@dataclass(frozen=True)
class Unit:
    """How the inner product is computed.

    ``kind``: fma | madd | pairs | vnni | amx, on ARM half | mlal | smull | sdot | usdot | mmla |
    sve_usmmla | sve_fmla; ``lanes``: channels of a block; ``k``: elements of a run that one step
    takes; ``registers``: vector registers the block may fill. ``short``: the operands are ``bf16``,
    multiplied by vdpbf16ps (vnni), tdpbf16ps (amx), or, widened, by fma, or ``f16``, widened or
    multiplied as they are (half: :mod:`arm_half`). ``sums``: steps (pairs) or multiplications
    (mlal) whose products are summed in 16 bits, ``extra``: there are extra steps (:mod:`pairs`).
    ``elements``: numbers of a pixel's run that one register holds, by which fma multiplies in turn
    (:mod:`by_element`; 1: each is loaded into all lanes). ``unroll``: steps that are written out.
    """

    kind: str
    lanes: int
    k: int
    registers: int
    fused: bool = True
    short: str = ""
    sums: int = 0
    extra: bool = False
    elements: int = 1
    unroll: int = UNROLL

    @property
    def bf16(self) -> bool:
        """Whether the operands are bfloat16."""
        return self.short == "bf16"

    @property
    def accumulator(self) -> str:
        """Dtype of the sums."""
        return "float32" if self.kind in _REAL or self.short else "int32"

    @property
    def packed(self) -> str:
        """Dtype of packed weights."""
        if self.short:
            return NUMPY[self.short]
        return "float32" if self.kind in _REAL else "int8"

    def reads(self, in_dtype: str) -> str:
        """Dtype that activations of ``in_dtype`` must have in memory."""
        if self.kind == "madd":
            return "i16"
        in_place = self.short == "f16" and self.elements > 1  # fcvtl widens several at once
        return "f32" if self.short and self.kind == "fma" and not in_place else in_dtype

    @property
    def code_offset(self) -> int:
        """What is taken off codes before they are multiplied: ARM's multiplications are signed."""
        return 128 if self.kind in ("mlal", "sdot", "smull") else 0

    @property
    def spare(self) -> int:
        """Registers beyond accumulators and channel vectors: the broadcast, and a product.

        An fp32 loop is written out, and LLVM schedules loads ahead: with 32 registers it gets room
        for two, as it would keep accumulators in memory otherwise.
        """
        if self.elements > 1:
            return 1 + bool(self.short) if self.fused else 4
        if self.kind == "fma" and self.registers > 16:
            return 3
        if self.kind == "pairs":
            return 5  # the ones, and codes and products of several steps that LLVM interleaves
        return 2 if self.kind == "madd" or not self.fused else 1


HALF_TERMS = 16
"""Products that are summed in half precision before they are added to sums in float32."""

ARM_STEPS = {"mlal": 16, "sdot": 4, "usdot": 4, "mmla": 8}
"""Codes of a run that a step of ARM's units takes."""


def unit_for(isa: Isa, a_dtype: str, *, amx: bool = True, run: int = 0, pixels: int = 0) -> Unit:
    """The inner-product unit of ``isa`` for activations of this dtype and runs of this length.

    ``run``: 0 if the step is not to be fitted to it. ``pixels``: output pixels of all images, 0 if
    it is not known that there are few.
    """
    if isa.dot == "sve" and a_dtype not in SHORT_FLOATS:
        kind, k = ("sve_fmla", 1) if a_dtype == "f32" else ("sve_usmmla", 8)
        return Unit(kind, isa.lanes, k, isa.registers)
    isa = isa.vectors if isa.dot == "sve" and isa.vectors else isa
    if a_dtype == "f16" and isa.float16 == "multiply":
        lanes = 2 * isa.lanes
        return Unit("half", lanes, 1, isa.registers, short="f16", elements=lanes)
    if a_dtype in ("f32", "f16"):
        return fma_unit(isa, short="f16" if a_dtype == "f16" else "")
    if a_dtype == "bf16":
        if isa.bfloat16 == "amx" and amx and run % 2 == 0:
            return Unit("amx", TILE, bf16_step(run), isa.registers, short="bf16")
        if isa.bfloat16 == "widen" or run % 2:
            return fma_unit(isa, short="bf16")
        return Unit("vnni", isa.lanes, 2, isa.registers, short="bf16")
    if isa.dot == "madd":
        return Unit("madd", isa.lanes, 2, isa.registers)
    if isa.dot in ARM_STEPS:
        kind = "usdot" if isa.dot == "mmla" and pixels == 1 else isa.dot
        sums = 1 if kind == "mlal" else 0  # more where the weights are known to allow it
        return Unit(kind, isa.lanes, ARM_STEPS[kind], isa.registers, sums=sums)
    if isa.dot == "amx" and amx:
        return Unit("amx", TILE, code_step(run) if run else 64, isa.registers)
    return Unit("vnni", isa.lanes, 4, isa.registers)


def fma_unit(isa: Isa, *, short: str = "") -> Unit:
    """The unit for float32; 32-bit ARM multiplies by an element or fuses, but not both.

    Its loads into all lanes take no offset, and more than one step has more addresses than it has
    registers for.
    """
    by_element = isa.arch == "aarch64" or (isa.arch == "armv7" and not isa.fma)
    return Unit(
        "fma",
        isa.lanes,
        1,
        isa.registers,
        isa.fma,
        short,
        elements=isa.lanes if by_element else 1,
        unroll=1 if isa.arch == "armv7" and isa.fma else UNROLL,
    )


def word_unit(unit: Unit) -> Unit:
    """``unit`` for kernels whose steps are words anywhere in memory: four codes or one number."""
    if unit.kind in ARM_STEPS:
        kind = {"mlal": "smull", "mmla": "usdot"}.get(unit.kind, unit.kind)
        return replace(unit, kind=kind, k=4, sums=0)
    return replace(unit, elements=1, unroll=UNROLL) if unit.elements > 1 else unit


def pair_unit(isa: Isa, sums: int, extra: bool) -> Unit:
    """Products by vpmaddubsw, ``sums`` steps summed in 16 bits."""
    return Unit("pairs", isa.lanes, 4, isa.registers, sums=sums, extra=extra)


def code_step(run: int) -> int:
    """Codes of a run that a tile takes at a time: the run in equal steps of at most 64.

    A row that a tile load reads beyond a cache line's end takes as long as five that stay within.
    """
    steps = ceil(run / 64)
    return ceil(ceil(run / steps) / 4) * 4


def bf16_step(run: int) -> int:
    """Elements of a run that a tile takes at a time: the largest even divisor of up to 32.

    Whole steps only: what lies past the end of a run could be a NaN, and 0 * NaN is no 0.
    """
    return max((k for k in range(2, 33, 2) if run % k == 0), default=2)


@dataclass(frozen=True)
class Cut:
    """An axis cut into ``first[0]`` pieces of ``first[1]`` and then ``rest[0]`` of ``rest[1]``."""

    first: tuple[int, int]
    rest: tuple[int, int] = (0, 0)

    @property
    def count(self) -> int:
        """Number of pieces."""
        return self.first[0] + self.rest[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The distinct sizes, first one first."""
        return (self.first[1], self.rest[1]) if self.rest[0] else (self.first[1],)


def even_cut(length: int, limit: int) -> Cut:
    """``length`` in the fewest pieces of at most ``limit``; sizes differ by at most 1."""
    pieces = ceil(length / limit)
    small, large_count = divmod(length, pieces)
    if large_count == 0:
        return Cut((pieces, small))
    return Cut((large_count, small + 1), (pieces - large_count, small))


def tail_cut(length: int, size: int) -> Cut:
    """``length`` in pieces of ``size`` and one shorter piece for what is left."""
    size = min(size, length)
    full, left = divmod(length, size)
    return Cut((full, size), (1, left) if left else (0, 0))


@dataclass(frozen=True)
class Blocking:
    """Rows, columns and channel blocks cut into register (tile) blocks, and blocks into items.

    A work item is ``bands`` bands of rows, ``strips`` strips of columns, ``blocks`` groups of
    channel blocks. ``m_major``: consecutive items share their pixels, not their channels.
    """

    rows: Cut
    cols: Cut
    channels: Cut
    strips: int
    blocks: int
    m_major: bool
    bands: int = 1

    def item_counts(self, gemm: Gemm) -> tuple[int, int]:
        """Work items along pixels and along channels."""
        along_m = gemm.images * ceil(self.rows.count / self.bands)
        along_m *= ceil(self.cols.count / self.strips)
        return along_m, ceil(self.channels.count / self.blocks) * gemm.groups

    def items(self, gemm: Gemm) -> int:
        """Work items of the layer."""
        return prod(self.item_counts(gemm))


def bundles(blocks: int, interleave: int) -> list[int]:
    """Sizes of the bundles of interleaved blocks that ``blocks`` channel blocks are cut into."""
    sizes = []
    while blocks:
        while interleave > blocks:
            interleave //= 2
        sizes.append(interleave)
        blocks -= interleave
    return sizes


def channel_order(blocks: int, lanes: int, interleave: int) -> np.ndarray:
    """The channel of each lane of a group's channel blocks.

    In a bundle of b blocks, lane i of block j holds channel ``b * i + j`` of the bundle.
    """
    order, at = np.arange(blocks * lanes), 0
    for size in bundles(blocks, interleave):
        end = at + size * lanes
        order[at:end] = order[at:end].reshape(lanes, size).T.reshape(-1)
        at = end
    return order


def pack_weights(weights: np.ndarray, unit: Unit, *, interleave: int = 1) -> np.ndarray:
    """Packs ``[groups, n, runs, run]`` into ``[groups, blocks, runs, steps, lanes, k]``.

    Channels are filled up to whole blocks and runs to whole steps, with zeros. AMX has the layout
    of VNNI (``k = 4``) with the run filled up to 64.
    """
    groups, n, runs, run = weights.shape
    blocks, length = ceil(n / unit.lanes), ceil(run / unit.k) * unit.k
    inner = unit.k if unit.kind != "amx" else 2 if unit.bf16 else 4
    full = np.zeros((groups, blocks * unit.lanes, runs, length), weights.dtype)
    full[:, :n, :, :run] = weights
    full = full[:, channel_order(blocks, unit.lanes, interleave)]
    split = full.reshape(groups, blocks, unit.lanes, runs, length // inner, inner)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 4, 2, 5))


def pad_channels(values: np.ndarray, groups: int, lanes: int, *, interleave: int = 1) -> np.ndarray:
    """Per-channel numbers ``[groups * n]``, each group filled up to whole blocks, in lane order."""
    n = values.size // groups
    blocks = ceil(n / lanes)
    full = np.zeros((groups, blocks * lanes), values.dtype)
    full[:, :n] = values.reshape(groups, n)
    return full[:, channel_order(blocks, lanes, interleave)].reshape(-1)
