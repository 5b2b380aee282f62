"""BatchNormalization in training mode: normalised by the statistics of the batch itself.

Some networks are meant to run so (test-time adaptation, style transfer); files that were exported
in training mode by accident compute the same numbers here as elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlcc.frontends.registry import OnnxNode, Unsupported
from dlcc.ir import Value
from dlcc.ops.shape import reshaped


def normalised(node: OnnxNode) -> Sequence[Value]:
    """The result, and the running mean and variance after this batch.

    Mean and variance (that of the population, as ONNX says from opset 15 on) are taken over all
    axes but the channels'; running = momentum * running + (1 - momentum) * batch's.
    """
    x, scale, shift, mean, var = (node.input(k) for k in range(5))
    if x.type.rank < 2:
        raise Unsupported(f"an input of {x.type.rank} axes has no channels")
    if not x.type.elements:
        raise Unsupported("a batch without elements has no statistics")
    axes = {"axes": tuple(k for k in range(x.type.rank) if k != 1)}
    column = (1, x.type.shape[1], *(1 for _ in x.type.shape[2:]))

    def built(op: str, operands: Sequence[Value], part: str) -> Value:
        return node.build(op, operands, suffix=f".{part}")[0]

    def number(value: float, part: str) -> Value:
        return node.graph.add_constant(np.asarray(value, x.type.dtype.numpy), name=part)

    (batch_mean,) = node.build("reduce_mean", [x], axes, suffix=".mean")
    centred = built("sub", [x, batch_mean], "centred")
    square = built("mul", [centred, centred], "square")
    (batch_var,) = node.build("reduce_mean", [square], axes, suffix=".variance")
    shifted = built("add", [batch_var, number(node.attrs.get("epsilon", 1e-5), "epsilon")], "sum")
    inverse = built("reciprocal", [built("sqrt", [shifted], "deviation")], "inverse")
    gain = built("mul", [inverse, reshaped(node, scale, column, ".scale")], "gain")
    scaled = built("mul", [centred, gain], "scaled")
    result = built("add", [scaled, reshaped(node, shift, column, ".shift")], "result")
    results = [result]
    momentum = float(node.attrs.get("momentum", 0.9))
    pairs = ((mean, batch_mean, "running_mean"), (var, batch_var, "running_variance"))
    for running, batch, part in pairs[: max(0, node.output_count - 1)]:
        row = reshaped(node, batch, running.type.shape, f".{part}.batch")
        kept = built("mul", [running, number(momentum, "momentum")], f"{part}.kept")
        new = built("mul", [row, number(1 - momentum, "rest")], f"{part}.new")
        results.append(built("add", [kept, new], part))
    return results
