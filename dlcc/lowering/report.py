"""What report.json tells of each layer."""

from __future__ import annotations

from collections.abc import Sequence

from dlcc.ir import Affine
from dlcc.ir.encodings import Dense, ShortFloat
from dlcc.ir.text import type_text
from dlcc.lowering.choice import Choice
from dlcc.ops.base import op_of
from dlcc.program import FusedStep, Step


def layer_report(choice: Choice, functions: list[str]) -> dict[str, object]:
    """The row of a layer that is computed by ``functions``."""
    node = choice.node
    return {
        "layer": node.loc,
        "op": node.op,
        "kernel": choice.row.name,
        "variant": choice.plan.kernel,
        **_decoding(choice),
        "sum_bits": choice.plan.sum_bits,
        "functions": functions,
        "predicted_seconds": choice.seconds,
        **({"tuned": choice.tuned} if choice.tuned else {}),
        "rejected": choice.rejected,
        "macs": op_of(node).macs(node),
        "inputs": ["-" if v is None else type_text(v.type) for v in node.inputs],
        "outputs": [type_text(v.type) for v in node.outputs],
        "weight_bytes": sum(int(a.nbytes) for a in choice.plan.constants.values()),
        "activation_bytes": sum(
            v.type.elements * v.type.storage.bytes
            for v in dict.fromkeys((*node.inputs, *node.outputs))
            if v is not None and not v.is_constant
        ),
    }


def _decoding(choice: Choice) -> dict[str, str]:
    """For a layer with a compressed weight: in which form its kernel reads it.

    What the rows for the other form would have cost stands among the rejected ones.
    """
    weight = choice.node.optional_input(1)
    if weight is None or not weight.is_constant:
        return {}
    encoding = weight.type.encoding
    whole_bytes = isinstance(encoding, Affine) and encoding.bits % 8 == 0
    if whole_bytes or isinstance(encoding, Dense | ShortFloat):
        return {}
    return {"weights": "compressed" if choice.plan.compressed else "decoded"}


def report_threads(
    layers: list[dict[str, object]], steps: Sequence[Step | FusedStep], threads: int
) -> None:
    """Adds to each layer how many threads its widest step is split over at most."""
    widest: dict[str, int] = {}
    for step in steps:
        for call in step.calls:
            widest[call.layer] = max(widest.get(call.layer, 1), step.max_threads or threads)
    for layer in layers:
        layer["threads"] = widest.get(str(layer["layer"]), 1)
