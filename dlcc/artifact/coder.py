"""Entropy coding of streams: raw LZMA by the standard library, with the best of its settings.

LZMA's literals are what matters here: each bit of a byte has an adaptive probability for each
prefix of the byte, in contexts of the byte before it (``lc`` bits) or of its place (``lp`` bits);
``pb`` bits of the place are a context of what comes next. Repetitions are found besides.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from typing import Final

UNCODED: Final = 0xFF
"""In place of the settings: the bytes as they are."""

Settings = tuple[int, int, int]
"""lc, lp and pb."""

Finder = dict[str, int]
"""How repetitions are looked for."""

_SETTINGS: Final[tuple[Settings, ...]] = (
    *((lc, 0, 0) for lc in range(5)),
    *((0, lp, 0) for lp in range(1, 5)),
    *((0, 2, 2), (3, 0, 2), (0, 0, 2)),
)
_NEAREST: Final[Finder] = {"mf": lzma.MF_HC4, "nice_len": 16, "depth": 1}
"""Repetitions of at least four bytes, the last of them: few chance ones, which only cost bits."""

_THOROUGH: Final[Finder] = {}
"""All repetitions of two bytes and more, the longest."""

_TRIAL: Final = 1 << 20
"""Bytes on which settings are compared."""

_SMALLEST_DICTIONARY: Final = 4096
_LARGEST_DICTIONARY: Final = 1 << 26

TABLES: Final = 0x300 * 2 << 4
"""Bytes of probabilities that a decoder needs for these settings at most."""


@dataclass(frozen=True)
class Stream:
    """Coded bytes.

    Attributes:
        properties: ``(pb * 5 + lp) * 9 + lc`` as in an .lzma file, or :data:`UNCODED`.
        decoded: bytes that come out.
        data: what is stored.
    """

    properties: int
    decoded: int
    data: bytes

    @property
    def coder(self) -> str:
        """Its name."""
        return "none" if self.properties == UNCODED else "lzma"


def _coded(data: bytes, settings: Settings, finder: Finder) -> Stream:
    lc, lp, pb = settings
    size = min(max(len(data), _SMALLEST_DICTIONARY), _LARGEST_DICTIONARY)
    contexts = {"lc": lc, "lp": lp, "pb": pb}
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": size, **contexts, **finder}]
    made = lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters)
    return Stream((pb * 5 + lp) * 9 + lc, len(data), made)


def quick_size(data: bytes) -> int:
    """Bytes of ``data``, coded with the plainest settings or as it is."""
    return min(len(data), len(_coded(data, _SETTINGS[0], _NEAREST).data))


def code(data: bytes) -> Stream:
    """``data`` with the settings of the fewest bytes, or as it is where none saves any."""
    trial = data[:_TRIAL]

    def size(settings: Settings, finder: Finder) -> int:
        return len(_coded(trial, settings, finder).data)

    settings = min(_SETTINGS, key=lambda found: size(found, _NEAREST))
    finder = min((_NEAREST, _THOROUGH), key=lambda found: size(settings, found))
    if size(settings, finder) < len(trial):
        made = _coded(data, settings, finder)
        if len(made.data) < len(data):
            return made
    return Stream(UNCODED, len(data), data)


__all__ = ["TABLES", "UNCODED", "Stream", "code", "quick_size"]
