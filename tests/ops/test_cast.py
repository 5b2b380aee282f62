"""Conversions between element types."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dlcc.errors import DlccError
from dlcc.ir import DType
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


def _near_every_code(dtype: np.dtype) -> np.ndarray:
    """All numbers of a narrow float, what lies half-way between them, and their neighbours."""
    with np.errstate(all="ignore"):
        codes = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
        ladder = np.sort(codes[np.isfinite(codes)])
        middles = (ladder[1:] + ladder[:-1]) / 2
        edges = np.array(
            [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, 3e38, -3e38, 65536], np.float32
        )
        exact = np.concatenate([ladder, middles, ladder * np.float32(1.04), edges])
        return np.concatenate(
            [exact, *(np.nextafter(exact, np.float32(s)) for s in (-np.inf, np.inf))]
        ).astype(np.float32)


NARROW = ["f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f4e2m1fn"]


@pytest.mark.parametrize("to", NARROW)
def test_narrow_floats_saturate(to: str) -> None:
    dtype = DType.parse(to).numpy
    x, limit = _near_every_code(dtype), float(ml_dtypes.finfo(dtype).max)
    (kept,) = evaluate(dense("cast", x, attrs={"to": to}))
    assert kept.dtype == dtype
    numbers = kept.astype(np.float32)
    assert np.array_equal(np.abs(numbers) == limit, np.abs(numbers) >= limit)
    assert (np.abs(numbers[np.isinf(x)]) == limit).all()
    (wide,) = evaluate(dense("cast", x, attrs={"to": to, "saturate": False}))
    beyond = np.isinf(x)
    if to != "f4e2m1fn":
        assert not np.isfinite(wide.astype(np.float32)[beyond]).any()
    np.testing.assert_array_equal(wide[np.abs(x) < limit], kept[np.abs(x) < limit])


def test_narrow_types_are_made_from_what_they_are_computed_in() -> None:
    with pytest.raises(DlccError, match="i4 is made from f32 or i8"):
        dense("cast", np.arange(3, dtype=np.int64), attrs={"to": "i4"})
    with pytest.raises(DlccError, match="not rounded to powers of two"):
        dense("cast", VALUES, attrs={"to": "f8e8m0fnu"})


def narrow_cases() -> list[Case]:
    cases = []
    for to in NARROW:
        x, numpy = _near_every_code(DType.parse(to).numpy), DType.parse(to).numpy
        codes = np.arange(256 if to[1] == "8" else 16, dtype=np.uint8).view(numpy)
        cases += [dense("cast", x, attrs={"to": to, "saturate": s}) for s in (True, False)]
        cases.append(dense("cast", codes, attrs={"to": "f32"}))
    scales = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu)
    cases.append(dense("cast", scales, attrs={"to": "f32"}))
    for to, wide in (("i4", np.int8), ("u4", np.uint8), ("i2", np.int8), ("u2", np.uint8)):
        whole = np.arange(-8, 8).astype(wide)
        cases.append(dense("cast", whole, attrs={"to": to}))
        cases.append(dense("cast", whole.astype(np.float32) % 2, attrs={"to": to}))
        cases.append(dense("cast", whole.astype(DType.parse(to).numpy), attrs={"to": to[0] + "8"}))
    return cases


def test_narrow_tir(tmp_path: Path) -> None:
    check(narrow_cases(), tmp_path)


def tir_cases() -> list[Case]:
    cases = [dense("cast", VALUES, attrs={"to": to}) for to in TYPES]
    whole = np.arange(-9, 9)
    cases += [dense("cast", whole, attrs={"to": to}) for to in ("f32", "i8", "bool", "i32")]
    cases.append(dense("cast", whole > 2, attrs={"to": "f32"}))
    cases.append(dense("cast", VALUES.astype(np.float16), attrs={"to": "f32"}))
    return cases


def test_tir(tmp_path: Path) -> None:
    check(tir_cases(), tmp_path)
