"""Neighbouring elements of one thread of a GPU: 2 to 16 bytes read or written at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from targets.kernels import epilogue
from targets.kernels.spec import NUMPY, Epilogue, InType


def load(kb: Any, held: Any, at: int, buffer: Any, index: Any, count: int) -> None:
    """``count`` elements of ``buffer`` from ``index`` on, to element ``at`` of an array ``held``.

    The address is a multiple of the largest of 16, 8, 4, 2 that divides their bytes; the array may
    be of another type.
    """
    size, to = int(buffer.dtype.itemsize), int(held.dtype.itemsize)
    each = widest(count * size)
    for place in range(0, count * size, each):
        target = kb.address(held, at + place // to)
        kb.call(f"dlcc_load{each}", target, kb.address(buffer, index + place // size))


def store(kb: Any, buffer: Any, index: Any, held: Any) -> None:
    """All of ``held`` to ``buffer`` from ``index`` on; aligned as for :func:`load`."""
    size, count = int(buffer.dtype.itemsize), int(held.shape[0])
    each = widest(count * size)
    for place in range(0, count, each // size):
        kb.call(f"dlcc_store{each}", kb.address(buffer, index + place), kb.address(held, place))


def real(kb: Any, words: Any, place: Any, dtype: InType) -> Any:
    """Real number ``place`` of those in ``words``, as it is held.

    Of halves the compiler makes better code so than of an array of them.
    """
    if dtype == "f32":
        return kb.reinterpret(kb.load(words, place), "float32")
    return kb.extern("dlcc_half", NUMPY[dtype], 1, kb.load(words, place // 2), place % 2)


def widest(size: int) -> int:
    """The most bytes that one instruction moves of ``size`` neighbouring ones."""
    return next(each for each in (16, 8, 4, 2) if size % each == 0)


@dataclass
class Channels:
    """The epilogue of ``count`` neighbouring channels, whose numbers a thread holds."""

    at: epilogue.Pointers
    own: epilogue.Pointers
    count: int

    @staticmethod
    def loaded(kb: Any, at: epilogue.Pointers, channel: Any, count: int) -> Channels:
        """Of those from ``channel`` on, a multiple of ``count``."""
        own = {}
        for name in ("bias", "multiplier", "ratio"):
            buffer = getattr(at, name)
            if buffer is not None:
                own[name] = kb.alloc(str(buffer.dtype), count, name)
                load(kb, own[name], 0, buffer, channel, count)
        return Channels(at, replace(at, **own), count)

    def finish(self, kb: Any, sums: Any, first: int, index: Any, out: Epilogue) -> None:
        """Stores the sums from ``first`` on, one for each channel, from element ``index`` on."""
        own = replace(self.own, y=kb.alloc(NUMPY[out.out], self.count, "results"))
        if out.residual is not None:
            own.residual = kb.alloc(NUMPY[out.residual], self.count, "residual")
            load(kb, own.residual, 0, self.at.residual, index, self.count)
        for i in range(self.count):
            channel = epilogue.Channels(kb.load(own.bias, i))
            if own.multiplier is not None:
                channel.multiplier = kb.load(own.multiplier, i)
            if own.ratio is not None:
                channel.ratio = kb.load(own.ratio, i)
            epilogue.finish(kb, own, channel, kb.load(sums, first + i), i, 1, out.out)
        store(kb, self.at.y, index, own.y)
