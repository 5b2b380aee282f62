"""The tuning database, and kernel choice by it."""

import json

import numpy as np
import pytest

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow, Target
from dlcc.lowering.tuning import TuningDatabase, candidates, layer_key
from dlcc.ops import build
from tests.lowering.graphs import typed


class Row(KernelRow):
    ops = ("relu",)

    def __init__(self, name, seconds, variants=(), refusal=""):
        self.name = name
        self.seconds = seconds
        self.names = list(variants)
        self.refusal = refusal

    def refuses(self, node):
        return self.refusal

    def cost(self, node):
        return self.seconds

    def plan(self, node):
        return KernelPlan((), kernel=self.name)

    def variants(self, node):
        return self.names

    def plan_variant(self, node, variant):
        if variant not in self.names:
            return super().plan_variant(node, variant)
        return KernelPlan((), kernel=f"{self.name}/{variant}")


def relu_node(shape=(2, 3), attrs=None):
    graph = Graph("g")
    x = graph.add_input("x", typed(shape))
    node = build(graph, "relu", [x], attrs or {}, loc="act")
    graph.set_outputs([node.output])
    return node


def table(*rows):
    return Target("fake", "x86_64-unknown-linux-gnu", "", (), (), tuple(rows))


TWO = table(Row("a", 1e-6, ["1x2", "2x2"]), Row("b", 2e-6, ["v"]), Row("c", 1e-9, refusal="no"))


def database(seconds):
    made = TuningDatabase()
    made.add("fake", layer_key(relu_node()), seconds, "some CPU", 1)
    return made


def test_candidates_come_in_rounds_over_the_rows_that_serve_the_layer():
    names = [c.name for c in candidates(relu_node(), TWO, 10)]
    assert names == ["a", "b", "a 1x2", "b v", "a 2x2"]
    assert [c.name for c in candidates(relu_node(), TWO, 3)] == names[:3]


def test_hopeless_rows_are_no_candidates():
    target = table(Row("a", 1e-6), Row("slow", 5e-6))
    assert [c.name for c in candidates(relu_node(), target, 10)] == ["a"]


def test_a_variant_that_a_row_does_not_have_is_refused():
    with pytest.raises(ValueError, match="a has no variant '9x9'"):
        TWO.rows[0].plan_variant(relu_node(), "9x9")


def test_the_measured_best_is_chosen_and_the_report_says_so():
    choice = database({"a": 3e-6, "b v": 1e-6, "a 1x2": 2e-6}).choose(relu_node(), TWO)
    assert choice.plan.kernel == "b/v"
    assert choice.tuned == "b v"
    assert choice.seconds == 1e-6
    assert choice.rejected["a"] == "measured 3.0 us against 1.0 us"
    assert choice.rejected["c"] == "no"
    assert "b" not in choice.rejected


def test_a_layer_that_was_not_measured_is_chosen_by_prediction():
    made = database({"b": 1e-9})
    for node, target in ((relu_node((4, 4)), TWO), (relu_node(), table(Row("a", 1e-6)))):
        choice = made.choose(node, target)
        assert (choice.row.name, choice.tuned) == ("a", "")


def test_a_candidate_that_is_gone_is_passed_over_and_reported():
    choice = database({"old": 1e-9, "b": 1e-6}).choose(relu_node(), TWO)
    assert choice.tuned == "b"
    assert choice.rejected["old"] == "measured, but not in this version of dlcc"
    choice = database({"old": 1e-9}).choose(relu_node(), TWO)
    assert (choice.row.name, choice.tuned) == ("a", "")
    assert "old" in choice.rejected


def test_layers_are_alike_where_shapes_and_types_are_and_not_by_name_or_bound():
    assert layer_key(relu_node()) == layer_key(relu_node())
    assert layer_key(relu_node()) != layer_key(relu_node((3, 2)))
    graph = Graph("g")
    x = graph.add_input("other", typed((1, 4, 5, 5)))
    weight = graph.add_constant(np.zeros((2, 4, 3, 3), np.float32))
    keys = [
        layer_key(build(graph, "conv2d", [x, weight], attrs, loc=loc))
        for attrs, loc in (
            ({"pads": (1, 1, 1, 1), "act_min": 0.0}, "one"),
            ({"pads": (1, 1, 1, 1), "act_min": -1.0}, "two"),
            ({"pads": (0, 0, 0, 0)}, "three"),
        )
    ]
    assert keys[0] == keys[1] != keys[2]
    assert keys[0].startswith("conv2d(f32[1,4,5,5], const f32[2,4,3,3]")


def test_the_file_reads_back(tmp_path):
    path = tmp_path / "t.json"
    made = database({"a": 1.5e-6, "b v": 2e-6})
    made.save(path)
    assert TuningDatabase.load(path) == made
    made.add("fake", layer_key(relu_node()), {"a": 1e-6}, "another CPU", 2)
    assert len(made.entries) == 1
    assert list(tmp_path.iterdir()) == [path]


GOOD = {"target": "t", "layer": "l", "cpu": "c", "threads": 1, "seconds": {"a": 1.0}}
HEAD = {"format": "dlcc tuning database", "version": 1}


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        "{}",
        json.dumps(HEAD),
        json.dumps({**HEAD, "version": 2, "layers": []}),
        json.dumps({**HEAD, "layers": [{**GOOD, "seconds": {}}]}),
        json.dumps({**HEAD, "layers": [{**GOOD, "seconds": {"a": -1.0}}]}),
        json.dumps({**HEAD, "layers": [{**GOOD, "seconds": {"a": "fast"}}]}),
        json.dumps({**HEAD, "layers": [{**GOOD, "seconds": 3}]}),
        json.dumps({**HEAD, "layers": [{"target": "t"}]}),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(DlccError) as caught:
        TuningDatabase.load(path)
    assert caught.value.code is ExitCode.DATA
    assert "dlcc tune" in caught.value.fix


def test_a_missing_file_and_an_unwritable_place_are_refused(tmp_path):
    with pytest.raises(DlccError, match="cannot read the tuning database"):
        TuningDatabase.load(tmp_path / "none.json")
    with pytest.raises(DlccError, match="cannot write the tuning database") as caught:
        TuningDatabase().save(tmp_path / "no" / "t.json")
    assert caught.value.code is ExitCode.OUTPUT
