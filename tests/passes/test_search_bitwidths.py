"""The search for widths: the walk by brute force, budgets that hold, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, Graph, Node, Ternary, graphs_equal
from passes import PassContext, PassManager, PipelineResult
from passes.quantization.walk import Knob, deepest, descend, expected, fill, path, total
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]

WIDTHS = (8, 6, 4, 2)

# -- the walk ----------------------------------------------------------------------------------


def knob(errors: list[float], costs: list[float]) -> Knob:
    return Knob("k", dict(zip(WIDTHS, errors, strict=True)), dict(zip(WIDTHS, costs, strict=True)))


rising = st.lists(st.integers(0, 60), min_size=4, max_size=4)
falling = st.lists(st.integers(1, 20), min_size=4, max_size=4, unique=True)
some = st.lists(st.builds(lambda e, c: knob(sorted(e), sorted(c)[::-1]), rising, falling),
                min_size=1, max_size=3)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(some)
def test_no_choice_beats_the_walk_at_its_cost(knobs: list[Knob]) -> None:
    way = path(knobs)
    costs = [total(knobs, c) for c in way]
    assert way[0] == tuple(8 for _ in knobs)
    assert costs == sorted(costs, reverse=True)
    assert way[-1] == tuple(2 for _ in knobs)
    everything = list(itertools.product(WIDTHS, repeat=len(knobs)))
    for choice, cost in zip(way, costs, strict=True):
        others = [expected(knobs, c) for c in everything if total(knobs, c) <= cost]
        assert expected(knobs, choice) <= min(others) + 1e-9


@settings(max_examples=100, deadline=None)
@given(some, st.floats(0, 1))
def test_filling_stays_within_the_budget(knobs: list[Knob], share: float) -> None:
    low, high = (total(knobs, c) for c in (path(knobs)[-1], path(knobs)[0]))
    budget = low + share * (high - low)
    start = next(c for c in path(knobs) if total(knobs, c) <= budget)
    found = fill(knobs, start, budget)
    assert total(knobs, found) <= budget
    assert expected(knobs, found) <= expected(knobs, start)


@settings(max_examples=60, deadline=None)
@given(some, st.integers(0, 120), st.integers(0, 30))
def test_descending_keeps_the_condition(knobs: list[Knob], limit: int, most: int) -> None:
    calls = []

    def meets(choice: tuple[int, ...]) -> bool:
        calls.append(choice)
        return expected(knobs, choice) <= limit

    start = path(knobs)[0]
    found = descend(knobs, start, meets, most)
    assert len(calls) <= most
    assert found == start or expected(knobs, found) <= limit
    assert total(knobs, found) <= total(knobs, start)
    if most == 30:  # enough to end: no single step down is left
        for i, width in enumerate(found):
            for to in [w for w in WIDTHS if w < width][:1]:
                assert expected(knobs, (*found[:i], to, *found[i + 1 :])) > limit


def test_costs_that_do_not_fall_are_passed_over() -> None:
    slow = knob([0, 1, 2, 30], [10, 11, 10, 4])
    assert path([slow]) == [(8,), (2,)]
    assert fill([slow], (2,), 10.0) == (8,)


@pytest.mark.parametrize("last", [0, 1, 5, 9])
def test_halving_finds_the_last(last: int) -> None:
    choices = [(i,) for i in range(10)]
    assert deepest(choices, lambda c: c[0] <= last) == last


# -- the pass ----------------------------------------------------------------------------------


def network(net: Net) -> Graph:
    x = net.op("relu", net.linear(net.input(1, 12), 12, loc="a"))
    return net.done(net.linear(x, 6, loc="b"))


def feeds(count: int = 40) -> list[dict[str, Array]]:
    rng = np.random.default_rng(4)
    return [{"x": rng.standard_normal((1, 12)).astype(np.float32)} for _ in range(count)]


def run(graph: Graph, pipeline: str, **context: Any) -> PipelineResult:
    def batches() -> Iterator[dict[str, Array]]:
        return iter(feeds())

    result = PassManager(pipeline).run(graph, PassContext(calibration=batches, **context))
    verify(graph)
    return result


def error(before: Graph, after: Graph) -> float:
    pairs = [(execute(before, f)["y0"], execute(after, f)["y0"]) for f in feeds()]
    want, got = (np.array([p[i] for p in pairs], np.float64) for i in (0, 1))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def quantised(net_graph: Graph, weights: str, inputs: str = "") -> Graph:
    copy = net_graph.copy()
    run(copy, f"quantize{{bits=6 samples=64 weights=[{weights}] inputs=[{inputs}]}}")
    return copy


def widths(graph: Graph, slot: int = 1) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "linear":
            found[node.loc] = node.input(slot).type.affine.bits
    return found


@pytest.fixture(scope="module")
def everything() -> dict[tuple[int, int], float]:
    """Error of every pair of widths."""
    graph = network(Net())
    pairs = itertools.product(range(2, 7), repeat=2)
    return {(a, b): error(graph, quantised(graph, f"a:{a},b:{b}")) for a, b in pairs}


def size(a: int, b: int) -> int:
    return (144 * a + 72 * b) // 8


@pytest.mark.parametrize("budget", [0.06, 0.1, 0.3])
def test_least_bytes_for_a_loss(budget: float, everything: dict[tuple[int, int], float]) -> None:
    graph = network(Net())
    dense = graph.copy()
    result = run(graph, f"search-bitwidths{{bits=6 loss={budget} measure=error}}")
    found = widths(graph)
    pair = (found["a"], found["b"])
    statistics = result.records[0].statistics
    assert error(dense, graph) <= budget
    assert statistics["loss"] == pytest.approx(error(dense, graph), abs=1e-5)
    assert statistics["searched_bytes"] == size(*pair)
    uniform = min(b for b in range(2, 7) if everything[b, b] <= budget)
    assert statistics["uniform_bits"] == uniform
    best = min(size(*p) for p, e in everything.items() if e <= budget)
    assert best <= size(*pair) <= size(uniform, uniform)
    assert size(*pair) <= 1.2 * best
    assert int(statistics["networks_measured"]) <= 32


@pytest.mark.parametrize("bits", [2.5, 4, 5.2])
def test_least_loss_for_a_size(bits: float, everything: dict[tuple[int, int], float]) -> None:
    graph = network(Net())
    budget = int(size(8, 8) * bits / 8)
    run(graph, f"search-bitwidths{{bits=6 size={budget} measure=error}}")
    found = widths(graph)
    pair = (found["a"], found["b"])
    assert size(*pair) <= budget
    fitting = {p: e for p, e in everything.items() if size(*p) <= budget}
    assert everything[pair] <= 1.5 * min(fitting.values())
    assert everything[pair] <= min(e for (a, b), e in fitting.items() if a == b)


def test_latency(everything: dict[tuple[int, int], float]) -> None:
    def cost(node: Node) -> float:
        """Weights of 4 bits and fewer are twice as fast; layer b is slow."""
        encoding = node.input(1).type.encoding
        narrow = isinstance(encoding, Affine) and encoding.bits <= 4
        return (3e-6 if node.loc == "b" else 1e-6) / (2 if narrow else 1)

    graph = network(Net())
    result = run(graph, "search-bitwidths{bits=6 latency=2.6 measure=error}", cost=cost)
    assert widths(graph)["b"] <= 4 < widths(graph)["a"]
    assert result.records[0].statistics["predicted_us"] == 2.5
    assert everything[widths(graph)["a"], 4] <= 1.01 * everything[6, 4]
    with pytest.raises(DlccError, match=r"meet latency=1\.5") as caught:
        run(network(Net()), "search-bitwidths{latency=1.5}", cost=cost)
    assert "take 2.0 us" in str(caught.value)


@pytest.mark.parametrize("what", ["inputs", "both"])
def test_widths_of_activations(what: str) -> None:
    graph = network(Net())
    dense = graph.copy()
    run(graph, f"search-bitwidths{{loss=0.2 measure=error what={what}}}")
    assert error(dense, graph) <= 0.2
    assert min(widths(graph, 0).values()) < 8
    assert (min(widths(graph).values()) < 8) == (what == "both")


def test_the_pipeline_that_is_told_gives_the_same_network() -> None:
    graph, again = network(Net()), network(Net())
    result = run(graph, "search-bitwidths{loss=0.1 measure=error what=both}")
    [text] = [r.message for r in result.remarks if r.message.startswith("the same as ")]
    run(again, text.removeprefix("the same as "))
    assert graphs_equal(graph, again)


def test_what_is_told() -> None:
    result = run(network(Net()), "search-bitwidths{loss=0.1 measure=error}")
    notes = [r.message for r in result.remarks if r.kind == "note"]
    told = {
        r.loc: r.message for r in result.remarks if r.kind == "note" and r.loc in "ab" and r.loc
    }
    assert all("alone at width 8: " in told[loc] for loc in "ab")
    [uniform] = [n for n in notes if "at uniform widths" in n]
    assert "8: 0.0" in uniform
    assert "2: " in uniform
    assert any(n.startswith("loss of measured networks") for n in notes)
    assert any("-bit weights" in r.message for r in result.remarks if r.kind == "applied")


def test_classes_and_labels() -> None:
    graph = network(Net())
    scores = np.concatenate([execute(graph, f)["y0"] for f in feeds()])
    result = run(graph.copy(), "search-bitwidths{loss=0}")
    assert result.records[0].statistics["measure"] == "agreement"
    assert result.records[0].statistics["loss"] == 0
    labels = scores.argmin(axis=1).astype(np.int64)  # that the float network never hits
    free = run(graph.copy(), "search-bitwidths{loss=0}", labels=lambda: labels)
    assert free.records[0].statistics["measure"] == "accuracy"
    assert free.records[0].statistics["mean_bits"] == 2.0
    with pytest.raises(DlccError, match="labels do not fit"):
        run(graph, "search-bitwidths{loss=0}", labels=lambda: labels[:7])


def test_layers_that_are_left_out() -> None:
    graph = network(Net())
    run(graph, "search-bitwidths{loss=1 measure=error weights=[a:7]}")
    assert widths(graph) == {"a": 7, "b": 2}
    graph = network(Net())
    run(graph, "ternarize{scales=symmetric only=a},search-bitwidths{loss=1 measure=error least=3}")
    kinds = {n.loc: n.input(1).type.encoding for n in graph.nodes if n.op == "linear"}
    assert isinstance(kinds["a"], Ternary)
    assert isinstance(kinds["b"], Affine)
    assert kinds["b"].bits == 3
    graph = network(Net())
    result = run(graph, "search-bitwidths{loss=0.1 weights=[a:4,b:4]}")
    assert "no layer whose width could be chosen" in result.remarks[-1].message


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        ("", "one of loss, size and latency", ExitCode.USAGE),
        ("loss=0.1 size=3", "given are loss and size", ExitCode.USAGE),
        ("size=100 what=both", "goes with what=weights", ExitCode.USAGE),
        ("loss=0.1 bits=4 least=5", "above bits=4", ExitCode.USAGE),
        ("loss=1.5", "loss=1.5 is not valid", ExitCode.USAGE),
        ("loss=0.1 measure=accuracy", "needs labels", ExitCode.USAGE),
        ("loss=0 measure=error", "meet loss=0.0", ExitCode.PASS),
        ("size=53", "the narrowest widths take 54 bytes", ExitCode.PASS),
    ],
)
def test_mistakes(options: str, words: str, code: ExitCode) -> None:
    with pytest.raises(DlccError) as caught:
        run(network(Net()), f"search-bitwidths{{{options}}}")
    assert caught.value.code is code
    assert words in str(caught.value)


def test_scores_are_needed_for_classes(net: Net) -> None:
    x = net.input(1, 12)
    graph = net.done(net.linear(x, 6, loc="a"), net.linear(x, 6, loc="b"))
    with pytest.raises(DlccError, match="needs one output"):
        run(graph, "search-bitwidths{loss=0.1 measure=agreement}")
    result = run(graph, "search-bitwidths{loss=0.1}")
    assert result.records[0].statistics["measure"] == "error"


def test_without_data_it_refuses(net: Net) -> None:
    with pytest.raises(DlccError) as caught:
        PassManager("search-bitwidths{loss=0.1}").run(network(net), PassContext())
    assert caught.value.code is ExitCode.USAGE
