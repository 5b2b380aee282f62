"""TfIdfVectorizer: counts and weights against ONNX Runtime, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from tests.frontends.models import assert_same, model, tensor

WHOLE: dict[str, Any] = {
    "mode": "TF", "min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 1,
    "ngram_counts": [0, 3], "ngram_indexes": [0, 1, 2, 3, 4], "pool_int64s": [1, 2, 3, 1, 2, 3, 1],
}  # fmt: skip


def vectorizer(shape: tuple[int, ...], kind: int = TensorProto.INT64, **attrs: Any) -> Any:
    node = helper.make_node("TfIdfVectorizer", ["x"], ["y"], **(WHOLE | attrs))
    return model([node], [tensor("x", shape, kind)], ["y"])


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_counts_are_onnx_runtimes(mode: str, kind: Any) -> None:
    weights = {} if mode == "TF" else {"weights": [0.5, 2.0, 3.0, 0.25, 7.0]}
    for shape in ((2, 17), (9,), (1, 1)):
        element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        made = vectorizer(shape, element, mode=mode, **weights)
        x = np.random.default_rng(len(shape)).integers(1, 4, shape).astype(kind)
        assert_same(import_onnx(made), made, {"x": x}, 1e-6)


def test_columns_may_stand_in_any_order() -> None:
    made = vectorizer((3, 8), ngram_indexes=[4, 0, 6, 1, 2])
    x = np.random.default_rng(0).integers(1, 4, (3, 8))
    assert_same(import_onnx(made), made, {"x": x}, 1e-6)


@pytest.mark.parametrize(
    ("attrs", "why"),
    [
        ({"ngram_indexes": [0, 1]}, "2 indices for 5 n-grams"),
        ({"ngram_indexes": [0, 1, 2, 3, 1 << 40]}, "indices from 0 to 1099511627776"),
        ({"ngram_counts": [0, 4]}, "pool of 2-grams goes from 4 to 7"),
        ({"min_gram_length": 3}, "0 counted"),
        (
            {"mode": "IDF", "weights": [1.0] * 5, "ngram_indexes": [1, 0, 2, 3, 4]},
            "columns are in another order",
        ),
    ],
)
def test_what_does_not_fit(attrs: dict[str, Any], why: str) -> None:
    with pytest.raises(DlccError, match=why):
        import_onnx(vectorizer((2, 5), **attrs))
