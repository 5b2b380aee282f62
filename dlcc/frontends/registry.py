"""ONNX importers by op type and opset, and what an importer gets to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import F32, AttrValue, DType, Graph, Value
from dlcc.ir.encodings import Array


class Unsupported(Exception):
    """Raised by an importer: this node cannot be imported, and why. All are listed at once."""


@dataclass(frozen=True)
class Padded:
    """How many places along an axis hold results, where data decide that; the rest is padding.

    Attributes:
        axis: which axis, from 0 on.
        count: how many of its first places are results, i64[].
    """

    axis: int
    count: Value


@dataclass(frozen=True)
class OnnxNode:
    """One ONNX node as an importer sees it.

    ``inputs`` are values of the graph (None where omitted); ``attrs`` are plain Python values
    (tensors as numpy arrays, sequences as tuples). ``elements`` are the model's own types of values
    that are computed in wider ones: integers of 4 and 2 bits, float8, float4. ``outputs`` are the
    results' names in the model, "" where one is omitted. ``padded`` are the values whose size the
    data decide. ``doubles`` tells that float64 stays what it is; ``single`` collects the ops that
    compute it in float32 all the same.
    """

    op_type: str
    name: str
    domain: str
    opset: int
    inputs: tuple[Value | None, ...]
    attrs: Mapping[str, Any]
    output_count: int
    graph: Graph
    elements: Mapping[Value, DType] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    padded: dict[Value, Padded] = field(default_factory=dict)
    doubles: bool = True
    single: set[str] = field(default_factory=set)

    def wants(self, index: int) -> bool:
        """Whether result ``index`` has a name, so that it may be read."""
        return index < len(self.outputs) and bool(self.outputs[index])

    def input(self, index: int) -> Value:
        """Operand ``index``. Raises Unsupported where it is missing."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise Unsupported(f"input {index} is missing")
        return value

    def optional(self, index: int) -> Value | None:
        """Operand ``index`` or None."""
        return self.inputs[index] if index < len(self.inputs) else None

    def element(self, index: int) -> DType:
        """The model's own element type of operand ``index``, narrow ones included."""
        value = self.input(index)
        if value in self.elements:
            return self.elements[value]
        maker = value.producer
        if maker is not None and maker.op == "cast" and maker.input(0).type.dtype.is_narrow:
            return maker.input(0).type.dtype
        return value.type.storage

    def constant(self, index: int, what: str) -> Array:
        """Contents of operand ``index``, which must be known at compile time."""
        value = self.input(index)
        if value.producer is not None and value.producer.op == "dequantize":
            value = value.producer.input(0)  # parameters of quantised models
        if not value.is_constant:
            raise Unsupported(f"{what} (input {index}) must be known at compile time")
        return value.decoded()

    def optional_constant(self, index: int, what: str) -> Array | None:
        """As :meth:`constant`, None where the operand is omitted."""
        return None if self.optional(index) is None else self.constant(index, what)

    def bounded(self, value: Value, axis: int, count: Value) -> Value:
        """``value``, of which only the first ``count`` places along ``axis`` hold results."""
        self.padded[value] = Padded(axis, count)
        return value

    def build(
        self,
        op: str,
        inputs: Sequence[Value | None],
        attrs: Mapping[str, AttrValue] | None = None,
        *,
        outputs: int = 1,
        suffix: str = "",
    ) -> list[Value]:
        """Add an IR node named after this one and return its outputs.

        ONNX's integer tensors reach ops that compute (rather than move numbers) as plain integers,
        also where they are known to be codes of a quantised tensor.
        """
        from dlcc.ops import float64  # here: the ops' modules import this one
        from dlcc.ops.base import build
        from dlcc.ops.quant import raw_operands

        loc, operands = self.name + suffix, raw_operands(self, op, inputs)
        wide = float64.has_float64(operands)
        if wide:
            operands = float64.fitted(self.graph, op, operands, loc)
        names = [loc] * outputs
        made = build(self.graph, op, operands, attrs, loc=loc, outputs=outputs, names=names).outputs
        if not wide or op in float64.KEPT:
            return made
        self.single.add(op)
        return [
            float64.converted(self.graph, v, True, loc) if v.type.dtype == F32 else v for v in made
        ]


Importer = Callable[[OnnxNode], Sequence[Value]]

IMPORTERS: dict[tuple[str, str], list[tuple[int, Importer]]] = {}


def onnx_op(op_type: str, since: int = 1, domain: str = "") -> Callable[[Importer], Importer]:
    """Register an importer for ``op_type`` from opset ``since`` on."""

    def register(importer: Importer) -> Importer:
        versions = IMPORTERS.setdefault((domain, op_type), [])
        versions.append((since, importer))
        versions.sort(key=lambda entry: entry[0])
        return importer

    return register


def importer_for(domain: str, op_type: str, opset: int) -> Importer | None:
    """The newest importer that is not newer than ``opset``, or None."""
    domain = "" if domain == "ai.onnx" else domain
    fitting = [f for since, f in IMPORTERS.get((domain, op_type), []) if since <= opset]
    return fitting[-1] if fitting else None


def model_error(what: str, *, where: str = "", why: str = "", fix: str = "") -> DlccError:
    """A DlccError of class MODEL."""
    return DlccError(ExitCode.MODEL, what, where=where, why=why, fix=fix)
