"""Recurrent layers under the quantise pass: which weights become codes, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlcc.analysis.accumulators import Bounds, of_weights
from dlcc.analysis.certificates import certify
from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError
from dlcc.ir import Affine, Graph, TensorType
from dlcc.ops import OPS, build
from dlcc.ops.recurrent import Recurrent, weight_codes
from dlcc.ops.recurrent_codes import FUNCTIONS, STATE, NumpyFloats
from tests.passes.test_quantize import node, quantise, remarks, sqnr

STEPS, BATCH, UNITS = 7, 2, 24


def network(op: str, **attrs: Any) -> Graph:
    """A projection, a recurrent layer and a layer behind it."""
    cell, rng = OPS[op], np.random.default_rng(3)
    assert isinstance(cell, Recurrent)
    graph = Graph(op)

    def weight(*shape: int) -> Any:
        return graph.add_constant(rng.normal(0, 0.3, shape).astype(np.float32))

    x = graph.add_input("x", TensorType((STEPS, BATCH, 10)))
    gates = build(graph, "linear", [x, weight(cell.gates * UNITS, 10)], loc="rnn").output
    made = build(
        graph, op, [gates, weight(cell.gates * UNITS, UNITS)], attrs, loc="rnn",
        outputs=1 + cell.states,
    )  # fmt: skip
    y = build(graph, "linear", [made.outputs[0], weight(5, UNITS)], loc="head").output
    graph.set_outputs([y], ["y"])
    return graph


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
def test_recurrent_weights_become_codes(op: str) -> None:
    graph = network(op)
    before = graph.copy()
    result = quantise(graph)
    verify(graph)
    made = node(graph, op)
    codes = weight_codes(made)
    assert codes is not None
    assert (codes.bits, codes.axis, len(codes.scales)) == (8, 0, made.input(1).type.shape[0])
    assert sqnr(before, graph) > 30
    assert "8-bit weights" in remarks(result, "applied")["rnn"]
    assert "rnn" not in remarks(result, "refused")
    (proof,) = [c for c in certify(graph) if c.op == op]
    wanted = of_weights(made.input(1).stored().astype(np.int64), Bounds(-127, 127)).all
    assert (proof.low, proof.high, proof.terms) == (wanted.low, wanted.high, UNITS)


def test_widths_by_name_and_rounding_with_data() -> None:
    results = {}
    for rounding in ("nearest", "gptq"):
        graph = network("lstm")
        before = graph.copy()
        quantise(graph, f"bits=8 weights=[rnn:3] rounding={rounding}")
        codes = weight_codes(node(graph, "lstm"))
        assert codes is not None
        assert codes.bits == 3
        results[rounding] = sqnr(before, graph)
    assert results["gptq"] > results["nearest"]


@pytest.mark.parametrize(
    ("op", "attrs", "options", "why"),
    [
        ("rnn", {"activations": ("relu",)}, "bits=8", "relu, which has no bounds"),
        ("lstm", {}, "bits=8 exclude=[rnn]", "excluded by option"),
        ("lstm", {}, "bits=8 fixed-point=channel", "multiplies its states by float weights"),
    ],
)
def test_what_stays_float_is_named(op: str, attrs: Any, options: str, why: str) -> None:
    graph = network(op, **attrs)
    result = quantise(graph, options)
    assert weight_codes(node(graph, op)) is None
    assert why in remarks(result, "refused")["rnn"]


def test_states_of_a_fixed_scale() -> None:
    """One step by hand: codes of the state, an exact sum, one multiplier for each row."""
    graph, rng = Graph("step"), np.random.default_rng(0)
    gates = graph.add_input("gates", TensorType((1, 1, 3)))
    h0 = graph.add_input("h0", TensorType((1, 3)))
    scales = np.array([0.01, 0.5, 0.003])
    weight = graph.add_constant(
        rng.uniform(-1, 1, (3, 3)).astype(np.float32),
        encoding=Affine.symmetric(8, scales, 0),
        name="r",
    )
    made = build(graph, "rnn", [gates, weight, h0], outputs=2)
    graph.set_outputs([made.outputs[1]], ["h"])
    h = np.array([[0.3, -5.0, 0.9]], np.float32)
    got = execute(graph, {"gates": np.zeros((1, 1, 3), np.float32), "h0": h})["h"]
    codes = np.array([38, -127, 114])
    sums = made.input(1).stored().astype(np.int64) @ codes
    want = np.tanh(sums * scales / 127)
    np.testing.assert_allclose(got[0], want, atol=1e-6)
    np.testing.assert_array_equal(STATE.quantise(h)[0], codes)


def test_activations_are_those_of_the_layer() -> None:
    x = np.linspace(-20, 20, 4001).astype(np.float32)
    of = NumpyFloats()
    np.testing.assert_allclose(FUNCTIONS["tanh"](of, x, 0, 0), np.tanh(x), atol=6e-7)
    sigmoid = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(FUNCTIONS["sigmoid"](of, x, 0, 0), sigmoid, atol=6e-7)
    line = np.clip(0.2 * x + 0.5, 0, 1)
    np.testing.assert_allclose(FUNCTIONS["hard_sigmoid"](of, x, 0.2, 0.5), line, atol=6e-7)


def test_codes_that_kernels_do_not_multiply() -> None:
    graph = network("rnn")
    made = node(graph, "rnn")
    unsigned = Affine(8, False, (0.01,), (128,))
    made.set_input(1, graph.add_constant(made.input(1).decoded(), encoding=unsigned))
    with pytest.raises(DlccError, match="coded recurrent weights are signed"):
        verify(graph)
