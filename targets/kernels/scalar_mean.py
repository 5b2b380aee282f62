"""The mean over all pixels of 8-bit codes, one channel at a time, for cores without vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.lowering.kernel import KernelPlan, KernelStep, name_key
from targets.kernels.scalar_epilogue import Finish
from targets.kernels.spec import NUMPY, Epilogue


@dataclass(frozen=True)
class ScalarMean:
    """u8 codes of ``images`` with ``pixels`` of ``channels`` side by side; one result a channel."""

    images: int
    pixels: int
    channels: int
    zero_point: int
    epilogue: Epilogue


def scalar_mean(layer: ScalarMean, multiplier: float) -> KernelPlan:
    """The plan; the sum of a channel's centred codes times ``multiplier`` is its result."""
    key = name_key("scalar_mean", layer)
    step = KernelStep(
        key,
        lambda: mean_function(key, layer),
        (("in", 0), ("const", "multiplier"), ("out", 0)),
        layer.images * layer.channels,
    )
    constants = {"multiplier": np.array([multiplier], np.float32)}
    return KernelPlan((step,), constants, kernel=f"mean of {layer.pixels} pixels")


def mean_function(name: str, layer: ScalarMean) -> Any:
    """The kernel: parameters x, multiplier, y. Items: channels of images."""
    kb = tir.KernelBuilder(name)
    x = kb.pointer("x", "uint8", align=1)
    factor = kb.pointer("multiplier", "float32", align=4)
    y = kb.pointer("y", NUMPY[layer.epilogue.out], align=1)
    multiplier = kb.let(kb.load(factor, 0), "multiplier")
    finish = Finish(kb, layer.epilogue, y)
    with kb.loop(kb.begin, kb.end, "item") as item:
        start: Any = item
        if layer.images > 1:
            channels = kb.const(layer.channels, "int32")
            image = kb.let(tir.tirx.truncdiv(item, channels), "image")
            start = kb.let(item + image * ((layer.pixels - 1) * layer.channels), "start")
        total = kb.alloc("int32", 1)
        kb.store(total, 0, kb.const(-layer.pixels * layer.zero_point, "int32"))
        with kb.loop(0, layer.pixels, "pixel") as pixel:
            code = kb.cast(kb.load(x, start + pixel * layer.channels), "int32")
            kb.store(total, 0, kb.load(total, 0) + code)
        finish.store(kb.load(total, 0), multiplier, None, item)
    return kb.build()
