"""Small graphs for lowering tests."""

from __future__ import annotations

import numpy as np

from dlcc.ir import F32, Affine, Graph, TensorType, Value
from dlcc.ops import build


def affine(scale: float = 0.02, zero: int = 7, *, signed: bool = False) -> Affine:
    return Affine.per_tensor(8, signed, scale, zero)


def typed(shape: tuple[int, ...], encoding: Affine | None = None) -> TensorType:
    return TensorType(shape, F32) if encoding is None else TensorType(shape, F32, encoding)


def conv(
    graph: Graph, x: Value, channels: int, *, out: Affine | None = None, loc: str = "conv", **attrs
) -> Value:
    """A 3x3 (or ``kernel``) convolution with seeded weights; integer if ``x`` is quantised.

    ``residual``: a value to add.
    """
    kernel = attrs.pop("kernel", 3)
    residual = attrs.pop("residual", None)
    groups = attrs.get("groups", 1)
    rng = np.random.default_rng(len(graph.nodes))
    shape = (channels, x.type.shape[1] // groups, kernel, kernel)
    weights = rng.standard_normal(shape).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32)
    if isinstance(x.type.encoding, Affine):
        scales = np.abs(weights).reshape(channels, -1).max(axis=1) / 127
        w = graph.add_constant(weights, encoding=Affine.symmetric(8, scales, 0), name="w")
        acc = Affine.symmetric(32, x.type.encoding.scale * scales, 0)
        b = graph.add_constant(bias, encoding=acc, name="b")
    else:
        w = graph.add_constant(weights, name="w")
        b = graph.add_constant(bias, name="b")
    node = build(
        graph, "conv2d", [x, w, b, *([] if residual is None else [residual])], attrs, loc=loc
    )
    if out is not None:
        node.output.type = node.output.type.with_(encoding=out)
    return node.output
