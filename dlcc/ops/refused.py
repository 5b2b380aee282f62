"""ONNX ops that no compiled network of fixed shapes can have, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Value

_RANDOM = (
    "its results are random, and dlcc's are the same for the same input; "
    "make the numbers an input of the model"
)
_REASONS = {
    "Bernoulli": _RANDOM,
    "Multinomial": _RANDOM,
    "RandomNormal": _RANDOM,
    "RandomNormalLike": _RANDOM,
    "RandomUniform": _RANDOM,
    "RandomUniformLike": _RANDOM,
}


def _refuse(node: OnnxNode) -> Sequence[Value]:
    raise Unsupported(_REASONS[node.op_type])


for _op_type in _REASONS:
    onnx_op(_op_type)(_refuse)
