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
from dlcc.ir import Value

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


def check_attributes(proto: onnx.NodeProto, where: str, opset: int) -> None:
    """Refuse attributes of ONNX's own ops that are of another kind than the op's.

    Kinds have changed before opset 7 and not since.

    Raises:
        DlccError: MODEL, with the attribute's name and both kinds.
    """
    schema = _schema(proto.op_type, opset if opset < FIRST_KNOWN else None)
    if schema is None:
        return
    for attribute in proto.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None or attribute.ref_attr_name:
            continue
        kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
        if known.type.name != kind and attribute.type != onnx.AttributeProto.UNDEFINED:
            raise model_error(
                f"the attribute {attribute.name!r} of {proto.op_type} is of kind {kind}",
                where=where,
                why=f"ONNX has {known.type.name} there",
                fix="check the model with onnx.checker, or export it again",
            )


def check_operands(op_type: str, operands: Sequence[Value | None], opset: int) -> None:
    """Refuse operands of ONNX's own ops whose element type neither ``opset`` nor the newest allow.

    Raises:
        Unsupported: with the operand's place and type.
    """
    found = [_schema(op_type), _schema(op_type, opset) if opset < FIRST_KNOWN else None]
    schemas = [schema for schema in found if schema is not None and schema.inputs]
    for index, value in enumerate(operands):
        formals = [schema.inputs[min(index, len(schema.inputs) - 1)] for schema in schemas]
        if value is None or not all(formal.types for formal in formals):
            continue
        allowed = {kind for formal in formals for kind in formal.types}
        if formals and not allowed.intersection(_spelled(value)):
            raise Unsupported(
                f"input {index} ({formals[0].name!r}) is {value.type.dtype}, which ONNX does not "
                "allow there"
            )


def _spelled(value: Value) -> set[str]:
    """ONNX's names of the types that a value may have had in the model."""
    names = set()
    for kind in {value.type.dtype, value.type.storage}:
        element = helper.np_dtype_to_tensor_dtype(kind.numpy)
        names.add(f"tensor({onnx.TensorProto.DataType.Name(element).lower()})")
        names |= _WIDENED.get(str(kind), set())
    return names
