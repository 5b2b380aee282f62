"""Every op that keeps float64 has a kernel that computes it so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcc.ops.float64 import KEPT
from tests.ops.tir_harness import Case, Operand, case, check

CLOSE = 5e-16
"""Of the result, and of the largest one: some units in the last place."""

RNG = np.random.default_rng(64)
POSITIVE = ("sqrt", "log")
WINDOW = {"kernel": (2, 2), "strides": (2, 2)}


def real(*shape: int, least: float | None = None) -> Operand:
    array = RNG.standard_normal(shape)
    return Operand(array if least is None else np.abs(array) + least)


def whole(values: Any) -> Operand:
    return Operand(np.asarray(values, np.int64))


def made(op: str, *operands: Operand, **attrs: Any) -> Case:
    return case(op, operands, attrs, tolerance=CLOSE)


def elementwise() -> list[Case]:
    unary = ["abs", "ceil", "floor", "round", "neg", "sign", "relu", "reciprocal", "sqrt", "exp",
             "log", "tanh", "sigmoid", "silu", "softplus", "leaky_relu", "elu", "selu", "celu",
             "mish", "hard_sigmoid", "hard_swish", "softsign", "shrink", "thresholded_relu",
             "relayout"]  # fmt: skip
    binary = ["add", "sub", "mul", "div", "minimum", "maximum", "equal", "less", "greater",
              "less_equal", "greater_equal"]  # fmt: skip
    cases = [made(op, real(3, 16, least=0.1 if op in POSITIVE else None)) for op in unary]
    cases += [made(op, real(3, 16), real(3, 16, least=0.3)) for op in binary]
    chosen = Operand(RNG.random((3, 16)) > 0.5)
    return [
        *cases,
        made("add", real(3, 16), real(16), act_min=0.0, act_max=1.3),
        made("clip", real(3, 16), min=-0.1, max=0.7),
        made("where", chosen, real(3, 16), real(3, 16)),
        made("prelu", real(2, 3, 4), real(3, 1)),
        made("cast", real(3, 16), to="f32"),
        made("cast", Operand(RNG.standard_normal((3, 16)).astype(np.float32)), to="f64"),
        made("cast", whole([(1 << 53) + 1, (1 << 60) + 7]), to="f64"),
        made("bitcast", real(3, 16), to="i64"),
    ]


def reductions() -> list[Case]:
    kinds = ["max", "min", "mean", "sum", "prod", "l1", "l2", "sum_square", "log_sum_exp"]
    cases = [made(f"reduce_{k}", real(3, 64), axes=(1,)) for k in kinds]
    cases += [made(f"reduce_{k}", real(3, 5, 7), axes=(0, 2), keepdims=False) for k in kinds]
    return [
        *cases,
        made("argmax", real(3, 16), axis=1),
        made("argmin", real(3, 16), axis=0),
        made("cum_sum", real(3, 16), axis=1),
        made("cum_prod", real(3, 16), axis=1),
        made("matmul", real(2, 5, 7), real(2, 7, 9), real(2, 5, 9)),
        made("matmul", real(5, 64), real(9, 64), transpose_b=True),
        made("softmax", real(3, 16)),
        made("log_softmax", real(3, 16)),
        made("layer_norm", real(3, 16), real(16), real(16)),
        made("rms_norm", real(3, 16), real(16)),
        made("group_norm", real(2, 4, 5, 5), groups=2),
        made("instance_norm", real(2, 4, 5, 5), real(4), real(4)),
        made("lp_norm", real(3, 16)),
        made("batch_norm", real(1, 3, 4, 4), *(real(3, least=0.1) for _ in range(4))),
    ]


def windows() -> list[Case]:
    sizes = {"sizes": (4, 4), "kernel": (2, 2), "strides": (1, 1), "dilations": (1, 1)}
    return [
        made("max_pool2d", real(1, 3, 6, 6), **WINDOW),
        made("avg_pool2d", real(1, 3, 6, 6), kernel=(2, 2), pads=(1, 1, 0, 0)),
        made("max_pool_indices", real(1, 3, 6, 6), dilations=(1, 1), pads=(0, 0, 0, 0), **WINDOW),
        made("unfold", real(1, 6, 4), axis=1, taps=2),
        made("fold", real(1, 2, 4, 9), pads=(0, 0, 0, 0), **sizes),
        made("resize2d", real(1, 2, 4, 4), sizes=(7, 8), mode="linear"),
        made("grid_sample", real(1, 2, 4, 4), real(1, 3, 3, 2)),
    ]


def movement() -> list[Case]:
    return [
        made("concat", real(3, 16), real(2, 16), axis=0),
        made("slice", real(3, 16), starts=(1,), ends=(9,), axes=(1,), steps=(2,)),
        made("pad", real(3, 16), pads=(1, 0, 2, 3), value=0.1),
        made("reshape", real(3, 16), shape=(16, 3)),
        made("transpose", real(3, 16), perm=(1, 0)),
        made("expand", real(3, 1), shape=(3, 4)),
        made("tile", real(3, 16), repeats=(2, 1)),
        made("trilu", real(4, 4)),
        made("gather", real(3, 16), whole([2, 0]), axis=0),
        made("gather_elements", real(3, 16), whole(np.zeros((3, 4))), axis=1),
        made("gather_nd", real(3, 16), whole([[1, 2], [0, 3]])),
        made("scatter_elements", real(3, 16), whole(np.zeros((1, 4))), real(1, 4), axis=0),
        made("scatter_nd", real(3, 16), whole([[1], [0]]), real(2, 16)),
        made("one_hot", whole([1, 2]), real(2), axis=1, depth=4),
    ]


@pytest.mark.slow
def test_kernels_of_all_of_them_compute_in_float64(tmp_path: Path) -> None:
    cases = [*elementwise(), *reductions(), *windows(), *movement()]
    assert {c.node.op for c in cases} == KEPT
    check(cases, tmp_path)
