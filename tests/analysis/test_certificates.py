"""Certificates of accumulators: exact by brute force, refused where they do not hold."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.accumulators import Bounds
from dlcc.analysis.certificates import (
    Assignment,
    Certificate,
    certify,
    check,
    digest,
    weight_rows,
    with_kernels,
)
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import F32, Affine, Binary, Graph, TensorType, Ternary, Value
from dlcc.numerics import multiplier, residual_term
from dlcc.ops import build
from dlcc.ops.conv import ConvTranspose2d

Array = np.ndarray[Any, Any]


def codes(bits: int, zero: int = 0, scale: float = 0.25, *, signed: bool = False) -> Affine:
    return Affine.per_tensor(bits, signed, scale, zero)


def add_codes(graph: Graph, values: Any, bits: int, scale: float = 0.5, axis: int = 0) -> Value:
    array = np.asarray(values)
    encoding = Affine.symmetric(bits, np.full(array.shape[axis], scale), axis)
    type_ = TensorType(array.shape, F32, encoding)
    return graph.add_stored({"values": array.astype(type_.storage.numpy)}, type_, name="w")


def linear(
    weight: Any,
    source: Affine,
    bias: Any = None,
    residual: Affine | None = None,
    weight_value: Any = None,
) -> Graph:
    """One integer layer named ``fc``."""
    graph = Graph("net")
    array = np.asarray(weight)
    x = graph.add_input("x", TensorType((1, array.shape[1]), F32, source))
    w = add_codes(graph, array, 8) if weight_value is None else weight_value(graph, array)
    operands: list[Value | None] = [x, w, None, None]
    if bias is not None:
        operands[2] = add_codes(graph, bias, 32, 0.5 * source.scale)
    if residual is not None:
        operands[3] = graph.add_input("r", TensorType((1, len(array)), F32, residual))
    y = build(graph, "linear", operands, loc="fc").output
    y.type = y.type.with_(encoding=codes(8, 128, 3.0))
    graph.set_outputs([y], ["y"])
    return graph


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-127, 127), min_size=3, max_size=3), min_size=1, max_size=3),
    st.integers(0, 3),
    st.booleans(),
    st.integers(-1000, 1000),
    st.booleans(),
)
def test_ranges_are_attained(
    weight: list[list[int]], zero: int, signed: bool, bias: int, add: bool
) -> None:
    source = codes(2, zero - 2 if signed else zero, signed=signed)
    biases = [bias * (i + 1) for i in range(len(weight))]
    residual = codes(3, 5, 0.9) if add else None
    [made] = certify(linear(weight, source, biases, residual))
    low, high = source.code_range
    data = np.array(list(itertools.product(range(low, high + 1), repeat=3))) - source.zero_point
    sums = data @ np.array(weight).T + np.array(biases)
    least, most = int(sums.min()), int(sums.max())
    if residual is not None:
        ratio = multiplier(np.float64(0.9) / np.float64(0.25 * 0.5))
        terms = residual_term(np.arange(8), residual, ratio)
        least, most = least + int(terms.min()), most + int(terms.max())
        sums = sums[..., None] + terms
        assert (int(sums.min()), int(sums.max())) == (least, most)
    assert (made.low, made.high) == (least, most)
    assert made.bits == Bounds(least, most).bits
    assert (made.terms, made.guarantee, made.accumulator) == (3, "weights", 32)


@pytest.mark.parametrize("groups", [1, 2])
def test_sums_of_transposed_convolutions(groups: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-7, 8, (4, 3, 2, 2))
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, 4, 3, 3), F32, codes(4, 3)))
    y = build(
        graph,
        "conv_transpose2d",
        [x, add_codes(graph, weight, 4, axis=1)],
        {"groups": groups},
        loc="up",
    ).output
    graph.set_outputs([y], ["y"])
    [made] = certify(graph)
    assert made.terms == 4 // groups * 4
    seen: list[int] = []
    op = ConvTranspose2d()
    for seed in range(200):  # corners of the box of all inputs come near the bounds
        data = np.random.default_rng(seed).choice([-3, 12], (1, 4, 3, 3)).astype(np.float32)
        [got] = op.evaluate(graph.nodes[0], [data, weight.astype(np.float32), None])
        seen += [int(got.min()), int(got.max())]
    assert made.low <= min(seen) < 0.4 * made.low
    assert made.high >= max(seen) > 0.4 * made.high
    rows = weight_rows(graph.nodes[0])
    assert rows.shape == (3 * groups, 16 // groups)
    np.testing.assert_array_equal(rows[-1], weight[4 - 4 // groups :, 2].reshape(-1))


def test_products_of_two_activations() -> None:
    graph = Graph("net")
    a = graph.add_input("a", TensorType((2, 5), F32, codes(3, 2)))
    b = graph.add_input("b", TensorType((5, 4), F32, codes(2, 0)))
    graph.set_outputs([build(graph, "matmul", [a, b], loc="m").output], ["y"])
    [made] = certify(graph)
    assert (made.low, made.high, made.guarantee) == (-2 * 3 * 5, 5 * 3 * 5, "ranges")


def ternary(graph: Graph, array: Array) -> Value:
    scales = tuple(0.5 for _ in array)
    encoding = Ternary(scales, scales, 0)
    return graph.add_constant(array.astype(np.float32) * 0.5, encoding=encoding, name="w")


def binary(graph: Graph, array: Array) -> Value:
    encoding = Binary(tuple(0.5 for _ in array), 0)
    return graph.add_constant(array.astype(np.float32) * 0.5, encoding=encoding, name="w")


@pytest.mark.parametrize("make", [ternary, binary])
def test_compressed_weights(make: Any) -> None:
    weight = np.array([[1, -1, -1], [-1, -1, 1]])
    [made] = certify(linear(weight, codes(8, 10), weight_value=make))
    assert (made.low, made.high) == (-2 * 245 - 10, 245 + 2 * 10)


def test_float_layers_have_none() -> None:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((1, 3)))
    weight = add_codes(graph, np.ones((2, 3)), 4)
    graph.set_outputs([build(graph, "linear", [x, weight]).output], ["y"])
    assert certify(graph) == ()


def test_what_could_overflow_is_refused() -> None:
    graph = linear([[1, 1]], codes(8), bias=[(1 << 31) - 511])
    assert certify(graph)[0].bits == 32
    with pytest.raises(DlccError) as caught:
        certify(linear([[1, 1]], codes(8), bias=[(1 << 31) - 510]))
    assert caught.value.code is ExitCode.PASS
    assert caught.value.where == "fc"
    assert "33 bits of 32" in caught.value.why
    large = codes(8, 0, 1e9)
    with pytest.raises(DlccError, match="could overflow"):
        certify(linear([[1, 1]], codes(8), residual=large))


# -- promises ----------------------------------------------------------------------------------


def promise(guarantee: str, low: int, high: int, bits: int = 16) -> Assignment:
    return Assignment(bits, "wrap", guarantee, low, high)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (promise("weights", 0, 765), ""),
        (promise("weights", -5, 800), ""),
        (promise("weights", 0, 764), "sums reach 0..765, stated are 0..764"),
        (promise("weights", 0, 765, 10), "does not fit 10 bits"),
        (promise("ranges", -127 * 765, 127 * 765, 18), ""),
        (promise("ranges", 0, 765), "sums reach -97155..97155"),
        (promise("results", 0, 1), ""),
        (replace(promise("weights", 0, 510), tile=2), ""),
        (replace(promise("weights", 0, 509), tile=2), "sums reach 0..510"),
        (replace(promise("ranges", -127 * 510, 127 * 510, 17), tile=2), ""),
        (replace(promise("ranges", 0, 510), tile=2), "sums reach -64770..64770"),
    ],
)
def test_promises(said: Assignment, why: str) -> None:
    graph = linear([[1, 1, 1]], codes(8))
    name = graph.nodes[0].output.name
    if not why:
        assert certify(graph, {name: said})[0].assigned == said
        return
    with pytest.raises(DlccError) as caught:
        certify(graph, {name: said})
    assert caught.value.code is ExitCode.VERIFICATION
    assert why in caught.value.why


# -- comparison --------------------------------------------------------------------------------


def test_json_round_trip() -> None:
    graph = linear([[1, 2, 3]], codes(8))
    plain = certify(graph)[0]
    full = replace(plain, assigned=promise("results", 0, 1), accumulator=16)
    for made in (plain, full):
        assert Certificate.from_json(made.to_json()) == made
    assert "assigned" not in plain.to_json()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low": -1}, "low is stated as -1, computed again it is 0"),
        ({"high": 9}, "high is stated as 9"),
        ({"bits": 8}, "bits is stated as 8"),
        ({"guarantee": "results"}, "guarantee is stated as results"),
        ({"terms": 2}, "terms is stated as 2"),
        ({"accumulator": 64}, "do not fit the accumulator"),
        ({"value": "other"}, "no certificate for"),
        ({"size": 3}, "cannot be read"),
    ],
)
def test_certificates_that_were_changed(change: dict[str, Any], words: str) -> None:
    graph = linear([[1, 2, 3]], codes(8))
    stated = certify(graph)[0].to_json()
    assert check([stated], graph, "here")[0].high == 6 * 255
    with pytest.raises(DlccError) as caught:
        check([stated | change], graph, "here")
    assert caught.value.code is ExitCode.VERIFICATION
    assert words in str(caught.value)
    assert "here" in caught.value.where


def test_layers_that_are_missing_or_too_many() -> None:
    graph = linear([[1, 2, 3]], codes(8))
    stated = certify(graph)[0].to_json()
    with pytest.raises(DlccError, match="no certificate for"):
        check([], graph, "here")
    with pytest.raises(DlccError, match="which are no integer layers"):
        check([stated, stated | {"value": "other"}], graph, "here")


def test_widths_of_kernels() -> None:
    made = certify(linear([[1, 2, 3]], codes(8)))
    rows = [
        {"layer": "fc", "op": "linear", "sum_bits": 16},
        {"layer": "a", "op": "b", "sum_bits": 8},
    ]
    assert with_kernels(made, rows)[0].accumulator == 16


def test_digest_depends_on_the_weights() -> None:
    one, two = (linear([[1, 2, n]], codes(8)) for n in (3, 4))
    assert digest(one) == digest(linear([[1, 2, 3]], codes(8)))
    assert digest(one) != digest(two)
