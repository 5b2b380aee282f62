"""Reading and checking ONNX models: what can be wrong with a file, found before import.

Contents of tensors are read one at a time, when a node needs them: a model with external data
never stands in memory twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import networkx as nx
import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.registry import Unsupported, model_error
from dlcc.ir.dtypes import DType
from dlcc.ir.encodings import Array

OLDEST_OPSET = 7

NARROW = {np.dtype(np.float16), np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16)}
"""Float types that are computed in float32."""


def read_model(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file; external data stays on disk.

    Raises:
        DlccError: the file is missing, unreadable, or not a whole ONNX model.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise DlccError(
            ExitCode.INPUT_FILE,
            "cannot read the model",
            where=str(path),
            why=error.strerror or str(error),
            fix="give the path of an .onnx or .dlir file",
        ) from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(contents)
    except DecodeError:
        raise _not_onnx(path, "its contents are not a whole protobuf message") from None
    if not model.HasField("graph") or not model.opset_import:
        raise _not_onnx(path, "it holds no graph or names no opset")
    return model


def _not_onnx(path: Path, why: str) -> DlccError:
    return DlccError(
        ExitCode.INPUT_FILE,
        "not an ONNX model, or a truncated one",
        where=str(path),
        why=why,
        fix="check the file (for example with onnx.checker) or copy it again",
    )


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Opset version by domain ("" is ONNX itself).

    Raises:
        DlccError: ONNX's opset is older than 7, newer than the installed onnx knows, or missing.
    """
    versions = {
        "" if o.domain == "ai.onnx" else o.domain: int(o.version) for o in model.opset_import
    }
    newest = onnx.defs.onnx_opset_version()
    version = versions.setdefault("", newest)
    if not OLDEST_OPSET <= version <= newest:
        raise DlccError(
            ExitCode.UNSUPPORTED,
            f"ONNX opset {version} is not supported",
            why=f"dlcc reads opsets {OLDEST_OPSET} to {newest}",
            fix="convert the model with onnx.version_converter, or install a newer onnx package",
        )
    return versions


class Tensors:
    """Contents of ``TensorProto``: external data, types that dlcc widens, remarks about both.

    Args:
        folder: folder of the model, the only place external data may come from; None where the
            model came without a file.
        remarks: gets one line where float16, bfloat16 or float64 contents become float32.
    """

    def __init__(self, folder: Path | None, remarks: list[str]) -> None:
        self._folder = folder
        self._remarks = remarks
        self._told: set[str] = set()

    def array(self, tensor: onnx.TensorProto) -> Array:
        """The contents as an array whose dtype the IR has.

        Raises:
            DlccError: external data is missing or lies outside the model's folder, or the size
                does not fit the shape.
            Unsupported: strings.
        """
        if tensor.data_type == onnx.TensorProto.STRING:
            raise Unsupported(f"tensor {tensor.name!r} holds strings")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor = self._loaded(tensor)
        try:
            values = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise model_error(
                f"the contents of tensor {tensor.name!r} do not fit its shape {list(tensor.dims)}",
                why=str(error).splitlines()[0] if str(error) else "",
                fix="the model is damaged; export it again",
            ) from None
        return self.widened(values)

    def widened(self, values: Array) -> Array:
        """``values`` in a dtype that dlcc computes with: 4-bit integers as 8, floats as float32."""
        try:
            DType.of(values)
        except KeyError:
            name = str(values.dtype)
            if name in ("int4", "int2"):
                return values.astype(np.int8)
            if name in ("uint4", "uint2"):
                return values.astype(np.uint8)
            if "float" not in name:
                raise Unsupported(f"element type {name}") from None
            self.remark_float(name)
            return values.astype(np.float32)
        if values.dtype in NARROW:
            self.remark_float(str(values.dtype))
            return values.astype(np.float32)
        return values

    def remark_float(self, name: str) -> None:
        """Tell once per type that it is computed in float32."""
        if name not in self._told:
            self._told.add(name)
            self._remarks.append(f"import: {name} is computed in float32")

    def _loaded(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location = fields.get("location", "")
        path = self._external_path(tensor.name, location)
        try:
            offset = int(fields.get("offset", "0") or 0)
            length = int(fields.get("length", "-1") or -1)
            with path.open("rb") as file:
                size = path.stat().st_size
                length = size - offset if length < 0 else length
                if offset < 0 or offset + length > size:
                    raise ValueError(
                        f"bytes {offset} to {offset + length} lie beyond its {size} bytes"
                    )
                file.seek(offset)
                contents = file.read(length)
        except (OSError, ValueError) as error:
            raise DlccError(
                ExitCode.INPUT_FILE,
                f"cannot read the external data of tensor {tensor.name!r}",
                where=str(path),
                why=str(error),
                fix="keep the model's data files beside it",
            ) from None
        loaded = onnx.TensorProto()
        loaded.name, loaded.data_type = tensor.name, tensor.data_type
        loaded.dims.extend(tensor.dims)
        loaded.raw_data = contents
        return loaded

    def _external_path(self, name: str, location: str) -> Path:
        """Where external data lies; refused unless it is truly below the model's folder."""
        why = ""
        if self._folder is None:
            why = "a model that was not read from a file has no folder"
        elif not location:
            why = "it names no file"
        elif Path(location).is_absolute() or ".." in Path(location).parts:
            why = f"{location!r} is not a plain path below the model's folder"
        else:
            base = self._folder.resolve()
            path = (base / location).resolve()
            if path.is_relative_to(base):
                return path
            why = f"{location!r} is a link that leads out of the model's folder"
        raise DlccError(
            ExitCode.INPUT_FILE,
            f"external data of tensor {name!r} is refused",
            where=str(self._folder or ""),
            why=why,
            fix="keep the model's data files in its folder",
        )


def ordered(nodes: Iterable[onnx.NodeProto], known: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes in execution order (stable where they already are).

    Args:
        nodes: nodes of one graph.
        known: names that are defined before the first node.

    Raises:
        DlccError: a name is defined twice or never, or the nodes form a cycle.
    """
    listed = list(nodes)
    defined = set(known)
    producer: dict[str, int] = {}
    for index, node in enumerate(listed):
        for name in filter(None, node.output):
            if name in producer or name in defined:
                raise model_error(
                    f"the name {name!r} is defined twice",
                    where=node.name or node.op_type,
                    fix="the model is damaged; export it again",
                )
            producer[name] = index
    order = nx.DiGraph()
    order.add_nodes_from(range(len(listed)))
    for index, node in enumerate(listed):
        for name in filter(None, (*node.input, *_captured(node))):
            if name in producer:
                order.add_edge(producer[name], index)
            elif name not in defined and name in node.input:
                raise model_error(
                    f"the input {name!r} of node {node.name or node.op_type!r} is not defined",
                    where=node.name or node.op_type,
                    fix="the model is damaged or truncated; export it again",
                )
    try:
        return [listed[i] for i in nx.lexicographical_topological_sort(order)]
    except nx.NetworkXUnfeasible:
        cycle = [listed[a] for a, _ in nx.find_cycle(order)]
        names = " -> ".join(n.name or n.op_type for n in cycle)
        raise model_error("the graph has a cycle", where=names) from None


def _captured(node: onnx.NodeProto) -> list[str]:
    """Names that the bodies of a control-flow node may take from around it."""
    names: list[str] = []
    for attribute in node.attribute:
        for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inner in body.node:
                names += [*inner.input, *_captured(inner)]
            names += [o.name for o in body.output]
    return names


def attributes(node: onnx.NodeProto, tensors: Tensors) -> dict[str, Any]:
    """Attributes as plain Python values: tensors as arrays, lists as tuples, bodies as they are.

    Raises:
        Unsupported: an attribute of a kind that dlcc does not read.
    """
    kinds = onnx.AttributeProto
    read: Mapping[int, Any] = {
        kinds.FLOAT: lambda a: float(a.f),
        kinds.INT: lambda a: int(a.i),
        kinds.STRING: lambda a: a.s.decode("utf-8", "replace"),
        kinds.TENSOR: lambda a: tensors.array(a.t),
        kinds.GRAPH: lambda a: a.g,
        kinds.FLOATS: lambda a: tuple(float(v) for v in a.floats),
        kinds.INTS: lambda a: tuple(int(v) for v in a.ints),
        kinds.STRINGS: lambda a: tuple(v.decode("utf-8", "replace") for v in a.strings),
        kinds.TYPE_PROTO: lambda a: a.tp,
        kinds.SPARSE_TENSOR: lambda a: _densified(a.sparse_tensor, tensors),
    }
    out: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type not in read:
            kind = kinds.AttributeType.Name(attribute.type)
            raise Unsupported(f"attribute {attribute.name!r} of kind {kind}")
        out[attribute.name] = read[attribute.type](attribute)
    return out


def _densified(sparse: onnx.SparseTensorProto, tensors: Tensors) -> Array:
    values = tensors.array(sparse.values)
    indices = tensors.array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return dense
