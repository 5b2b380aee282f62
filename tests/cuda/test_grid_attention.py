"""Attention in one kernel on the emulated GPU, and the graphs that it is made of."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import dlcc
from dlcc.cuda.architecture import ARCHITECTURES
from dlcc.cuda.cubin import read_cubin
from dlcc.driver import compile as compile_network
from dlcc.ir import F32, Graph, TensorType
from dlcc.ir.encodings import BFLOAT16, DENSE, FLOAT16
from dlcc.lowering.attention import attention_layers
from dlcc.lowering.lower import packed_weights, prepare
from dlcc.lowering.tuning import Chosen
from dlcc.ops import build
from targets import get_target
from targets.cuda.table import machine_of
from targets.kernels.grid_attention import AttentionSpec, attention_cost, grid_attention
from targets.rows.grid_attention import GridAttentionRow
from tests.cuda.emulator import compiled_for_cpu, emulator
from tests.cuda.running import GridRunner
from tests.cuda.test_grid_code import instructions
from tests.ops.tir_harness import Operand, case, constant, reference

AMPERE = machine_of(ARCHITECTURES["sm_80"])
ROOM = {"float16": 2e-3, "bfloat16": 1.6e-2}
"""Powers and results are each off by half a unit of 11 or 8 bits; values are up to 4."""


def short(shape, encoding, seed, scale=1.0):
    array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * scale
    return Operand(encoding.encode(array.astype(np.float32))["values"], encoding)


def attention(queries, keys, encoding, mask=None, *, size=32, width=0, out=None, **attrs):
    """Two heads; a warp's rows have scores of a few units."""
    shapes = [(1, 2, queries, size), (1, 2, keys, size), (1, 2, keys, width or size)]
    operands = [short(shape, encoding, seed) for seed, shape in enumerate(shapes)]
    operands += [] if mask is None else [mask]
    return case("attention", operands, attrs or {"scale": 0.2}, out=out or encoding)


def causal(queries, keys):
    """Whole slices of a row are masked, the first keys of some rows among them."""
    mask = np.where(np.tri(queries, keys, dtype=bool), 0, -np.inf).astype(np.float32)
    return constant(mask)


def without_keys(row, queries, keys):
    """A row that is masked as a whole: NaN, as the softmax of a row of -inf is."""
    mask = np.zeros((queries, keys), np.float32)
    mask[row] = -np.inf
    return constant(mask)


def masks(shape, seed=5):
    """Given at run time: the first 65 keys of a row are out, so its first slice is as a whole."""
    mask = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    mask[..., -1, : min(65, shape[-1] - 1)] = -np.inf
    return Operand(mask)


CASES = {
    "short": lambda: attention(17, 17, FLOAT16, without_keys(3, 17, 17)),
    "causal": lambda: attention(70, 70, FLOAT16, causal(70, 70)),
    "bfloat16": lambda: attention(17, 70, BFLOAT16, masks((1, 2, 17, 70)), size=40, width=24),
    "one-row": lambda: attention(70, 130, FLOAT16, masks((1, 1, 1, 130)), size=8, out=DENSE),
    "heads": lambda: attention(1, 64, BFLOAT16, masks((2, 1, 64)), size=128, width=128),
    "mask16": lambda: attention(20, 65, FLOAT16, short((20, 1), FLOAT16, 7), size=16, width=48),
    "large": lambda: attention(16, 70, FLOAT16, scale=30.0),
}


def check(names) -> None:
    row, made = GridAttentionRow(AMPERE), {name: CASES[name]() for name in names}
    assert not any(row.refuses(one.node) for one in made.values())
    plans = {name: row.plan(one.node) for name, one in made.items()}
    runner = GridRunner(list(plans.values()))
    for name, one in made.items():
        (want,), encoding = reference(one), one.node.output.type.encoding
        inputs = [a for a, v in zip(one.arrays, one.node.inputs, strict=True) if not v.is_constant]
        results = [
            runner.run(plans[name], inputs, np.zeros_like(want), reverse=reverse)
            for reverse in (False, True)
        ]
        np.testing.assert_array_equal(*results, err_msg=name)
        got, real = (encoding.decode({"values": a}, want.shape) for a in (results[0], want))
        room = ROOM[one.node.input(0).type.encoding.name]
        np.testing.assert_allclose(got, real, rtol=room, atol=room, err_msg=name)
        assert np.nanmax(np.abs(real)) > 0.3
        assert np.isnan(real).any() == (name == "short")


def test_against_the_reference():
    check(["short", "causal", "bfloat16", "heads"])


@pytest.mark.slow
def test_more_shapes_and_masks():
    check(["one-row", "mask16", "large"])


@pytest.mark.parametrize(
    ("dtype", "architecture"),
    [("f16", "sm_80"), pytest.param("bf16", "sm_90", marks=pytest.mark.slow)],
)
def test_instructions(dtype, architecture, tmp_path):
    """The largest heads, two blocks of which a multiprocessor can hold."""
    spec = AttentionSpec((1, 8), 512, 500, 128, 128, dtype, dtype, (1, 1, 512, 500))
    plan = grid_attention(spec, mask=np.zeros(spec.mask, np.float32))
    runner = GridRunner([plan], str(ARCHITECTURES[architecture].code))
    found = instructions(runner.cubin, tmp_path)
    kind = {"f16": "HMMA.16816.F32", "bf16": "HMMA.16816.F32.BF16"}[dtype]
    for name in (kind, "LDSM.16.M88.4", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS.128", "MUFU.EX2"):
        assert any(known.startswith(name) for known in found), (name, found.most_common())
    assert not any(name.startswith(("LDL", "STL")) for name in found), "sums are not in registers"
    (kernel,) = read_cubin(runner.cubin).kernels.values()
    assert kernel.local_bytes == 0
    assert 2 * 128 * kernel.registers <= 65536
    assert 2 * spec.shared_bytes <= AMPERE.shared_bytes


def test_refusals():
    row = GridAttentionRow(AMPERE)

    def why(made, machine=AMPERE):
        return GridAttentionRow(machine).refuses(made.node)

    assert "one type of 16-bit floats" in why(attention(5, 5, DENSE))
    assert "no multiple of 16 bytes" in why(attention(5, 5, FLOAT16, size=12))
    assert "do not fit in registers" in why(attention(5, 5, FLOAT16, size=136))
    turing = machine_of(ARCHITECTURES["sm_75"])
    assert "no matrix instructions" in why(attention(5, 5, FLOAT16), turing)
    assert "other type" in why(attention(5, 5, FLOAT16, out=BFLOAT16))
    assert row.cost(attention(2000, 2000, FLOAT16).node) > row.cost(attention(9, 9, FLOAT16).node)


# -- graphs ------------------------------------------------------------------------------------


def parts(turned=False, mask=None, read_twice=False, scale=None, encoding=FLOAT16):
    """Attention as the passes leave it."""
    graph, made = Graph("parts"), TensorType((1, 2, 40, 32), F32, encoding)
    q = graph.add_input("q", made)
    k = graph.add_input("k", TensorType((1, 40, 2, 32), F32, encoding))
    v = graph.add_input("v", made)
    if turned:
        perm, shape = (0, 2, 3, 1), (1, 2, 32, 40)
    else:
        perm, shape = (0, 2, 1, 3), (1, 2, 40, 32)
    types = [TensorType(shape, F32, encoding)]
    keys = build(graph, "transpose", [k], {"perm": perm}, loc="k", types=types).output
    types = [TensorType((1, 2, 40, 40), F32, encoding)]
    attrs = {"transpose_b": not turned}
    scores = build(graph, "matmul", [q, keys], attrs, loc="scores", types=types).output
    if scale is not None:
        factor = graph.add_constant(np.float32(scale))
        scores = build(graph, "mul", [scores, factor], loc="scale", types=types).output
    if mask is not None:
        added = graph.add_constant(mask)
        scores = build(graph, "add", [added, scores], loc="mask", types=types).output
    powers = build(graph, "softmax", [scores], loc="softmax", types=types).output
    y = build(graph, "matmul", [powers, v], loc="results", types=[made]).output
    graph.set_outputs([y, scores] if read_twice else [y])
    return graph


def ops(graph, target="cuda:sm_80"):
    return [node.op for node in prepare(graph, [get_target(target)]).nodes]


def test_what_becomes_one_op():
    mask = np.zeros((40, 40), np.float32)
    for turned in (False, True):
        for scale in (None, 0.25):
            graph = parts(turned, mask, scale=scale)
            assert ops(graph) == ["transpose", "attention"]
            ready = prepare(graph, [get_target("cuda:sm_80")])
            assert ready.nodes[0].attrs["perm"] == (0, 2, 1, 3)
            rng = np.random.default_rng(3)
            feed = {v.name: rng.standard_normal(v.type.shape) for v in graph.inputs}
            feed["q"] *= 0.2  # the parts round scores to 11 bits
            feed = {name: array.astype(np.float16) for name, array in feed.items()}
            (got,), (want,) = (dlcc.execute(g, feed).values() for g in (ready, graph))
            np.testing.assert_allclose(
                got.astype(np.float32), want.astype(np.float32), rtol=4e-3, atol=4e-3
            )


def test_what_a_report_names():
    """A report says what became one op, whatever is predicted today."""
    graph, target = parts(), get_target("cuda:sm_80")
    for names, count in (({"results"}, 1), (set(), 0)):
        made = [node.op for node in prepare(graph, [target], names).nodes]
        assert made.count("attention") == count
        assert made.count("softmax") == 1 - count


def test_what_stays_apart():
    whole = ops(parts(), "cpu:avx2")
    assert whole == ["transpose", "matmul", "softmax", "matmul"]
    assert ops(parts(), "cuda:sm_75") == whole
    assert ops(parts(encoding=DENSE)) == whole
    assert "attention" not in ops(parts(read_twice=True))
    larger = np.zeros((3, 2, 40, 40), np.float32)
    with pytest.raises(dlcc.DlccError, match="attention"):
        case("attention", [Operand(np.zeros((2, 40, 8), np.float32))] * 3 + [Operand(larger)])
    few = AttentionSpec((1, 1), 1, 100_000, 64, 64, "f16", "f16")
    many = AttentionSpec((1, 64), 1024, 1024, 64, 64, "f16", "f16")
    assert attention_cost(few, AMPERE) > attention_cost(many, AMPERE)


def transformer(length, heads, size):
    """Causal self-attention of one layer, its keys multiplied as they are transposed."""
    wide, rng = heads * size, np.random.default_rng(0)
    made = {f"w{n}": rng.standard_normal((wide, wide)) / np.sqrt(wide) for n in "qkvo"}
    made |= {"scale": np.array(size**-0.5), "mask": np.triu(np.full((length, length), -np.inf), 1)}
    constants = {name: array.astype(np.float32) for name, array in made.items()}
    constants["apart"] = np.array([1, length, heads, size])
    constants["flat"] = np.array([1, length, wide])
    nodes = []
    for n in "qkv":
        order = [0, 2, 3, 1] if n == "k" else [0, 2, 1, 3]
        nodes += [
            helper.make_node("MatMul", ["x", f"w{n}"], [n]),
            helper.make_node("Reshape", [n, "apart"], [f"{n}r"]),
            helper.make_node("Transpose", [f"{n}r"], [f"{n}t"], perm=order),
        ]
    nodes += [
        helper.make_node("MatMul", ["qt", "kt"], ["s"]),
        helper.make_node("Mul", ["s", "scale"], ["ss"]),
        helper.make_node("Add", ["ss", "mask"], ["sm"]),
        helper.make_node("Softmax", ["sm"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "vt"], ["a"], name="attention"),
        helper.make_node("Transpose", ["a"], ["at"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["at", "flat"], ["af"]),
        helper.make_node("MatMul", ["af", "wo"], ["y"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, length, wide])] for name in "xy"
    ]
    given = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "transformer", *ends, given)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_a_transformer(tmp_path):
    """Compiled at 16 bits as the command does it."""
    emulator()
    graph = dlcc.import_onnx(transformer(70, 2, 32))
    with compiled_for_cpu():
        result = compile_network(graph, tmp_path / "gpu", target="cuda:sm_80", bits=16)
    layers = result.program.report["layers"]
    kernels = {layer["layer"]: layer["kernel"] for layer in layers}
    assert kernels["attention"] == "grid-attention"
    assert not any("softmax" in kernel for kernel in kernels.values())
    assert attention_layers(layers) == {"attention"}
    chosen = [[(get_target("cuda:sm_80"), Chosen.of(layers))]]
    again = packed_weights([result.optimised.graph], chosen, [attention_layers(layers)])
    assert again == result.program.weights
    x = np.random.default_rng(1).standard_normal((1, 70, 64)).astype(np.float32)
    (got,) = dlcc.load(tmp_path / "gpu").run({"x": x}).values()
    (want,) = dlcc.execute(graph, {"x": x}).values()
    assert np.abs(got - want).max() <= 5e-3 * np.abs(want).max()
