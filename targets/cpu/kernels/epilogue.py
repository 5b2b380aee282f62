"""From accumulators to the stored output: bias, residual, requantisation, clamp.

All f32 operations round by themselves (numbers contract); ``rint`` stands between every product
and the next sum of the integer path, so nothing there can be fused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcc import tir
from targets.cpu.kernels.spec import NUMPY, Epilogue, OutType, ResidualType

SCALARS = 4
"""Length of the ``scalars`` constant: out zero point, lo, hi, residual zero point (f32)."""


def scalars(epilogue: Epilogue) -> np.ndarray:
    """The ``scalars`` constant. A constant, not code, so that layers can share a function."""
    lo, hi = epilogue.bounds
    return np.array(
        [epilogue.out_zero_point, lo, hi, epilogue.residual_zero_point], dtype=np.float32
    )


@dataclass
class Pointers:
    """The kernel's parameters that the epilogue reads and writes."""

    bias: Any
    scalars: Any
    y: Any
    multiplier: Any = None
    ratio: Any = None
    residual: Any = None


def parameters(
    kb: tir.KernelBuilder, integer: bool, out: OutType, residual: ResidualType | None
) -> Pointers:
    """Declares the epilogue's parameters, in the order of :func:`argument_names`."""
    made = Pointers(
        bias=kb.pointer("bias", "int32" if integer else "float32"),
        scalars=kb.pointer("scalars", "float32"),
        y=None,
    )
    if integer:
        made.multiplier = kb.pointer("multiplier", "float32")
    if residual == "u8":
        made.ratio = kb.pointer("ratio", "float32")
    if residual is not None:
        made.residual = kb.pointer("residual", NUMPY[residual], align=1)
    made.y = kb.pointer("y", NUMPY[out], align=1)
    return made


def argument_names(integer: bool, residual: ResidualType | None) -> list[str]:
    """Constants that the epilogue takes, in parameter order (residual and output follow)."""
    names = ["bias", "scalars"]
    names += ["multiplier"] if integer else []
    return names + (["ratio"] if residual == "u8" else [])


@dataclass
class Channels:
    """Per-channel vectors of one block of channels, loaded once."""

    bias: Any
    multiplier: Any = None
    ratio: Any = None


def load_channels(kb: tir.KernelBuilder, at: Pointers, index: Any, lanes: int) -> Channels:
    """Loads the per-channel numbers of ``lanes`` channels from ``index``."""
    made = Channels(kb.let(kb.load(at.bias, index, lanes), "bias"))
    if at.multiplier is not None:
        made.multiplier = kb.let(kb.load(at.multiplier, index, lanes), "mult")
    if at.ratio is not None:
        made.ratio = kb.let(kb.load(at.ratio, index, lanes), "ratio")
    return made


def _rint(kb: tir.KernelBuilder, value: Any, lanes: int) -> Any:
    return kb.pure("llvm.nearbyint", "float32", lanes, value)


def _clamp(kb: tir.KernelBuilder, value: Any, at: Pointers, lanes: int) -> Any:
    low = kb.splat(kb.load(at.scalars, 1), lanes)
    high = kb.splat(kb.load(at.scalars, 2), lanes)
    return tir.tirx.min(tir.tirx.max(value, low), high)


def finish(
    kb: tir.KernelBuilder,
    at: Pointers,
    channel: Channels,
    acc: Any,
    index: Any,
    count: int,
    out: OutType,
) -> None:
    """Stores the first ``count`` lanes of accumulator ``acc`` (i32 or f32) at output ``index``."""
    lanes = tir.lanes_of(acc)
    total = acc + channel.bias
    residual = None
    if at.residual is not None:
        residual = kb.load(at.residual, index, lanes)
    if at.ratio is not None:
        zero = kb.splat(kb.load(at.scalars, 3), lanes)
        scaled = (kb.cast(kb.cast(residual, "int32"), "float32") - zero) * channel.ratio
        total = total + kb.cast(_rint(kb, scaled, lanes), "int32")
    real = total
    if at.multiplier is not None:
        real = kb.cast(total, "float32") * channel.multiplier
    if out == "f32":
        if residual is not None:
            real = kb.pure("llvm.arithmetic.fence", "float32", lanes, real) + residual
        kb.store_first(at.y, index, _clamp(kb, real, at, lanes), count)
        return
    real = _rint(kb, real, lanes) + kb.splat(kb.load(at.scalars, 0), lanes)
    whole = kb.cast(kb.let(_clamp(kb, real, at, lanes), "q"), "int32")
    kb.store_first(at.y, index, kb.cast(whole, NUMPY[out]), count)
