"""Chooses the register (tile) blocks of an implicit GEMM, and the work items they make up."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import ceil, prod

import numpy as np

from targets.kernels import arm_blocks, by_element, sve_blocks
from targets.kernels.gemm import MIN_ITEMS, Blocking, Cut, Gemm, Unit, even_cut, tail_cut
from targets.kernels.spec import SIZE
from targets.kernels.tiles import L1_BYTES, block_grid, tile_blocks, tile_cycles

ITEM_MACS = 1 << 21
"""Multiply-accumulates that a work item aims at: 5 to 20 microseconds on one core."""

NEAR_BYTES = 256 << 10
"""Weights up to this size are left to each thread as a whole, and the pixels are shared out: a
thread then finds what it made of one layer in its own cache when it goes on with the next."""

L2_BYTES = 1 << 20
"""Packed weights up to this size are assumed to stay in the second-level cache."""


def step_cycles(unit: Unit, m: int, nr: int, steps: int) -> float:
    """Cycles of one reduction step of a block: arithmetic, loads, latency of the chains."""
    if unit.kind == "pairs":
        return _pair_cycles(unit, m, nr, steps)
    if unit.kind in arm_blocks.KINDS:
        return arm_blocks.step_cycles(unit, m, nr)
    if unit.kind in sve_blocks.KINDS:
        return sve_blocks.step_cycles(unit, m, nr)
    if unit.elements > 1:
        return by_element.step_cycles(unit, m, nr)
    factor = {"fma": 0.5 if unit.fused else 1.0, "vnni": 0.5, "madd": 1.0}[unit.kind]
    if unit.kind == "madd" and unit.lanes <= 8:
        factor = 2 / 3  # three ports add
    factor = 1.0 if unit.bf16 and unit.kind == "vnni" else factor  # one port has vdpbf16ps
    dots = unit.kind == "vnni" and not unit.bf16 and unit.lanes == 16
    latency = 5.0 if unit.kind != "fma" else 4.0
    loads = (0.68 if dots else 0.5) * (m + nr)
    widening = 0.5 * nr if unit.kind == "madd" else nr if unit.short and unit.kind == "fma" else 0.0
    weights = steps * nr * (2 if unit.short else 4) * unit.lanes
    from_l2 = (dots or unit.kind == "fma") and weights > L1_BYTES // 2
    streams = (0.2 if dots else 0.04) * nr * nr if from_l2 else 0.0
    cycles = max(factor * m * nr + widening, loads, latency)
    return cycles + (0.18 if dots else 0.1) * loads + streams


def _pair_cycles(unit: Unit, m: int, nr: int, steps: int) -> float:
    """:func:`step_cycles` of products summed in 16 bits."""
    ports = 3 if unit.lanes <= 8 else 2
    each = 2.0 if unit.sums >= steps else 2.0 + 1.0 / unit.sums
    loads = 0.5 * (m + nr)
    held = nr * unit.sums  # weights of a run that is written out
    spilling = 1.12 if held > 4 and unit.sums <= 4 and unit.registers <= 16 else 1.0
    spilling = 1.08 if ports == 2 and unit.sums < steps else spilling
    return max(spilling * each * m * nr / ports, loads, 2.0) + 0.1 * loads


def _shapes(gemm: Gemm, unit: Unit) -> list[tuple[int, int, int]]:
    """Register blocks worth looking at: (rows, columns, channel blocks)."""
    blocks = ceil(gemm.n / unit.lanes)
    if gemm.pixel_bundles and unit.kind == "vnni":
        return [(1, min(width, gemm.cols), 1) for width in (16, 20, 24, 8, 4)]
    if unit.kind == "amx":
        return tile_blocks(gemm)
    if unit.kind in arm_blocks.KINDS:
        return arm_blocks.shapes(gemm, unit)
    if unit.kind in sve_blocks.KINDS:
        return sve_blocks.shapes(gemm, unit)
    if unit.elements > 1:
        return by_element.shapes(gemm, unit)
    shapes = []
    for nr in {min(nr, blocks) for nr in (1, 2, 3, 4, 6, 8)}:
        most = (unit.registers - unit.spare - nr) // nr
        for height in range(1, min(gemm.rows, most, 7) + 1):
            if (height == 1 or gemm.cols <= most) and most // height >= 1:
                shapes.append((height, min(most // height, gemm.cols), nr))
    return shapes


@lru_cache(maxsize=4096)
def choose_blocking(gemm: Gemm, unit: Unit) -> tuple[Blocking, float]:
    """The blocking with the fewest predicted cycles, and these cycles."""
    shape = gemm.block or ranked_blocks(gemm, unit)[0]
    rows, cols, channels = _cuts(gemm, unit, shape)
    cycles = _layer_cycles(gemm, unit, (rows, cols, channels))
    strips, per_item, m_major = _items(gemm, unit, rows, cols, channels)
    bands = rows.count if gemm.whole_images else 1
    return Blocking(rows, cols, channels, strips, per_item, m_major, bands), (
        cycles * gemm.images * gemm.groups
    )


@lru_cache(maxsize=4096)
def ranked_blocks(gemm: Gemm, unit: Unit) -> tuple[tuple[int, int, int], ...]:
    """Register blocks (rows, columns, channel blocks), those with fewest predicted cycles first.

    Of blocks that cut the layer alike only the first is kept.
    """
    ranked: dict[tuple[Cut, Cut, Cut], tuple[float, tuple[int, int, int]]] = {}
    for shape in _shapes(gemm, unit):
        cuts = _cuts(gemm, unit, shape)
        ranked.setdefault(cuts, (_layer_cycles(gemm, unit, cuts), shape))
    return tuple(shape for _, shape in sorted(ranked.values(), key=lambda entry: entry[0]))


def _cuts(gemm: Gemm, unit: Unit, shape: tuple[int, int, int]) -> tuple[Cut, Cut, Cut]:
    """Rows, columns and channel blocks cut into register blocks of at most ``shape``."""
    height, width, nr = shape
    channels = tail_cut(ceil(gemm.n / unit.lanes), nr)
    if unit.kind == "amx":  # all blocks of one size, in one sequence over the image
        count = ceil(gemm.rows / height) * ceil(gemm.cols / width)
        return Cut((1, height)), Cut((count, width)), channels
    return tail_cut(gemm.rows, height), even_cut(gemm.cols, width), channels


def finish_cycles(gemm: Gemm, unit: Unit, pixels: int, channel_blocks: int) -> float:
    """Cycles of a block's start and epilogue."""
    if unit.kind in arm_blocks.KINDS:
        return arm_blocks.finish_cycles(unit, pixels, channel_blocks)
    if unit.kind in sve_blocks.KINDS:
        return sve_blocks.finish_cycles(pixels, channel_blocks)
    if gemm.pixel_bundles:
        return 10.0 + 3 * pixels
    if unit.kind in ("fma", "half"):  # written out, from registers
        each = 2.5 if unit.kind == "fma" else 5.0
        return 30 + (each * channel_blocks + 6) * pixels
    bundled = unit.lanes == 16 and gemm.integer and channel_blocks % 4 == 0
    if unit.kind == "vnni" and not unit.bf16:
        each = 3.0 if bundled else 4.0 if unit.lanes == 16 and channel_blocks % 2 == 0 else 5.5
        return 30.0 + each * pixels * channel_blocks
    return 30.0 + (5 if bundled else 6) * pixels * channel_blocks


def _layer_cycles(gemm: Gemm, unit: Unit, cuts: tuple[Cut, Cut, Cut]) -> float:
    """Predicted cycles of one group of one image."""
    if unit.kind == "amx":
        return tile_cycles(gemm, unit, *(cut.first[1] for cut in cuts))
    steps = gemm.runs * ceil(gemm.run / unit.k)
    cycles = 0.0
    for (rc, rs), (cc, cs), (nc, ns) in product(*((cut.first, cut.rest) for cut in cuts)):
        if rc * cc * nc:
            step = step_cycles(unit, rs * cs, ns, steps)
            cycles += rc * cc * nc * (steps * step + finish_cycles(gemm, unit, rs * cs, ns))
    variants = prod(len(cut.sizes) for cut in cuts)
    return cycles * (1.0 + 0.01 * variants)  # code size; also settles ties


def _items(gemm: Gemm, unit: Unit, rows: Cut, cols: Cut, channels: Cut) -> tuple[int, int, bool]:
    """Strips and channel groups of a work item, and the order of items."""
    if gemm.whole_images:
        return cols.count, 1 if unit.kind == "amx" else channels.count, unit.kind != "amx"
    target = max(1, min(ITEM_MACS, gemm.macs // MIN_ITEMS))
    per_block = (
        rows.first[1] * cols.first[1] * channels.first[1] * unit.lanes * gemm.runs * gemm.run
    )
    wanted = max(1, round(target / per_block))
    if unit.kind == "amx":
        return min(cols.count, wanted), 1, False
    strips = cols.count if gemm.rows > 1 else min(cols.count, max(1, wanted // channels.count, 4))
    strips = min(strips, max(1, wanted))
    blocks = min(channels.count, max(1, round(wanted / strips)))
    packed = gemm.runs * gemm.run * gemm.n * gemm.groups * np.dtype(unit.packed).itemsize
    m_major = packed <= L2_BYTES
    if unit.kind in ("fma", "half", "vnni"):  # of large operands the larger one is read once
        pixels = gemm.images * max(gemm.a_image, gemm.rows * gemm.a_row, gemm.cols * gemm.a_col)
        m_major = m_major and packed <= max(NEAR_BYTES, pixels * SIZE[gemm.a_dtype])
        blocks = blocks if m_major else 1
    return strips, blocks, m_major


def item_spans(gemm: Gemm, unit: Unit, blocking: Blocking) -> tuple[np.ndarray, np.ndarray]:
    """What each work item reads of A and which output pixels it makes.

    Returns:
        ``[items, 2]`` elements of A and ``[items, 2]`` output pixels: first and end.
    """
    along_m, along_n = blocking.item_counts(gemm)
    items = np.arange(along_m * along_n)
    by_m, by_n = np.divmod(items, along_n), np.divmod(items, along_m)
    m, n = by_m if blocking.m_major else by_n[::-1]
    images, group = m // (along_m // gemm.images), n // (along_n // gemm.groups)
    spans = _tile_spans if unit.kind == "amx" else _register_spans
    (top, left), (bottom, right), first, end = spans(gemm, blocking, m % (along_m // gemm.images))
    origin = gemm.a_start + images * gemm.a_image + group * gemm.a_group
    reach = sum((count - 1) * distance for count, distance in gemm.loops) + gemm.run
    reads = origin + top * gemm.a_row + left * gemm.a_col
    last = origin + bottom * gemm.a_row + right * gemm.a_col + reach
    rows = gemm.rows
    if gemm.pitch:
        rows = ceil(gemm.cols / gemm.pitch)
        first, end = (
            at // gemm.pitch * gemm.kept + np.minimum(at % gemm.pitch, gemm.kept)
            for at in (first, end)
        )
    before = images * rows * (gemm.kept if gemm.pitch else gemm.cols)
    return np.stack([reads, last], 1), np.stack([before + first, before + end], 1)


_Pixel = tuple[np.ndarray, np.ndarray]
"""Row and column."""

_Spans = tuple[_Pixel, _Pixel, np.ndarray, np.ndarray]
"""First and last pixel of the rectangle read; first and end of the pixels made, in row order."""


def _register_spans(gemm: Gemm, blocking: Blocking, part: np.ndarray) -> _Spans:
    """The pixels of part ``part`` of an image: a band of rows by some strips of columns."""
    chunk_starts, chunk_ends = _edges(blocking.cols, blocking.strips)
    band_starts, band_ends = _edges(blocking.rows, blocking.bands)
    band, chunk = np.divmod(part, len(chunk_starts))
    top, bottom = band_starts[band], band_ends[band] - 1
    left, right = chunk_starts[chunk], chunk_ends[chunk] - 1
    first, end = top * gemm.cols + left, bottom * gemm.cols + right + 1
    return (top, left), (bottom, right), first, end


def _edges(cut: Cut, pieces: int) -> tuple[np.ndarray, np.ndarray]:
    """First element and end of each item along an axis that takes ``pieces`` pieces at a time."""
    sizes = [cut.first[1]] * cut.first[0] + [cut.rest[1]] * cut.rest[0]
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    starts = np.arange(0, cut.count, pieces)
    return ends[starts], ends[np.minimum(starts + pieces, cut.count)]


def _tile_spans(gemm: Gemm, blocking: Blocking, part: np.ndarray) -> _Spans:
    """The pixels of part ``part`` of an image: some blocks in sequence, the last ones set back."""
    height, width = blocking.rows.first[1], blocking.cols.first[1]
    _, across = block_grid(gemm, blocking)
    start = part * blocking.strips
    stop = np.minimum(start + blocking.strips, blocking.cols.count) - 1
    (band, strip), (last_band, last_strip) = np.divmod(start, across), np.divmod(stop, across)
    bottom = np.minimum((last_band + 1) * height, gemm.rows) - 1
    right = np.minimum((last_strip + 1) * width, gemm.cols) - 1
    first, end = band * height * gemm.cols + strip * width, bottom * gemm.cols + right + 1
    one_band = band == last_band
    top = np.minimum(band * height, gemm.rows - height)
    left = np.where(one_band, np.minimum(strip * width, gemm.cols - width), 0)
    return (top, left), (bottom, np.where(one_band, right, gemm.cols - 1)), first, end
