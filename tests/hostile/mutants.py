"""What the mutational fuzzer (tests/fuzz/hostile.py) found, cut down to one node each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.frontends.models import model, tensor
from tests.hostile.case import Case, case, one_node


def mutants(_rng: np.random.Generator) -> Iterator[Case]:
    """Once they were crashes, wrong numbers, or writes outside of a tensor."""
    for axis in (2, -3, 4):
        made = one_node("n", "LpNormalization", axis=axis)
        yield case(f"mutants/lp-axis-{axis}", made, compiles=False)
    yield case("mutants/lp-3", one_node("n", "LpNormalization", p=3), compiles=False)
    for size in (0, -3):
        made = one_node("n", "LRN", [(1, 4, 2, 2)], size=size)
        yield case(f"mutants/lrn-{size}", made, compiles=False)
    made = one_node("n", "ReduceLogSumExp", [(2, 3)], kind=TensorProto.INT32)
    yield case("mutants/log-of-integers", made, compiles=False)
    yield from _indices()
    yield from _quantised()
    for count in (0, -1, 7, 1 << 40):
        yield case(f"mutants/scan-{count}", _scan(count), compiles=False)
    for version in (1 << 31, (1 << 63) - 1, -5):
        made = one_node("n", "Relu")
        made.opset_import.add(domain="ai.onnx.ml", version=version)
        yield case(f"mutants/opset-{version}", made, compiles=False)
    for count in (0, 2, 1 << 40):
        made = one_node("n", "Split", [(6,)], outputs=3, opset=18, num_outputs=count)
        yield case(f"mutants/split-{count}", made, compiles=False)
    made = one_node("n", "SplitToSequence", [(1 << 24,)])
    made.graph.node[0].output[0] = "s"
    made.graph.node.append(helper.make_node("ConcatFromSequence", ["s"], ["y0"], axis=0))
    yield case("mutants/split-into-millions", made, compiles=False)
    made = one_node("n", "Clip")  # its function body would be parsed with this name in it
    made.graph.node[0].output[0] = made.graph.output[0].name = "/dev/zero = ("
    yield case("mutants/name-in-body", made)


def _indices() -> Iterator[Case]:
    """Updates and indices that reach beyond what they go to."""
    i64 = TensorProto.INT64
    for name, reduction in (("set", "none"), ("add", "add")):
        zeros = {"i": np.zeros((6, 6, 1), np.int64), "u": np.ones((6, 6, 1), np.float32)}
        made = one_node(
            "n", "ScatterElements", [(6, 1, 1)], zeros, opset=18, axis=2, reduction=reduction
        )
        yield case(f"mutants/scatter-beyond-{name}", made, compiles=False)
    late = model(
        [helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=1)],
        [tensor("x", (4, 6)), tensor("i", (7, 5), i64), tensor("u", (7, 5))],
        ["y"],
    )
    yield case("mutants/scatter-beyond-late", late, compiles=False)
    for length in (8, 1 << 47):
        lengths = {"lengths": np.array([3, 2, length, 1], np.int64)}
        made = one_node("n", "ReverseSequence", [(7, 4)], lengths)
        yield case(f"mutants/reverse-{length}", made, compiles=False)
    empty = model(
        [helper.make_node("Gather", ["x", "i"], ["y"], axis=1)],
        [tensor("i", (3,), i64)],
        ["y"],
        {"x": np.zeros((2, 0), np.float32)},
    )
    yield case("mutants/gather-from-nothing", empty, compiles=False)


def _quantised() -> Iterator[Case]:
    """Scales along an axis that has another number of places, and integers that are quantised."""
    constants = {
        "w": np.ones((3, 2, 3, 3), np.int8), "s": np.ones(3, np.float32), "z": np.zeros(3, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]),  # axis 1, which has 2 places
        helper.make_node("Conv", ["x", "d"], ["y"]),
    ]
    made = model(nodes, [tensor("x", (1, 2, 5, 5))], ["y"], constants)
    yield case("mutants/scales-along-another-axis", made, compiles=False)
    scales = {"s": np.array(0.5, np.float32), "z": np.array(3, np.uint8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    made = model(nodes, [tensor("x", (1, 4))], ["y"], scales)
    yield case("mutants/quantised-twice", made, compiles=False)
    made = one_node("n", "QuantizeLinear", [(1, 4)], scales, kind=TensorProto.INT32)
    yield case("mutants/integers-quantised", made, compiles=True)


def _scan(count: int) -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"])],
        "body",
        [tensor("a", (3,)), tensor("b", (3,))],
        [tensor("c", (3,))],
    )
    node = helper.make_node("Scan", ["z", "x"], ["y"], body=body, num_scan_inputs=count)
    return model([node], [tensor("x", (2, 3))], ["y"], {"z": np.zeros(3, np.float32)})
