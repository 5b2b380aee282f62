"""What ONNX's schemas say of a node: attribute kinds, and element types of its operands.

Only what no opset allows is refused: real models break the rules of old opsets that newer ones
relaxed, and runtimes take them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import onnx
from onnx import helper

from dlcc.frontends.old_opsets import FIRST_KNOWN
from dlcc.frontends.registry import Unsupported, model_error
from dlcc.ir import DType, Value

_FLOATS = {"double", "float16", "bfloat16", "float4e2m1", "float8e4m3fn", "float8e4m3fnuz",
           "float8e5m2", "float8e5m2fnuz", "float8e8m0"}  # fmt: skip

_WIDENED = {
    kind: {f"tensor({name})" for name in names}
    for kind, names in (("f32", _FLOATS), ("i8", {"int4", "int2"}), ("u8", {"uint4", "uint2"}))
}
"""Types that the importer widens, by what they become."""


@cache
def _schema(op_type: str, opset: int | None = None) -> onnx.defs.OpSchema | None:
    """The schema of an op as ``opset`` has it, by default as the newest one does."""
    try:
        return onnx.defs.get_schema(op_type, *([] if opset is None else [opset]))
    except onnx.defs.SchemaError:
        return None


@cache
def _kinds(op_type: str, opset: int | None) -> dict[str, str]:
    """The kind of each attribute of an op."""
    schema = _schema(op_type, opset)
    return {} if schema is None else {n: a.type.name for n, a in schema.attributes.items()}


@cache
def _allowed(op_type: str, opset: int | None) -> tuple[tuple[str, frozenset[str]], ...]:
    """Name and types of each operand of an op, by ``opset`` (None: no such) or by the newest one.

    The last serves all that follow it; no types: any.
    """
    found = [_schema(op_type), None if opset is None else _schema(op_type, opset)]
    columns = [list(schema.inputs) for schema in found if schema is not None and schema.inputs]
    rows = []
    for index in range(max(map(len, columns), default=0)):
        formals = [column[min(index, len(column) - 1)] for column in columns]
        anything = not all(formal.types for formal in formals)
        kinds = frozenset(kind for formal in formals for kind in formal.types)
        rows.append((formals[0].name, frozenset() if anything else kinds))
    return tuple(rows)


def check_attributes(proto: onnx.NodeProto, where: str, opset: int) -> None:
    """Refuse attributes of ONNX's own ops that are of another kind than the op's.

    Kinds have changed before opset 7 and not since.

    Raises:
        DlccError: MODEL, with the attribute's name and both kinds.
    """
    if not proto.attribute:
        return
    kinds = _kinds(proto.op_type, opset if opset < FIRST_KNOWN else None)
    for attribute in proto.attribute:
        known = kinds.get(attribute.name)
        if known is None or attribute.ref_attr_name:
            continue
        kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
        if known != kind and attribute.type != onnx.AttributeProto.UNDEFINED:
            raise model_error(
                f"the attribute {attribute.name!r} of {proto.op_type} is of kind {kind}",
                where=where,
                why=f"ONNX has {known} there",
                fix="check the model with onnx.checker, or export it again",
            )


def check_operands(op_type: str, operands: Sequence[Value | None], opset: int) -> None:
    """Refuse operands of ONNX's own ops whose element type neither ``opset`` nor the newest allow.

    Raises:
        Unsupported: with the operand's place and type.
    """
    rows = _allowed(op_type, opset if opset < FIRST_KNOWN else None)
    for index, value in enumerate(operands if rows else ()):
        name, allowed = rows[min(index, len(rows) - 1)]
        if value is None or not allowed:
            continue
        if allowed.isdisjoint(_spelled(value.type.dtype)) and allowed.isdisjoint(
            _spelled(value.type.storage)
        ):
            raise Unsupported(
                f"input {index} ({name!r}) is {value.type.dtype}, which ONNX does not allow there"
            )


@cache
def _spelled(kind: DType) -> frozenset[str]:
    """ONNX's names of the types that a value stored as ``kind`` may have had in the model."""
    element = helper.np_dtype_to_tensor_dtype(kind.numpy)
    name = f"tensor({onnx.TensorProto.DataType.Name(element).lower()})"
    return frozenset({name, *_WIDENED.get(str(kind), ())})
