"""Default TIR on NaN, infinities, zeros and the ends of the floats: what the references have."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlcc.ops import OPS
from dlcc.ops.unary import Unary
from tests.ops.elementwise import dense
from tests.ops.tir_harness import CPU, Case, link, lower, reference, run

NAN, INF, LARGEST = np.nan, np.inf, 3.4028235e38
SPECIAL = np.array(
    [NAN, INF, -INF, 0.0, -0.0, 1e-45, -1e-45, 1e-38, LARGEST, -LARGEST, 1e30, -1e30, 1e10,
     -1e10, 98765.43, -98765.43, 1, -1, 0.5, -0.5, 2.5, -2.5, 88.5, -88.5, 104, -104, 20, -20],
    np.float32,
)  # fmt: skip
ATTRIBUTES = {"clip": {"min": -1.0, "max": 2.0}}


def unary() -> list[Case]:
    """Every function of one float."""
    names = sorted(n for n, op in OPS.items() if isinstance(op, Unary))
    cases = [dense(name, SPECIAL, attrs=ATTRIBUTES.get(name)) for name in names]
    flat = [("leaky_relu", {"alpha": 0.0}), ("elu", {"alpha": 0.0}), ("selu", {"alpha": 0.0}),
            ("selu", {"gamma": 0.0}), ("hard_sigmoid", {"alpha": 0.0})]  # fmt: skip
    cases += [dense(name, SPECIAL, attrs=attrs) for name, attrs in flat]
    half_open = [dense("clip", SPECIAL, attrs={end: 1.0}) for end in ("min", "max")]
    truths = dense("cast", SPECIAL, attrs={"to": "bool"})
    return [*cases, *half_open, truths, dense("gelu", SPECIAL, attrs={"approximate": "tanh"})]


def pairs() -> list[Case]:
    """Functions of any two of the numbers."""
    a, b = (np.ascontiguousarray(g).reshape(-1) for g in np.meshgrid(SPECIAL, SPECIAL))
    names = ("add", "sub", "mul", "div", "minimum", "maximum", "pow", "prelu", "less", "equal")
    return [dense(name, a, b) for name in names]


def rows() -> list[Case]:
    """Rows with a NaN first, last, and only; with infinities; of many and few numbers."""
    cases = []
    for length in (3, 32):
        x = np.random.default_rng(length).standard_normal((9, length)).astype(np.float32)
        x[0, 0] = x[1, -1] = x[2] = NAN
        x[3, 1], x[4, 1], x[5], x[6] = INF, -INF, -INF, INF
        x[7, :2] = INF, -INF
        cases += [dense(f"reduce_{k}", x, attrs={"axes": (1,)})
                  for k in ("max", "min", "sum", "mean", "log_sum_exp")]  # fmt: skip
        cases += [dense(f"arg{k}", x, attrs={"axis": 1, "select_last_index": last})
                  for k in ("max", "min") for last in (False, True)]  # fmt: skip
        cases += [dense("top_k", x, attrs={"axis": 1, "k": 3, "largest": b}, outputs=2)
                  for b in (False, True)]  # fmt: skip
        cases.append(dense("softmax", x, attrs={"axis": 1}))
        cases += [dense("lp_norm", x, attrs={"axis": 1, "p": p}) for p in (1, 2)]
        image = np.resize(x, (1, 2, 9, 9)).copy()
        cases.append(dense("max_pool2d", image, attrs={"kernel": (3, 2), "pads": (1, 1, 1, 0)}))
    return cases


def test_special_values(tmp_path: Path) -> None:
    from dlcc.tir.build import LLVMTarget, compile_object

    cases = [*unary(), *pairs(), *rows()]
    kernels = {f"k{i}": lower(c, f"k{i}") for i, c in enumerate(cases)}
    target = LLVMTarget("x86_64-unknown-linux-gnu", CPU)
    library = link(compile_object({n: k.func for n, k in kernels.items()}, target), tmp_path)
    wrong: list[tuple[str, np.ndarray, np.ndarray]] = []
    for (name, kernel), checked in zip(kernels.items(), cases, strict=True):
        with np.errstate(all="ignore"):
            results = zip(run(checked, kernel, library[name]), reference(checked), strict=True)
        for got, want in results:
            if not np.allclose(got, want, rtol=2e-5, atol=1e-6, equal_nan=True):
                wrong.append((checked.name, got, want))
    assert not wrong
