"""The border of an ONNX model: its inputs with fixed shapes, its outputs in their own types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import helper

from dlcc.bounds import check_shape
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.onnx_lists import Lists
from dlcc.frontends.onnx_model import NARROW, Tensors
from dlcc.frontends.registry import model_error
from dlcc.frontends.scopes import Binding
from dlcc.ir import F32, Affine, DType, Graph, TensorType, Value
from dlcc.ir.encodings import Array
from dlcc.ops.base import build

Shapes = Mapping[str, int | tuple[int, ...]]
Constants = Mapping[str, Any]
"""Inputs' contents by name: numbers, nested sequences of them, or arrays; None: an optional or a
sequence that holds nothing."""

_BATCH = re.compile(r"(^n$|^b$|^bs$|batch|^unk|^none$|^\?$|dynamic|^dim_0$|_dim_0$)", re.IGNORECASE)
"""Names of dimensions that are taken as 1 where nothing else is said."""


class Border:
    """Inputs and outputs of a model.

    Args:
        graph: the model's graph.
        shapes: sizes of symbolic dimensions by name, or whole shapes by input name.
        known: contents of inputs that become constants, by name.
        tensors: for remarks about float types.
        remarks: gets one line per assumption.

    Attributes:
        elements: the narrow types (of 4 bits, float8, ...) of values that are computed wider.

    Raises:
        DlccError: ``shapes`` or ``known`` names something that the model does not have.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        shapes: Shapes,
        known: Constants,
        tensors: Tensors,
        remarks: list[str],
    ) -> None:
        constants = {t.name for t in graph.initializer}
        constants |= {s.values.name for s in graph.sparse_initializer}
        self.elements: dict[Value, DType] = {}
        own = [v for v in graph.input if v.name not in constants]
        self._lists = Lists(own, shapes, known)
        self._inputs = self._lists.tensors
        self._tensors = tensors
        self._remarks = remarks
        self._sizes: dict[str, int] = {}
        self._given: dict[str, tuple[int, ...]] = {}
        symbols = {d.dim_param for v in self._inputs for d in _dims(v) if d.dim_param}
        names = {v.name for v in self._inputs}
        for key, size in shapes.items():
            if key not in self._lists.keys:
                self._take(key, size, symbols, names)
        self._known = {k: v for k, v in known.items() if k not in self._lists.keys}
        for key in self._known:
            if key not in names:
                raise DlccError(
                    ExitCode.USAGE,
                    f"--constant names {key!r}, which is no input of the model",
                    why=f"its inputs are {sorted(names)}",
                    fix="name one of them",
                )

    def _take(
        self, key: str, size: int | tuple[int, ...], symbols: set[str], names: set[str]
    ) -> None:
        sizes = (size,) if isinstance(size, int) else tuple(size)
        if any(int(s) < (key in symbols) for s in sizes):
            raise DlccError(
                ExitCode.USAGE, f"--shape {key}: sizes must be positive", why=f"given {size}"
            )
        if isinstance(size, int) and key in symbols:
            self._sizes[key] = size
        elif key in names:
            self._given[key] = sizes
        else:
            raise DlccError(
                ExitCode.USAGE,
                f"--shape names {key!r}, which the model does not have",
                why=f"its symbolic dimensions are {sorted(symbols) or 'none'}, "
                f"its inputs {sorted(names)}",
                fix="name one of them",
            )

    def add_inputs(self, graph: Graph) -> dict[str, Binding]:
        """Declare the inputs in ``graph``; what to compute with by the model's names.

        Raises:
            DlccError: an input is of a type that dlcc does not have, or a dimension must be given.
        """
        return self._lists.bindings(dict(self._add_tensors(graph)))

    def _add_tensors(self, graph: Graph) -> Iterator[tuple[str, Value]]:
        for proto in self._inputs:
            if any(v.name == proto.name for v in graph.inputs):
                raise model_error(
                    f"the input {proto.name!r} is listed twice", fix="export the model again"
                )
            if proto.name not in self._known:
                declared = TensorType(self._shape(proto), _dtype(proto))
                check_shape(declared.shape, declared.storage.bits / 8, proto.name)
                graph.add_input(proto.name, declared)
        for value in graph.inputs:
            if value.type.elements:
                yield value.name, self._widened(graph, value)
            else:  # known, whatever the caller gives: what is computed from it is folded
                empty = np.zeros(value.type.shape, value.type.dtype.numpy)
                known = graph.add_constant(self._tensors.widened(empty))
                if value.type.dtype.is_narrow:
                    self.elements[known] = value.type.dtype
                yield value.name, known
        for proto in self._inputs:
            if proto.name in self._known:
                bound = graph.add_constant(self._bound(proto), name=proto.name)
                if _dtype(proto).is_narrow:
                    self.elements[bound] = _dtype(proto)
                yield proto.name, bound

    def _bound(self, proto: onnx.ValueInfoProto) -> Array:
        """What the input is bound to, in its type; one number fills its shape."""
        dtype = _dtype(proto).numpy
        try:
            given = np.asarray(self._known[proto.name])
            exact = given.astype(dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise _bad_constant(proto.name, str(error)) from None
        real = np.issubdtype(dtype, np.inexact)
        numbers = given.dtype == dtype or given.dtype.kind in "biuf"
        if not (numbers and (real or np.array_equal(exact, given))):
            raise _bad_constant(proto.name, f"{given.tolist()!r} is no {dtype} without loss")
        sizes = [d.dim_value for d in _dims(proto)]
        declared = proto.type.tensor_type.HasField("shape")
        fits = len(sizes) == given.ndim and all(
            size in (0, extent) for size, extent in zip(sizes, given.shape, strict=True)
        )
        if fits or not declared:
            return self._tensors.widened(exact)
        shape = self._shape(proto)
        if given.size not in (1, prod(shape)):
            raise _bad_constant(
                proto.name, f"{given.size} numbers do not fit its shape {list(shape)}"
            )
        check_shape(shape, dtype.itemsize, proto.name)
        filled = exact.reshape(shape) if given.size == prod(shape) else np.full(shape, exact)
        return self._tensors.widened(filled)

    def remember(self, value: Value, tensor: onnx.TensorProto | onnx.SparseTensorProto) -> None:
        """Note the narrow type of what ``tensor`` holds."""
        kind = getattr(tensor, "data_type", 0)
        if kind:
            dtype = DType.of(np.dtype(helper.tensor_dtype_to_np_dtype(kind)))
            if dtype.is_narrow:
                self.elements[value] = dtype

    def output(self, graph: Graph, proto: onnx.ValueInfoProto, value: Value) -> Value:
        """``value`` in the element type that the model declares for this output."""
        if not proto.type.HasField("tensor_type"):
            return value
        declared = _dtype(proto)
        plain = not declared.is_narrow and declared.numpy not in NARROW
        if plain or value.type.dtype == declared:
            return value
        maker = value.producer
        if maker is not None and maker.op == "cast":
            exact = maker.input(0)
            if exact.producer is not None and exact.type.dtype == declared:
                return exact
        if isinstance(value.type.encoding, Affine):
            codes = TensorType(value.type.shape, value.type.storage)
            loc = f"{proto.name}/codes"
            value = build(graph, "reinterpret", [value], loc=loc, types=[codes]).output
        if value.type.dtype not in (F32, declared.computed):
            return value
        node = build(
            graph, "cast", [value], {"to": str(declared)}, loc=f"{proto.name}/cast",
            names=[f"{proto.name}_{declared}"],
        )  # fmt: skip
        return node.output

    def _widened(self, graph: Graph, value: Value) -> Value:
        dtype = value.type.dtype
        if not dtype.is_narrow and not self._tensors.rounded(dtype):
            return value
        wide = dtype.computed if dtype.is_narrow else F32
        if dtype.is_float:
            self._tensors.remark_float(str(dtype.numpy))
        node = build(
            graph, "cast", [value], {"to": str(wide)}, loc=f"{value.name}/cast",
            names=[f"{value.name}_{wide}"],
        )  # fmt: skip
        if dtype.is_narrow:
            self.elements[node.output] = dtype
        return node.output

    def _shape(self, proto: onnx.ValueInfoProto) -> tuple[int, ...]:
        if not proto.type.HasField("tensor_type"):
            kind = proto.type.WhichOneof("value") or "no type"
            raise DlccError(
                ExitCode.UNSUPPORTED,
                f"input {proto.name!r} is not a tensor",
                where=proto.name,
                why=f"its type is {kind.removesuffix('_type')}",
                fix="export the model with tensor inputs only",
            )
        given = self._given.get(proto.name)
        if not proto.type.tensor_type.HasField("shape"):
            if given is None:
                raise _needs_shape(proto.name, "the model declares no shape for it")
            return given
        dims = _dims(proto)
        if given is not None:
            return _checked(proto.name, given, dims)
        return tuple(self._size(proto.name, axis, dim) for axis, dim in enumerate(dims))

    def _size(self, name: str, axis: int, dim: onnx.TensorShapeProto.Dimension) -> int:
        if dim.HasField("dim_value") and dim.dim_value > 0:
            return int(dim.dim_value)
        if dim.HasField("dim_value") and dim.dim_value == 0:
            why = (
                f"its axis {axis} is declared with size 0, which many exporters write for any size"
            )
            raise _needs_shape(name, why)
        symbol = dim.dim_param
        if symbol in self._sizes:
            return self._sizes[symbol]
        if axis and not _BATCH.search(symbol or "-"):
            what = f"axis {axis} ({symbol!r})" if symbol else f"axis {axis}"
            raise _needs_shape(name, f"the size of its {what} is not fixed", symbol)
        shown = f"dimension {symbol!r}" if symbol else "the unnamed dimension"
        line = f"import: {shown} of input {name!r} (axis {axis}) is taken as 1"
        if line not in self._remarks:
            self._remarks.append(line)
        return 1


def _dims(proto: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(proto.type.tensor_type.shape.dim)


def _dtype(proto: onnx.ValueInfoProto) -> DType:
    try:
        return DType.of(np.dtype(helper.tensor_dtype_to_np_dtype(proto.type.tensor_type.elem_type)))
    except (KeyError, TypeError):
        kind = proto.type.tensor_type.elem_type
        known = kind in onnx.TensorProto.DataType.values()
        name = onnx.TensorProto.DataType.Name(kind) if known else str(kind)
        raise DlccError(
            ExitCode.UNSUPPORTED,
            f"{proto.name!r} has element type {name.lower()}, which dlcc does not have",
            where=proto.name,
            fix="use float32, an integer of 8 to 64 bits, or bool at the border",
        ) from None


def _bad_constant(name: str, why: str) -> DlccError:
    return DlccError(
        ExitCode.USAGE,
        "the constant does not fit the input",
        where=f"--constant {name}",
        why=why,
        fix=f"give one number, or as many as the input has: --constant {name}=16000",
    )


def _needs_shape(name: str, why: str, symbol: str = "") -> DlccError:
    option = f"--shape {symbol}=SIZE" if symbol else f"--shape {name}=1,3,224,224 (for example)"
    return DlccError(
        ExitCode.MODEL, f"the shape of input {name!r} is not known", where=name, why=why,
        fix=f"give it: {option}",
    )  # fmt: skip


def _checked(
    name: str, given: tuple[int, ...], dims: list[onnx.TensorShapeProto.Dimension]
) -> tuple[int, ...]:
    declared = [int(d.dim_value) if d.dim_value > 0 else None for d in dims]
    fits = len(given) == len(declared) and all(
        d is None or d == g for d, g in zip(declared, given, strict=True)
    )
    if not fits:
        shown = [d.dim_value or d.dim_param or "?" for d in dims]
        raise DlccError(
            ExitCode.USAGE,
            f"--shape {name}={','.join(map(str, given))} does not fit",
            where=name,
            why=f"the model declares {shown}",
            fix="change only symbolic dimensions",
        )
    return given
