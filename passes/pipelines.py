"""The pipelines that ``dlcc compile`` runs by default, as text."""

from __future__ import annotations

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import BFLOAT16

OPTIMISE = (
    "eliminate-dead-code,"
    "canonicalize,"
    "fold-constants,"
    "eliminate-common-subexpressions,"
    "fold-batch-norm,"
    "fold-pads,"
    "fold-transposes,"
    "canonicalize,"
    "fold-batch-norm,"
    "fold-constants,"
    "eliminate-common-subexpressions,"
    "fuse-epilogues,"
    "eliminate-dead-code"
)
"""Exact passes only: what a network that stays at 32 bits goes through."""

BITS = (8, 16, 32)
"""The widths that :func:`default_pipeline` knows."""


def default_pipeline(
    bits: int = 32, short_float: str = BFLOAT16.name, *, outputs: bool = False
) -> str:
    """Text of the default pipeline for weights and activations of ``bits`` bits.

    Args:
        bits: 32 leaves the network in float32; 16 rounds it to ``short_float``; 8 quantises
            it after training.
        short_float: the encoding of 16 bits that the target takes (``bfloat16``, ``float16``).
        outputs: quantise the network's results too.

    Raises:
        DlccError: another width.
    """
    if bits not in BITS:
        raise DlccError(
            ExitCode.USAGE,
            f"there is no default pipeline for {bits} bits",
            why=f"the widths are {', '.join(map(str, BITS))}",
            fix="choose one of them, or give a pipeline with --passes",
        )
    results = " outputs=true" if outputs else ""
    lossy = {8: f",quantize{{bits=8{results}}}", 16: f",round-to-{short_float}", 32: ""}[bits]
    return f"{OPTIMISE}{lossy}"
