"""One streaming statistic per tensor, from which every quantisation range comes.

Fixed memory whatever the amount of data: an exact minimum and maximum, an exponential moving
average of both, the number of exact zeros, and a histogram of everything else whose bins are
aligned to a power of two. When the data outgrow the histogram, neighbouring bins are merged in
pairs (the bin width doubles), so no earlier batch is ever looked at again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dlcc.errors import DlccError, ExitCode
from dlcc.ir.encodings import Array

BINS = 2048
"""Bins of a histogram. At least half of them cover the observed range."""

MOMENTUM = 0.9
"""Weight of the past in the moving average of minimum and maximum (Jacob et al. 2018, 3.1)."""

SLAB = 1 << 16
"""Numbers that are put into bins at a time, so that what is made on the way stays in the cache."""

_FINEST = -110
"""Smallest exponent of a bin width; float32 numbers scaled by its inverse do not overflow."""

Range = tuple[float, float]
"""Smallest and largest real number to be represented; always holds 0."""


Function = Callable[[Array], Array]
"""Of numbers, one by one."""


@dataclass
class TensorStatistic:
    """Streaming statistic of one tensor.

    Attributes:
        name: of the tensor, for messages.
        count: elements seen, zeros included.
        zeros: elements that were exactly 0 (not in the histogram).
        minimum: exact, over all elements.
        maximum: exact, over all elements.
        average: exponential moving average of each batch's (minimum, maximum).
        exponent: the bins are 2^exponent wide.
        first: index of the first bin: it covers [first, first + 1) * 2^exponent.
        histogram: int64 [BINS].
    """

    name: str = ""
    count: int = 0
    zeros: int = 0
    total: float = 0.0
    squares: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf
    average: Range | None = None
    exponent: int = _FINEST
    first: int = 0
    histogram: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def update(self, values: Array) -> None:
        """Take in one batch.

        Raises:
            DlccError: it holds NaN or infinities.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DlccError(
                ExitCode.DATA,
                "the activations hold NaN or infinite numbers",
                where=self.name,
                why=f"smallest {low}, largest {high}; no range holds them",
                fix="check the calibration data and that the network's outputs are finite on them",
            )
        self.count += values.size
        flat = values.reshape(-1)
        self.total += float(flat.sum(dtype=np.float64))
        self.squares += float(np.square(flat, dtype=np.float64).sum())
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        old = self.average
        keep = MOMENTUM
        self.average = (
            (low, high)
            if old is None
            else (keep * old[0] + (1 - keep) * low, keep * old[1] + (1 - keep) * high)
        )
        self._widen(low, high)
        for start in range(0, flat.size, SLAB):
            slab = flat[start : start + SLAB]
            nonzero = slab[slab != 0]
            self.zeros += slab.size - nonzero.size
            self._add(nonzero)

    def _index(self, value: float) -> int:
        return math.floor(math.ldexp(value, -self.exponent))

    def _widen(self, low: float, high: float) -> None:
        """Merge bins until [low, high], 0 and all earlier data fit into BINS of them."""
        low, high = min(low, 0.0, self.minimum), max(high, 0.0, self.maximum)
        if low == high:
            return
        if not self.histogram.any():
            span = max(high, -low)
            self.exponent = max(_FINEST, math.frexp(span)[1] - int(math.log2(BINS)))
            self.first = 0
        while self._index(high) - self._index(low) >= BINS:
            self._merge_pairs()
        start = self._index(low)
        if start != self.first:
            moved = np.zeros_like(self.histogram)
            filled = np.flatnonzero(self.histogram)
            moved[filled + (self.first - start)] = self.histogram[filled]
            self.histogram, self.first = moved, start

    def _merge_pairs(self) -> None:
        merged = np.zeros_like(self.histogram)
        filled = np.flatnonzero(self.histogram)
        first = self.first >> 1
        np.add.at(merged, ((filled + self.first) >> 1) - first, self.histogram[filled])
        self.histogram, self.first = merged, first
        self.exponent += 1

    def _add(self, values: Array) -> None:
        if not values.size:
            return
        step = np.ldexp(1.0, -self.exponent)
        scaled = np.floor(values * (step if values.dtype == np.float64 else np.float32(step)))
        index = np.clip(scaled.astype(np.int64) - self.first, 0, BINS - 1)
        self.histogram += np.bincount(index, minlength=BINS)

    # -- reading -------------------------------------------------------------------------------

    @property
    def mean(self) -> float:
        """Mean of all elements."""
        return self.total / max(1, self.count)

    @property
    def deviation(self) -> float:
        """Standard deviation of all elements."""
        return math.sqrt(max(0.0, self.squares / max(1, self.count) - self.mean**2))

    @property
    def width(self) -> float:
        """Width of one bin."""
        return math.ldexp(1.0, self.exponent)

    def distribution(self) -> tuple[Array, Array]:
        """Centres (float64) and counts of the filled bins; exact zeros are one more point."""
        filled = np.flatnonzero(self.histogram)
        centres = (filled + self.first + 0.5) * self.width
        centres = np.clip(centres, self.minimum, self.maximum)
        counts = self.histogram[filled].astype(np.float64)
        if self.zeros:
            centres, counts = np.append(centres, 0.0), np.append(counts, float(self.zeros))
        return centres, counts

    def with_zero(self) -> Range:
        """Exact minimum and maximum, widened to hold 0."""
        if not self.count:
            return 0.0, 0.0
        return min(self.minimum, 0.0), max(self.maximum, 0.0)

    def moving_average_range(self) -> Range:
        """Moving average of each batch's minimum and maximum, widened to hold 0."""
        low, high = self.average or (0.0, 0.0)
        return min(low, 0.0), max(high, 0.0)

    def percentile_range(self, percentile: float) -> Range:
        """The range that leaves (100 - percentile) % of all elements outside, half on each side.

        Exact to one bin; a one-sided tensor loses from its only side.
        """
        low, high = self.with_zero()
        centres, counts = self.distribution()
        if not counts.size:
            return low, high
        order = np.argsort(centres)
        centres, cumulated = centres[order], np.cumsum(counts[order])
        outside = (1.0 - percentile / 100.0) * self.count
        if low < 0.0 < high:
            outside /= 2
        half = self.width / 2
        at = int(np.searchsorted(cumulated, self.count - outside))
        top = centres[min(at, centres.size - 1)] + half
        bottom = centres[np.searchsorted(cumulated, outside, side="right")] - half
        return max(low, min(float(bottom), 0.0)), min(high, max(float(top), 0.0))

    def error_range(
        self, levels: int, power: float = 2.0, steps: int = 24, through: Function | None = None
    ) -> Range:
        """The range with the least mean |error|^power of a uniform quantiser with ``levels`` codes.

        Rounding and clipping errors both count (Banner et al. 2019, section 3). Both ends are
        searched in steps from 1/4 of the exact range to all of it.

        Args:
            levels: codes.
            power: of the error.
            steps: of each end.
            through: the only thing that is made of the numbers: errors are those of its results,
                and as it may be flat over much of the range, ends are searched from 1/24 on.
        """
        low, high = self.with_zero()
        centres, counts = self.distribution()
        if low == high or not counts.size:
            return low, high
        best, found = math.inf, (low, high)
        fractions = np.linspace(0.25, 1.0, steps)
        wanted = centres
        if through is not None:
            fractions, wanted = np.arange(1, steps + 1) / steps, through(centres)
        for bottom in fractions * low if low < 0 else (0.0,):
            tops = fractions * high if high > 0 else np.zeros(1)
            errors = [
                _quantiser_error(
                    (centres, counts, wanted), (float(bottom), float(top)), levels, power, through
                )
                for top in tops
            ]
            at = int(np.argmin(errors))
            if errors[at] <= best:
                best, found = errors[at], (float(bottom), float(tops[at]))
        return found

    def entropy_range(self, levels: int, steps: int = 64) -> Range:
        """The range with the least KL divergence of the quantised from the clipped distribution.

        As Migacz 2017 (8-bit inference with TensorRT), first for the upper, then for the lower end;
        exact zeros take no part, so that a ReLU does not drown the rest.
        """
        low, high = self.with_zero()
        if low == high or np.count_nonzero(self.histogram) <= levels:
            return low, high
        fractions = np.linspace(0.05, 1.0, steps)
        tops = [(low, float(f * high)) for f in fractions] if high > 0 else [(low, high)]
        _, high = self._least_divergent(tops, levels)
        bottoms = [(float(f * low), high) for f in fractions] if low < 0 else [(low, high)]
        return self._least_divergent(bottoms, levels)

    def _least_divergent(self, ends: list[Range], levels: int) -> Range:
        divergences = []
        for bottom, top in ends:
            start, stop = self._index(bottom) - self.first, self._index(top) - self.first + 1
            divergences.append(_divergence(self.histogram, start, min(stop, BINS), levels))
        if not np.isfinite(divergences).any():
            return ends[-1]
        return ends[int(np.argmin(divergences))]


def _quantiser_error(
    points: tuple[Array, Array, Array],
    ends: Range,
    levels: int,
    power: float,
    through: Function | None,
) -> float:
    """Of points, their counts, and what is wanted of each."""
    centres, counts, wanted = points
    low, high = ends
    if high <= low:
        return math.inf
    scale = (high - low) / (levels - 1)
    zero = round(-low / scale)
    codes = np.clip(np.rint(centres / scale) + zero, 0, levels - 1)
    if through is None:
        made = (codes - zero) * scale
    else:
        made = through((np.arange(levels) - zero) * scale)[codes.astype(np.intp)]
        made = np.clip(made, wanted.min(), wanted.max())
    error = np.abs(made - wanted) ** power
    return float((error * counts).sum())


def _divergence(histogram: Array, start: int, stop: int, levels: int) -> float:
    """KL divergence between bins [start, stop), outliers at the ends, and ``levels`` steps."""
    if stop - start < levels:
        return math.inf
    inside = histogram[start:stop].astype(np.float64)
    clipped = inside.copy()
    clipped[0] += histogram[:start].sum()
    clipped[-1] += histogram[stop:].sum()
    group = np.minimum(np.arange(inside.size) * levels // inside.size, levels - 1)
    sums = np.bincount(group, weights=inside, minlength=levels)
    filled = np.bincount(group, weights=(inside > 0).astype(np.float64), minlength=levels)
    spread = np.where(inside > 0, (sums / np.maximum(filled, 1))[group], 0.0)
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1e-300)
    floor = 1e-9
    keep = p > 0
    return float((p[keep] * np.log(p[keep] / np.maximum(q[keep], floor))).sum())
