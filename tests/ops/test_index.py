"""Gathers, scatters, sorting, prefix sums: against plain loops, and their TIR."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from dlcc.errors import DlccError
from dlcc.ops.index import check_places
from tests.ops.elementwise import U8, assert_interval_holds, dense, evaluate, operand, real
from tests.ops.tir_harness import Case, case, check, constant


def indices(*shape: int, below: int, seed: int = 0) -> np.ndarray:
    """Negative ones count from the end."""
    return np.random.default_rng(seed).integers(-below, below, shape)


COMBINE = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "min": min,
    "max": max,
}


def scatter_elements(reduction: str, rows: int = 4) -> Case:
    if reduction == "none":  # repeated places would have no defined winner in ONNX
        rng = np.random.default_rng(3)
        places = np.stack([rng.permutation(5)[:3] for _ in range(4)])
    else:
        places = indices(4, 7, below=5)
    attrs = {"axis": 1, "reduction": reduction}
    return dense(
        "scatter_elements", real(rows, 5), places, real(*places.shape, seed=2), attrs=attrs
    )


def scatter_nd(reduction: str) -> Case:
    rows = np.array([[0, 1], [3, 2], [0, -1], [1, 1]])
    places = rows if reduction == "none" else indices(6, 2, below=4)
    updates = real(len(places), 3, seed=2)
    attrs = {"reduction": reduction}
    return dense("scatter_nd", real(4, 5, 3), places, updates, attrs=attrs)


@pytest.mark.parametrize("reduction", COMBINE)
def test_scatter_elements(reduction: str) -> None:
    checked = scatter_elements(reduction)
    want, places, updates = (a.copy() for a in checked.arrays)
    for i, j in np.ndindex(*places.shape):
        want[i, places[i, j]] = COMBINE[reduction](want[i, places[i, j]], updates[i, j])
    np.testing.assert_allclose(evaluate(checked)[0], want, rtol=1e-6)
    assert_interval_holds(checked)


@pytest.mark.parametrize("reduction", COMBINE)
def test_scatter_nd(reduction: str) -> None:
    checked = scatter_nd(reduction)
    want, places, updates = (a.copy() for a in checked.arrays)
    for row, k in itertools.product(range(len(places)), range(3)):
        place = (*places[row], k)
        want[place] = COMBINE[reduction](want[place], updates[row, k])
    np.testing.assert_allclose(evaluate(checked)[0], want, rtol=1e-6)


def test_gather() -> None:
    x, places = real(4, 5, 3), indices(2, 3, below=5)
    checked = dense("gather", x, places, attrs={"axis": 1})
    want = np.stack([np.stack([x[:, p] for p in row], 1) for row in places], 1)
    np.testing.assert_array_equal(evaluate(checked)[0], want)
    assert checked.node.output.type.shape == (4, 2, 3, 3)
    assert_interval_holds(checked)


def test_gather_elements() -> None:
    x, places = real(4, 5), indices(3, 7, below=5)
    want = [[x[i, p] for p in row] for i, row in enumerate(places)]
    checked = dense("gather_elements", x, places, attrs={"axis": 1})
    np.testing.assert_array_equal(evaluate(checked)[0], np.array(want))


@pytest.mark.parametrize("batch", [0, 1])
def test_gather_nd(batch: int) -> None:
    x = real(4, 5, 3)
    places = indices(4, 6, 2, below=3)
    checked = dense("gather_nd", x, places, attrs={"batch_dims": batch})
    if batch:
        want = [[x[i, a, b] for a, b in rows] for i, rows in enumerate(places)]
    else:
        want = [[x[a, b] for a, b in rows] for rows in places]
    np.testing.assert_array_equal(evaluate(checked)[0], np.array(want))


@pytest.mark.parametrize("largest", [True, False])
def test_top_k_with_ties(largest: bool) -> None:
    x = np.round(real(3, 9))
    attrs = {"axis": 1, "k": 4, "largest": largest}
    values, places = evaluate(dense("top_k", x, attrs=attrs, outputs=2))
    for row, found, where in zip(x, values, places, strict=True):
        order = sorted(range(9), key=lambda i, r=row: (-r[i] if largest else r[i], i))[:4]
        assert where.tolist() == order
        assert found.tolist() == row[order].tolist()


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_cum_sum(exclusive: bool, reverse: bool) -> None:
    x = np.array([1, 2, 3, 4])
    attrs = {"axis": 0, "exclusive": exclusive, "reverse": reverse}
    (result,) = evaluate(dense("cum_sum", x, attrs=attrs))
    want = {
        (False, False): [1, 3, 6, 10], (True, False): [0, 1, 3, 6],
        (False, True): [10, 9, 7, 4], (True, True): [9, 7, 4, 0],
    }[exclusive, reverse]  # fmt: skip
    assert result.tolist() == want


def test_trilu_and_one_hot() -> None:
    x = real(2, 4, 5)
    for upper, cut in ((True, np.triu), (False, np.tril)):
        (result,) = evaluate(dense("trilu", x, attrs={"k": 1, "upper": upper}))
        np.testing.assert_array_equal(result, cut(x, 1))
    places, values = np.array([0, -1, 7]), np.array([2.0, 5.0], np.float32)
    (result,) = evaluate(dense("one_hot", places, values, attrs={"axis": 1, "depth": 3}))
    assert result.tolist() == [[5, 2, 2], [2, 2, 5], [2, 2, 2]]


def test_index_outside() -> None:
    x = real(4)
    (result,) = evaluate(dense("gather", x, np.array([4, -9, -1]), attrs={"axis": 0}))
    np.testing.assert_array_equal(result, x[[3, 0, 3]])
    known = case("gather", [operand(x), constant(np.array([4]))], {"axis": 0})
    with pytest.raises(IndexError, match="in an axis of 4"):
        evaluate(known)
    with pytest.raises(DlccError, match="indices from 4 to 4 in an axis of 4"):
        check_places(known.graph.nodes[0])


@pytest.mark.parametrize(
    ("op", "operands", "attrs", "why"),
    [
        ("gather", (real(4), real(2)), {}, "must be integers"),
        ("gather", (real(4), np.arange(2, dtype=np.uint64)), {}, "must be integers that i64 has"),
        ("gather", (real(4), indices(2, below=3)), {"axis": 1}, "no axis 1"),
        ("gather_elements", (real(4, 2), indices(5, 3, below=2)), {"axis": 1}, "do not fit"),
        ("gather_nd", (real(4), indices(2, 2, below=2)), {}, "do not fit 1 axes"),
        ("scatter_nd", (real(4), indices(2, 1, below=2), real(3)), {}, "do not fit the indices"),
        ("top_k", (real(4),), {"axis": 0, "k": 5}, "the first 5"),
        ("trilu", (real(4),), {}, "two axes"),
    ],
)
def test_refusals(op: str, operands: tuple, attrs: dict, why: str) -> None:
    with pytest.raises(DlccError, match=why):
        dense(op, *operands, attrs=attrs)


def tir_cases() -> list[Case]:
    cases = [f(r) for r in COMBINE for f in (scatter_elements, scatter_nd)]
    cases += [scatter_elements(r, rows=6) for r in ("none", "add")]
    for e in (None, U8):
        kind = {"out": e} if e else {}
        x = [operand(real(4, 5, 3), *([e] if e else []))]
        flat = [operand(real(4, 5), *([e] if e else []))]
        cases += [
            case("gather", [*x, operand(indices(2, 3, below=5))], {"axis": 1}, **kind),
            case("gather", [*x, operand(np.array(2))], {"axis": 1}, **kind),
            case("gather_elements", [*flat, operand(indices(3, 7, below=5))], {"axis": 1}, **kind),
            case("gather_nd", [*x, operand(indices(2, 6, 2, below=4))], **kind),
            case("gather_nd", [*x, operand(indices(4, 1, below=3))], {"batch_dims": 1}, **kind),
        ]
    for flag in (True, False):
        attrs = {"k": 4, "largest": flag}
        cases += [
            dense("top_k", np.round(real(3, 9)), attrs={"axis": 1, **attrs}, outputs=2),
            dense("top_k", real(9, 3), attrs={"axis": 0, **attrs}, outputs=2),
            dense("cum_sum", real(3, 6), attrs={"axis": 1, "exclusive": flag}),
            dense("cum_sum", real(6, 3), attrs={"axis": 0, "exclusive": flag, "reverse": True}),
            dense("trilu", real(2, 4, 5), attrs={"k": 1, "upper": flag}),
            dense("trilu", real(4, 5), attrs={"k": -(2**63), "upper": flag}),
        ]
    cases.append(dense("one_hot", indices(3, 4, below=6), real(2), attrs={"axis": 1, "depth": 5}))
    return cases


def test_tir(tmp_path: Path) -> None:
    check(tir_cases(), tmp_path)
