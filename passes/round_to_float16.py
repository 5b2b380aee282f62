"""Pass ``round-to-float16``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlcc.ir import FLOAT16, ShortFloat
from passes.short_floats import RoundToShortFloat


@dataclass(frozen=True)
class RoundToFloat16(RoundToShortFloat):
    """Store weights and activations as half precision (float16), half the bytes of float32.

    As round-to-bfloat16 does, with numbers of eleven significant bits rather than eight, but none
    above 65504. A layer with a larger weight stays float32; an activation that is larger becomes
    infinite, so leave layers with such results out by name (exclude).

    ::

        %a = conv2d(%x, @w, @b)            // f32
        %p = max_pool2d(%a)
        %y = linear(%p, @v)
        ->
        %a = conv2d(%x, @w, @b)            // f32!float16, @w too; %x is rounded as it is read
        %p = max_pool2d(%a)                // f32!float16
        %y = linear(%p, @v)                // f32, @v is f32!float16
    """

    name: ClassVar[str] = "round-to-float16"
    encoding: ClassVar[ShortFloat] = FLOAT16
