"""Layers by name: the patterns of options such as ``only`` and ``exclude``, and of recipes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

FACTORS = ("reduce", "core", "expand", "vertical", "horizontal")
"""What pass factorize adds to a layer's name, behind a point, to name the layers it becomes."""

_FACTOR = re.compile(rf"(?P<layer>.+)\.(?:{'|'.join(FACTORS)})(?:_\d+)?")


def names(pattern: str, loc: str) -> bool:
    """Whether a pattern (as of a shell) names a layer.

    A layer that was factorised keeps its name: the pattern names its factors too.
    """
    factor = _FACTOR.fullmatch(loc)
    return fnmatchcase(loc, pattern) or (factor is not None and names(pattern, factor["layer"]))


def named(patterns: Iterable[str], loc: str) -> bool:
    """Whether any of the patterns names the layer."""
    return any(names(pattern, loc) for pattern in patterns)


def near_misses(pattern: str, known: Sequence[str], count: int = 3) -> list[str]:
    """Names that may have been meant by a pattern that matches none of ``known``."""
    folded: dict[str, str] = {}
    for name in known:
        folded.setdefault(name.lower(), name)
    plain = pattern.lower()
    found = [name for low, name in folded.items() if fnmatchcase(low, plain)]
    bare = re.sub(r"[*?]", "", plain)
    found += [name for low, name in folded.items() if bare and bare in low]
    close = difflib.get_close_matches(bare, list(folded), n=count, cutoff=0.5)
    found += [folded[low] for low in close]
    return list(dict.fromkeys(found))[:count]


__all__ = ["FACTORS", "named", "names", "near_misses"]
