"""Einsum and Hardmax against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from tests.frontends.models import feed, model, ops, tensor


def einsum(equation: str, *shapes: tuple[int, ...]):
    names = [f"x{k}" for k in range(len(shapes))]
    node = helper.make_node("Einsum", names, ["y"], equation=equation)
    inputs = [tensor(n, s) for n, s in zip(names, shapes, strict=True)]
    return import_onnx(model([node], inputs, ["y"]))


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)]),
        ("bqhd,bkhd->bhqk", [(2, 4, 3, 5), (2, 6, 3, 5)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("i,j->ij", [(3,), (4,)]),
        ("i,i->", [(3,), (3,)]),
        ("ijk->ki", [(2, 3, 4)]),
        ("ij,ij->ij", [(2, 3), (2, 3)]),
        ("ab,cb", [(2, 3), (4, 3)]),
        ("...ij,...jk->...ik", [(2, 7, 3, 4), (2, 7, 4, 5)]),
        ("abc,ad->d", [(2, 3, 4), (2, 5)]),
        ("...ij,...jk->...ik", [(2, 1, 3, 4), (7, 4, 5)]),
        ("ij,jk->ik", [(3, 1), (4, 5)]),
        ("ii", [(3, 3)]),
        ("iji,ki->jk", [(3, 4, 3), (5, 3)]),
        ("...iii->i...", [(2, 3, 3, 3)]),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    graph = einsum(equation, *shapes)
    inputs = feed(graph)
    (result,) = execute(graph, inputs).values()
    want = np.einsum(equation, *inputs.values())
    assert result.shape == want.shape
    np.testing.assert_allclose(result, want, rtol=1e-4, atol=1e-5)


def test_attention_scores_are_one_matmul() -> None:
    assert ops(einsum("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5))) == ["transpose", "matmul"]


@pytest.mark.parametrize(
    ("equation", "shapes", "why"),
    [
        ("ii->i", [(3, 1)], "a diagonal of unequal axes"),
        ("iij->i", [(3, 3)], "for 2 axes"),
        ("ij,jk->ik", [(3, 3)], "for 1 operands"),
        ("ij,jk->ik", [(3, 2), (4, 5)], "axes 'j' of 2 and 4"),
    ],
)
def test_refusals(equation: str, shapes: list[tuple[int, ...]], why: str) -> None:
    with pytest.raises(DlccError, match=why):
        einsum(equation, *shapes)


def test_hardmax_takes_the_first_of_equals() -> None:
    node = helper.make_node("Hardmax", ["x"], ["y"], axis=1)
    graph = import_onnx(model([node], [tensor("x", (2, 3))], ["y"]))
    x = np.array([[1, 5, 5], [7, 2, 7]], np.float32)
    assert execute(graph, {"x": x})["y"].tolist() == [[0, 1, 0], [1, 0, 0]]
