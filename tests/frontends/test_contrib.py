"""The operators of com.microsoft against recorded results of ONNX Runtime, and compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from tests.frontends.contrib_cases import CASES, Case, Live, by_onnxruntime, f32, goldens, one
from tests.onnx_backend.merge import merged

GOLDENS = goldens()


def differs(case: Case, results: dict[str, np.ndarray], close: float) -> str:
    """Why the results are not the recorded ones, or nothing."""
    for place in case.wanted:
        key = f"{case.name}.{place}"
        got, want = results[key], GOLDENS[key]
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            return f"{key}: {got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
        if want.dtype.kind in "iu":
            apart = np.abs(got.astype(np.int64) - want.astype(np.int64)).max(initial=0)
            if apart > (want.dtype.itemsize == 1):
                return f"{key}: {apart} codes apart"
        elif np.abs(got - want).max(initial=0) > close * max(1.0, np.abs(want).max(initial=0)):
            return f"{key}: {np.abs(got - want).max()} apart"
    return ""


def imported(case: Case) -> dlcc.ir.Graph:
    return import_onnx(case.model(), shapes={n: a.shape for n, a in case.feeds.items()})


@pytest.mark.parametrize("name", CASES)
def test_the_reference_gives_the_recorded_numbers(name: str) -> None:
    case = CASES[name]
    results = execute(imported(case), case.feeds)
    keyed = dict(zip((f"{name}.{k}" for k in case.wanted), results.values(), strict=True))
    assert not differs(case, keyed, case.close)


@pytest.mark.slow
def test_the_record_is_what_onnx_runtime_computes() -> None:
    pytest.importorskip("onnxruntime")
    for case in CASES.values():
        assert not differs(case, by_onnxruntime(case), case.close), case.name


@pytest.mark.slow
def test_compiled_they_give_the_recorded_numbers(tmp_path: Path) -> None:
    graphs = {name: imported(case) for name, case in CASES.items()}
    dlcc.compile(merged(graphs), tmp_path / "all", bits=32, threads=1)
    feeds = {
        f"{name}.{v.name}": CASES[name].feeds[v.name]
        for name, graph in graphs.items()
        for v in graph.inputs
    }
    results = dlcc.load(tmp_path / "all").run(feeds)
    for name, case in CASES.items():
        keyed = {f"{name}.{k}": results[f"{name}.{n}"] for n, k in enumerate(case.wanted)}
        assert not differs(case, keyed, max(case.close, 1e-5)), name


def test_unique_numbers_come_in_their_order() -> None:
    x = np.asarray([2, 1, 1, 3, 4, 3], np.float32)
    case = Case("unique", "Unique", [Live(x)], {}, (0, 1, 2))
    results = execute(imported(case), case.feeds)
    y, places, counts = (results[f"y{k}"] for k in range(3))
    assert int(results["y0.count"].item()) == 4
    np.testing.assert_array_equal(y[:4], [2, 1, 3, 4])
    np.testing.assert_array_equal(places, [0, 1, 1, 2, 3, 2])
    np.testing.assert_array_equal(counts[:4], [1, 2, 2, 1])


X = Live(f32(2, 4, 8))
REFUSED = [
    (Case("r", "Attention", [X, f32(8, 24), None], {"num_heads": 2, "do_rotary": 1}), "do_rotary"),
    (Case("r", "Attention", [X, f32(8, 24), None], {"num_heads": 5}), "5 heads do not divide"),
    (Case("r", "FusedGemm", [Live(f32(3, 5)), f32(5, 6)], {"activation": "Cube"}), "'Cube'"),
    (Case("r", "MatMulNBits", [X, np.zeros((3, 1, 16), np.uint8), f32(3)],
          {"K": 8, "N": 4, "bits": 4, "block_size": 32}), "48 bytes of weights, and 64"),
    (Case("r", "CDist", [Live(f32(2, 3)), Live(f32(2, 3))], {"metric": "cosine"}), "'cosine'"),
    (Case("r", "Inverse", [Live(f32(3, 3))]), "inverts matrices"),
    (Case("r", "SkipLayerNormalization", [X, X, f32(8)], {}, (0, 1)), "results of training"),
    (Case("r", "GroupQueryAttention",
          [X, X, X, None, None, Live(np.zeros(2, np.int32)), Live(one(4, np.int32))],
          {"num_heads": 2, "kv_num_heads": 2}), "total_sequence_length"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_what_is_refused_says_why(case: Case, why: str) -> None:
    with pytest.raises(DlccError, match=why):
        imported(case)
