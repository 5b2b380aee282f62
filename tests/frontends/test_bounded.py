"""Values whose size the data decide: padded, counted, and never mixed with their padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.helper import make_node as made_node

import dlcc
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from dlcc.ir.encodings import Array
from tests.frontends.models import model, runtime, tensor

FEW = settings(max_examples=12, deadline=None, derandomize=True)
I64 = TensorProto.INT64


def row(*values: int) -> Array:
    return np.asarray(values, np.int64)


def cut(results: Mapping[str, Array], axes: Mapping[str, int]) -> list[Array]:
    """The model's outputs without what fills them up, which must be -1."""
    found = []
    for name, array in results.items():
        if name.endswith(".count"):
            continue
        if name in axes:
            array, rest = np.split(array, [int(results[f"{name}.count"])], axes[name])
            assert np.all(rest == -1)
        found.append(array)
    return found


def agrees(
    source: onnx.ModelProto,
    feeds: Mapping[str, Array],
    axes: Mapping[str, int],
    folder: Path | None = None,
) -> None:
    """The reference and, with ``folder``, the compiled library give ONNX Runtime's outputs."""
    graph = import_onnx(source)
    ways = [dlcc.execute(graph, feeds)]
    if folder is not None:
        dlcc.compile(graph, folder, bits=32)
        ways.append(dlcc.load(folder).run(feeds))
    for results in ways:
        for got, want in zip(cut(results, axes), runtime(source, feeds), strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def detector() -> onnx.ModelProto:
    """What exporters put behind a detector: suppression, then rows (box, score, class) by index."""
    nodes = [
        made_node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["chosen"]),
        made_node("Gather", ["chosen", "class_and_box"], ["pairs"], axis=1),
        made_node("Gather", ["chosen", "two"], ["box"], axis=1),
        made_node("Squeeze", ["box", "one"], ["flat"]),
        made_node("Squeeze", ["boxes", "zero"], ["all_boxes"]),
        made_node("Gather", ["all_boxes", "flat"], ["found"], axis=0),
        made_node("Squeeze", ["scores", "zero"], ["all_scores"]),
        made_node("GatherND", ["all_scores", "pairs"], ["score"]),
        made_node("Unsqueeze", ["score", "one"], ["score_column"]),
        made_node("Gather", ["chosen", "one"], ["class"], axis=1),
        made_node("Cast", ["class"], ["class_number"], to=TensorProto.FLOAT),
        made_node("Concat", ["found", "score_column", "class_number"], ["detections"], axis=1),
        made_node("Shape", ["detections"], ["sizes"]),
        made_node("ReduceMax", ["found"], ["far"], axes=[1], keepdims=0),
    ]
    constants = {
        "most": row(4), "iou": np.float32([0.4]), "least": np.float32([0.3]),
        "class_and_box": row(1, 2), "two": row(2), "one": row(1), "zero": row(0),
    }  # fmt: skip
    inputs = [tensor("boxes", (1, 40, 4)), tensor("scores", (1, 3, 40))]
    return model(nodes, inputs, ["detections", tensor("sizes", (2,), I64), "far"], constants)


def scene(seed: int, count: int = 40, classes: int = 3) -> dict[str, Array]:
    """Boxes that overlap, and scores with ties."""
    rng = np.random.default_rng(seed)
    corners = rng.random((1, count, 2)) * 4
    boxes = np.concatenate([corners, corners + rng.random((1, count, 2)) * 2], -1)
    scores = rng.integers(0, 20, (1, classes, count)) / 20
    return {"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32)}


def test_a_detectors_tail_gives_rows_and_their_number(tmp_path: Path) -> None:
    agrees(detector(), scene(0), {"detections": 0, "far": 0}, tmp_path)
    nothing = scene(1) | {"scores": np.zeros((1, 3, 40), np.float32)}
    results = dlcc.load(tmp_path).run(nothing)
    assert results["detections.count"] == 0
    assert results["detections"].shape == (12, 6)
    assert np.all(results["detections"] == -1)
    assert results["sizes"].tolist() == [0, 6]


@FEW
@given(st.integers(0, 99), st.booleans(), st.sampled_from([1, 7, 30]), st.sampled_from([0.0, 0.5]))
def test_suppression_is_onnx_runtimes(seed: int, center: bool, most: int, iou: float) -> None:
    names = ["boxes", "scores", "most", "iou"]
    suppress = made_node("NonMaxSuppression", names, ["y"], center_point_box=int(center))
    inputs = [tensor("boxes", (1, 12, 4)), tensor("scores", (1, 2, 12))]
    constants = {"most": row(most), "iou": np.float32([iou])}
    source = model([suppress], inputs, [tensor("y", None, I64)], constants)
    agrees(source, scene(seed, 12, 2), {"y": 0})


def test_selections_by_a_mask_share_their_count() -> None:
    nodes = [
        made_node("Greater", ["x", "limit"], ["mask"]),
        made_node("NonZero", ["mask"], ["places"]),
        made_node("Transpose", ["places"], ["rows"], perm=[1, 0]),
        made_node("GatherND", ["x", "rows"], ["values"]),
        made_node("Reshape", ["mask", "flat"], ["mask_row"]),
        made_node("Compress", ["w", "mask_row"], ["kept"], axis=1),
        made_node("Mul", ["values", "two"], ["double"]),
        made_node("Sub", ["double", "values"], ["same"]),
        made_node("Size", ["places"], ["size"]),
    ]
    constants = {"limit": np.float32(0.2), "flat": row(-1), "two": np.float32(2)}
    inputs = [tensor("x", (3, 4)), tensor("w", (2, 12))]
    outputs = [tensor("rows", None, I64), "same", "kept", tensor("size", (), I64)]
    rng = np.random.default_rng(3)
    feeds = {n: rng.normal(size=s).astype(np.float32) for n, s in (("x", (3, 4)), ("w", (2, 12)))}
    source = model(nodes, inputs, outputs, constants)
    agrees(source, feeds, {"rows": 0, "same": 0, "kept": 1})
    told: list[str] = []
    graph = import_onnx(source, remarks=told)
    assert graph.output_names[4:] == ["rows.count", "same.count", "kept.count"]
    assert len([n for n in graph.nodes if n.op == "nonzero"]) == 1
    assert any("12 places along axis 1" in t and "'kept.count'" in t for t in told)


def test_what_is_known_has_its_true_size() -> None:
    boxes, scores = (v for v in scene(5).values())
    nodes = [
        made_node("NonMaxSuppression", ["boxes", "scores", "most"], ["y"]),
        made_node("Unique", ["scores"], ["z"]),
        made_node("Identity", ["x"], ["w"]),
    ]
    constants = {"boxes": boxes, "scores": scores, "most": row(3)}
    source = model(nodes, [tensor("x", (1,))], [tensor("y", None, I64), "z", "w"], constants)
    agrees(source, {"x": np.ones(1, np.float32)}, {})


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([made_node("ReduceSum", ["p"], ["y"])], "ReduceSum.*input 0 along axis 1.*mix"),
        ([made_node("Concat", ["p", "p"], ["y"], axis=1)], "Concat.*mix"),
        ([made_node("Gather", ["p", "k"], ["y"], axis=1)], "Gather.*mix"),
        ([made_node("Softmax", ["f"], ["y"])], "Softmax.*mix"),
        ([made_node("Slice", ["p", "k", "k1", "k1"], ["y"])], "Slice.*mix"),
        ([made_node("Reshape", ["p", "flat"], ["y"])], "Reshape.*mix"),
        ([made_node("TopK", ["f", "k1"], ["y", "_"])], "TopK.*mix"),
        ([made_node("Add", ["p", "full"], ["y"])], "input 1 has 6 places along an axis"),
        ([made_node("Add", ["p", "q"], ["y"])], "two operands depend on different data"),
        ([made_node("SequenceConstruct", ["p"], ["s"]), made_node("SequenceAt", ["s", "k"], ["y"])],
         "size of an operand depends on the data"),
    ],
)  # fmt: skip
def test_an_op_that_would_mix_results_and_padding_is_refused(
    nodes: Sequence[Any], why: str
) -> None:
    first = [
        made_node("NonZero", ["x"], ["p"]),
        made_node("NonZero", ["z"], ["q"]),
        made_node("Cast", ["p"], ["f"], to=TensorProto.FLOAT),
    ]
    constants = {
        "k": row(0).reshape(()), "k1": row(1), "flat": row(-1), "full": np.zeros((2, 6), np.int64)
    }  # fmt: skip
    if nodes[0].op_type == "Slice":
        constants["k"] = row(0)
    inputs = [tensor("x", (2, 3)), tensor("z", (2, 3))]
    with pytest.raises(DlccError, match=f"(?s){why}"):
        import_onnx(model([*first, *nodes], inputs, ["y"], constants))
