"""How bfloat16 layers are made to fit the units that multiply pairs of numbers.

``vdpbf16ps`` takes two elements of a run at a time, a tile up to 32 of them, and no more may be
read than there are: what lies behind a run could be a NaN, which times a weight of 0 is no 0. Runs
that are odd, or that have no even divisor near 32, are staged with spare channels of zeros.
"""

from __future__ import annotations

from targets.isa import Isa
from targets.kernels.gemm import bf16_step
from targets.kernels.spec import ConvSpec

_FULL_STEP, _FAIR_STEP = 32, 16


def spare_channels(spec: ConvSpec, isa: Isa, *, amx: bool) -> int:
    """Channels of zeros that the staged copy of an input gets (0 for any other than bf16)."""
    if spec.in_dtype != "bf16" or isa.bfloat16 == "widen" or spec.groups > 1:
        return 0
    taps = spec.kw if spec.dilation[1] == 1 else 1
    run = taps * spec.c
    tiles = amx and isa.bfloat16 == "amx"
    short = tiles and run > _FULL_STEP and bf16_step(run) < _FAIR_STEP
    if run % 2 == 0 and not short:
        return 0
    even = spec.c + spec.c % 2
    if not tiles:
        return even - spec.c
    candidates = [even] + [-(-spec.c // k) * k for k in (_FAIR_STEP, _FULL_STEP)]
    best = min(candidates, key=lambda c: (taps * c // bf16_step(taps * c), c))
    return best - spec.c
