"""Reading and checking ONNX models: what can be wrong with a file, found before import.

Contents of tensors are read one at a time, when a node needs them: a model with external data
never stands in memory twice.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import networkx as nx
import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper, numpy_helper

from dlcc.bounds import check_bytes, check_shape
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.registry import Unsupported, model_error
from dlcc.ir.dtypes import F64, DType
from dlcc.ir.encodings import Array

OLDEST_OPSET = 1

NARROW = {np.dtype(np.float16), np.dtype(np.float64), np.dtype(ml_dtypes.bfloat16)}
"""Float types that are computed in float32, or, of 64 bits, may be."""


def read_model(path: Path) -> onnx.ModelProto:
    """Parse an ONNX file; external data stays on disk.

    Raises:
        DlccError: the file is missing, unreadable, or not a whole ONNX model.
    """
    try:
        check_bytes(path.stat().st_size, "the file", str(path))
        contents = path.read_bytes()
    except OSError as error:
        raise DlccError(
            ExitCode.INPUT_FILE,
            "cannot read the model",
            where=str(path),
            why=error.strerror or str(error),
            fix="give the path of an .onnx or .dlir file",
        ) from None
    return parse_model(contents, path)


def parse_model(contents: bytes, path: Path) -> onnx.ModelProto:
    """The model that ``contents`` of the file ``path`` are; that is only named in errors.

    Raises:
        DlccError: INPUT_FILE, it is not a whole ONNX model.
    """
    model = onnx.ModelProto()
    try:
        model.ParseFromString(contents)
    except DecodeError:
        raise _not_onnx(path, "its contents are not a whole protobuf message") from None
    if not model.HasField("graph") or not model.opset_import:
        raise _not_onnx(path, "it holds no graph or names no opset")
    if not _is_text(model):
        raise _not_onnx(path, "a name in it is not UTF-8 text, or holds a zero byte")
    return model


def _is_text(model: onnx.ModelProto) -> bool:
    """Whether every name is text that a C string can hold; protobuf hands out others as bytes."""
    lists = [f.node for f in model.functions]
    names: list[object] = [o.domain for o in model.opset_import] + [model.graph.name]
    for graph in _graphs(model.graph):
        values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
        names += [v.name for v in values]
        names += [s.values.name for s in graph.sparse_initializer]
        names += [d.dim_param for v in graph.input for d in v.type.tensor_type.shape.dim]
        lists.append(graph.node)
    for nodes in lists:
        for node in nodes:
            names += [node.name, node.op_type, node.domain, *node.input, *node.output]
            names += [a.name for a in node.attribute]
    return all(isinstance(name, str) and "\0" not in name for name in names)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """``graph`` and the bodies in it, at any depth."""
    waiting = [graph]
    while waiting:
        here = waiting.pop()
        yield here
        for attribute in (a for node in here.node for a in node.attribute):
            waiting += [attribute.g] if attribute.HasField("g") else []
            waiting += attribute.graphs


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
        DlccError: ONNX's opset is older than 1, newer than the installed onnx knows, or missing; a
            version is none.
    """
    versions = {
        "" if o.domain == "ai.onnx" else o.domain: int(o.version) for o in model.opset_import
    }
    wrong = next((d for d, v in versions.items() if not 0 <= v < 1 << 31), None)
    if wrong is not None:
        raise model_error(
            f"the model imports opset {versions[wrong]} of domain {wrong!r}",
            fix="the model is damaged; export it again",
        )
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
        doubles: float64 contents stay what they are.
    """

    def __init__(self, folder: Path | None, remarks: list[str], doubles: bool = True) -> None:
        self._folder = folder
        self.doubles = doubles
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
        check_shape(tensor.dims, _element_bits(tensor) / 8, f"tensor {tensor.name!r}")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor = self._loaded(tensor)
        try:
            _check_length(tensor)
            values = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _misfit(tensor, str(error).splitlines()[0] if str(error) else "") from None
        return self.widened(values)

    def widened(self, values: Array) -> Array:
        """``values`` in a dtype that dlcc computes with: 4-bit integers as 8, floats as float32."""
        try:
            dtype = DType.of(values)
        except KeyError:
            raise Unsupported(f"element type {values.dtype}") from None
        if dtype.is_narrow:
            if dtype.is_float:
                self.remark_float(str(values.dtype))
            return values.astype(dtype.computed.numpy)
        if self.rounded(dtype):
            self.remark_float(str(values.dtype))
            return values.astype(np.float32)
        return values

    def rounded(self, dtype: DType) -> bool:
        """Whether numbers of a float type are computed in float32."""
        return dtype.numpy in NARROW and not (self.doubles and dtype == F64)

    def remark_float(self, name: str) -> None:
        """Tell once per type that it is computed in float32."""
        if name not in self._told:
            self._told.add(name)
            self._remarks.append(f"import: {name} is computed in float32")

    def _loaded(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location = fields.get("location", "")
        path = self._external_path(tensor.name, location)
        need = _bytes_needed(tensor)
        try:
            offset = int(fields.get("offset") or 0)
            mode = path.stat().st_mode
            if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer
                raise ValueError("it is no regular file")
            with path.open("rb") as file:
                size = path.stat().st_size
                length = int(fields.get("length") or size - offset)
                if offset < 0 or length < 0 or offset + length > size:
                    raise ValueError(
                        f"bytes {offset} to {offset + length} lie beyond its {size} bytes"
                    )
                if length != need:  # before so many are read
                    raise _misfit(tensor, f"there are {length} bytes, and it needs {need}")
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
            try:
                path = (base / location).resolve()
            except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL
                why = f"{location[:80]!r} is no path: {error}"
            else:
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


def _misfit(tensor: onnx.TensorProto, why: str) -> DlccError:
    return model_error(
        f"the contents of tensor {tensor.name!r} do not fit its shape {list(tensor.dims)}",
        why=why,
        fix="the model is damaged; export it again",
    )


_SHORT_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""Element types of which several stand in a byte."""


def _element_bits(tensor: onnx.TensorProto) -> int:
    """Bits of an element in raw contents.

    Raises:
        Unsupported: there is no such element type.
    """
    try:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError):
        raise Unsupported(f"tensor {tensor.name!r} has element type {tensor.data_type}") from None
    return _SHORT_BITS.get(name, 8 * int(dtype.itemsize))


def _bytes_needed(tensor: onnx.TensorProto) -> int:
    """Bytes of raw contents that the shape stands for."""
    return -(-prod(map(int, tensor.dims)) * _element_bits(tensor) // 8)


def _check_length(tensor: onnx.TensorProto) -> None:
    """Hold the raw contents' length against the shape: numpy takes some that do not fit."""
    if not tensor.HasField("raw_data"):
        return
    need = _bytes_needed(tensor)
    if need != len(tensor.raw_data):
        raise ValueError(f"there are {len(tensor.raw_data)} bytes, and it needs {need}")


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
    edges: list[tuple[int, int]] = []
    for index, node in enumerate(listed):
        for name in filter(None, (*node.input, *_captured(node))):
            if name in producer:
                edges.append((producer[name], index))
            elif name not in defined and name in node.input:
                raise model_error(
                    f"the input {name!r} of node {node.name or node.op_type!r} is not defined",
                    where=node.name or node.op_type,
                    fix="the model is damaged or truncated; export it again",
                )
    if all(before < after for before, after in edges):
        return listed
    order = nx.DiGraph()
    order.add_nodes_from(range(len(listed)))
    order.add_edges_from(edges)
    try:
        return [listed[i] for i in nx.lexicographical_topological_sort(order)]
    except nx.NetworkXUnfeasible:
        cycle = [listed[a] for a, _ in nx.find_cycle(order)]
        names = " -> ".join(n.name or n.op_type for n in cycle)
        raise model_error(
            "the graph has a cycle", where=_shortened(names), fix="export the model again"
        ) from None


def _shortened(text: str, most: int = 400) -> str:
    """``text``, its middle left out where it is longer than ``most`` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


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
    shape = tuple(sparse.dims)
    where = f"sparse tensor {sparse.values.name!r}"
    check_shape(shape, values.itemsize, where)
    extents = np.asarray(shape if indices.ndim == 2 else [prod(shape)], np.int64)
    rows = indices.reshape(len(indices), -1) if indices.ndim in (1, 2) else indices
    fits = rows.shape == (values.size, len(extents)) and values.ndim == 1
    if not fits or not np.all((rows >= 0) & (rows < extents)):
        raise model_error(
            f"the indices of {where} do not fit",
            why=f"{list(indices.shape)} indices of {values.size} values in a tensor of "
            f"{list(shape)}, all of which must lie inside",
            fix="the model is damaged; export it again",
        )
    dense = np.zeros(shape, values.dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return dense
