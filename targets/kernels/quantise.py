"""Quantisation of float tensors at memory speed, and the way back.

``code = clamp(rint(x / scale) + zero_point)`` with IEEE division (numbers contract). A division
costs as much as ten other instructions, so the quotient is computed as ``fma(x, high, x * low)``
with ``high + low`` the reciprocal to 48 bits. That may differ from the rounded quotient by its last
bit and only next to a midpoint of two floats; a code changes only where the quotient passes some
k + 1/2. :func:`reciprocal` checks for one scale that all floats around these 256 places fall on the
same side both ways; where one does not, or without fused multiply-add, the kernel divides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from dlcc import tir
from targets.isa import Isa
from targets.kernels.skeleton import divide

WIDE, NARROW = 64, 16
"""Elements that one step makes: with AVX-512's packs, and elsewhere."""


@dataclass(frozen=True)
class Quantise:
    """What determines the code: ``x`` is ``images`` times ``channels`` planes of ``pixels`` f32.

    The output has the channels of a pixel side by side. One channel: any tensor in memory order.
    ``divide``: the quotient by division. A work item is ``item`` pixels (a multiple of 64).
    """

    images: int
    channels: int
    pixels: int
    divide: bool
    item: int

    @property
    def chunks(self) -> int:
        """Work items of an image."""
        return -(-self.pixels // self.item)


@lru_cache(maxsize=256)
def reciprocal(scale: float, low: int, high: int) -> tuple[float, float] | None:
    """``1 / scale`` as two floats that give the exact codes for quotients in [low, high].

    None where a code would differ from the rounded quotient's.
    """
    s = np.float32(scale)
    with np.errstate(all="ignore"):
        first = np.float32(1.0 / np.float64(s))
        second = np.float32(1.0 / np.float64(s) - np.float64(first))
    if not (np.isfinite(first) and np.float32(2.0**-100) < s < np.float32(2.0**100)):
        return None
    halves = np.arange(low - 1, high + 1).astype(np.float32) + np.float32(0.5)
    centre = (halves.astype(np.float64) * np.float64(s)).astype(np.float32)
    # A number rounds to a half if it is none beyond the midpoints next to it: a half's last
    # mantissa bit is 0. float64 holds the midpoints, and products of two float32 or of a midpoint
    # and a float32, exactly; so are differences of numbers this near (Sterbenz 1974).
    below, above = (_midpoints(halves, sign) for sign in (-1, 1))
    for step in range(-4, 5):
        x = (centre.view(np.int32) + step).view(np.float32)
        small = (x * second).astype(np.float64)
        product = x.astype(np.float64) * np.float64(first)
        over = x > above * np.float64(s)
        under = x < below * np.float64(s)
        if ((product - above > -small) != over).any() or (
            (product - below < -small) != under
        ).any():
            return None
    return float(first), float(second)


def _midpoints(halves: np.ndarray, sign: int) -> np.ndarray:
    """The float64 midway between each float32 and its neighbour above (1) or below (-1)."""
    neighbours = np.nextafter(halves, np.float32(sign * np.inf))
    middle: np.ndarray = (halves.astype(np.float64) + neighbours.astype(np.float64)) / 2
    return middle


def parameters(scale: float, zero_point: int, low: int, high: int) -> np.ndarray:
    """The ``terms`` constant: scale, reciprocal (two parts), bounds of x, zero point; f32.

    The bounds are the reals of the codes ``low`` and ``high``; what is beyond gets these codes.
    """
    s = np.float32(scale)
    first, second = reciprocal(scale, low - zero_point, high - zero_point) or (0.0, 0.0)
    least, most = ((code - zero_point) * np.float64(s) for code in (low, high))
    return np.array([s, first, second, least, most, zero_point], np.float32)


def quantise_function(name: str, spec: Quantise, isa: Isa) -> Any:
    """The kernel: parameters x, terms, y. Needs ``pixels >= step_of(spec, isa)``."""
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", "float32", align=4)
    terms = kb.pointer("terms", "float32")
    y = kb.pointer("y", "uint8", align=1)
    step, c, pixels = step_of(spec, isa), spec.channels, spec.pixels
    emit = _Codes(kb, terms, isa, spec.divide)
    with kb.loop(kb.begin, kb.end, "item") as item:
        image, chunk = divide(kb, item, spec.chunks, "chunk")
        image = image if spec.images > 1 else 0
        chunk = chunk if spec.chunks > 1 else 0
        first = kb.let(chunk * spec.item, "first")
        left = tir.tirx.min(pixels - first, _i32(spec.item))
        steps = kb.let(tir.tirx.truncdiv(left + (step - 1), step), "steps")
        with kb.loop(0, steps, "step") as i:
            at = kb.let(tir.tirx.min(first + i * step, _i32(pixels - step)), "at")
            planes = []
            for channel in range(c):
                start = kb.let((image * c + channel) * pixels + at, "plane")
                codes = emit.wide(x, start) if step == WIDE else emit.narrow(x, start)
                planes.append(kb.let(codes, "codes"))
            put = kb.let((image * pixels + at) * c, "put")
            for j, vector in enumerate(interleaved(planes, emit.order(step))):
                kb.store(y, put + j * step, vector)
    return kb.build()


def step_of(spec: Quantise, isa: Isa) -> int:
    """Pixels of a step. Interleaving whole registers needs byte permutation."""
    wide = isa.lanes == 16 and (spec.channels == 1 or isa.byte_permute)
    return WIDE if wide and spec.pixels >= WIDE else NARROW


def _i32(value: int) -> Any:
    return tir.tirx.IntImm("int32", value)


class _Codes:
    """Emits codes of consecutive floats."""

    def __init__(self, kb: tir.KernelBuilder, terms: Any, isa: Isa, by_division: bool) -> None:
        self.kb, self.lanes, self.by_division = kb, isa.lanes, by_division
        names = ("scale", "high", "low", "least", "most")
        self.terms = {name: kb.let(kb.load(terms, i), name) for i, name in enumerate(names)}
        self.zero = kb.let(kb.cast(kb.load(terms, 5), "int32"), "zero")

    def _term(self, name: str) -> Any:
        return self.kb.splat(self.terms[name], self.lanes)

    def centred(self, x: Any, start: Any) -> Any:
        """``rint(x / scale)`` of one vector as int32, within the codes' range; NaN is the least."""
        kb, lanes = self.kb, self.lanes
        value = kb.let(kb.load(x, start, lanes), "x")
        value = tir.tirx.Select(value > self._term("least"), value, self._term("least"))
        value = kb.let(value, "x")
        value = tir.tirx.Select(value < self._term("most"), value, self._term("most"))
        value = kb.let(value, "x")
        if self.by_division:
            quotient = value / self._term("scale")
        else:
            small = value * self._term("low")
            quotient = kb.pure("llvm.fma", "float32", lanes, value, self._term("high"), small)
        return kb.let(kb.lrint(quotient), "q")

    def wide(self, x: Any, start: Any) -> Any:
        """64 codes in the order of :meth:`order`."""
        kb = self.kb
        parts = [self.centred(x, start + i * self.lanes) for i in range(4)]
        zero = kb.splat(kb.cast(self.zero, "int16"), 2 * self.lanes)
        words = [
            kb.let(
                kb.pure("llvm.x86.avx512.packssdw.512", "int16", 32, *parts[i : i + 2]) + zero, "w"
            )
            for i in (0, 2)
        ]
        return kb.pure("llvm.x86.avx512.packuswb.512", "uint8", 64, *words)

    def narrow(self, x: Any, start: Any) -> Any:
        """16 codes in their own order."""
        kb = self.kb
        zero = kb.splat(self.zero, self.lanes)
        parts = [
            kb.cast(self.centred(x, start + i * self.lanes) + zero, "uint8")
            for i in range(NARROW // self.lanes)
        ]
        return parts[0] if len(parts) == 1 else tir.tirx.Shuffle(parts, _indices(range(NARROW)))

    @staticmethod
    def order(step: int) -> np.ndarray:
        """Where in a vector of codes the code of each pixel lies."""
        if step == NARROW:
            return np.arange(NARROW)
        # packs work in 128-bit lanes: lane l of the result holds four codes of each part
        place = np.arange(WIDE).reshape(4, 4, 4)  # lane, part, code
        return np.ascontiguousarray(place.transpose(1, 0, 2)).reshape(-1)


def _indices(places: Any) -> list[Any]:
    return [_i32(int(place)) for place in places]


def interleaved(planes: list[Any], order: np.ndarray) -> list[Any]:
    """Vectors of the planes' codes, channels of a pixel side by side."""
    step, c = order.size, len(planes)
    made = []
    for j in range(c):
        pixel, channel = np.divmod(np.arange(j * step, (j + 1) * step), c)
        vector, at = planes[0], np.where(channel == 0, order[pixel], 0)
        if c == 1 and (at == np.arange(step)).all():
            return planes
        for other in range(1, max(c, 2)):
            mine = channel == other
            at = np.where(mine, step + order[pixel], at)
            source = planes[other] if other < c else vector
            vector = tir.tirx.Shuffle([vector, source], _indices(at))
            at = np.arange(step)
        made.append(vector)
    return made
