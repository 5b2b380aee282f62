"""Operators of ONNX Runtime's own domains that are not read, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from dlcc.frontends.contrib.body import DOMAIN
from dlcc.frontends.registry import OnnxNode, Unsupported, onnx_op
from dlcc.ir import Value

_BLOCKED = (
    "images are laid out for the machine that optimised the model; "
    "save the model at ORT_ENABLE_EXTENDED or below"
)
_DATA_DEPENDENT = (
    "the size of its result depends on the data, and all shapes are fixed at compile time; "
    "end the model before it and do this step in the application"
)
_SEARCH = "it runs a whole decoder many times; compile the decoder, and search in the application"
_DYNAMIC_PADS = "its pads are computed at run time, and with them the shape of its result"
_REASONS = {
    DOMAIN: {
        "BeamSearch": _SEARCH,
        "ConvTransposeWithDynamicPads": _DYNAMIC_PADS,
        "GreedySearch": _SEARCH,
        "Inverse": "there is no kernel that inverts matrices",
        "RemovePadding": _DATA_DEPENDENT,
        "Sampling": _SEARCH,
        "SparseToDenseMatMul": "sparse tensors of the run time",
        "Tokenizer": "strings",
        "WhisperBeamSearch": _SEARCH,
    },
    "com.microsoft.nchwc": dict.fromkeys(
        ("AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReorderInput",
         "ReorderOutput", "Upsample"),
        _BLOCKED,
    ),
}  # fmt: skip


def _refuse(node: OnnxNode) -> Sequence[Value]:
    raise Unsupported(_REASONS[node.domain][node.op_type])


for _domain, _reasons in _REASONS.items():
    for _op_type in _reasons:
        onnx_op(_op_type, domain=_domain)(_refuse)
