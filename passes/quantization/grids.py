"""Which numbers the weights of a layer may be: a grid for each encoding of one code per weight.

Arrays are [groups, R, K]: groups of channels, R outputs each, K weights of an output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dlcc.ir.encodings import Array


@dataclass(frozen=True, eq=False)
class Grid(ABC):
    """The numbers of each weight: a factor that is the code's times one of S parameters.

    Attributes:
        parameters: float64 [groups, R, S], or [1, 1, S] where all outputs share them.
    """

    parameters: Array

    @abstractmethod
    def nearest(self, values: Array, columns: Array) -> Array:
        """Codes of the numbers nearest to ``values``.

        Args:
            values: [groups, R, c].
            columns: int [groups or 1, c]: which of the K weights these are.
        """

    @abstractmethod
    def terms(self, codes: Array, columns: Array) -> tuple[Array, Array]:
        """The parameter of each code (an index below S), and the code's factor."""

    @abstractmethod
    def allowed(self, parameters: Array) -> Array:
        """Bool [groups, R] (or [1, 1]): which outputs may have these parameters."""

    @property
    def tied(self) -> bool:
        """All outputs have the same parameters."""
        return bool(self.parameters.shape[:2] == (1, 1))

    def numbers(self, codes: Array, columns: Array) -> Array:
        """Real numbers of codes, float64."""
        slot, factor = self.terms(codes, columns)
        return np.asarray(np.take_along_axis(self.parameters, slot, axis=2) * factor)

    def with_parameters(self, parameters: Array) -> Grid:
        """The same grid with other parameters."""
        return replace(self, parameters=parameters)


@dataclass(frozen=True, eq=False)
class Uniform(Grid):
    """Integers -last..last times a scale; runs of columns may have scales of their own.

    Attributes:
        last: the largest code.
        run: int [K]: which of the S scales a column has.
        floor: smallest scales allowed, [groups, R] (or a shape that broadcasts).
    """

    last: int
    run: Array
    floor: Array

    def nearest(self, values: Array, columns: Array) -> Array:
        """Half to even, then clamped."""
        codes = np.rint(values / self._steps(columns))
        return np.clip(codes, -self.last, self.last)

    def terms(self, codes: Array, columns: Array) -> tuple[Array, Array]:
        """The scale of the column, the code itself."""
        return np.broadcast_to(self.run[columns][:, None, :], codes.shape), codes

    def allowed(self, parameters: Array) -> Array:
        """None below the floor."""
        return np.asarray((parameters >= self.floor[..., None]).all(axis=2))

    def _steps(self, columns: Array) -> Array:
        if self.parameters.shape[2] == 1:
            return self.parameters
        return np.take_along_axis(self.parameters, self.run[columns][:, None, :], axis=2)


@dataclass(frozen=True, eq=False)
class Three(Grid):
    """0, a positive and a negative number; one parameter where they are equally far from 0."""

    def nearest(self, values: Array, columns: Array) -> Array:
        """Halves go to 0."""
        high = values > self.parameters[..., :1] / 2
        low = values < -self.parameters[..., -1:] / 2
        return high.astype(np.int8) - low.astype(np.int8)

    def terms(self, codes: Array, columns: Array) -> tuple[Array, Array]:
        """The second parameter is that of the negative number."""
        return (codes < 0) * (self.parameters.shape[2] - 1), codes

    def allowed(self, parameters: Array) -> Array:
        """None below 0."""
        return np.asarray((parameters >= 0).all(axis=2))


@dataclass(frozen=True, eq=False)
class Two(Grid):
    """Plus and minus a scale."""

    def nearest(self, values: Array, columns: Array) -> Array:
        """The sign; that of 0 is plus."""
        return np.where(values < 0, -1, 1).astype(np.int8)

    def terms(self, codes: Array, columns: Array) -> tuple[Array, Array]:
        """One scale."""
        return np.zeros(codes.shape, np.intp), codes

    def allowed(self, parameters: Array) -> Array:
        """None below 0."""
        return np.asarray((parameters >= 0).all(axis=2))


@dataclass(frozen=True, eq=False)
class Shared(Grid):
    """One of S numbers that all weights of the layer share.

    Attributes:
        zero: index of a number that is 0 and stays it, or None.
    """

    zero: int | None = None

    @cached_property
    def _order(self) -> tuple[Array, Array]:
        """Numbers in rising order, and the middles between them."""
        numbers = self.parameters[0, 0]
        order = np.argsort(numbers, kind="stable")
        rising = numbers[order]
        return order, (rising[1:] + rising[:-1]) / 2

    def nearest(self, values: Array, columns: Array) -> Array:
        """Halves go to the lower one."""
        order, middles = self._order
        return np.asarray(order[np.searchsorted(middles, values, side="left")])

    def terms(self, codes: Array, columns: Array) -> tuple[Array, Array]:
        """The code is the index."""
        return codes, (codes != -1 if self.zero is None else codes != self.zero)

    def allowed(self, parameters: Array) -> Array:
        """Any."""
        return np.ones((1, 1), np.bool_)


def uniform(
    scales: Array, bits: int, depth: int, *, floor: Array | float = 0.0, run: Array | None = None
) -> Uniform:
    """A grid of symmetric integers.

    Args:
        scales: [groups, R, S] or [1, 1, S].
        bits: width of the codes.
        depth: K.
        floor: smallest scales allowed, [groups, R] or one for all.
        run: int [K]: which of the S scales a column has; the first where it is not given.
    """
    runs = np.zeros(depth, np.intp) if run is None else run
    last = (1 << (bits - 1)) - 1
    return Uniform(scales.astype(np.float64), last, runs, np.atleast_2d(np.float64(floor)))


__all__ = ["Grid", "Shared", "Three", "Two", "Uniform", "uniform"]
