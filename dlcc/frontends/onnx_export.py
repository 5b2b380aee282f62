"""Graph -> ONNX file; quantised values become QuantizeLinear/DequantizeLinear (QDQ) pairs.

This is the form that ONNX Runtime, OpenVINO and TensorRT read: constants are stored as integers
with a DequantizeLinear behind them (per channel where the encoding is), and every quantised
activation passes through a pair. An engine that fuses the pairs rounds as dlcc does up to one code;
one that does not computes in float between them.

Exporters of single ops stand in :mod:`dlcc.frontends.onnx_export_ops`, ``onnx_export_windows`` and
``onnx_export_recurrent``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, DType, Graph, Node, TensorType, Value, every_graph
from dlcc.ir.encodings import Array
from dlcc.wholefile import write_whole

DEFAULT_OPSET = 17
OPSETS = (17, 21)
"""Oldest and newest opset that can be written: LayerNormalization and 16-bit codes bound them."""

Exporter = Callable[["OnnxWriter", Node], str]
"""Emits nodes for one IR node; returns the name of the (real-valued) result, or "" where it has
defined the results itself."""

EXPORTERS: dict[str, Exporter] = {}


def exports(*ops: str) -> Callable[[Exporter], Exporter]:
    """Register an exporter for IR ops."""

    def register(function: Exporter) -> Exporter:
        EXPORTERS.update(dict.fromkeys(ops, function))
        return function

    return register


def export_error(node: Node, why: str, fix: str = "") -> DlccError:
    """The error of a node that ONNX cannot express."""
    return DlccError(
        ExitCode.UNSUPPORTED,
        f"{node.op} cannot be written as ONNX",
        where=node.loc or node.outputs[0].name,
        why=why,
        fix=fix,
    )


class OnnxWriter:
    """Builds one ONNX graph.

    Attributes:
        opset: version that is written.
        integer_adds: see :func:`to_onnx`.
        nodes: emitted so far, in execution order.
        initializers: constants so far, by name.
    """

    def __init__(self, graph: Graph, opset: int, *, integer_adds: bool = False) -> None:
        self.graph = graph
        self.opset = opset
        self.integer_adds = integer_adds
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._real: dict[Value, str] = {}
        self._codes: dict[Value, str] = {}
        self._taken = {*(v.name for v in graph.inputs), *graph.output_names}
        self._node_names: set[str] = set()
        self._shared: dict[tuple[str, str, tuple[int, ...], bytes], str] = {}
        self._results = self._own_outputs()

    def _own_outputs(self) -> dict[Value, str]:
        """Node results that can carry an output's name themselves."""
        names: dict[Value, str] = {}
        inputs = {v.name for v in self.graph.inputs}
        for name, value in zip(self.graph.output_names, self.graph.outputs, strict=True):
            if value.producer is not None and value not in names and name not in inputs:
                names[value] = name
        return names

    # -- names ---------------------------------------------------------------------------------

    def name(self, hint: str) -> str:
        """A tensor name that is not taken, made from ``hint``."""
        name, count = hint, 0
        while name in self._taken:
            count += 1
            name = f"{hint}_{count}"
        self._taken.add(name)
        return name

    def _node_name(self, hint: str, op: str = "") -> str:
        """A node name that is not taken: ``hint``, or with the op's name where it is taken."""
        name, count = hint, 0
        if op and hint in self._node_names:
            name = hint = f"{hint}/{op}"
        while name in self._node_names:
            count += 1
            name = f"{hint}_{count}"
        self._node_names.add(name)
        return name

    # -- emitting ------------------------------------------------------------------------------

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        node: Node,
        result: str = "",
        *,
        unused: int = 0,
        **attributes: Any,
    ) -> str:
        """Add an ONNX node named after ``node``; returns the name of its only used result.

        ``unused``: results before it that nothing reads.
        """
        result = result or self.name(f"{node.outputs[0].name}_{op}")
        results = [*(self.name(f"{result}_unused") for _ in range(unused)), result]
        self.emit_several(op, inputs, node, results, **attributes)
        return result

    def emit_several(
        self, op: str, inputs: Sequence[str], node: Node, results: Sequence[str], **attributes: Any
    ) -> None:
        """Add an ONNX node named after ``node`` with these results."""
        name = self._node_name(node.loc or op, op)
        self.nodes.append(
            helper.make_node(op, list(inputs), list(results), name=name, **attributes)
        )

    def constant(self, array: Array, hint: str) -> str:
        """An initializer with this contents; equal ones are shared."""
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        shown = (str(contiguous.dtype), hint, contiguous.shape, contiguous.tobytes())
        if shown not in self._shared:
            name = self._shared[shown] = self.name(hint)
            self.initializers[name] = numpy_helper.from_array(contiguous, name)
        return self._shared[shown]

    def integers(self, values: Sequence[int], hint: str) -> str:
        """An int64 vector: shapes, axes, pads."""
        return self.constant(np.asarray(values, np.int64), hint)

    def scalar(self, value: float, type_: TensorType, hint: str) -> str:
        """A scalar of a value's logical dtype."""
        return self.constant(np.asarray(value, type_.dtype.numpy), hint)

    # -- values --------------------------------------------------------------------------------

    def real(self, value: Value) -> str:
        """Name of the real-valued form of ``value``."""
        if value not in self._real:
            if not value.is_constant:
                raise KeyError(value.name)
            self._real[value] = self.dequantised_constant(value, value.name)
        return self._real[value]

    def operand(self, node: Node, index: int) -> str:
        """Real-valued form of an operand; "" where it is absent."""
        value = node.optional_input(index)
        return "" if value is None else self.real(value)

    def operands(self, node: Node) -> list[str]:
        """All operands, trailing absent ones left out."""
        return [self.operand(node, i) for i in range(len(node.inputs))]

    def dequantised_constant(self, value: Value, hint: str, axes: Sequence[int] = ()) -> str:
        """A constant, transposed by ``axes`` if given; its codes and scales stay as they are."""
        encoding = value.type.encoding
        if not isinstance(encoding, Affine):
            array = value.decoded()
            return self.constant(array.transpose(axes) if axes else array, hint)
        codes = value.stored()
        axis = encoding.axis
        if axes:
            codes = codes.transpose(axes)
            axis = None if axis is None else list(axes).index(axis)
        name = self.constant(codes, f"{hint}_codes")
        self._codes.setdefault(value, name)
        result = self.name(hint)
        self._dequantise(name, result, encoding, axis, hint)
        return result

    def codes(self, value: Value) -> str:
        """Name of the integer codes of a quantised value."""
        self.real(value)
        return self._codes[value]

    def _grid(self, encoding: Affine, hint: str) -> tuple[str, str]:
        """Initializers for scales and zero points."""
        storage = encoding.storage(DType("float", 32)).numpy
        vector = encoding.axis is not None
        scales = np.asarray(encoding.scales, np.float32)
        points = np.asarray(encoding.zero_points, storage)
        shape = (-1,) if vector else ()
        return (
            self.constant(scales.reshape(shape), f"{hint}_scale"),
            self.constant(points.reshape(shape), f"{hint}_zero_point"),
        )

    def _dequantise(
        self, codes: str, result: str, encoding: Affine, axis: int | None, hint: str
    ) -> None:
        scale, point = self._grid(encoding, hint)
        attributes = {} if axis is None else {"axis": axis}
        self.nodes.append(
            helper.make_node(
                "DequantizeLinear", [codes, scale, point], [result],
                name=self._node_name(f"{hint}/dequantize"), **attributes,
            )
        )  # fmt: skip

    def _check_storable(self, value: Value, node: Node) -> Affine:
        encoding = value.type.affine
        if encoding.axis is not None:
            raise export_error(node, f"activation %{value.name} has a scale per channel")
        if encoding.bits not in (8, 16):
            raise export_error(node, f"QuantizeLinear has no type of {encoding.bits} bits")
        if encoding.bits == 16 and self.opset < OPSETS[1]:
            raise export_error(node, "16-bit codes need opset 21", fix="export with --opset 21")
        return encoding

    def define(self, node: Node, raw: str) -> None:
        """``raw`` is the real-valued result of ``node``: quantise it where its type says so."""
        value = node.output
        if not isinstance(value.type.encoding, Affine):
            self._real[value] = raw
            return
        encoding = self._check_storable(value, node)
        if encoding.narrow:  # QuantizeLinear would let the lowest code through
            low, high = (encoding.scale * (c - encoding.zero_point) for c in encoding.code_range)
            bounds = [
                self.scalar(bound, value.type, f"{value.name}_bound") for bound in (low, high)
            ]
            raw = self.emit("Clip", [raw, *bounds], node)
        scale, point = self._grid(encoding, value.name)
        codes = self.code_name(value)
        self.nodes.append(
            helper.make_node(
                "QuantizeLinear", [raw, scale, point], [codes],
                name=self._node_name(f"{node.loc or value.name}/quantize"),
            )
        )  # fmt: skip
        self.define_codes(value, codes)

    def rounded(self, node: Node, raw: str, encoding: Affine) -> str:
        """A QuantizeLinear/DequantizeLinear pair inside ``node``; returns the pair's result."""
        hint = f"{node.output.name}_inner"
        scale, point = self._grid(encoding, hint)
        codes = self.emit("QuantizeLinear", [raw, scale, point], node)
        return self.emit("DequantizeLinear", [codes, scale, point], node)

    def code_name(self, value: Value) -> str:
        """Name that the codes of a quantised ``value`` should have."""
        return self._results.get(value) or self.name(f"{value.name}_codes")

    def define_codes(self, value: Value, codes: str) -> None:
        """``codes`` are the stored form of a quantised ``value``."""
        self._codes[value] = codes
        result = self._real[value] = self.name(f"{value.name}_real")
        self._dequantise(codes, result, value.type.affine, None, value.name)

    def define_several(self, node: Node, op: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Add the ONNX node of an op with several dense results, which it defines."""
        names = self.result_names(node)
        self.emit_several(op, inputs, node, names, **attributes)
        self.define_results(node, names)

    def define_results(self, node: Node, names: Sequence[str]) -> None:
        """``names`` are the dense results of an op that has several."""
        self._real.update(zip(node.outputs, names, strict=True))

    def result_names(self, node: Node) -> list[str]:
        """Names that the last ONNX nodes of an op with several dense results give them."""
        return [self._results.get(v) or self.name(v.name) for v in node.outputs]

    def result_name(self, node: Node) -> str:
        """Name that the last ONNX node of ``node`` should give its result."""
        value = node.output
        if isinstance(value.type.encoding, Affine):
            return self.name(f"{value.name}_raw")
        return self._results.get(value) or self.name(value.name)

    # -- the whole -----------------------------------------------------------------------------

    def run(self) -> onnx.ModelProto:
        """Emit everything.

        Raises:
            DlccError: UNSUPPORTED, with every op that has no ONNX form.
        """
        # loading these registers the exporters
        from dlcc.frontends import (  # noqa: F401
            onnx_export_bounded,
            onnx_export_loop,
            onnx_export_ops,
            onnx_export_recurrent,
            onnx_export_windows,
        )

        missing = sorted({n.op for g in every_graph(self.graph) for n in g.nodes} - set(EXPORTERS))
        if missing:
            raise DlccError(
                ExitCode.UNSUPPORTED,
                f"no ONNX form is known for {', '.join(missing)}",
                fix="keep these layers in the original model",
            )
        values = [v for g in every_graph(self.graph) for v in g.values()]
        short = [encoding for v in values if (encoding := v.type.short_float)]
        if short:
            raise DlccError(
                ExitCode.UNSUPPORTED,
                f"a network with {short[0].name} numbers is not written as ONNX",
                why="engines would round and sum them in other places than dlcc does",
                fix=f"export it without the pass round-to-{short[0].name}; "
                "most engines do so by an option",
            )
        for value in self.graph.inputs:
            self._real[value] = value.name
            if isinstance(value.type.encoding, Affine):
                self.define_codes(value, value.name)
        self._emit_all(self.graph)
        outputs = [
            self._output(name, value)
            for name, value in zip(self.graph.output_names, self.graph.outputs, strict=True)
        ]
        return self._model(outputs)

    def _emit_all(self, graph: Graph) -> None:
        for node in graph.nodes:
            raw = EXPORTERS[node.op](self, node)
            if any(value not in self._real for value in node.outputs):
                self.define(node, raw)

    def body(
        self, graph: Graph, names: Sequence[str], inputs: Sequence[tuple[str, TensorType]]
    ) -> onnx.GraphProto:
        """The body of a node, as a graph that sees the names around it.

        Args:
            graph: the body; its values are plain numbers.
            names: what its inputs are called.
            inputs: names and types of the inputs that the node gives it.
        """
        around, self.nodes = self.nodes, []
        self._real.update(zip(graph.inputs, names, strict=True))
        self._emit_all(graph)
        outputs = [
            self._output(self.name(f"{name}_out"), value)
            for name, value in zip(graph.output_names, graph.outputs, strict=True)
        ]
        made = helper.make_graph(
            self.nodes, graph.name or "body", [_value_info(*given) for given in inputs], outputs
        )
        self.nodes = around
        for value in graph.values():  # another node may have the same body
            self._real.pop(value, None)
        return made

    def _output(self, name: str, value: Value) -> onnx.ValueInfoProto:
        affine = isinstance(value.type.encoding, Affine)
        source = self.codes(value) if affine else self.real(value)
        if source != name:
            self.nodes.append(
                helper.make_node(
                    "Identity", [source], [name], name=self._node_name(f"{name}/output")
                )
            )
        return _value_info(name, value.type)

    def _model(self, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        used = _names_read(self.nodes)
        graph = helper.make_graph(
            self.nodes,
            self.graph.name or "network",
            [_value_info(v.name, v.type) for v in self.graph.inputs],
            outputs,
            [t for name, t in self.initializers.items() if name in used],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        from dlcc import __version__

        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="dlcc",
            producer_version=__version__,
        )


def _names_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """What nodes and their bodies read."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for attribute in node.attribute:
            found |= _names_read(attribute.g.node)
    return found


def _value_info(name: str, type_: TensorType) -> onnx.ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(type_.storage.numpy)
    return helper.make_tensor_value_info(name, element, list(type_.shape))


def to_onnx(
    graph: Graph, *, opset: int = DEFAULT_OPSET, integer_adds: bool = False
) -> onnx.ModelProto:
    """The graph as an ONNX model.

    Args:
        graph: the network.
        opset: ONNX opset of the result.
        integer_adds: round the result of an integer layer to 8 bits before its residual operand is
            added. dlcc adds to the accumulator, which no QDQ form can say: engines then compute
            such a layer in float. The extra rounding, of up to about one output code, lets them
            run it in integers.

    Raises:
        DlccError: USAGE for an opset that cannot be written; UNSUPPORTED for an op or encoding
            that ONNX cannot express.
    """
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise DlccError(
            ExitCode.USAGE,
            f"opset {opset} cannot be written",
            where="--opset",
            why=f"dlcc writes opsets {OPSETS[0]} to {OPSETS[1]}",
            fix=f"leave it out for {DEFAULT_OPSET}",
        )
    return OnnxWriter(graph, opset, integer_adds=integer_adds).run()


def export_onnx(
    graph: Graph, path: Path, *, opset: int = DEFAULT_OPSET, integer_adds: bool = False
) -> int:
    """Write the graph as an ONNX file (see :func:`to_onnx`); returns its size in bytes.

    Raises:
        DlccError: as :func:`to_onnx`; OUTPUT where the file cannot be written.
    """
    model = to_onnx(graph, opset=opset, integer_adds=integer_adds)
    try:
        contents = model.SerializeToString(deterministic=True)
    except ValueError as error:  # protobuf refuses more than 2 GB
        raise DlccError(
            ExitCode.OUTPUT, "the model is too large for one ONNX file", where=str(path),
            why=str(error), fix="quantise it first",
        ) from None  # fmt: skip
    try:
        write_whole({path: contents})
    except OSError as error:
        raise DlccError(
            ExitCode.OUTPUT,
            "cannot write the ONNX file",
            where=str(path),
            why=error.strerror or str(error),
            fix="choose another path",
        ) from None
    return len(contents)


__all__ = [
    "DEFAULT_OPSET",
    "EXPORTERS",
    "OnnxWriter",
    "export_error",
    "export_onnx",
    "exports",
    "to_onnx",
]
