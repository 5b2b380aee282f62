"""ONNX -> graph: scopes, constant folding, function bodies, and one list of what is unsupported.

The importers of single ops stand beside the ops (:mod:`dlcc.ops`); this module walks the model.
Shapes are static: symbolic dimensions are fixed first, so that ``Shape`` is a constant and the
arithmetic on shapes is folded while the graph is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

import dlcc.frontends.contrib
import dlcc.ops
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.bounded import filled, followed, settled
from dlcc.frontends.control import CONTROL, Call
from dlcc.frontends.finite import check_factors
from dlcc.frontends.fold import remove_dead
from dlcc.frontends.functions import inlined
from dlcc.frontends.old_opsets import FIRST_KNOWN, respelled
from dlcc.frontends.onnx_inputs import Border, Constants
from dlcc.frontends.onnx_lists import outputs_of
from dlcc.frontends.onnx_model import Tensors, attributes, opsets, ordered, read_model
from dlcc.frontends.profiles import MOST, check_distinct, profiles_of, share_constants
from dlcc.frontends.registry import OnnxNode, Padded, Unsupported, importer_for, model_error
from dlcc.frontends.schemas import check_attributes, check_operands
from dlcc.frontends.scopes import FAILED, Binding, Failed, Scope
from dlcc.frontends.sequences import SEQUENCES
from dlcc.ir import Graph, Value, every_graph

_STRUCTURAL = CONTROL | SEQUENCES

_OPS = dlcc.ops.OPS  # importing the package is what registers the importers

_MAX_DEPTH = 16
"""Function bodies nested deeper than this are taken for a recursion."""


def import_onnx(
    source: str | Path | onnx.ModelProto,
    *,
    shapes: Mapping[str, Any] | None = None,
    constants: Constants | None = None,
    remarks: list[str] | None = None,
    name: str = "",
    doubles: bool = True,
) -> Graph:
    """Import an ONNX model (any opset to the newest that the installed onnx package knows).

    Args:
        source: a file or a model in memory. External data is read only from below the file's
            folder.
        shapes: sizes of symbolic dimensions by name (``{"N": 1}``), or whole shapes by input name.
        constants: contents of inputs that are always the same, by name; they are no inputs of the
            graph any more, and what they decide is decided (``{"sr": 16000}``).
        remarks: gets one line per assumption (a dimension taken as 1, float16 computed as float32).
        name: name of the graph; by default the file's stem, else the model's own.
        doubles: float64 is computed in float64 (:mod:`dlcc.ops.float64`), else in float32.

    Returns:
        The graph, with idioms (GELU, LayerNorm, ...) and QDQ pairs recognised.

    Raises:
        DlccError: INPUT_FILE (not readable, not ONNX), MODEL (invalid), USAGE (``shapes`` or
            ``constants`` do not fit), or UNSUPPORTED with every node that cannot be imported.
    """
    (graph,) = import_profiles(
        source, shapes=shapes, constants=constants, remarks=remarks, name=name, most=1,
        doubles=doubles,
    )  # fmt: skip
    return graph


def import_profiles(
    source: str | Path | onnx.ModelProto,
    *,
    shapes: Mapping[str, Any] | None = None,
    constants: Constants | None = None,
    remarks: list[str] | None = None,
    name: str = "",
    most: int = MOST,
    doubles: bool = True,
) -> list[Graph]:
    """Import an ONNX model once for each of its shape profiles.

    Args:
        source: as for :func:`import_onnx`, and so are the others.
        shapes: by the name of a symbolic dimension its size or several, by the name of an input its
            shape or several; every combination is a profile.
        constants: contents of inputs that are always the same.
        remarks: gets one line per assumption.
        name: name of the graphs.
        most: of the profiles.
        doubles: float64 is computed in float64.

    Returns:
        The graphs, the last dimension of ``shapes`` fastest. They share contents of constants.

    Raises:
        DlccError: as :func:`import_onnx`; USAGE for more profiles, or two with the same inputs.
    """
    told: list[str] = [] if remarks is None else remarks
    folder: Path | None = None
    if isinstance(source, onnx.ModelProto):
        model = source
    else:
        path = Path(source)
        folder, model = path.parent, read_model(path)
        name = name or path.stem
    model = inlined(model)
    graphs: list[Graph] = []
    for binding in profiles_of(model.graph, shapes or {}, most):
        notes = [] if graphs else told
        importer = _ModelImporter(model, folder, binding, constants or {}, notes, doubles)
        graph = importer.run(name)
        remove_dead(graph)
        graphs.append(_recognised(graph, notes))
        share_constants(graphs)
        told += [] if notes is told else [note for note in notes if note not in told]
    check_distinct(graphs)
    return graphs


def _recognised(graph: Graph, remarks: list[str]) -> Graph:
    from dlcc.frontends.idioms import fuse_idioms
    from dlcc.frontends.qdq import fuse_qdq

    for node in graph.nodes:
        body = node.attrs.get("body")
        if isinstance(body, Graph):
            _recognised(body, remarks)
    fuse_idioms(graph)
    fuse_qdq(graph, remarks)
    remove_dead(graph)
    return graph


@dataclass(frozen=True)
class _Refusal:
    node: str
    op_type: str
    domain: str
    opset: int
    reason: str

    def __str__(self) -> str:
        domain = self.domain or "ai.onnx"
        return f"{self.node}: {self.op_type} ({domain} opset {self.opset}): {self.reason}"


class _ModelImporter:
    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path | None,
        shapes: Mapping[str, int | tuple[int, ...]],
        constants: Constants,
        remarks: list[str],
        doubles: bool,
    ) -> None:
        self.model = model
        self.tensors = Tensors(folder, remarks, doubles)
        self.single: set[str] = set()
        self.border = Border(model.graph, shapes, constants, self.tensors, remarks)
        self.opsets = opsets(model)
        self.graph = Graph("")
        self.remarks = remarks
        self.locs: dict[str, int] = {}  # and how many have been made from each
        self.prefix = ""
        self.copied = 0
        self.loops = 0
        self.trips_around = 1
        self.padded: dict[Value, Padded] = {}
        self.refusals: list[_Refusal] = []
        self.depth = 0

    def run(self, name: str) -> Graph:
        self.graph.name = name or self.model.graph.name or "network"
        scope = Scope(values=self.border.add_inputs(self.graph))
        results = self.body(self.model.graph, scope, self.opsets)
        if self.refusals:
            raise _unsupported(self.refusals)
        protos = list(self.model.graph.output)
        listed = [proto.name for proto in protos]
        made = [outputs_of(p, result) for p, result in zip(protos, results, strict=True)]
        names = [name for parts in made for name in parts]
        twice = next((n for n in names if max(names.count(n), listed.count(n)) > 1), None)
        if twice is not None:
            raise model_error(f"the output {twice!r} is listed twice", fix="export the model again")
        if not names:
            raise model_error("the model has no outputs", fix="export the model again")
        parts = {name: part for these in made for name, part in these.items()}
        values = [self.whole(name, *part) for name, part in parts.items()]
        for part in every_graph(self.graph):
            check_factors(part)
        if self.single:
            ops = ", ".join(sorted(self.single))
            self.remarks.append(f"import: float64 is computed in float32 by {ops}")
        self.graph.set_outputs(*self.counted(parts, values))
        return self.graph

    def counted(
        self, parts: Mapping[str, tuple[onnx.ValueInfoProto, Value]], outputs: Sequence[Value]
    ) -> tuple[list[Value], list[str]]:
        """All outputs and their names: the model's, and how many places of each hold results."""
        values, names = list(outputs), list(parts)
        for name, (_, value) in parts.items():
            mark = self.padded.get(value)
            if mark is None:
                continue
            count = f"{name}.count"
            while count in names:
                count += "_"
            self.remarks.append(
                f"import: output {name!r} has {value.type.shape[mark.axis]} places along axis "
                f"{mark.axis}, as many as it can have; how many hold results is output {count!r}"
            )
            values.append(mark.count)
            names.append(count)
        return values, names

    def whole(self, name: str, proto: onnx.ValueInfoProto, value: Value) -> Value:
        """Output ``name`` in its declared type, its padding overwritten."""
        mark = self.padded.get(value)
        if mark is not None:
            value = filled(self.graph, name, value, mark)
        return self.border.output(self.graph, proto, value)

    def body(
        self,
        proto: onnx.GraphProto,
        scope: Scope,
        versions: Mapping[str, int],
        prefix: str = "",
    ) -> list[Binding]:
        """Import the nodes of a graph into ``scope``, named after ``prefix``; its outputs."""
        scope.declare(proto)
        outer, self.prefix = self.prefix, prefix or self.prefix
        self.depth += 1
        try:
            if self.depth > _MAX_DEPTH:
                raise Unsupported(f"bodies are nested deeper than {_MAX_DEPTH}")
            self.nodes(proto.node, scope, versions)
        finally:
            self.depth -= 1
            self.prefix = outer
        return [self.result(output.name, scope) for output in proto.output]

    def result(self, name: str, scope: Scope) -> Binding:
        """What an output of a graph stands for; contents that are refused are remembered."""
        try:
            return self.binding(name, scope)
        except Unsupported as refusal:
            self.refusals.append(
                _Refusal(name, "Constant", "", self.opsets.get("", 0), str(refusal))
            )
            return FAILED

    def nodes(
        self, protos: Iterable[onnx.NodeProto], scope: Scope, versions: Mapping[str, int]
    ) -> None:
        for proto in ordered(protos, scope.names()):
            loc = self.unique_loc(proto)
            domain = "" if proto.domain == "ai.onnx" else proto.domain
            opset = versions.get(domain, 0)
            try:
                outputs: Sequence[Binding] = self.node(proto, loc, scope, versions)
            except Unsupported as refusal:
                outputs = [FAILED] * len(proto.output)
                self.refusals.append(_Refusal(loc, proto.op_type, domain, opset, str(refusal)))
            for name, value in zip(proto.output, outputs, strict=False):
                if name:
                    scope.values[name] = value

    def node(
        self, proto: onnx.NodeProto, loc: str, scope: Scope, versions: Mapping[str, int]
    ) -> Sequence[Binding]:
        """Import one node; its outputs, or FAILED ones where an operand already failed."""
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        if domain not in versions:
            raise Unsupported(f"the model imports no opset of domain {domain!r}")
        opset = versions[domain] if domain else max(versions[domain], FIRST_KNOWN)
        importer = importer_for(domain, proto.op_type, opset)
        structural = None if domain else _STRUCTURAL.get(proto.op_type)
        function = None
        if importer is None and structural is None:
            function = self.function_schema(proto, domain, versions[domain])
        operands = [self.binding(name, scope) for name in proto.input]
        if any(isinstance(v, Failed) for v in operands):
            return [FAILED] * len(proto.output)
        known = tuple(v for v in operands if v is None or isinstance(v, Value))
        if not domain:
            check_attributes(proto, loc, versions[domain])
            if structural is None:
                check_operands(proto.op_type, known, versions[domain])
        attrs = attributes(proto, self.tensors)
        view = OnnxNode(
            proto.op_type, loc, domain, versions[domain], known, attrs, len(proto.output),
            self.graph, self.border.elements, tuple(proto.output), self.padded,
            self.tensors.doubles, self.single,
        )  # fmt: skip
        if structural is not None:
            if any(isinstance(v, Value) and v in self.padded for v in operands):
                raise Unsupported("the size of an operand depends on the data")
            call = Call(self, view, operands, scope, versions)
            return _well_formed(view, lambda: structural(call))
        if len(known) != len(operands):
            if proto.op_type == "Identity" and not domain:
                return operands
            raise Unsupported("an input is a sequence or an empty optional")
        if importer is None:
            assert function is not None
            return self.expand(view, proto, function)
        start = len(self.graph.nodes)

        def imported() -> Sequence[Value]:
            made = list(followed(respelled(view), importer))
            return settled(self.graph, start, made, self.padded)

        results = _well_formed(view, imported)
        constant = proto.attribute[0].t if proto.op_type == "Constant" and not domain else None
        if constant is not None and isinstance(results[0], Value):
            self.border.remember(results[0], constant)
        for index in range(len(results), len(proto.output)):
            if proto.output[index]:
                raise Unsupported(f"output {index} ({proto.output[index]!r}) is used")
        return results

    # -- names ---------------------------------------------------------------------------------

    def unique_loc(self, proto: onnx.NodeProto) -> str:
        base = self.prefix + (proto.name or f"{proto.op_type}_{len(self.locs)}")
        name, count = base, self.locs.get(base, 0)
        while name in self.locs:
            count += 1
            name = f"{base}_{count}"
        self.locs[base] = count
        self.locs[name] = 0
        return name

    def binding(self, name: str, scope: Scope) -> Binding:
        """What ``name`` stands for; contents of initialisers are read at first use."""
        if not name:
            return None
        owner = scope.owner(name)
        if owner is None:
            raise model_error(f"the name {name!r} is not defined", fix="export the model again")
        if name not in owner.values:
            proto = owner.tensors[name]
            if isinstance(proto, onnx.SparseTensorProto):
                attribute = helper.make_attribute("value", proto)
                holder = onnx.NodeProto(attribute=[attribute])
                array = attributes(holder, self.tensors)["value"]
            else:
                array = self.tensors.array(proto)
            value = owner.values[name] = self.graph.add_constant(array, name=name)
            self.border.remember(value, proto)
        return owner.values[name]

    # -- functions -----------------------------------------------------------------------------

    def function_schema(self, proto: onnx.NodeProto, domain: str, opset: int) -> onnx.defs.OpSchema:
        """The schema of an op that has no importer but is defined by other ops."""
        reason = "no importer"
        if onnx.defs.has(proto.op_type, domain):
            try:
                schema = onnx.defs.get_schema(proto.op_type, opset, domain)
            except onnx.defs.SchemaError:
                schema = None
            if schema is not None and (
                schema.has_function or schema.has_context_dependent_function
            ):
                return schema
        raise Unsupported(reason)

    def expand(
        self, node: OnnxNode, proto: onnx.NodeProto, schema: onnx.defs.OpSchema
    ) -> Sequence[Binding]:
        """Import an op through the function body of its schema."""
        function = _function_body(node, proto, schema)
        scope = Scope()
        for index, name in enumerate(function.input):
            scope.values[name] = node.optional(index)
        given = {k: a.default_value for k, a in schema.attributes.items() if a.default_value.name}
        given.update({a.name: a for a in function.attribute_proto})
        given.update({a.name: a for a in proto.attribute})
        versions = dict(self.opsets)
        versions.update(
            {"" if o.domain == "ai.onnx" else o.domain: o.version for o in function.opset_import}
        )
        protos = [_with_attributes(inner, given, node.name) for inner in function.node]
        before, self.refusals = self.refusals, []
        outer, self.prefix = self.prefix, ""  # the nodes' names begin with this one's already
        self.depth += 1
        try:
            if self.depth > _MAX_DEPTH:
                raise Unsupported("its function body is nested too deeply")
            self.nodes(protos, scope, versions)
        finally:
            self.depth -= 1
            self.prefix = outer
            inner_refusals, self.refusals = self.refusals, before
        if inner_refusals:
            parts = "; ".join(f"{r.op_type}: {r.reason}" for r in inner_refusals)
            raise Unsupported(f"no importer, and its function body needs {parts}")
        pairs = zip(function.output, proto.output, strict=False)
        return [self.binding(inner, scope) if outer else None for inner, outer in pairs]


def _well_formed(node: OnnxNode, make: Callable[[], Sequence[Binding]]) -> Sequence[Binding]:
    """The results of ``make``, whose errors are the model's.

    Raises:
        DlccError: MODEL, where attributes or operands are missing or of the wrong kind.
    """
    try:
        return make()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise model_error(
            f"the {node.op_type} node is malformed",
            where=node.name,
            why=f"{type(error).__name__}: {error}",
            fix="check the model with onnx.checker, or export it again",
        ) from error


def _function_body(
    node: OnnxNode, proto: onnx.NodeProto, schema: onnx.defs.OpSchema
) -> onnx.FunctionProto:
    function = onnx.FunctionProto()
    if schema.has_function:
        # The body of one opset may be stated under another; both have the same meaning.
        function.CopyFrom(schema.function_body)
        return function
    types = [
        b"" if v is None else _type_proto(v).SerializeToString() for v in node.inputs
    ]  # fmt: skip
    try:
        body = schema.get_context_dependent_function(proto.SerializeToString(), types)
    except RuntimeError as error:  # of the C++ code that builds it
        why = str(error).splitlines()[0]
        raise Unsupported(f"no importer, and its function body cannot be made: {why}") from None
    if not body:
        raise Unsupported("no importer, and its function body does not cover this case")
    function.ParseFromString(body)
    return function


def _type_proto(value: Value) -> onnx.TypeProto:
    element = helper.np_dtype_to_tensor_dtype(value.type.dtype.numpy)
    return helper.make_tensor_type_proto(element, value.type.shape)


def _with_attributes(
    proto: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto], prefix: str
) -> onnx.NodeProto:
    """A node of a function body with references to the function's attributes filled in."""
    out = onnx.NodeProto()
    out.CopyFrom(proto)
    out.name = f"{prefix}/{proto.name or proto.op_type}"
    del out.attribute[:]
    for attribute in proto.attribute:
        if not attribute.ref_attr_name:
            copy = out.attribute.add()
            copy.CopyFrom(attribute)
            if attribute.HasField("g"):
                del copy.g.node[:]
                copy.g.node.extend(_with_attributes(n, given, prefix) for n in attribute.g.node)
        elif attribute.ref_attr_name in given:
            copy = out.attribute.add()
            copy.CopyFrom(given[attribute.ref_attr_name])
            copy.name = attribute.name
    return out


def _unsupported(refusals: Sequence[_Refusal]) -> DlccError:
    count = len(refusals)
    kinds = sorted({r.op_type for r in refusals})
    return DlccError(
        ExitCode.UNSUPPORTED,
        f"{count} node{'s' if count > 1 else ''} cannot be imported ({', '.join(kinds)})",
        why="\n    ".join(["", *map(str, refusals)]),
        fix="replace these ops in the model, or add an importer (docs/adding-an-op.md)",
    )


__all__ = ["import_onnx", "import_profiles"]
