"""Geometry of sliding windows: output extents, automatic padding, strided views.

Shared by convolutions and pools. Pads are (top, left, bottom, right) throughout; 1-D ops are 2-D
ones of height 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcc.ir.encodings import Array

Pair = tuple[int, int]

_MOST = (1 << 31) - 1
"""Kernels compute places along an axis in 32 bits."""

Quad = tuple[int, int, int, int]


@dataclass(frozen=True)
class Window:
    """A 2-D sliding window over an input of ``size`` (height, width).

    Attributes:
        size: height and width of the input.
        kernel: taps along each axis.
        strides: step between windows.
        dilations: step between taps.
        pads: (top, left, bottom, right).
    """

    size: Pair
    kernel: Pair
    strides: Pair = (1, 1)
    dilations: Pair = (1, 1)
    pads: Quad = (0, 0, 0, 0)

    @property
    def extent(self) -> Pair:
        """Input rows and columns that one window spans."""
        (kh, kw), (dh, dw) = self.kernel, self.dilations
        return (kh - 1) * dh + 1, (kw - 1) * dw + 1

    @property
    def padded(self) -> Pair:
        """Size of the padded input."""
        top, left, bottom, right = self.pads
        return self.size[0] + top + bottom, self.size[1] + left + right

    @property
    def output(self) -> Pair:
        """Height and width of the result; not positive where the window does not fit."""
        (h, w), (eh, ew), (sh, sw) = self.padded, self.extent, self.strides
        return (h - eh) // sh + 1, (w - ew) // sw + 1

    def problem(self) -> str:
        """Why this window is not valid, or ""."""
        if min(self.kernel) < 1 or min(self.strides) < 1 or min(self.dilations) < 1:
            return "kernel, strides and dilations must be at least 1"
        if min(self.pads) < 0:
            return f"pads must not be negative, as {min(self.pads)} is"
        if max(*self.kernel, *self.strides, *self.dilations, *self.pads) > _MOST:
            return f"kernel, strides, dilations and pads must not be above {_MOST}"
        if min(self.output) < 1:
            return f"the window of {self.extent} does not fit the padded input {self.padded}"
        return ""

    def pad(self, x: Array, value: Any) -> Array:
        """``x`` [N, C, H, W] with its pads filled with ``value``."""
        top, left, _, _ = self.pads
        if not any(self.pads):
            return x
        (h, w), (ph, pw) = self.size, self.padded
        out = np.full((*x.shape[:2], ph, pw), value, dtype=x.dtype)
        out[:, :, top : top + h, left : left + w] = x
        return out

    def tap(self, padded: Array, i: int, j: int) -> Array:
        """View [N, C, OH, OW] of the padded input at tap (i, j) of every window."""
        (oh, ow), (sh, sw), (dh, dw) = self.output, self.strides, self.dilations
        top, left = i * dh, j * dw
        return padded[
            :, :, top : top + (oh - 1) * sh + 1 : sh, left : left + (ow - 1) * sw + 1 : sw
        ]

    def view(self, padded: Array) -> Array:
        """View [N, C, KH, KW, OH, OW] of the padded input: every tap of every window."""
        (oh, ow), (kh, kw) = self.output, self.kernel
        n, c, h, w = padded.strides
        shape = (*padded.shape[:2], kh, kw, oh, ow)
        strides = (
            n,
            c,
            h * self.dilations[0],
            w * self.dilations[1],
            h * self.strides[0],
            w * self.strides[1],
        )
        return np.lib.stride_tricks.as_strided(padded, shape, strides, writeable=False)

    def counts(self) -> Array:
        """int32 [OH, OW]: taps of each window that lie inside the unpadded input."""
        inside = np.zeros((1, 1, *self.padded), np.int32)
        top, left, _, _ = self.pads
        inside[:, :, top : top + self.size[0], left : left + self.size[1]] = 1
        return np.asarray(self.view(inside)[0, 0].sum(axis=(0, 1), dtype=np.int32))


def auto_pads(mode: str, window: Window) -> Quad:
    """Pads that ONNX's ``auto_pad`` stands for.

    SAME_UPPER and SAME_LOWER give ceil(size / stride) outputs; the odd pixel goes to the end or to
    the beginning. VALID pads nothing.

    Raises:
        ValueError: unknown mode.
    """
    if mode in ("VALID", "NOTSET", ""):
        return window.pads if mode != "VALID" else (0, 0, 0, 0)
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"unknown auto_pad {mode!r}")
    begin, end = [], []
    for size, extent, stride in zip(window.size, window.extent, window.strides, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + extent - size)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return (begin[0], begin[1], end[0], end[1])


def ceil_pads(window: Window) -> Quad:
    """Pads that make floor-mode extents equal to ONNX's ``ceil_mode``.

    A window that would start in the end padding is left out, as in PyTorch and ONNX Runtime.
    """
    end = list(window.pads[2:])
    for axis in (0, 1):
        size, extent, stride = window.size[axis], window.extent[axis], window.strides[axis]
        begin = window.pads[axis]
        span = window.padded[axis] - extent
        count = -(-span // stride) + 1
        if (count - 1) * stride >= size + begin:
            count -= 1
        end[axis] += max(0, (count - 1) * stride - span)
    return (*window.pads[:2], end[0], end[1])


def pair(values: Sequence[int]) -> Pair:
    """Two ints; a single one is the width of a 1-D op, whose height is 1."""
    items = [int(v) for v in values]
    return (1, items[0]) if len(items) == 1 else (items[0], items[1])


def quad(pads: Sequence[int]) -> Quad:
    """ONNX pads (all begins, then all ends) of a 1-D or 2-D op as (top, left, bottom, right)."""
    items = [int(v) for v in pads]
    if len(items) == 2:
        return (0, items[0], 0, items[1])
    return (items[0], items[1], items[2], items[3])
