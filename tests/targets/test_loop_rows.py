"""Kernels whose loops follow the data: the references' results, at any number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.errors import DlccError
from dlcc.ir import DType, Graph, TensorType
from dlcc.ir.encodings import Array
from dlcc.ops import build


def _graph() -> tuple[Graph, dict[str, Array]]:
    """Ties, NaN, singular and large matrices, boxes turned round and without area."""
    rng = np.random.default_rng(0)
    graph, outputs = Graph("loops"), []
    feeds: dict[str, Array] = {}

    def made(op: str, *arrays: Array, outs: int = 1, **attrs: object) -> None:
        values = []
        for array in arrays:
            name = f"x{len(feeds)}"
            feeds[name] = array
            values.append(graph.add_input(name, TensorType(array.shape, DType.of(array))))
        node = build(graph, op, values, attrs, loc=op, outputs=outs)
        outputs.extend(node.outputs)

    boxes = (rng.integers(0, 12, (2, 90, 4)) / 4).astype(np.float32)
    scores = (rng.integers(0, 30, (2, 3, 90)) / 30).astype(np.float32)
    scores[0, 1, ::7], scores[1, 0, 3] = np.nan, -np.inf
    made("non_max_suppression", boxes, scores, outs=2, boxes=20, iou=0.3)
    more = {"score": 0.6, "filtered": True, "center": True}
    made("non_max_suppression", boxes, scores, outs=2, boxes=90, iou=0.1, **more)
    made("nonzero", rng.integers(0, 2, 333).astype(np.uint8), outs=2)
    made("nonzero", np.zeros(5, np.uint8), outs=2)
    floats = rng.integers(-2, 3, (60, 2)).astype(np.float32)
    floats[rng.random((60, 2)) < 0.2] = np.nan
    made("unique_rows", floats, outs=4)
    made("unique_rows", floats, outs=4, sorted=False)
    made("unique_rows", rng.integers(-(2**62), 2**62, (40, 1)).repeat(2, 0), outs=4)
    matrices = rng.normal(size=(2, 3, 5, 5)).astype(np.float32)
    matrices[0, 0, 2], matrices[1, 1, :, 3] = matrices[0, 0, 1], 0
    made("determinant", matrices)
    made("determinant", rng.integers(-1, 2, (6, 1, 1)).astype(np.float32))
    graph.set_outputs(outputs)
    return graph, feeds


def test_loops_are_those_of_the_references(tmp_path: Path) -> None:
    graph, feeds = _graph()
    wanted = dlcc.execute(graph, feeds)
    determinants = [n.output.name for n in graph.nodes if n.op == "determinant"]
    exact = np.linalg.det(feeds["x9"].astype(np.float64))
    np.testing.assert_allclose(wanted[determinants[0]], exact, rtol=1e-5, atol=1e-6)
    dlcc.compile(graph, tmp_path, bits=32, threads=3)
    for threads in (1, 3):
        with dlcc.load(tmp_path, threads=threads) as library:
            got = library.run(feeds)
        for name, array in wanted.items():
            np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "why"),
    [
        ("determinant", [(2, 3)], {}, "square float32"),
        ("nonzero", [(3,)], {}, "a row of u8"),
        ("unique_rows", [(3,)], {}, "rows of numbers"),
        ("non_max_suppression", [(1, 5, 4), (1, 2, 6)], {"boxes": 2}, "boxes must be f32"),
        ("non_max_suppression", [(1, 5, 4), (1, 2, 5)], {"boxes": 6}, "6 of 5 boxes"),
    ],
)
def test_operands_that_do_not_fit(
    op: str, shapes: list[tuple[int, ...]], attrs: dict[str, int], why: str
) -> None:
    graph = Graph("g")
    values = [graph.add_input(f"x{k}", TensorType(s)) for k, s in enumerate(shapes)]
    with pytest.raises(DlccError, match=why):
        build(graph, op, values, attrs, loc="it", outputs=2)
