"""The row of recurrent layers, for every machine."""

from __future__ import annotations

from typing import ClassVar, cast

from dlcc.ir import F32, I32, Node
from dlcc.lowering.kernel import KernelArg, KernelPlan
from dlcc.ops import op_of
from dlcc.ops.recurrent import Activation, Recurrent, weight_codes
from dlcc.ops.recurrent_codes import TirFloats, multipliers
from targets.kernels import recurrent
from targets.kernels.recurrent_cell import Function
from targets.kernels.recurrent_spec import Kind, RecurrentSpec
from targets.rows.base import IsaRow


def _op(node: Node) -> Recurrent:
    return cast("Recurrent", op_of(node))


def _spec(node: Node) -> RecurrentSpec:
    op = _op(node)
    steps, batch, units = op.sizes(node)
    names = [o.rstrip("?") for o in op.operands]
    pairs = zip(names[1:], node.inputs[1:], strict=False)
    flags = {
        key: bool(op.get(node, key))
        for key in ("reverse", "input_forget", "reset_after")
        if key in op.attributes
    }
    return RecurrentSpec(
        cast("Kind", op.name),
        steps,
        batch,
        units,
        op.activations_of(node),
        tuple(name for name, value in pairs if value is not None),
        clip=float(op.get(node, "clip")),
        coded=weight_codes(node) is not None,
        **flags,
    )


class RecurrentRow(IsaRow):
    """LSTM, GRU and RNN, all steps in one kernel: float32, or products of codes as integers."""

    name: ClassVar[str] = "recurrent"
    ops: ClassVar[tuple[str, ...]] = ("lstm", "gru", "rnn")

    def refuses(self, node: Node) -> str:
        """Other types than float32."""
        for value in (*node.inputs, *node.outputs):
            if value is None or value.is_constant:
                continue
            if not value.type.is_dense or value.type.dtype not in (F32, I32):
                return f"%{value.name} is not float32"
            if not value.type.elements:
                return f"%{value.name} has no elements"
        return ""

    def cost(self, node: Node) -> float:
        """Products, or the time that weights take to arrive, and activations."""
        return recurrent.recurrent_cost(_spec(node), self.isa)

    def plan(self, node: Node) -> KernelPlan:
        """One step; another one before where the weights are not known."""
        spec = _spec(node)
        places: dict[str, KernelArg] = {}
        constants = {}
        for name, value in zip(("gates", *_operand_names(node)), node.inputs, strict=False):
            if value is None:
                continue
            codes = weight_codes(node) if name == "recurrent" else None
            if codes is not None:
                constants[name] = value.stored()
                constants["multipliers"] = multipliers(codes, value.type.shape[0])
            elif value.is_constant:
                constants[name] = value.decoded()
            else:
                places[name] = ("in", len(places))
        return recurrent.recurrent(spec, self.isa, _functions(spec), places, constants)


def _functions(spec: RecurrentSpec) -> list[Function]:
    known = cast("tuple[Activation, ...]", spec.functions)
    if not spec.coded:
        return [f.expression for f in known]
    return [lambda x, names, f=f: f.exact(TirFloats(names), x) for f in known]  # type: ignore[misc]


def _operand_names(node: Node) -> list[str]:
    return [o.rstrip("?") for o in _op(node).operands[1:]]
