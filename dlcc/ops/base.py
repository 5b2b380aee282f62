"""What an op is: one class that holds everything dlcc knows about it.

One op family is one file of this package. A subclass of :class:`Op` gives shape and type inference,
the numpy reference, the interval rule, the cost and the default TIR; importers from ONNX stand
beside it (:func:`dlcc.frontends.registry.onnx_op`). ``docs/adding-an-op.md`` walks through one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlcc import numerics
from dlcc.bounds import check_shape
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, AttrValue, Graph, Node, ShortFloat, TensorType, Value
from dlcc.ir.encodings import Array

if TYPE_CHECKING:
    from dlcc.tir.access import TirContext

OPS: dict[str, Op] = {}
"""Every op by name."""


class Quantised(Enum):
    """What an op can do when its operands are integer codes."""

    INTEGER = "integer"
    """Has an integer definition of its own: :meth:`Op.evaluate_integer`."""
    SAME = "same"
    """Moves or selects numbers: works on the codes; inputs and output share one encoding."""
    TABLE = "table"
    """A function of one real argument: a table with one entry per input code."""
    WEIGHTS = "weights"
    """Multiplies constants that are codes as integers; operands and results stay float."""
    FLOAT = "float"
    """Has no integer form; its operands and results stay float."""


@dataclass(frozen=True)
class Interval:
    """Closed range of real numbers that holds every element of a tensor."""

    low: float
    high: float

    def union(self, other: Interval) -> Interval:
        """The smallest interval that contains both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))

    @staticmethod
    def of(array: Array) -> Interval:
        """Range of a constant."""
        if not array.size:
            return Interval(0.0, 0.0)
        return Interval(float(array.min()), float(array.max()))


class Op(ABC):
    """Base of all ops. One instance of each subclass with a ``name`` is registered.

    Attributes:
        name: the op's name in the IR.
        operands: their names; a trailing ``?`` marks an optional one, ``*`` any number of them.
        attributes: name -> default. An attribute without a default has the value ``...``.
        quantised: what the op can do on integer codes.
        multiplied: the two operands whose products are summed. If one of them is stored in 16
            bits (bfloat16, float16), the products are those of such numbers: the other one is
            rounded too.
    """

    name: ClassVar[str] = ""
    operands: ClassVar[tuple[str, ...]] = ("x",)
    attributes: ClassVar[Mapping[str, Any]] = {}
    quantised: ClassVar[Quantised] = Quantised.FLOAT
    multiplied: ClassVar[tuple[int, ...]] = ()

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):
            OPS[cls.name] = cls()

    def get(self, node: Node, key: str) -> Any:
        """Attribute ``key`` of ``node``, or its default."""
        return node.attrs.get(key, self.attributes[key])

    @abstractmethod
    def infer(self, node: Node) -> list[TensorType]:
        """Shape and dtype of each output (encoding and layout are not looked at).

        Raises:
            DlccError: the operands do not fit; use :func:`type_error`.
        """

    @abstractmethod
    def evaluate(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """The numpy reference on logical arrays (float ops: real values)."""

    def evaluate_integer(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """The integer definition, for ``Quantised.INTEGER`` ops.

        ``xs`` are stored arrays: codes where the operand is Affine, else values (of binary
        activations too). Results are codes where the output is Affine, else values. Must be built
        on :mod:`dlcc.numerics`.
        """
        raise type_error(node, "has no integer definition for these encodings")

    def interval(self, node: Node, xs: Sequence[Interval | None]) -> list[Interval]:
        """Ranges of the outputs from ranges of the operands; by default unbounded."""
        return [Interval(-np.inf, np.inf) for _ in node.outputs]

    def macs(self, node: Node) -> int:
        """Multiply-accumulates (0 for ops that are not made of them)."""
        return 0

    def scanned(self, node: Node) -> int:
        """Numbers that default TIR looks at for all results, where each looks at many."""
        return 0

    def compute(self, node: Node, ctx: TirContext) -> None:
        """Default TIR: declare every output through ``ctx`` (see :mod:`dlcc.tir.access`)."""
        raise type_error(node, "has no default TIR; a target's kernel table must serve it")

    def reference(self, node: Node, xs: Sequence[Array | None]) -> list[Array]:
        """Reference on *stored* arrays: what a kernel for this node must compute, bit for bit."""
        types = [v.type for v in (*node.inputs, *node.outputs) if v is not None]
        if any(t.short_float for t in types):
            return self.evaluate(node, self._real(node, xs))
        if any(v.type.is_binary for v in activations(node)):
            return self.evaluate_integer(node, xs)
        if all(not isinstance(t.encoding, Affine) for t in types):
            return self.evaluate(node, xs)
        if self.quantised is Quantised.SAME:
            return self.evaluate(node, xs)
        if self.quantised is Quantised.TABLE:
            return [self.lookup(node, _present(xs[0]))]
        return self.evaluate_integer(node, xs)

    def rounds_factors(self, node: Node) -> ShortFloat | None:
        """What the factors are rounded to whose products ``node`` sums in float32, if they are."""
        short = (node.input(i).type.short_float for i in self.multiplied)
        return next((encoding for encoding in short if encoding is not None), None)

    def _real(self, node: Node, xs: Sequence[Array | None]) -> list[Array | None]:
        """Operands as float32 where any has 16 bits; those that are multiplied are rounded."""
        encoding = self.rounds_factors(node)
        out: list[Array | None] = []
        for index, array in enumerate(xs):
            if array is not None and node.input(index).type.short_float:
                array = array.astype(np.float32)
            elif array is not None and encoding is not None and index in self.multiplied:
                array = encoding.rounded(array)
            out.append(array)
        return out

    def table(self, node: Node) -> Array:
        """Output code of every input code (``Quantised.TABLE`` ops with Affine in and out)."""

        def function(real: Array) -> Array:
            return self.evaluate(node, [real, *[_constant(v) for v in node.inputs[1:]]])[0]

        return numerics.unary_table(function, node.input(0).type.affine, node.output.type.affine)

    def lookup(self, node: Node, codes: Array) -> Array:
        """Apply :meth:`table`."""
        low, _ = node.input(0).type.affine.code_range
        return self.table(node)[codes.astype(np.int64) - low]


def _present(array: Array | None) -> Array:
    assert array is not None
    return array


def _constant(value: Value | None) -> Array | None:
    return None if value is None else value.decoded()


def activations(node: Node) -> list[Value]:
    """Operands that are no constants, and results."""
    given = (v for v in node.inputs if v is not None and not v.is_constant)
    return [*given, *node.outputs]


def op_of(node: Node) -> Op:
    """The op of a node.

    Raises:
        DlccError: there is no such op.
    """
    try:
        return OPS[node.op]
    except KeyError:
        raise DlccError(
            ExitCode.MODEL,
            f"unknown op {node.op!r}",
            where=node.loc,
            fix="`dlcc opt` writes only known ops; check the .dlir file or load its plugin",
        ) from None


def type_error(node: Node, why: str, fix: str = "") -> DlccError:
    """The error of a node whose operands or attributes do not fit its op."""
    shapes = ", ".join(
        "-" if v is None else f"{v.type.dtype}{list(v.type.shape)}" for v in node.inputs
    )
    return DlccError(
        ExitCode.MODEL, f"{node.op}({shapes}) is not valid", where=node.loc, why=why, fix=fix
    )


def _with_encoding(op: Op, node: Node, types: list[TensorType]) -> list[TensorType]:
    """Inferred types; an op that only moves numbers passes a per-tensor encoding on."""
    encodings = {
        v.type.encoding
        for v in node.inputs
        if v is not None and isinstance(v.type.encoding, Affine) and v.type.encoding.axis is None
    }
    if op.quantised is not Quantised.SAME or not encodings:
        return types
    if len(encodings) > 1:
        raise type_error(node, "the operands have different encodings")
    (encoding,) = encodings
    dtype = node.input(0).type.dtype
    return [t.with_(encoding=encoding) if t.dtype == dtype else t for t in types]


def _check_scales(node: Node, type_: TensorType) -> None:
    """One scale for each place of the axis that an encoding's scales lie along."""
    encoding = type_.encoding
    if not isinstance(encoding, Affine) or encoding.axis is None:
        return
    extent = type_.shape[encoding.axis] if encoding.axis < type_.rank else 0
    if len(encoding.scales) not in (1, extent):
        raise type_error(
            node,
            f"{len(encoding.scales)} scales along axis {encoding.axis} of {list(type_.shape)}",
        )


def build(
    graph: Graph,
    op: str,
    inputs: Sequence[Value | None],
    attrs: Mapping[str, AttrValue] | None = None,
    *,
    loc: str = "",
    types: Sequence[TensorType] | None = None,
    names: Sequence[str] | None = None,
    outputs: int = 1,
    before: Node | None = None,
    after: Node | None = None,
) -> Node:
    """Add a node with inferred output types (or with ``types``, checked against inference).

    Attributes that equal the op's default are left out, so that equal nodes have equal text.

    Args:
        graph: where to add it.
        op: name of the op.
        inputs: operands.
        attrs: attributes; sequences as tuples.
        loc: name of the original node.
        types: output types where inference is not the whole story (encodings, layouts).
        names: hints for the outputs' names.
        outputs: number of outputs, for ops that have a variable number.
        before: insert before this node.
        after: insert after this node.

    Raises:
        DlccError: the op does not take these operands.
    """
    probe = Node(op, attrs or {}, loc)
    definition = op_of(probe)
    unknown = set(probe.attrs) - set(definition.attributes)
    if unknown:
        raise type_error(probe, f"no attribute named {', '.join(sorted(unknown))}")
    kept = {k: v for k, v in probe.attrs.items() if definition.attributes[k] != v}
    placeholder = [TensorType(())] * outputs
    node = graph.add_node(
        op, inputs, placeholder, attrs=kept, loc=loc, names=names, before=before, after=after
    )
    try:
        inferred = _with_encoding(definition, node, definition.infer(node))
        for value, type_ in zip(node.outputs, types or inferred, strict=True):
            check_shape(type_.shape, type_.storage.bits / 8, loc)
            _check_scales(node, type_)
            value.type = type_
    except (DlccError, ValueError):
        graph.erase(node)
        raise
    return node
