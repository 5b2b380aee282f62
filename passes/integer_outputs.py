"""Pass ``integer-outputs``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from dlcc.ir import Affine, Graph, Node, Value
from dlcc.ops.base import build
from passes.base import Pass, PassContext, PassResult, Stage, option
from passes.integer_inputs import TO_NHWC


@dataclass(frozen=True)
class IntegerOutputs(Pass):
    """Give the caller codes where the network ends by turning codes into real numbers.

    The output becomes one of integers, with the scale and zero point that header and manifest tell;
    it stands for the same real numbers as before. That the network's results are codes at all is
    what ``quantize{outputs=true}`` sees to, or the model file, where it is a quantised one.

    With ``nhwc`` the caller gets images with the channels of a pixel side by side; with ``signed``
    codes from -128 on, with a zero point as much lower.

    ::

        %y = dequantize(%y.codes)
        output %y: f32[1,10]
        ->
        output %y: f32[1,10]!affine<bits=8, ...>
    """

    name: ClassVar[str] = "integer-outputs"
    stage: ClassVar[Stage] = Stage.REST

    nhwc: bool = option(False, "images are returned with their channels last")
    signed: bool = option(False, "codes are signed")

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Every output that is made of codes."""
        result = PassResult(False)
        given: list[Value] = []
        ends: list[Node] = []
        for name, value in zip(graph.output_names, graph.outputs, strict=True):
            why = _refusal(graph, value, given)
            if why:
                result.remarks.append(self.remark("refused", name, why))
                given.append(value)
                continue
            assert value.producer is not None
            ends.append(value.producer)
            given.append(self._codes(graph, value.producer.input(0), name))
            result.modified = True
            encoding = given[-1].type.affine
            scale, zero = encoding.scale, encoding.zero_point
            message = f"gives codes: real = {scale:.8g} * (code - {zero})"
            result.remarks.append(self.remark("applied", name, message))
        graph.set_outputs(given, graph.output_names)
        for node in dict.fromkeys(ends):
            if not graph.use_count(node.output):
                graph.erase(node)
        return result

    def _codes(self, graph: Graph, value: Value, name: str) -> Value:
        """The codes as the caller wants them."""
        encoding = value.type.affine
        if self.signed and not encoding.signed:
            half = 1 << (encoding.bits - 1)
            zeros = tuple(zero - half for zero in encoding.zero_points)
            moved = replace(encoding, signed=True, zero_points=zeros)
            types = [value.type.with_(encoding=moved)]
            value = build(graph, "requantize", [value], loc=name, types=types).output
        if self.nhwc and value.type.rank == 4:
            value = build(graph, "transpose", [value], {"perm": TO_NHWC}, loc=name).output
        return value


def _refusal(graph: Graph, value: Value, given: list[Value]) -> str:
    """Why an output keeps its type; "" if it need not."""
    node = value.producer
    if node is None or node.op != "dequantize":
        return "it is not made of codes"
    codes = node.input(0)
    encoding = codes.type.encoding
    if not isinstance(encoding, Affine) or encoding.axis is not None or encoding.bits > 8:
        return "its codes have more than 8 bits, or several scales"
    if codes.producer is None or codes in given or graph.is_output(codes):
        return "its codes are an input, a constant or another output"
    return ""
