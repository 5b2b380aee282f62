"""Graphs that are none: cycles, missing and repeated names, bodies in bodies, odd opsets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.frontends.models import model, tensor
from tests.hostile.case import Case, case, chain
from tests.hostile.files import small

_X = tensor("x", (1, 4))


def _node(op: str, inputs: list[str], outputs: list[str], **more: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, **more)


def graphs(_rng: np.random.Generator) -> Iterator[Case]:
    """Nodes and names that do not make a graph."""
    bad = {
        "cycle-of-one": [_node("Relu", ["y"], ["y"])],
        "cycle-of-two": [_node("Add", ["x", "y"], ["a"]), _node("Relu", ["a"], ["y"])],
        "cycle-of-5000": [*chain(5000, first="z", last="y"), _node("Relu", ["y"], ["z"])],
        "twice": [_node("Relu", ["x"], ["y"]), _node("Abs", ["x"], ["y"])],
        "twice-in-one": [_node("Split", ["x"], ["y", "y"], axis=1)],
        "shadows-input": [_node("Relu", ["x"], ["x"]), _node("Relu", ["x"], ["y"])],
        "undefined": [_node("Relu", ["nope"], ["y"])],
        "no-inputs": [_node("Relu", [], ["y"])],
        "empty-input": [_node("Relu", [""], ["y"])],
        "too-many-inputs": [_node("Relu", ["x", "x", "x"], ["y"])],
        "too-few-inputs": [_node("Add", ["x"], ["y"])],
        "too-many-outputs": [_node("Relu", ["x"], ["y", "z"])],
        "no-outputs": [_node("Relu", ["x"], [])],
        "no-op-type": [_node("", ["x"], ["y"])],
        "unknown-op": [_node("Frobnicate", ["x"], ["y"])],
        "unknown-domain": [_node("Relu", ["x"], ["y"], domain="example.org")],
        "path-domain": [_node("Relu", ["x"], ["y"], domain="../../etc")],
        "no-nodes": [],
    }
    for name, nodes in bad.items():
        either = name in ("too-many-inputs", "too-many-outputs")
        yield case(f"graphs/{name}", model(nodes, [_X], ["y"]), compiles=None if either else False)
    yield from _borders()
    yield from _opsets()


def _borders() -> Iterator[Case]:
    """Inputs and outputs that are missing, repeated, or the same thing."""
    relu = [_node("Relu", ["x"], ["y"])]
    yield case("borders/no-output", model(relu, [_X], []), compiles=False)
    yield case("borders/no-input", model(relu, [], ["y"]), compiles=False)
    yield case("borders/input-twice", model(relu, [_X, _X], ["y"]), compiles=False)
    yield case("borders/output-twice", model(relu, [_X], ["y", "y"]), compiles=False)
    yield case("borders/input-is-output", model([], [_X], ["x"]))
    yield case("borders/input-also-output", model(relu, [_X], ["y", "x"]))
    yield case("borders/unused-input", model(relu, [_X, tensor("z", (9,))], ["y"]))
    constant = {"y": np.ones(3, np.float32)}
    yield case("borders/constant-output", model([], [_X], ["y"], constant))
    yield case("borders/empty-names", model([_node("Relu", [""], [""])], [tensor("", (1,))], [""]))
    shadowed = small()
    shadowed.graph.initializer.add().CopyFrom(shadowed.graph.initializer[0])
    yield case("borders/initializer-twice", shadowed)
    unnamed = small()
    unnamed.graph.initializer[0].name = ""
    yield case("borders/initializer-unnamed", unnamed, compiles=False)
    wrong = model(relu, [_X], [tensor("y", (7, 7, 7))])
    yield case("borders/wrong-output-shape", wrong)
    wrong = model(relu, [_X], [tensor("y", (1, 4), TensorProto.INT64)])
    yield case("borders/wrong-output-type", wrong)
    untyped = model(relu, [onnx.ValueInfoProto(name="x")], ["y"])
    yield case("borders/untyped", untyped, compiles=False)
    for name, kind in (("string", 8), ("complex", 14), ("undefined", 0), ("unknown", 77)):
        yield case(
            f"borders/{name}", model(relu, [tensor("x", (1, 4), kind)], ["y"]), compiles=False
        )
    sizes = {
        "huge": (1 << 62, 4), "wraps": (1 << 32, 1 << 32), "wraps-to-4": (1 << 62, 4, 4),
        "terabytes": (1 << 20, 1 << 20), "minus": (1, -4), "lowest": (1, -(1 << 63)),
        "rank-100": (1,) * 99 + (4,),
    }  # fmt: skip
    for name, shape in sizes.items():
        free = None if name == "rank-100" else False
        yield case(f"borders/shape-{name}", model(relu, [tensor("x", shape)], ["y"]), compiles=free)
    zero = model(relu, [tensor("x", (1, 0))], ["y"])
    yield case("borders/shape-zero", zero)


def _opsets() -> Iterator[Case]:
    relu = [_node("Relu", ["x"], ["y"])]
    for version in (0, -1, 1, 6, 1000, 1 << 31, (1 << 63) - 1):
        made = model(relu, [_X], ["y"], opset=version)
        yield case(f"opsets/{version}", made, compiles=version in (1, 6))
    made = model(relu, [_X], ["y"])
    made.opset_import.add().CopyFrom(made.opset_import[0])
    yield case("opsets/twice", made)
    made.opset_import[1].version = 3
    yield case("opsets/two-versions", made)
    del made.opset_import[:]
    yield case("opsets/none", made, compiles=False)
    for version in (0, -1, 99, (1 << 63) - 1):
        made = model(relu, [_X], ["y"])
        made.ir_version = version
        yield case(f"opsets/ir-{version}", made)


def _if(body: onnx.NodeProto | None, result: str) -> onnx.NodeProto:
    inner = [body] if body is not None else [_node("Relu", ["x"], [result])]
    branch = helper.make_graph(inner, "body", [], [tensor(result, None)])
    flat = helper.make_graph([_node("Abs", ["x"], ["r"])], "flat", [], [tensor("r", None)])
    return _node("If", ["c"], [f"{result}_"], then_branch=branch, else_branch=flat)


def _nested_ifs(depth: int) -> onnx.ModelProto:
    node, name = None, "r"
    for _ in range(depth):
        node = _if(node, name)
        name = node.output[0]
    assert node is not None
    yes = {"c": np.array(True)}
    return model([node], [_X], [name], yes)


def _function(
    name: str, nodes: list[onnx.NodeProto], inputs: tuple[str, ...] = ("a",)
) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, list(inputs), ["b"], nodes, imports)


def _calls(functions: list[onnx.FunctionProto], name: str) -> onnx.ModelProto:
    made = model(
        [_node(name, ["x"], ["y"], domain="own")], [_X], ["y"],
        imports=[helper.make_opsetid("own", 1)],
    )  # fmt: skip
    made.functions.extend(functions)
    return made


def nesting(_rng: np.random.Generator) -> Iterator[Case]:
    """Bodies in bodies, functions that call functions, and long chains, which are fine."""
    for depth in (4, 10):
        yield case(f"nesting/if-{depth}", _nested_ifs(depth))
    yield case("nesting/if-20", _nested_ifs(16), compiles=False)
    own = _function("f", [_node("f", ["a"], ["b"], domain="own")])
    yield case("nesting/recursive", _calls([own], "f"), compiles=False)
    pair = [
        _function("f", [_node("g", ["a"], ["b"], domain="own")]),
        _function("g", [_node("f", ["a"], ["b"], domain="own")]),
    ]
    yield case("nesting/recursive-pair", _calls(pair, "f"), compiles=False)
    yield case("nesting/same-function-twice", _calls([own, own], "f"), compiles=False)
    yield case("nesting/absent-function", _calls([], "f"), compiles=False)
    deep = [
        _function(f"f{i}", [_node(f"f{i + 1}", ["a"], ["b"], domain="own")]) for i in range(1000)
    ]
    deep.append(_function("f1000", [_node("Relu", ["a"], ["b"])]))
    yield case("nesting/functions-1000", _calls(deep, "f0"), slow=True)
    double = [
        _function(
            f"f{i}",
            [_node(f"f{i + 1}", [a], [b], domain="own") for a, b in (("a", "c"), ("c", "b"))],
        )
        for i in range(40)
    ]
    double.append(_function("f40", [_node("Relu", ["a"], ["b"])]))
    yield case("nesting/functions-2-to-the-40", _calls(double, "f0"), compiles=False)
    yield from _loops()
    for op in ("Relu", "Sigmoid", "Identity"):
        yield case(f"nesting/chain-5000-{op}", model(chain(5000, op), [_X], ["y"]), compiles=True,
                   slow=True)  # fmt: skip


def _loops() -> Iterator[Case]:
    body = helper.make_graph(
        [_node("Identity", ["going"], ["go_on"]), _node("Add", ["v", "v"], ["w"])], "body",
        [tensor("i", (), TensorProto.INT64), tensor("going", (), TensorProto.BOOL),
         tensor("v", (1, 4))],
        [tensor("go_on", (), TensorProto.BOOL), tensor("w", (1, 4))],
    )  # fmt: skip
    for name, trips in (("none", 0), ("minus", -5), ("3", 3), ("huge", (1 << 63) - 1)):
        constants = {"n": np.array(trips, np.int64), "c": np.array(True)}
        made = model([_node("Loop", ["n", "c", "x"], ["y"], body=body)], [_X], ["y"], constants)
        yield case(f"nesting/loop-{name}", made, compiles=False if name == "huge" else None,
                   slow=name == "huge")  # fmt: skip
    endless = model([_node("Loop", ["", "", "x"], ["y"], body=body)], [_X], ["y"])
    yield case("nesting/loop-endless", endless, compiles=False, slow=True)
    no_body = model([_node("Loop", ["", "", "x"], ["y"])], [_X], ["y"])
    yield case("nesting/loop-without-body", no_body, compiles=False)
    condition = model([_node("If", ["x"], ["y"])], [_X], ["y"])
    yield case("nesting/if-without-branches", condition, compiles=False)
    text = numpy_helper.from_array(np.array(["a", "b"], object), "s")
    strings = model([_node("Constant", [], ["s"], value=text), _node("Relu", ["x"], ["y"])],
                    [_X], ["y", "s"])  # fmt: skip
    yield case("nesting/strings", strings, compiles=False)
