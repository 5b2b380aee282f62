"""Which variants of a network's kernels a library holds.

A library for several feature levels holds the kernels of each and runs the best that the CPU can.
What each costs is known once its kernels are chosen, before any code is generated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from dlcc.lowering.choice import Choice
from dlcc.lowering.target import Target

LEAST_GAIN = 0.03
"""Part of the predicted time that a variant has to save, to be worth its bytes."""


@dataclass
class Variant:
    """The kernels of a network for one feature level.

    Attributes:
        target: the level.
        choices: for each shape profile the kernels in execution order.
    """

    target: Target
    choices: list[list[Choice]]

    @property
    def name(self) -> str:
        """What the library calls it: the level's name."""
        family, _, level = self.target.name.partition(":")
        return level or family

    @property
    def prefix(self) -> str:
        """What keeps its functions apart from another variant's."""
        return re.sub(r"\W", "_", self.name, flags=re.ASCII) + "_"

    @property
    def features(self) -> tuple[str, ...]:
        """Features of the machine that its code needs; a GPU's code needs its architecture."""
        if self.target.device:
            return self.target.features
        kernels = chain.from_iterable(self.choices)
        needed = {feature for choice in kernels for feature in choice.plan.features}
        return tuple(f for f in self.target.features if f in needed)

    @property
    def seconds(self) -> float:
        """Predicted time of one run of each profile on one thread."""
        return sum(choice.seconds for choice in chain.from_iterable(self.choices))


def select(found: Sequence[Variant], *, every: bool) -> tuple[list[Variant], dict[str, str]]:
    """The variants worth having, and why the others are not.

    Args:
        found: from the least to the best.
        every: those that gain nothing, too, as long as there is a CPU that would run them.
    """
    kept: list[Variant] = []
    reasons: dict[str, str] = {}
    for variant in found:
        fastest = min(kept, key=lambda v: v.seconds, default=None)
        if fastest and not every and variant.seconds > (1 - LEAST_GAIN) * fastest.seconds:
            times = f"{variant.seconds * 1e6:.1f} us against {fastest.seconds * 1e6:.1f} us"
            reasons[variant.name] = f"predicted {times} of {fastest.name}"
            continue
        for other in kept:
            if set(variant.features) <= set(other.features):
                reasons[other.name] = f"every CPU that runs it runs {variant.name}"
        kept = [v for v in kept if v.name not in reasons] + [variant]
    return kept, reasons


__all__ = ["LEAST_GAIN", "Variant", "select"]
