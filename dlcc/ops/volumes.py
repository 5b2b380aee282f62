"""Volumes as batches of images: how 3-D convolutions and pools become 2-D ones.

A 3-D convolution is a 2-D one over images whose channels are those of all slices under the
kernel's depth: the taps along the depth become channels (:class:`dlcc.ops.unfold.Unfold`), and the
products are summed by the same layer, so that every kernel, encoding and pass of 2-D layers serves
volumes too, in integers to the bit. Images keep their channels innermost, so that all moves between
two layers but the unfolding are views. Pools are separable: over the planes, then over the depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlcc.frontends.registry import OnnxNode
from dlcc.ir import Value
from dlcc.ir.encodings import Array
from dlcc.ops.weights import reshape_value
from dlcc.ops.windows import Window

CHANNELS_LAST, CHANNELS_SECOND = (0, 2, 3, 4, 1), (0, 4, 1, 2, 3)
"""[N, C, D, H, W] -> [N, D, H, W, C], and back."""


def moved(node: OnnxNode, value: Value, order: Sequence[int], suffix: str) -> Value:
    """A transposition."""
    return node.build("transpose", [value], {"perm": tuple(order)}, suffix=suffix)[0]


def planes(node: OnnxNode, volume: Value, suffix: str = ".planes") -> Value:
    """[N, C, D, H, W] -> images [N * D, C, H, W]."""
    last = moved(node, volume, CHANNELS_LAST, suffix)
    n, d, h, w, c = last.type.shape
    flat = reshape_value(node, last, (n * d, h, w, c), f"{suffix}.flat")
    return moved(node, flat, (0, 3, 1, 2), f"{suffix}.images")


def stacked(node: OnnxNode, images: Value, batch: int) -> Value:
    """Images [N * D, C, H, W] -> channels last [N, D, H, W, C]."""
    last = moved(node, images, (0, 2, 3, 1), ".rows")
    n, h, w, c = last.type.shape
    return reshape_value(node, last, (batch, n // batch, h, w, c), ".stack")


def volume_of(node: OnnxNode, images: Value, batch: int) -> Value:
    """Images [N * D, C, H, W] -> [N, C, D, H, W]."""
    return moved(node, stacked(node, images, batch), CHANNELS_SECOND, "")


# -- convolutions ------------------------------------------------------------------------------


def depth_windows(node: OnnxNode, volume: Value, line: Window, groups: int) -> Value:
    """Images [N * OD, groups * KD * C/groups, H, W]: all slices under the kernel as channels.

    Args:
        node: the layer.
        volume: [N, C, D, H, W].
        line: the geometry along the depth, as a window of height 1.
        groups: channel groups; the taps of a group stay together.
    """
    attrs = {
        "taps": line.kernel[1],
        "stride": line.strides[1],
        "dilation": line.dilations[1],
        "pads": (line.pads[1], line.pads[3]),
    }
    return _unfolded(node, volume, attrs, groups, ".taps")


def _unfolded(
    node: OnnxNode, volume: Value, attrs: dict[str, Any], groups: int, suffix: str
) -> Value:
    if attrs["taps"] == attrs["stride"] == 1 and not any(attrs["pads"]):
        return planes(node, volume, suffix + ".planes")
    last = moved(node, volume, CHANNELS_LAST, suffix + ".last")
    n, d, h, w, c = last.type.shape
    if groups > 1:
        last = reshape_value(node, last, (n, d, h, w, groups, c // groups), suffix + ".groups")
    (taps,) = node.build("unfold", [last], {"axis": 1, **attrs}, suffix=suffix)
    count = taps.type.shape[1]
    flat = reshape_value(node, taps, (n * count, h, w, c * attrs["taps"]), suffix + ".flat")
    return moved(node, flat, (0, 3, 1, 2), suffix + ".images")


def depth_kernel(weight: Array) -> Array:
    """Weights [O, C/groups, KD, KH, KW] for :func:`depth_windows`: [O, KD * C/groups, KH, KW]."""
    o, c, kd, kh, kw = weight.shape
    return np.ascontiguousarray(weight.transpose(0, 2, 1, 3, 4)).reshape(o, kd * c, kh, kw)


# -- transposed convolutions -------------------------------------------------------------------


class DepthPhase:
    """The output slices of a transposed convolution that lie ``phase`` behind a multiple of stride.

    Slice ``stride * q + phase`` of the uncropped result sums x[q - e_k] * w[k] over the taps k with
    k * dilation = stride * e_k + phase: a plain convolution along the depth with those taps.
    """

    def __init__(self, phase: int, kernel: int, stride: int, dilation: int) -> None:
        self.taps = [k for k in range(kernel) if k * dilation % stride == phase]
        self.offsets = [(k * dilation - phase) // stride for k in self.taps]

    def attrs(self, first: int, count: int, size: int) -> dict[str, Any]:
        """Attributes of the unfolding for places q = first .. first + count - 1 of ``size``."""
        if not self.taps:  # nothing but the bias: one tap that lies outside
            self.taps, self.offsets = [-1], [first + count]
        step = self.offsets[1] - self.offsets[0] if len(self.offsets) > 1 else 1
        begin = self.offsets[-1] - first
        end = count - size - begin + (len(self.taps) - 1) * step
        return {"taps": len(self.taps), "stride": 1, "dilation": step, "pads": (begin, end)}

    def weights(self, weight: Array, groups: int) -> Array:
        """The taps' weights [C, O/g, KD, KH, KW] as [taps * C, O/g, KH, KW]; the last tap first."""
        c, o, _, kh, kw = weight.shape
        if self.taps == [-1]:
            return np.zeros((c, o, kh, kw), weight.dtype)
        chosen = weight[:, :, self.taps[::-1]].reshape(groups, c // groups, o, -1, kh, kw)
        taps = np.ascontiguousarray(chosen.transpose(0, 3, 1, 2, 4, 5))
        return taps.reshape(-1, o, kh, kw)


def phase_windows(
    node: OnnxNode, volume: Value, phase: DepthPhase, first: int, count: int, groups: int, tag: str
) -> Value:
    """Images [N * count, taps * C, H, W] of one phase."""
    attrs = phase.attrs(first, count, volume.type.shape[2])
    return _unfolded(node, volume, attrs, groups, f".taps{tag}")


def interleaved(
    node: OnnxNode, phases: Sequence[Value], batch: int, begin: int, depth: int
) -> Value:
    """Images of every phase -> [N, C, depth, H, W], the slices from ``begin`` on."""
    rows = []
    for k, images in enumerate(phases):
        stack = stacked(node, images, batch)
        n, d, h, w, c = stack.type.shape
        rows.append(reshape_value(node, stack, (n, d, 1, h, w, c), f".phase{k}"))
    joined = rows[0] if len(rows) == 1 else node.build("concat", rows, {"axis": 2})[0]
    n, d, s, h, w, c = joined.type.shape
    whole = reshape_value(node, joined, (n, d * s, h, w, c), ".joined")
    if depth != d * s:
        cut = {"starts": (begin,), "ends": (begin + depth,), "axes": (1,), "steps": (1,)}
        (whole,) = node.build("slice", [whole], cut, suffix=".cut")
    return moved(node, whole, CHANNELS_SECOND, "")


# -- pools -------------------------------------------------------------------------------------


def along_depth(node: OnnxNode, images: Value, batch: int) -> Value:
    """Images [N * D, C, H, W] -> [N, C, D, H * W]: the depth as rows of an image."""
    last = moved(node, images, (0, 2, 3, 1), ".rows")
    n, h, w, c = last.type.shape
    flat = reshape_value(node, last, (batch, n // batch, h * w, c), ".lines")
    return moved(node, flat, (0, 3, 1, 2), ".depth")


def from_depth(node: OnnxNode, lines: Value, plane: tuple[int, int]) -> Value:
    """[N, C, D, H * W] -> [N, C, D, H, W], the channels innermost in memory."""
    last = moved(node, lines, (0, 2, 3, 1), ".slices")
    n, d, _, c = last.type.shape
    whole = reshape_value(node, last, (n, d, *plane, c), ".volume")
    return moved(node, whole, CHANNELS_SECOND, "")
