"""float64 in the IR: which ops compute it, and what becomes of it before the others.

Ops of :data:`KEPT` compute float64 operands in float64, reference and kernels alike. The others are
float32 functions: their operands are rounded to float32 and their results widened again, where the
importer can tell of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcc.ir import F32, F64, Graph, Value
from dlcc.ops.base import build

KEPT = frozenset(
    {
        *("abs", "ceil", "clip", "floor", "hard_sigmoid", "hard_swish", "leaky_relu", "neg"),
        *("reciprocal", "relu", "round", "shrink", "sign", "softsign", "sqrt", "thresholded_relu"),
        *("exp", "log", "tanh", "sigmoid", "silu", "softplus", "elu", "selu", "celu", "mish"),
        *("softmax", "log_softmax", "reduce_log_sum_exp", "batch_norm", "layer_norm", "rms_norm"),
        *("group_norm", "instance_norm", "lp_norm"),
        *("add", "sub", "mul", "div", "minimum", "maximum", "prelu", "where"),
        *("equal", "less", "greater", "less_equal", "greater_equal"),
        *("reduce_max", "reduce_min", "reduce_mean", "reduce_sum", "reduce_prod", "reduce_l1"),
        *("reduce_l2", "reduce_sum_square", "argmax", "argmin", "cum_sum", "cum_prod"),
        *(
            "fold",
            "matmul",
            "max_pool2d",
            "avg_pool2d",
            "max_pool_indices",
            "resize2d",
            "grid_sample",
        ),
        *("concat", "slice", "pad", "reshape", "transpose", "expand", "tile", "trilu"),
        *("fold", "unfold"),
        *("gather", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd", "one_hot"),
        *("bitcast", "cast", "relayout"),
    }
)
"""Ops that compute float64 operands in float64."""


def has_float64(operands: Sequence[Value | None]) -> bool:
    """Whether any operand is float64."""
    return any(v is not None and v.type.dtype == F64 for v in operands)


def fitted(graph: Graph, op: str, operands: Sequence[Value | None], loc: str) -> list[Value | None]:
    """Operands of which some are float64 as ``op`` takes them: all reals of one type."""
    if op == "cast":
        return list(operands)
    return [
        v if v is None or v.type.dtype not in (F32, F64) else converted(graph, v, op in KEPT, loc)
        for v in operands
    ]


def converted(graph: Graph, value: Value, wide: bool, loc: str) -> Value:
    """A real ``value`` as float64, or as float32; what was widened before is taken as it was."""
    wanted = F64 if wide else F32
    if value.type.dtype == wanted:
        return value
    maker = None if wide else value.producer
    if maker is not None and maker.op == "cast" and maker.input(0).type.dtype == F32:
        return maker.input(0)
    attrs = {"to": str(wanted)}
    return build(graph, "cast", [value], attrs, loc=f"{loc}.{wanted}", names=[value.name]).output
