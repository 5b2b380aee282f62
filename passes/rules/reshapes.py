"""Rules of ``fold-transposes`` for reshapes of layers' results, so that epilogues meet the layer.

1-D and 3-D layers are imported as 2-D ones between reshapes and transposes: what follows them in
the model does not follow the layer itself until it has moved in front of those.
"""

from __future__ import annotations

from dlcc.ir import Value
from passes.patterns import Match, Rule, any_, const, op
from passes.rules.transposes import BINARY, ELEMENTWISE, inverse

LAYERS = ("conv2d", "conv_transpose2d", "linear", "matmul", "add")


def _of_layer(value: Value) -> bool:
    """Whether this is a layer's result, or a function of it and constants."""
    node = value.producer
    while node is not None and node.op not in LAYERS:
        alone = all(v is None or v.is_constant for v in node.inputs[1:])
        if node.op not in (*ELEMENTWISE, *BINARY) or not alone:
            return False
        node = node.input(0).producer
    return node is not None


def _perm_to_layer(value: Value) -> tuple[int, ...] | None:
    """The order of axes between a layer and ``value``, its (transposed) result; else None."""
    node = value.producer
    if node is None or node.op != "transpose":
        return tuple(range(value.type.rank)) if _of_layer(value) else None
    perm = node.attrs["perm"]
    assert isinstance(perm, tuple)
    return tuple(int(a) for a in perm) if _of_layer(node.input(0)) else None


class _Before(Rule):
    """f(reshape(x)) -> reshape(f(x)), where x is a layer's result."""

    quiet = True

    def check(self, m: Match) -> str | None:
        return None if _perm_to_layer(m.value("x")) else "it is no reshape of a layer's result"

    def describe(self, m: Match) -> str:
        return f"moved {m.root.op} before a reshape"

    def reshaped(self, m: Match, value: Value) -> list[Value]:
        return m.build("reshape", [value], {"shape": m.root.output.type.shape})


class ElementwiseBeforeReshape(_Before):
    """f(reshape(x)) -> reshape(f(x)) for a function f of one number."""

    pattern = op(ELEMENTWISE, op("reshape", any_("x")))

    def rewrite(self, m: Match) -> list[Value]:
        (inner,) = m.build(m.root.op, [m.value("x")], m.root.attrs)
        return self.reshaped(m, inner)


class ConstantBeforeReshape(_Before):
    """f(reshape(x), c) -> reshape(f(x, c)) for one number, or one for each of the last axis."""

    pattern = op(BINARY, op("reshape", any_("x")), const("c"))

    def check(self, m: Match) -> str | None:
        shape, x = m.value("c").type.shape, m.value("x").type.shape
        if m.value("c").type.elements > 1:
            last = m.root.output.type.shape[-1]
            if m.value("c").type.elements != last or shape[-1] != last or x[-1] != last:
                return "the constant varies along an axis that the reshape changes"
        return super().check(m)

    def rewrite(self, m: Match) -> list[Value]:
        flat = m.array("c").reshape(-1)
        constant = m.graph.add_constant(flat, name=m.value("c").name)
        (inner,) = m.build(m.root.op, [m.value("x"), constant], m.root.attrs)
        return self.reshaped(m, inner)


class AddBeforeReshape(_Before):
    """reshape(transpose(layer)) + y -> reshape(transpose(layer + y')), y' being y moved back.

    Layers keep their images with the channels innermost, so that the moves of y cost nothing.
    """

    pattern = op("add", op("reshape", any_("x")), any_("y"))

    def check(self, m: Match) -> str | None:
        other, result = m.value("y").type, m.root.output.type
        if other.shape != result.shape or other.elements != m.value("x").type.elements:
            return "the other operand has another shape"
        if m.value("y").is_constant:
            return "the other operand is a constant"
        if m.graph.use_count(m.value("x")) != 1:
            return "the layer's result has other readers"
        return super().check(m)

    def rewrite(self, m: Match) -> list[Value]:
        x = m.value("x")
        perm = _perm_to_layer(x)
        assert perm is not None
        (other,) = m.build("reshape", [m.value("y")], {"shape": x.type.shape})
        if x.producer is None or x.producer.op != "transpose":
            (inner,) = m.build("add", [x, other], m.root.attrs)
            return self.reshaped(m, inner)
        m.nodes.append(x.producer)
        (other,) = m.build("transpose", [other], {"perm": inverse(perm)})
        (inner,) = m.build("add", [x.producer.input(0), other], m.root.attrs)
        (outer,) = m.build("transpose", [inner], {"perm": perm})
        return self.reshaped(m, outer)


class AddBeforeReshapeSecond(AddBeforeReshape):
    """y + reshape(transpose(layer)) -> reshape(transpose(layer + y'))."""

    pattern = op("add", any_("y"), op("reshape", any_("x")))


RESHAPES: tuple[type[Rule], ...] = (
    ElementwiseBeforeReshape,
    ConstantBeforeReshape,
    AddBeforeReshape,
    AddBeforeReshapeSecond,
)
