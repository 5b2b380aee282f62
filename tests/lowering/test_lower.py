"""Kernel choice, weights and steps of a lowered program."""

from dataclasses import replace

import numpy as np
import pytest

from dlcc.driver import build_object
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Graph
from dlcc.lowering.kernel import KernelPlan, KernelStep
from dlcc.lowering.lower import choose, lower, prepare
from dlcc.lowering.target import KernelRow, Target
from dlcc.ops import build
from dlcc.program import ALIGNMENT
from targets import get_target
from tests.lowering.graphs import conv, typed


class Row(KernelRow):
    ops = ("relu",)

    def __init__(self, name, seconds, refusal=""):
        self.name = name
        self.seconds = seconds
        self.refusal = refusal

    def refuses(self, node):
        return self.refusal

    def cost(self, node):
        return self.seconds

    def plan(self, node):
        return KernelPlan(())


def relu_node():
    graph = Graph("g")
    x = graph.add_input("x", typed((2, 3)))
    node = build(graph, "relu", [x], loc="act")
    graph.set_outputs([node.output])
    return node


def table(*rows):
    return Target("fake", "x86_64-unknown-linux-gnu", "", (), (), tuple(rows))


def test_the_cheapest_kernel_is_chosen_and_the_report_says_why_not_the_others():
    target = table(Row("slow", 2e-6), Row("fast", 1e-6), Row("fussy", 1e-9, "needs 3 legs"))
    choice = choose(relu_node(), target)
    assert choice.row.name == "fast"
    assert choice.rejected["fussy"] == "needs 3 legs"
    assert choice.rejected["slow"] == "predicted 2.0 us against 1.0 us"


def test_of_nearly_equal_rows_the_one_that_stores_compressed_weights_is_chosen():
    def choice(seconds: float):
        packed = Row("packed", seconds)
        packed.encodings = ("affine",)
        packed.serves = lambda node: True
        return choose(relu_node(), table(Row("dense", 10e-6), packed))

    near, far = choice(10.5e-6), choice(11e-6)
    assert (near.row.name, far.row.name) == ("packed", "dense")
    told = "predicted 10.0 us against 10.5 us, with the weights decoded"
    assert near.rejected["dense"] == told
    assert near.seconds == 10.5e-6


def test_ties_go_to_the_first_row():
    assert choose(relu_node(), table(Row("a", 1e-6), Row("b", 1e-6))).row.name == "a"


def test_a_layer_without_a_kernel_is_refused_with_every_reason():
    with pytest.raises(DlccError) as caught:
        choose(relu_node(), table(Row("fussy", 1.0, "needs 3 legs"), Row("shy", 1.0, "too big")))
    error = caught.value
    assert error.code is ExitCode.UNSUPPORTED
    assert error.where == "act"
    assert "fussy: needs 3 legs; shy: too big" in error.why
    assert "relu(f32[2,3])" in error.what


def twins() -> Graph:
    """Two equal layers with equal weights, one with others."""
    graph = Graph("twins")
    x = graph.add_input("x", typed((1, 8, 6, 6)))
    rng = np.random.default_rng(0)
    one = rng.standard_normal((8, 8, 3, 3)).astype(np.float32)
    two = rng.standard_normal((8, 8, 3, 3)).astype(np.float32)
    value = x
    for index, weight in enumerate((one, one, two)):
        w = graph.add_constant(weight, name="w")
        attrs = {"pads": (1, 1, 1, 1)}
        value = build(graph, "conv2d", [value, w], attrs, loc=f"layer{index}").output
    graph.set_outputs([value], ["y"])
    return graph


def test_a_target_says_how_memory_is_laid_out():
    target = get_target("cpu:avx2")
    wide = lower(twins(), target, build_object)
    tight = lower(twins(), replace(target, alignment=8, slack=0), build_object)
    assert (wide.alignment, tight.alignment) == (ALIGNMENT, 8)
    one, other = (sorted(e.offset for e in p.weight_entries) for p in (wide, tight))
    assert len(one) == len(other)
    assert all(offset % 8 == 0 for offset in other)
    assert tight.arena_bytes < wide.arena_bytes
    assert len(tight.weights) < len(wide.weights)


def test_printed_functions_have_one_number_of_work_items():
    class Uneven(Row):
        def plan(self, node):
            items = node.output.type.elements
            step = KernelStep("same", lambda: None, (("in", 0), ("out", 0)), items)
            return KernelPlan((step,))

    def printed(functions, items, _target):
        found.append((set(functions), items))
        return {}

    found = []
    for second in ((2, 3), (2, 4)):
        graph = Graph("g")
        inputs = [graph.add_input(f"x{i}", typed(s)) for i, s in enumerate(((2, 3), second))]
        made = [build(graph, "relu", [x], loc=f"act{i}").output for i, x in enumerate(inputs)]
        graph.set_outputs(made)
        fake = table(Uneven("uneven", 1.0))
        if second == (2, 3):
            lower(graph, fake, lambda *_: b"", print_sources=printed)
        else:
            with pytest.raises(ValueError, match="same has steps of different work items"):
                lower(graph, fake, lambda *_: b"", print_sources=printed)
    assert found == [({"same"}, {"same": 6})]


def test_identical_layers_share_code_and_weights():
    program = lower(twins(), get_target("cpu:avx2"), build_object)
    gemms = [s for s in program.steps if s.function.startswith("gemm")]
    assert len(gemms) == 3
    assert len({s.function for s in gemms}) == 1
    packed = [e for e in program.weight_entries if e.name == "weight"]
    assert len(packed) == 2
    assert all(e.offset % ALIGNMENT == 0 for e in program.weight_entries)
    assert max(e.offset + e.size for e in program.weight_entries) <= len(program.weights)


def test_the_arena_is_reused_along_a_chain():
    graph = Graph("chain")
    value = graph.add_input("x", typed((1, 16, 20, 20)))
    for index in range(8):
        value = conv(graph, value, 16, loc=f"c{index}", kernel=1)
    graph.set_outputs([value], ["y"])
    program = lower(graph, get_target("cpu:avx2"), build_object)
    one = 16 * 20 * 20 * 4
    assert program.arena_bytes < 3 * one


def test_only_needed_features_are_demanded():
    graph = Graph("plain")
    x = graph.add_input("x", typed((4, 64)))
    graph.set_outputs([build(graph, "relu", [x], loc="r").output], ["y"])
    program = lower(graph, get_target("cpu:amx"), build_object)
    assert "amx_int8" not in program.features
    assert "avx512f" in program.features


def test_lowering_leaves_the_graph_alone():
    graph = twins()
    before = str(graph)
    prepare(graph)
    assert str(graph) == before
