"""Fourier transforms: DFT, STFT, MelWeightMatrix.

A short transform is one product with a constant matrix. A long one of N = A * B points is A-point
transforms, a rotation, and B-point transforms (Cooley and Tukey 1965, "An algorithm for the machine
calculation of complex Fourier series", the general factorisation), taken apart further where B is
long. Complex numbers are pairs (real, imaginary) along the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from dlcc.bounds import check_shape
from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Value
from dlcc.ir.encodings import Array
from dlcc.ops.cast import onnx_dtype
from dlcc.ops.shape import axis_of, reshaped

_MATRIX = 1 << 21
"""Entries of a transform's matrix from which on the transform is taken apart, if it can be."""

_LARGEST = 1 << 25
"""Entries of a transform's matrix beyond which it is refused (a long prime length)."""


def _turns(products: Array, length: int, inverse: bool) -> tuple[Array, Array]:
    """Cosine and sine of 2 pi * products / length, the sine negative for a forward transform."""
    angle = 2 * np.pi * (products % length).astype(np.float64) / length
    return np.cos(angle), np.sin(angle) if inverse else -np.sin(angle)


def dft_matrix(
    length: int, given: int, bins: int, width: int, *, inverse: bool, parts: int = 2
) -> Array:
    """The matrix of a transform of ``length`` points, float64, unscaled.

    Args:
        length: points.
        given: how many of them the operand has; the others are 0.
        bins: how many results are taken, from the first on.
        width: 1 for a real operand, 2 for a complex one.
        inverse: turn the other way.
        parts: 2 for complex results, 1 for their real parts.

    Returns:
        [bins * parts, given * width].
    """
    cos, sin = _turns(np.outer(np.arange(bins), np.arange(given)), length, inverse)
    real, imaginary = np.stack([cos, -sin], -1), np.stack([sin, cos], -1)
    both = np.stack([real, imaginary][:parts], 1)[..., :width]
    return both.reshape(bins * parts, given * width)


def _halves(length: int) -> tuple[int, int]:
    """The factors of ``length`` next to its root, the smaller first."""
    small = next(d for d in range(int(np.sqrt(length)), 0, -1) if length % d == 0)
    return small, length // small


class _Transform:
    """The nodes of one Fourier transform, with numbered names."""

    def __init__(self, node: OnnxNode, inverse: bool) -> None:
        self.node = node
        self.inverse = inverse
        self.count = 0

    def build(self, op: str, operands: Sequence[Value], **attrs: object) -> Value:
        """One more node."""
        self.count += 1
        suffix = f"/{op}{self.count}"
        return self.node.build(op, operands, attrs, suffix=suffix)[0]  # type: ignore[arg-type]

    def shaped(self, x: Value, *shape: int) -> Value:
        """``x`` in another shape."""
        self.count += 1
        return reshaped(self.node, x, shape, f"/reshape{self.count}")

    def constant(self, array: Array, name: str) -> Value:
        """A float32 constant."""
        return self.node.graph.add_constant(array.astype(np.float32), name=name)

    def product(self, x: Value, matrix: Array) -> Value:
        """[rows, n] times the transposed matrix."""
        return self.build("linear", [x, self.constant(matrix, "dft")])

    def full(self, x: Value, length: int) -> Value:
        """All bins of [rows, given, width] as [rows, length, 2], unscaled."""
        rows, given, width = x.type.shape
        small, large = _halves(length)
        if small == 1 or 2 * length * given * width <= _MATRIX:
            if 2 * length * given * width > _LARGEST:
                raise Unsupported(f"a transform of {length} points, a number of few factors")
            matrix = dft_matrix(length, given, length, width, inverse=self.inverse)
            flat = self.product(self.shaped(x, rows, given * width), matrix)
            return self.shaped(flat, rows, length, 2)
        if given < length:
            x = self.build("pad", [x], pads=(0, 0, 0, 0, length - given, 0))
        x = self.build("transpose", [self.shaped(x, rows, small, large, width)], perm=(0, 2, 1, 3))
        inner = self.full(self.shaped(x, rows * large, small, width), small)
        inner = self.shaped(inner, rows, large, small, 2)
        turned = self._rotated(inner, np.outer(np.arange(large), np.arange(small)), length)
        turned = self.build("transpose", [turned], perm=(0, 2, 1, 3))
        outer = self.full(self.shaped(turned, rows * small, large, 2), large)
        outer = self.shaped(outer, rows, small, large, 2)
        outer = self.build("transpose", [outer], perm=(0, 2, 1, 3))
        return self.shaped(outer, rows, length, 2)

    def _rotated(self, x: Value, products: Array, length: int) -> Value:
        """Complex numbers times the roots of unity of exponents ``products / length``."""
        cos, sin = _turns(products, length, self.inverse)
        swapped = self.reversed(x, x.type.rank - 1)
        own = self.build("mul", [x, self.constant(np.stack([cos, cos], -1), "cosines")])
        other = self.build("mul", [swapped, self.constant(np.stack([-sin, sin], -1), "sines")])
        return self.build("add", [own, other])

    def reversed(self, x: Value, axis: int) -> Value:
        """``x`` backwards along an axis."""
        last = x.type.shape[axis] - 1
        places = {"starts": (last,), "ends": (-1,), "axes": (axis,), "steps": (-1,)}
        return self.build("slice", [x], **places)

    def part(self, x: Value, axis: int, start: int, end: int) -> Value:
        """``x[start:end]`` along an axis."""
        if (start, end) == (0, x.type.shape[axis]):
            return x
        places = {"starts": (start,), "ends": (end,), "axes": (axis,), "steps": (1,)}
        return self.build("slice", [x], **places)

    def transform(self, x: Value, length: int, bins: int) -> Value:
        """The first ``bins`` bins of [rows, given, width] as [rows, bins, 2], unscaled."""
        rows, given, width = x.type.shape
        x = self.part(x, 1, 0, min(given, length))
        given = min(given, length)
        if 2 * bins * given * width > _MATRIX:
            return self.part(self.full(x, length), 1, 0, bins)
        matrix = dft_matrix(length, given, bins, width, inverse=self.inverse)
        flat = self.product(self.shaped(x, rows, given * width), matrix)
        return self.shaped(flat, rows, bins, 2)

    def real(self, x: Value, length: int) -> Value:
        """The real signal [rows, length, 1] whose first bins are [rows, given, 2], unscaled.

        The bins that are not given are the conjugates of those that are; the imaginary parts of
        those that are their own conjugates do not count.
        """
        rows, given, width = x.type.shape
        needed = length // 2 + 1
        x = self.part(x, 1, 0, min(given, needed))
        given = min(given, needed)
        if length * given * width <= _MATRIX:
            matrix = dft_matrix(length, given, length, width, inverse=True, parts=1)
            twice = np.full(given, 2.0)
            twice[0] = 1.0
            if length % 2 == 0 and given == needed:
                twice[-1] = 1.0
            flat = self.product(
                self.shaped(x, rows, given * width), matrix * np.repeat(twice, width)
            )
            return self.shaped(flat, rows, length, 1)
        if given < needed:
            x = self.build("pad", [x], pads=(0, 0, 0, 0, needed - given, 0))
        mirror = self.reversed(self.part(x, 1, 1, length - needed + 1), 1)
        signs = self.constant(np.asarray([1.0, -1.0])[:width], "conjugate")
        both = self.build("concat", [x, self.build("mul", [mirror, signs])], axis=1)
        return self.part(self.full(both, length), 2, 0, 1)


def _dft(node: OnnxNode, axis: int) -> Sequence[Value]:
    x, rank = node.input(0), node.input(0).type.rank
    inverse, onesided = bool(node.attrs.get("inverse", 0)), bool(node.attrs.get("onesided", 0))
    width, axis = x.type.shape[-1], axis_of(axis, rank)
    if axis == rank - 1 or width not in (1, 2):
        raise Unsupported(f"a transform of {list(x.type.shape)} along axis {axis}")
    given = x.type.shape[axis]
    length = 2 * (given - 1) if inverse and onesided else given
    told = node.optional_constant(1, "the length")
    length = length if told is None else int(told.reshape(-1)[0])
    if length < 1:
        raise Unsupported(f"a transform of {length} points")
    make = _Transform(node, inverse)
    order = (*(k for k in range(rank - 1) if k != axis), axis, rank - 1)
    moved = x if axis == rank - 2 else make.build("transpose", [x], perm=order)
    lead = moved.type.shape[:-2]
    flat = make.shaped(moved, int(np.prod(lead)), given, width)
    if inverse and onesided:
        made = make.real(flat, length)
    else:
        made = make.transform(flat, length, length // 2 + 1 if onesided else length)
    if inverse:
        made = make.build("mul", [made, make.constant(np.asarray(1 / length), "scale")])
    made = make.shaped(made, *lead, *made.type.shape[1:])
    if axis == rank - 2:
        return [made]
    back = tuple(order.index(k) for k in range(rank))
    return [make.build("transpose", [made], perm=back)]


@onnx_op("DFT", since=17)
def _dft_17(node: OnnxNode) -> Sequence[Value]:
    return _dft(node, int(node.attrs.get("axis", 1)))


@onnx_op("DFT", since=20)
def _dft_20(node: OnnxNode) -> Sequence[Value]:
    axis = node.optional_constant(2, "the axis")
    return _dft(node, -2 if axis is None else int(axis.reshape(-1)[0]))


@onnx_op("STFT", since=17)
def _stft(node: OnnxNode) -> Sequence[Value]:
    """Windows of the signal as a convolution with stride; long ones are cut out and transformed."""
    x, window = node.input(0), node.optional(2)
    step = int(node.constant(1, "the step").reshape(-1)[0])
    told = node.optional_constant(3, "the window's length")
    batch, size = x.type.shape[:2]
    length = size if window is None else window.type.elements
    length = length if told is None else int(told.reshape(-1)[0])
    width = x.type.shape[2] if x.type.rank == 3 else 1
    if width not in (1, 2) or not 0 < length <= size or step < 1:
        raise Unsupported(f"windows of {length} by steps of {step} in {list(x.type.shape)}")
    if window is not None and window.type.elements != length:
        raise Unsupported(f"a window of {window.type.elements} numbers for a length of {length}")
    bins = length // 2 + 1 if node.attrs.get("onesided", 1) else length
    frames, make = 1 + (size - length) // step, _Transform(node, inverse=False)
    signal = make.shaped(x, batch, size, width)
    known = window is None or window.is_constant
    if known and 2 * bins * length * width <= _MATRIX:
        matrix = dft_matrix(length, length, bins, width, inverse=False)
        kernel = matrix.reshape(2 * bins, length, width)
        if window is not None:
            kernel = kernel * window.decoded().reshape(1, length, 1)
        weight = make.constant(np.ascontiguousarray(kernel.transpose(0, 2, 1))[:, :, None], "dft")
        image = make.build("transpose", [signal], perm=(0, 2, 1))
        image = make.shaped(image, batch, width, 1, size)
        made = make.build("conv2d", [image, weight], strides=(1, step))
        made = make.shaped(made, batch, bins, 2, frames)
        return [make.build("transpose", [made], perm=(0, 3, 1, 2))]
    places = np.arange(frames)[:, None] * step + np.arange(length)
    table = node.graph.add_constant(places.astype(np.int64), name="places")
    cut = make.build("gather", [signal, table], axis=1)
    if window is not None:
        cut = make.build("mul", [cut, make.shaped(window, length, 1)])
    made = make.transform(make.shaped(cut, batch * frames, length, width), length, bins)
    return [make.shaped(made, batch, frames, bins, 2)]


@onnx_op("MelWeightMatrix", since=17)
def _mel_weight_matrix(node: OnnxNode) -> Sequence[Value]:
    """Triangles over the bins of a transform, evenly spaced on the mel scale (O'Shaughnessy)."""
    names = ("the number of bands", "the length", "the rate", "the lower edge", "the upper edge")
    bands, length, rate, low, high = (
        float(node.constant(k, what).reshape(-1)[0]) for k, what in enumerate(names)
    )
    ends = 2595 * np.log10(1 + np.asarray([low, high]) / 700)
    count, bins = int(bands), int(length) // 2 + 1
    check_shape((bins, count), 4 * 8, node.name)  # and what the sums below keep
    mel = ends[0] + np.arange(count + 2) * (ends[1] - ends[0]) / (count + 2)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    places = np.floor((int(length) + 1) * hertz / rate).astype(np.int64)
    if places.min() < 0 or places.max() >= bins:
        raise Unsupported(f"edges {low} and {high} Hz outside half the rate of {rate} Hz")
    bin_ = np.arange(bins)[:, None]
    left, centre, right = places[:-2], places[1:-1], places[2:]
    with np.errstate(all="ignore"):
        rising = np.where(left == centre, bin_ == centre, (bin_ - left) / (centre - left))
        falling = (right - bin_) / (right - centre)
    matrix = np.where((bin_ >= left) & (bin_ <= centre), rising, 0.0)
    matrix = np.where((bin_ >= centre) & (bin_ < right), falling, matrix)
    element = node.attrs.get("output_datatype", onnx.TensorProto.FLOAT)
    dtype = onnx_dtype(element, node.doubles)
    return [node.graph.add_constant(matrix.astype(dtype.numpy), name=node.name)]
