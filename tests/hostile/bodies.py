"""Loops and scans whose bodies run too often, or make too much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.frontends.models import model, tensor
from tests.hostile.case import I64, Case, case, chain, one_node

_X = tensor("x", (1, 4))


def _body(nodes: Sequence[onnx.NodeProto], shape: Sequence[int | None]) -> onnx.GraphProto:
    """A body (trip, going, v) -> (going, w) that never ends by itself."""
    given = [tensor("i", (), I64), tensor("going", (), TensorProto.BOOL), tensor("v", shape)]
    same = helper.make_node("Identity", ["going"], ["go_on"])
    results = [tensor("go_on", (), TensorProto.BOOL), tensor("w", None)]
    return helper.make_graph([same, *nodes], "body", given, results)


def _looped(trips: int, body: onnx.GraphProto, **constants: np.ndarray) -> onnx.ModelProto:
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    return model([node], [_X], ["y"], {"n": np.array(trips, np.int64), **constants})


def bodies(_rng: np.random.Generator) -> Iterator[Case]:
    """Trips by the million, loops in loops, and tensors that double at every trip."""
    add = helper.make_node("Add", ["v", "v"], ["w"])
    for power in (20, 40, 62):
        made = _looped(1 << power, _body([add], (1, 4)))
        yield case(f"bodies/trips-2-to-the-{power}", made, compiles=False, slow=True)
    double = helper.make_node("Concat", ["v", "v"], ["w"], axis=0)
    made = _looped(60, _body([double], (None, 4)))
    yield case("bodies/doubling", made, compiles=False)
    known = model(
        [helper.make_node("Loop", ["n", "", "k"], ["z"], body=_body([double], (None, 4))),
         helper.make_node("ReduceSum", ["z"], ["s"]), helper.make_node("Add", ["x", "s"], ["y"])],
        [_X], ["y"], {"n": np.array(60), "k": np.ones((1, 4), np.float32)},
    )  # fmt: skip
    yield case("bodies/doubling-of-constants", known, compiles=False, slow=True)
    body = _body([add], (1, 4))
    for _ in range(3):
        inner = helper.make_node("Loop", ["n", "", "v"], ["w"], body=body)
        body = _body([inner], (1, 4))
    made = _looped(200, body)
    yield case("bodies/loops-in-loops", made, compiles=False, slow=True)
    yield from _scans()
    yield from _sequences()


def _scans() -> Iterator[Case]:
    relu = helper.make_node("Relu", ["r"], ["s"])
    body = helper.make_graph([relu], "body", [tensor("r", (4,))], [tensor("s", (4,))])
    for rows in (0, 1 << 20, 1 << 40):
        given = [tensor("x", (rows, 4))]
        node = helper.make_node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1)
        refused = None if rows == 0 else False
        yield case(f"bodies/scan-{rows}", model([node], given, ["y"]), compiles=refused,
                   slow=rows > 0)  # fmt: skip
    for count in (0, -1, 2, 1 << 62):
        node = helper.make_node("Scan", ["x"], ["y"], body=body, num_scan_inputs=count)
        yield case(f"bodies/scan-inputs-{count}", model([node], [_X], ["y"]), compiles=False)


def _sequences() -> Iterator[Case]:
    pieces = helper.make_node("SplitToSequence", ["x"], ["q"], axis=1, keepdims=1)
    for name, place in (("beyond", 4), ("before", -5), ("far", 1 << 62)):
        at = helper.make_node("SequenceAt", ["q", "p"], ["y"])
        made = model([pieces, at], [_X], ["y"], {"p": np.array(place)})
        yield case(f"bodies/sequence-{name}", made, compiles=False)
    empty = helper.make_node("SequenceEmpty", [], ["q"])
    joined = helper.make_node("ConcatFromSequence", ["q"], ["y"], axis=0)
    yield case("bodies/sequence-empty", model([empty, joined], [_X], ["y"]), compiles=False)
    split = {"p": np.array(0)}
    yield case("bodies/sequence-of-nothing", one_node("s", "SplitToSequence", [(1, 4)], split))


def wide(_rng: np.random.Generator) -> Iterator[Case]:
    """Thousands of nodes, operands, results, or of the same name."""
    same = chain(5000)
    for node in same:
        node.name = "one"
    yield case("wide/same-name-5000", model(same, [_X], ["y"]), compiles=True, slow=True)
    total = helper.make_node("Sum", ["x"] * 3000, ["y"])
    yield case("wide/sum-of-3000", model([total], [_X], ["y"]), slow=True)
    joined = helper.make_node("Concat", ["x"] * 3000, ["y"], axis=0)
    yield case("wide/concat-of-3000", model([joined], [_X], ["y"]), slow=True)
    parts = [f"y{i}" for i in range(1000)]
    split = helper.make_node("Split", ["x"], parts, axis=1)
    yield case("wide/split-into-1000", model([split], [tensor("x", (1, 1000))], parts), slow=True)
    given = [tensor(f"x{i}", (1, 4)) for i in range(1000)]
    total = helper.make_node("Sum", [v.name for v in given], ["y"])
    yield case("wide/inputs-1000", model([total], given, ["y"]), slow=True)
    unused = {f"u{i}": np.ones(4, np.float32) for i in range(5000)}
    made = model([helper.make_node("Relu", ["x"], ["y"])], [_X], ["y"], unused)
    yield case("wide/initialisers-5000", made, compiles=True)
    doubled = [helper.make_node("Concat", [f"v{i}"] * 2, [f"v{i + 1}"], axis=0) for i in range(50)]
    yield case("wide/concat-doubles", model(doubled, [tensor("v0", (1, 4))], ["v50"]),
               compiles=False)  # fmt: skip
    grown = [helper.make_node("Concat", [f"v{i}", "x"], [f"v{i + 1}"], axis=0) for i in range(3000)]
    yield case("wide/concat-chain-3000", model(grown, [_X, tensor("v0", (1, 4))], ["v3000"]),
               slow=True)  # fmt: skip
    given = [tensor(f"x{i}", (1, 4)) for i in range(3000)]
    joined = helper.make_node("Concat", [v.name for v in given], ["y"], axis=0)
    yield case("wide/inputs-3000", model([joined], given, ["y"]), slow=True)
    copies = [helper.make_node("Neg", ["x"], [f"y{i}"]) for i in range(3000)]
    made = model(copies, [_X], [f"y{i}" for i in range(3000)])
    yield case("wide/outputs-3000", made, slow=True)
    most = helper.make_node("Max", [v.name for v in given], ["y"])
    yield case("wide/max-of-3000", model([most], given, ["y"]), slow=True)
    summed = [helper.make_node("Add", [f"v{i}"] * 2, [f"v{i + 1}"]) for i in range(2000)]
    yield case("wide/add-doubles-2000", model(summed, [tensor("v0", (1, 4))], ["v2000"]), slow=True)
