"""float32 planes to bfloat16, with the channels of a pixel side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcc import tir
from targets.kernels.quantise import interleaved
from targets.kernels.skeleton import divide

STEP, _HALF = 32, 16
"""Pixels that one step makes: a register of bfloat16 numbers of each plane, rounded by halves."""


@dataclass(frozen=True)
class RoundPlanes:
    """What determines the code: ``images`` times ``channels`` planes of ``pixels`` numbers.

    A work item is ``item`` pixels (a multiple of :data:`STEP`). ``native``: the CPU rounds.
    """

    images: int
    channels: int
    pixels: int
    item: int
    native: bool

    @property
    def chunks(self) -> int:
        """Work items of an image."""
        return -(-self.pixels // self.item)


def round_planes_function(name: str, spec: RoundPlanes) -> Any:
    """The kernel: parameters x, y. Needs ``pixels >= STEP``."""
    kb = tir.KernelBuilder(name, bfloat16=spec.native)
    x = kb.pointer("x", "float32", align=4)
    y = kb.pointer("y", "uint16", align=2)
    c, pixels = spec.channels, spec.pixels
    step = tir.tirx.IntImm("int32", STEP)
    with kb.loop(kb.begin, kb.end, "item") as item:
        image, chunk = divide(kb, item, spec.chunks, "chunk")
        image = image if spec.images > 1 else 0
        first = kb.let(chunk * spec.item if spec.chunks > 1 else 0, "first")
        left = tir.tirx.min(pixels - first, tir.tirx.IntImm("int32", spec.item))
        steps = kb.let(tir.tirx.truncdiv(left + (STEP - 1), step), "steps")
        with kb.loop(0, steps, "step") as i:
            last = tir.tirx.IntImm("int32", pixels - STEP)
            at = kb.let(tir.tirx.min(first + i * STEP, last), "at")
            planes = []
            for channel in range(c):
                start = kb.let((image * c + channel) * pixels + at, "plane")
                halves = [
                    kb.let(kb.rounded(kb.load(x, start + half, _HALF), "bf16"), "half")
                    for half in (0, _HALF)
                ]
                planes.append(kb.let(kb.shuffle(halves[0], range(STEP), halves[1]), "plane"))
            put = kb.let((image * pixels + at) * c, "put")
            for j, vector in enumerate(interleaved(planes, np.arange(STEP))):
                kb.store(y, put + j * STEP, vector)
    return kb.build()
