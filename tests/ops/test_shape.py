"""Movement of numbers: shapes, values against numpy, borders, TIR in both layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcc.errors import DlccError
from dlcc.ir import Affine
from dlcc.ir.encodings import DENSE
from dlcc.ops import Interval, op_of
from tests.ops.elementwise import SHAPE, U8, assert_interval_holds, dense, evaluate, operand, real
from tests.ops.tir_harness import Case, case, check

X = real(2, 3, 4)
IMAGE = real(*SHAPE)
PADS = (0, 1, 2, 0, 0, 0, 1, 3)
WIDTHS = ((0, 0), (1, 0), (2, 1), (0, 3))

CASES: list[tuple[str, np.ndarray, dict[str, Any], np.ndarray]] = [
    ("reshape", X, {"shape": (6, 4)}, X.reshape(6, 4)),
    ("reshape", X[:1, :1, :1], {"shape": ()}, X[0, 0, 0]),
    ("transpose", X, {"perm": (2, 0, 1)}, X.transpose(2, 0, 1)),
    ("expand", X[:, :1], {"shape": (5, 2, 3, 4)}, np.broadcast_to(X[:, :1], (5, 2, 3, 4))),
    ("tile", X, {"repeats": (1, 2, 3)}, np.tile(X, (1, 2, 3))),
    ("slice", X, {"starts": (1,), "ends": (3,), "axes": (2,), "steps": (1,)}, X[:, :, 1:3]),
    ("slice", X, {"starts": (3,), "ends": (-1,), "axes": (2,), "steps": (-2,)}, X[:, :, ::-2]),
    ("pad", IMAGE, {"pads": PADS}, np.pad(IMAGE, WIDTHS)),
    ("pad", IMAGE, {"pads": PADS, "value": 1.5}, np.pad(IMAGE, WIDTHS, constant_values=1.5)),
    ("pad", IMAGE, {"pads": PADS, "mode": "reflect"}, np.pad(IMAGE, WIDTHS, mode="reflect")),
    ("pad", IMAGE, {"pads": PADS, "mode": "edge"}, np.pad(IMAGE, WIDTHS, mode="edge")),
    ("pad", IMAGE, {"pads": PADS, "mode": "wrap"}, np.pad(IMAGE, WIDTHS, mode="wrap")),
]


@pytest.mark.parametrize(("op", "x", "attrs", "want"), CASES)
def test_values(op: str, x: np.ndarray, attrs: dict[str, Any], want: np.ndarray) -> None:
    checked = dense(op, x, attrs=attrs)
    (result,) = evaluate(checked)
    np.testing.assert_array_equal(result, want)
    assert checked.node.output.type.shape == want.shape
    assert_interval_holds(checked)


@pytest.mark.parametrize(("op", "x", "attrs", "want"), CASES)
def test_codes_move_unchanged(
    op: str, x: np.ndarray, attrs: dict[str, Any], want: np.ndarray
) -> None:
    (result,) = evaluate(case(op, [operand(x, U8)], attrs, out=U8))
    np.testing.assert_array_equal(result, U8.quantise(want))


def test_concat() -> None:
    parts = [real(1, 2, 3), real(1, 5, 3), real(1, 1, 3)]
    (result,) = evaluate(dense("concat", *parts, attrs={"axis": 1}))
    np.testing.assert_array_equal(result, np.concatenate(parts, 1))


def test_border_of_codes_is_the_zero_point() -> None:
    (result,) = evaluate(case("pad", [operand(IMAGE, U8)], {"pads": PADS}, out=U8))
    assert result[0, 0].tolist() == np.full((7, 9), U8.zero_point).tolist()


def test_interval_of_a_border() -> None:
    node = dense("pad", IMAGE, attrs={"pads": PADS, "value": -9.0}).node
    assert op_of(node).interval(node, [Interval(1, 2)]) == [Interval(-9, 2)]
    node = dense("pad", IMAGE, attrs={"pads": PADS, "mode": "edge"}).node
    assert op_of(node).interval(node, [Interval(1, 2)]) == [Interval(1, 2)]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("reshape", {"shape": (5, 5)}, "24 elements do not fit"),
    ("transpose", {"perm": (0, 0, 1)}, "is no permutation"),
    ("expand", {"shape": (2, 3, 5)}, "does not broadcast"),
    ("tile", {"repeats": (2,)}, "do not fit 3 axes"),
    ("slice", {"starts": (0,), "ends": (5,), "axes": (2,), "steps": (1,)}, "outside an axis of 4"),
    ("slice", {"starts": (0,), "ends": (5, 4), "axes": (2,), "steps": (1,)}, "fit together"),
    ("pad", {"pads": (1, 1)}, "do not fit 3 axes"),
    ("pad", {"pads": (0,) * 6, "mode": "mirror"}, "no padding mode 'mirror'"),
    ("pad", {"pads": (0, 0, 4, 0, 0, 0), "mode": "reflect"}, "wider than the axis"),
    ("concat", {"axis": 3}, "no axis 3"),
]


@pytest.mark.parametrize(("op", "attrs", "why"), REFUSED)
def test_refusals(op: str, attrs: dict[str, Any], why: str) -> None:
    with pytest.raises(DlccError, match=why):
        dense(op, X, attrs=attrs)


def test_concat_of_unequal_shapes() -> None:
    with pytest.raises(DlccError, match="differ in more than axis 1"):
        dense("concat", real(1, 2, 3), real(1, 2, 4), attrs={"axis": 1})


def moved(encoding: Affine | None, layout: str) -> list[Case]:
    e = encoding or DENSE
    cases = [
        case(op, [operand(x, e, layout)], attrs, out=e, layout=layout if want.ndim == 4 else "")
        for op, x, attrs, want in CASES
        if x.ndim == 4 or not layout
    ]
    if layout:
        small = operand(real(1, 5, 1, 6), e, layout)
        cut = {"starts": (1, 5), "ends": (3, -1), "axes": (2, 3), "steps": (1, -2)}
        cases += [
            case("expand", [small], {"shape": (2, 5, 4, 6)}, out=e, layout=layout),
            case("tile", [small], {"repeats": (1, 2, 4, 1)}, out=e, layout=layout),
            case("slice", [operand(IMAGE, e, layout)], cut, out=e, layout=layout),
        ]
    parts = [operand(real(1, c, 4, 6), e, layout) for c in (5, 2, 3)]
    return [*cases, case("concat", parts, {"axis": 1}, out=e, layout=layout)]


def tir_cases() -> list[Case]:
    cases = [c for e in (None, U8) for layout in ("", "nhwc") for c in moved(e, layout)]
    return cases


def test_tir(tmp_path: Path) -> None:
    check(tir_cases(), tmp_path)
