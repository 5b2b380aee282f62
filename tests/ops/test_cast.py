"""Conversions between element types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlcc.errors import DlccError
from dlcc.ops import Interval, op_of
from tests.ops.elementwise import assert_interval_holds, dense, evaluate, real
from tests.ops.tir_harness import Case, check

TYPES = {
    "f32": np.float32, "f64": np.float64, "f16": np.float16, "bool": np.bool_, "i8": np.int8,
    "i32": np.int32, "i64": np.int64, "u8": np.uint8, "u16": np.uint16,
}  # fmt: skip
VALUES = np.abs(real(4, 5)) * 20


@pytest.mark.parametrize("to", TYPES)
def test_values(to: str) -> None:
    checked = dense("cast", VALUES, attrs={"to": to})
    (result,) = evaluate(checked)
    assert result.dtype == TYPES[to]
    np.testing.assert_array_equal(result, VALUES.astype(TYPES[to]))
    assert_interval_holds(checked)


def test_to_integer_truncates() -> None:
    node = dense("cast", real(4), attrs={"to": "i32"}).node
    assert op_of(node).interval(node, [Interval(-2.7, 3.9)]) == [Interval(-2, 3)]
    (result,) = evaluate(dense("cast", np.array([-2.7, 3.9]), attrs={"to": "i32"}))
    assert result.tolist() == [-2, 3]


def test_to_bool_is_not_zero() -> None:
    (result,) = evaluate(dense("cast", np.array([0.2, 0.0, -3.0]), attrs={"to": "bool"}))
    assert result.tolist() == [True, False, True]


def test_unknown_type() -> None:
    with pytest.raises(DlccError, match="no element type 'f8'"):
        dense("cast", VALUES, attrs={"to": "f8"})


def tir_cases() -> list[Case]:
    cases = [dense("cast", VALUES, attrs={"to": to}) for to in TYPES]
    whole = np.arange(-9, 9)
    cases += [dense("cast", whole, attrs={"to": to}) for to in ("f32", "i8", "bool", "i32")]
    cases.append(dense("cast", whole > 2, attrs={"to": "f32"}))
    cases.append(dense("cast", VALUES.astype(np.float16), attrs={"to": "f32"}))
    return cases


def test_tir(tmp_path: Path) -> None:
    check(tir_cases(), tmp_path)
