"""Pass ``round-to-bfloat16``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlcc.ir import BFLOAT16, ShortFloat
from passes.short_floats import RoundToShortFloat


@dataclass(frozen=True)
class RoundToBfloat16(RoundToShortFloat):
    """Store weights and activations as bfloat16, half the bytes of float32.

    Layers made of products (convolutions, linear layers, matrix products) multiply bfloat16 numbers
    and sum them in float32; biases stay float32. Activations between such layers are stored as
    bfloat16; the ops on them compute in float32. The network's inputs and outputs stay float32, and
    so does everything behind its last layer. An op without a form on 8-bit codes (a division, a
    comparison) keeps float32 operands and results.

    ::

        %a = conv2d(%x, @w, @b)            // f32
        %p = max_pool2d(%a)
        %y = linear(%p, @v)
        ->
        %a = conv2d(%x, @w, @b)            // f32!bfloat16, @w too; %x is rounded as it is read
        %p = max_pool2d(%a)                // f32!bfloat16
        %y = linear(%p, @v)                // f32, @v is f32!bfloat16
    """

    name: ClassVar[str] = "round-to-bfloat16"
    encoding: ClassVar[ShortFloat] = BFLOAT16
