"""What a convolution, matmul or depthwise layer looks like to a kernel generator.

Activations are row-major NHWC. Real value = scale * (q - zero_point); scales never reach a kernel:
they are folded into the f32 multipliers, which are constants like the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np

InType = Literal["u8", "f32", "bf16", "f16"]
RealType = Literal["f32", "bf16", "f16"]
OutType = Literal["u8", "s8", "f32", "bf16", "f16"]
ResidualType = Literal["u8", "f32", "bf16", "f16"]

NUMPY = {"u8": "uint8", "s8": "int8", "f32": "float32", "i16": "int16"}
NUMPY |= {"bf16": "uint16", "f16": "float16"}
"""numpy's (and TVM's) names of the short dtype names used in specs."""

SIZE = {"u8": 1, "s8": 1, "i16": 2, "bf16": 2, "f16": 2, "f32": 4}
"""Bytes of one element."""

SHORT_FLOATS = frozenset({"bf16", "f16"})
"""Dtypes of real numbers that were rounded to 16 bits."""

FLOATS = SHORT_FLOATS | {"f32"}
"""Dtypes of real numbers; the others hold codes."""


def rounding(source: str, in_dtype: str) -> str:
    """What numbers of dtype ``source`` are rounded to, to be operands of ``in_dtype``; "": not."""
    return in_dtype if source == "f32" and in_dtype in SHORT_FLOATS else ""


class Borders:
    """Which windows of a padded layer reach over the input's edge (``pads``: top and left)."""

    h: int
    w: int
    oh: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int]

    @property
    def row_borders(self) -> bool:
        """Whether some kernel row lies on padding somewhere."""
        reach = (self.oh - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0]
        return self.pads[0] > 0 or reach - self.pads[0] >= self.h

    def touches_border(self, col: int, width: int) -> bool:
        """Whether the window of output columns ``[col, col + width)`` leaves the input."""
        left = col * self.stride[1] - self.pads[1]
        reach = (width - 1) * self.stride[1] + (self.kernel[1] - 1) * self.dilation[1]
        return left < 0 or left + reach >= self.w

    def row_spans(self, images: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows that each work item touches, where an item is one of ``parts`` of an output row.

        Returns:
            ``[items, 2]`` input rows and ``[items, 2]`` output rows of all images: first and end.
        """
        out = np.arange(images * self.oh * parts) // parts
        image, row = np.divmod(out, self.oh)
        top = row * self.stride[0] - self.pads[0]
        below = top + (self.kernel[0] - 1) * self.dilation[0] + 1
        first = np.clip(top, 0, self.h - 1)
        end = np.maximum(np.minimum(below, self.h), first + 1)
        reads = np.stack([first, end], 1) + (image * self.h)[:, None]
        return reads, np.stack([out, out + 1], 1)


@dataclass(frozen=True)
class Epilogue:
    """What happens to an accumulator before it is stored.

    u8 activations: ``t = acc + bias[c] (+ rint((r - residual_zero_point) * ratio[c]))``, then for
    an integer output ``clamp(rint(t * m[c]) + out_zero_point, lo, hi)`` with ``lo``, ``hi`` in q
    units, or for an f32 output ``clamp(t * m[c] (+ r), lo, hi)`` in real units. Activations of real
    numbers: ``clamp(acc + bias[c] (+ r), lo, hi)`` in f32, rounded once for an output of 16 bits. A
    u8 residual belongs to an integer output, a residual of real numbers to such an output.
    """

    out: OutType = "f32"
    lo: float = -inf
    hi: float = inf
    out_zero_point: int = 0
    residual: ResidualType | None = None
    residual_zero_point: int = 0

    def __post_init__(self) -> None:
        if self.residual == "u8" and self.out in FLOATS:
            raise ValueError("a u8 residual needs an integer output")
        if self.residual in FLOATS and self.out not in FLOATS:
            raise ValueError("an f32 residual needs an f32 output")
        lo, hi = self.bounds
        if not lo <= hi or (self.out not in FLOATS and (lo % 1 or hi % 1)):
            raise ValueError(f"[{self.lo}, {self.hi}] is no range of {self.out} values")

    @property
    def bounds(self) -> tuple[float, float]:
        """``lo`` and ``hi``, narrowed to what the output dtype can hold."""
        low, high = {"u8": (0.0, 255.0), "s8": (-128.0, 127.0)}.get(self.out, (-inf, inf))
        return max(low, self.lo), min(high, self.hi)


@dataclass(frozen=True)
class ConvSpec:
    """A 2-D convolution; also a linear layer (``h=1, w=M, kh=kw=1``).

    ``pads`` are (top, left, bottom, right) and hold ``in_zero_point``. Weights are
    ``[oc, c / groups, kh, kw]``: s8 (zero point 0) for u8 activations, f32 for f32, the bits of
    bf16 for bf16, f16 for f16. ``stored``: dtype in memory of an input that is rounded to 16 bits
    as it is read.
    ``input_slack``: ARENA_SLACK bytes after the input's end may be read; where they may not (a
    caller's own buffer), the kernel copies the input first if it would read them.
    """

    n: int
    h: int
    w: int
    c: int
    oc: int
    kh: int = 1
    kw: int = 1
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    in_dtype: InType = "u8"
    in_zero_point: int = 0
    epilogue: Epilogue = Epilogue()
    input_slack: bool = True
    stored: InType | None = None

    def __post_init__(self) -> None:
        if self.c % self.groups or self.oc % self.groups:
            raise ValueError(f"{self.groups} groups must divide {self.c} and {self.oc} channels")
        if self.oh < 1 or self.ow < 1:
            raise ValueError(f"kernel {self.kh}x{self.kw} exceeds the padded input")
        if self.in_dtype in FLOATS and self.epilogue.out not in FLOATS:
            raise ValueError("f32 activations give an f32 output")

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width with the padding."""
        top, left, bottom, right = self.pads
        return self.h + top + bottom, self.w + left + right

    @property
    def oh(self) -> int:
        """Output rows."""
        return (self.padded[0] - (self.kh - 1) * self.dilation[0] - 1) // self.stride[0] + 1

    @property
    def ow(self) -> int:
        """Output columns."""
        return (self.padded[1] - (self.kw - 1) * self.dilation[1] - 1) // self.stride[1] + 1

    @property
    def first_read(self) -> np.ndarray:
        """For each output pixel the first input pixel that it or a later one reads."""
        row, column = np.divmod(np.arange(self.n * self.oh * self.ow), self.ow)
        image, row = np.divmod(row, self.oh)
        top = np.clip(row * self.stride[0] - self.pads[0], 0, self.h - 1)
        left = np.clip(column * self.stride[1] - self.pads[1], 0, self.w - 1)
        first = (image * self.h + top) * self.w + left
        later: np.ndarray = np.minimum.accumulate(first[::-1])[::-1]
        return later

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        taps = self.kh * self.kw * (self.c // self.groups)
        return self.n * self.oh * self.ow * self.oc * taps


@dataclass(frozen=True)
class ConvTransposeSpec:
    """A 2-D transposed convolution. Weights are ``[c, oc / groups, kh, kw]`` as in ONNX.

    Output size: ``(h - 1) * stride - pads + dilation * (kh - 1) + output_padding + 1``.
    """

    n: int
    h: int
    w: int
    c: int
    oc: int
    kh: int
    kw: int
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    output_padding: tuple[int, int] = (0, 0)
    groups: int = 1
    in_dtype: InType = "u8"
    in_zero_point: int = 0
    epilogue: Epilogue = Epilogue()
    stored: InType | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output."""
        top, left, bottom, right = self.pads
        rows = (self.h - 1) * self.stride[0] + self.dilation[0] * (self.kh - 1) + 1
        columns = (self.w - 1) * self.stride[1] + self.dilation[1] * (self.kw - 1) + 1
        return (
            rows + self.output_padding[0] - top - bottom,
            columns + self.output_padding[1] - left - right,
        )


@dataclass(frozen=True)
class MatmulSpec:
    """``y[b] = a[b] @ b[b]`` of two activations, ``a`` [batch, m, k], ``b`` [batch, k, n].

    ``transpose_b``: ``b`` is [batch, n, k]. u8: both have zero points and the epilogue's multiplier
    is one number for all columns; there is no bias and no residual. ``a_slack``, ``b_slack``: as
    ``input_slack`` of a convolution.
    """

    batch: int
    m: int
    k: int
    n: int
    in_dtype: InType = "f32"
    a_zero_point: int = 0
    b_zero_point: int = 0
    transpose_b: bool = False
    epilogue: Epilogue = Epilogue()
    a_slack: bool = True
    b_slack: bool = True
    a_stored: InType | None = None
    b_stored: InType | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.batch * self.m * self.k * self.n
