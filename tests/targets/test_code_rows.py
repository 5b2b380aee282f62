"""Rows for layers without products: chosen, and equal to the reference on every ISA at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from dlcc.ir import BFLOAT16, F32, Affine, Graph, Node, TensorType
from dlcc.ir.encodings import Encoding
from dlcc.lowering.lower import choose
from dlcc.ops import build, op_of
from targets import get_target
from tests.targets.running import Runner, isa_params

Q = Affine.per_tensor(8, False, 0.05, 120)


def u8(*shape: int, encoding: Affine = Q, layout: str = "") -> TensorType:
    return TensorType(shape, F32, encoding, layout)


def node_of(
    op: str, operands: list[TensorType], out: Encoding | None = Q, layout: str = "", **attrs
) -> Node:
    """One node on graph inputs; ``out``: encoding of its result (None: dense)."""
    graph = Graph("g")
    inputs = [graph.add_input(f"x{i}", type_) for i, type_ in enumerate(operands)]
    node = build(graph, op, inputs, attrs, loc="layer")
    made = node.output.type.with_(layout=layout)
    node.output.type = made if out is None else made.with_(encoding=out)
    graph.set_outputs([node.output])
    return node


def memory(array: np.ndarray, type_: TensorType) -> np.ndarray:
    """A logical array as it lies in memory."""
    return np.ascontiguousarray(array.transpose(type_.permutation))


def random_inputs(node: Node, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = []
    for value in node.inputs:
        assert value is not None
        if str(value.type.storage.numpy) == "uint8":
            arrays.append(rng.integers(0, 256, value.type.shape, dtype=np.uint8))
        else:
            real = rng.normal(0, 4, value.type.shape).astype(np.float32)
            real.flat[:9] = (np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0, 0.05, 1e-40)
            arrays.append(real)
    return arrays


def f32(*shape: int) -> TensorType:
    return TensorType(shape, F32)


S8 = Affine.per_tensor(8, True, 0.04, -3)
NODES: dict[str, tuple[str, Callable[[], Node]]] = {
    "gelu": ("table", lambda: node_of("gelu", [u8(3, 700)])),
    "sigmoid-s8": ("table", lambda: node_of("sigmoid", [u8(1, 5, 3, 3)], S8)),
    "tanh-nhwc": (
        "table",
        lambda: node_of("tanh", [u8(2, 19, 30, 15, layout="nhwc")], layout="nhwc"),
    ),
}
POWER = Affine.per_tensor(8, False, 0.125, 128)
NARROW = Affine(8, False, (0.037,), (118,), narrow=True)
for name, shape, encoding in (
    ("image", (2, 3, 21, 15), Q),
    ("image-of-two-items", (1, 3, 50, 47), NARROW),
    ("small-image", (1, 3, 4, 5), POWER),
    ("two-channels", (1, 2, 9, 9), Q),
    ("four-channels", (1, 4, 16, 4), Q),
    ("one-channel", (1, 1, 28, 28), Q),
):
    NODES[f"quantise-{name}"] = (
        "quantise",
        partial(node_of, "quantize", [f32(*shape)], encoding, "nhwc"),
    )
NODES["quantise-rows"] = ("quantise", partial(node_of, "quantize", [f32(3, 641)], POWER))


@pytest.mark.parametrize("isa", isa_params())
def test_equals_the_reference(isa):
    target = get_target(f"cpu:{isa.name}")
    chosen = {}
    for name, (row, make) in NODES.items():
        node = make()
        choice = choose(node, target)
        assert choice.row.name == row, (name, choice.rejected)
        chosen[name] = (node, choice.plan)
    runner = Runner([plan for _, plan in chosen.values()], isa)
    for name, (node, plan) in chosen.items():
        arrays = random_inputs(node)
        want = memory(op_of(node).reference(node, arrays)[0], node.output.type)
        feeds = [memory(a, v.type) for a, v in zip(arrays, node.inputs, strict=True)]
        for cuts in (1, 3):
            got = runner.run(plan, feeds, np.full_like(want, 77), cuts, slack=0)
            np.testing.assert_array_equal(got, want, err_msg=name)


def rounding(*shape: int, layout: str = "nhwc") -> Node:
    """float32 in row-major order to bfloat16 in ``layout``."""
    return node_of("relayout", [f32(*shape)], BFLOAT16, layout)


@pytest.mark.parametrize("isa", isa_params("avx512", "avx512bf16"))
def test_rounding_of_planes(isa):
    target = get_target(f"cpu:{isa.name}")
    chosen = []
    for shape in ((2, 3, 21, 15), (1, 3, 50, 47), (1, 3, 4, 8), (1, 2, 9, 9), (1, 4, 16, 4)):
        node = rounding(*shape)
        choice = choose(node, target)
        assert choice.row.name == "round-planes", choice.rejected
        chosen.append((node, choice.plan))
    runner = Runner([plan for _, plan in chosen], isa)
    for node, plan in chosen:
        (x,) = random_inputs(node)
        x[np.abs(x) < 2.0**-126] = 0.0  # which a CPU that rounds may take for zero
        want = BFLOAT16.encode(x)["values"].transpose(node.output.type.permutation)
        for cuts in (1, 3):
            out = np.full(want.shape, 77, np.uint16)
            got = runner.run(plan, [x], out, cuts, slack=0).view(want.dtype)
            np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize(
    ("node", "row", "why"),
    [
        (node_of("gelu", [TensorType((4, 5), F32)], None), "table", "no function of one u8"),
        (rounding(1, 3, 4, 4), "round-planes", "fewer than 32"),
        (rounding(1, 64, 8, 8), "round-planes", "the order changes otherwise"),
        (node_of("relayout", [f32(1, 3, 9, 9)], None, "nhwc"), "round-planes", "does not round"),
    ],
)
def test_refusals(node, row, why):
    rows = {r.name: r for r in get_target("cpu:avx512").rows}
    assert why in rows[row].refuses(node)


def test_moving_codes_is_predicted_cheaper_than_comparing_or_converting_them():
    (row,) = (r for r in get_target("cpu:avx512").rows if r.name == "default-tir")
    x = u8(1, 64, 28, 28, layout="nhwc")
    joined = node_of("concat", [x, x], layout="nhwc", axis=1)
    window = {"kernel": (3, 3), "pads": (1, 1, 1, 1)}
    pooled = node_of("max_pool2d", [u8(1, 128, 28, 28, layout="nhwc")], layout="nhwc", **window)
    coded = node_of("quantize", [f32(1, 128, 28, 28)], layout="nhwc")
    assert 3 * row.cost(joined) < row.cost(pooled) < row.cost(coded)
