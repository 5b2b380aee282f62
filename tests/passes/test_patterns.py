from __future__ import annotations

from typing import Any

import pytest

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Value
from passes.patterns import Match, Rule, any_, apply_rules, const, match, op


class NegNeg(Rule):
    """neg(neg(x)) -> x."""

    pattern = op("neg", op("neg", any_("x")))

    def rewrite(self, m: Match) -> list[Value]:
        return [m.value("x")]


class Forever(Rule):
    """neg(x) -> neg(x), without end."""

    pattern = op("neg", any_("x"))

    def rewrite(self, m: Match) -> list[Value]:
        return m.build("neg", [m.value("x")])


class Wrong(Rule):
    """exp(x) -> reduce(x), which has another shape."""

    pattern = op("exp", any_("x"))

    def rewrite(self, m: Match) -> list[Value]:
        return m.build("reduce_sum", [m.value("x")], {"axes": (0,)})


def ops(graph: Any) -> list[str]:
    return [node.op for node in graph.nodes]


def test_rewrites_reach_a_fixed_point(net: Any) -> None:
    y = net.input(3)
    for _ in range(7):
        y = net.op("neg", y)
    graph = net.done(y)
    result = apply_rules(graph, [NegNeg()], "test")
    assert ops(graph) == ["neg"]
    assert result.modified
    assert result.statistics["rewrites"] == 3


def test_interior_values_must_have_one_use(net: Any) -> None:
    inner = net.op("neg", net.input(3), loc="inner")
    graph = net.done(net.op("neg", inner, loc="outer"), net.op("exp", inner, loc="other"))
    result = apply_rules(graph, [NegNeg()], "test")
    assert not result.modified
    (remark,) = result.remarks
    assert (remark.kind, remark.loc) == ("refused", "outer")
    assert remark.message == "the result of neg(inner) is also used by other"


def test_a_graph_output_is_a_use(net: Any) -> None:
    inner = net.op("neg", net.input(3), loc="inner")
    graph = net.done(net.op("neg", inner), inner)
    result = apply_rules(graph, [NegNeg()], "test")
    assert not result.modified
    assert "output 'y1'" in result.remarks[0].message


def test_rules_without_end_are_an_error(net: Any) -> None:
    graph = net.done(net.op("neg", net.input(3), loc="here"))
    with pytest.raises(DlccError) as caught:
        apply_rules(graph, [Forever()], "test")
    assert caught.value.code is ExitCode.INTERNAL
    assert "do not converge" in str(caught.value)
    assert "Forever" in str(caught.value)


def test_a_rule_must_keep_the_type(net: Any) -> None:
    graph = net.done(net.op("exp", net.input(3)))
    with pytest.raises(DlccError, match="Wrong changed a type"):
        apply_rules(graph, [Wrong()], "test")


def test_names_survive_a_rewrite(net: Any) -> None:
    y = net.op("relu", net.input(3), loc="act")
    graph = net.done(y)

    class ToClip(Rule):
        pattern = op("relu", any_("x"))

        def rewrite(self, m: Match) -> list[Value]:
            return m.build("clip", [m.value("x")], {"min": 0.0})

    apply_rules(graph, [ToClip()], "test")
    assert graph.outputs[0].name == "act"
    assert graph.nodes[0].loc == "act"


def test_commutative_operands_and_repeated_captures(net: Any) -> None:
    x, c = net.input(3), net.const([1.0, 2.0, 3.0])
    net.done(net.op("mul", c, x), net.op("mul", x, x), net.op("mul", x, c))
    first, square, second = net.graph.nodes
    both = op("mul", any_("x"), const("c"), commutative=True)
    for node in (first, second):
        found = match(both, node, net.graph)
        assert found is not None
        assert found.value("x") is x
        assert found.value("c") is c
    assert match(both, square, net.graph) is None
    twice = op("mul", any_("x"), any_("x"))
    assert match(twice, square, net.graph) is not None
    assert match(twice, first, net.graph) is None


def test_a_failed_order_leaves_no_captures(net: Any) -> None:
    x, c = net.input(3), net.const([1.0, 2.0, 3.0])
    y = net.op("add", net.op("exp", x), net.op("mul", x, c))
    net.done(y)
    pattern = op("add", op("mul", any_("a"), const("c")), op("exp", any_("b")), commutative=True)
    found = match(pattern, net.graph.nodes[-1], net.graph)
    assert found is not None
    assert sorted(n.op for n in found.nodes) == ["add", "exp", "mul"]
    assert len(found.interior) == 2
