"""Default TIR of grid_sample: positions once for every pixel, then vectors of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlcc.ir import Node
from dlcc.tir import expr
from dlcc.tir.access import Reader, TirContext, element
from dlcc.tir.rounding import separate
from dlcc.tir.staging import kept

Expr = Any


@dataclass(frozen=True)
class _Tap:
    """One tap along one axis, by the indices of a pixel."""

    place: Reader
    weight: Reader | None
    inside: Reader | None


def emit(
    node: Node,
    ctx: TirContext,
    mode: str,
    padding: str,
    coordinates: str,
    limits: Sequence[tuple[float, float]],
) -> None:
    """Declare the output; ``limits``: between which positions each axis reflects."""
    x, sizes = ctx.read(0), node.input(0).type.shape[1:-1]
    axes = [
        _Axis(node, ctx, a, size, limits[a]).taps(mode, padding, coordinates)
        for a, size in enumerate(sizes)
    ]
    zero = expr.const(0, element(node.input(0).type))

    def along(axis: int, chosen: tuple[_Tap, ...], pixel: Sequence[Expr], channel: Expr) -> Expr:
        if axis == len(axes):
            value = x(pixel[0], *(tap.place(*pixel) for tap in chosen), channel)
            inside = [tap.inside(*pixel) > 0 for tap in chosen if tap.inside is not None]
            return expr.select(expr.both(*inside), value, zero) if inside else value
        total = None
        for tap in axes[axis]:
            term = along(axis + 1, (*chosen, tap), pixel, channel)
            if tap.weight is not None:
                term = separate(term * tap.weight(*pixel))
            total = term if total is None else total + term
        return total

    ctx.output(0, lambda *i: along(0, (), i[:-1], i[-1]))


class _Axis:
    """Positions along one axis, stored once for every pixel of a work item's row."""

    def __init__(
        self, node: Node, ctx: TirContext, axis: int, size: int, limits: tuple[float, float]
    ) -> None:
        self.grid, self.axis, self.size, self.limits = ctx.read(1), axis, size, limits
        self.pixels = node.output.type.shape[:-1]
        self.rank = node.input(1).type.shape[-1]
        self.dtype = element(node.input(1).type)

    def _const(self, value: float) -> Expr:
        return expr.const(value, self.dtype)

    def _position(self, pixel: Sequence[Expr], coordinates: str) -> Expr:
        if coordinates == "pixels":
            return self.grid(*pixel, self.axis)
        at = self.grid(*pixel, self.rank - 1 - self.axis) + self._const(1)
        if coordinates == "corners":
            return separate(at * self._const((self.size - 1) / 2))
        return separate(at * self._const(self.size / 2)) - self._const(0.5)

    def _reflected(self, at: Expr) -> Expr:
        low, high = (self._const(v) for v in self.limits)
        span = self.limits[1] - self.limits[0]
        if span <= 0:
            return low
        below = low - at
        over = expr.larger(below, at - high)
        turns = expr.floor(over / self._const(span))
        rest = over - separate(turns * self._const(span))
        odd = turns - expr.floor(turns * self._const(0.5)) * self._const(2)
        even = odd < self._const(0.5)
        near_low = expr.either(
            expr.both(below > 0, even), expr.both(below <= 0, odd >= self._const(0.5))
        )
        inside = expr.select(near_low, low + rest, high - rest)
        return expr.select(over > 0, inside, at)

    def taps(self, mode: str, padding: str, coordinates: str) -> list[_Tap]:
        """The taps along this axis."""
        from dlcc.ops.grid_sample import FAR

        def raw(*pixel: Expr) -> Expr:
            at = self._position(pixel, coordinates)
            return expr.rint(at) if mode == "nearest" else at

        name = f"axis{self.axis}"
        given = kept(self.pixels, raw, f"{name}_given")

        def clipped(*pixel: Expr) -> Expr:
            """The position, brought inside as the padding says; NaN far outside."""
            at = given(*pixel)
            if padding == "border":
                beyond = expr.either(
                    at < self._const(self.limits[0]), at > self._const(self.limits[1])
                )
                at = expr.select(beyond, expr.clamp(at, 0, self.size - 1), at)
            elif padding == "reflection":
                at = self._reflected(at)
            at = expr.select(at > self._const(-FAR), at, self._const(-FAR))
            far = self._const(self.size + FAR)
            return expr.select(at < far, at, far)

        at = kept(self.pixels, clipped, name)
        count, first = {"nearest": (1, 0), "linear": (2, 0), "cubic": (4, -1)}[mode]
        made = []
        for k in range(count):
            index = self._index(at, first + k, padding)
            weight = None
            if count > 1:
                offset = self._offset(at)
                term = _weight(mode, k, offset, self._const)
                weight = kept(self.pixels, term, f"{name}_weight{k}")
            place = kept(self.pixels, self._place(index), f"{name}_place{k}")
            inside = None
            if padding == "zeros":
                inside = kept(self.pixels, self._inside(index), f"{name}_inside{k}")
            made.append(_Tap(place, weight, inside))
        return made

    def _index(self, at: Reader, step: int, padding: str) -> Reader:
        def index(*pixel: Expr) -> Expr:
            whole = expr.floor(at(*pixel)) + self._const(step)
            if padding != "reflection":
                return whole
            # between the limits, of which the lower may be -0.5: what C truncates to 0
            return expr.floor(expr.larger(self._reflected(whole), self._const(0)))

        return index

    def _offset(self, at: Reader) -> Reader:
        return lambda *pixel: at(*pixel) - expr.floor(at(*pixel))

    def _place(self, index: Reader) -> Reader:
        return lambda *pixel: expr.clamp(index(*pixel), 0, self.size - 1).astype("int32")

    def _inside(self, index: Reader) -> Reader:
        one, none = expr.const(1, "int32"), expr.const(0, "int32")

        def inside(*pixel: Expr) -> Expr:
            i = index(*pixel)
            return expr.select(expr.both(i >= 0, i < self._const(self.size)), one, none)

        return inside


def _weight(mode: str, k: int, offset: Reader, const: Any) -> Reader:
    """The weight of tap ``k``: a function of how far the position is past its pixel."""
    a = -0.75

    def linear(*pixel: Expr) -> Expr:
        t = offset(*pixel)
        return t if k else const(1) - t

    def cubic(*pixel: Expr) -> Expr:
        t = offset(*pixel)
        d = (const(1) + t, t, const(1) - t, const(2) - t)[k]
        if k in (1, 2):
            inner = separate(const(a + 2) * d) - const(a + 3)
            return separate(separate(inner * d) * d) + const(1)
        inner = separate(const(a) * d) - const(5 * a)
        inner = separate(inner * d) + const(8 * a)
        return separate(inner * d) - const(4 * a)

    return linear if mode == "linear" else cubic
