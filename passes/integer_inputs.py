"""Pass ``integer-inputs``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dlcc.ir import Graph, Node, Value
from dlcc.ops.base import build
from passes.base import Pass, PassContext, PassResult, Stage, option

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


@dataclass(frozen=True)
class IntegerInputs(Pass):
    """Let the caller give codes where the network begins by quantising an input.

    The input becomes one of integers, with the scale and zero point that the manifest tells; real
    numbers, four times as large, are never in memory. The results for given codes stay the same.
    With ``nhwc`` the caller gives images with the channels of a pixel side by side, as cameras do
    and as the layers read them.

    ::

        input %x: f32[1,3,96,96]
        %x.codes = quantize(%x)
        %y = conv2d(%x.codes, @w, @b)
        ->
        input %x: f32[1,96,96,3]!affine<bits=8, ...>
        %x.planes = transpose(%x) {perm=[0,3,1,2]}
        %y = conv2d(%x.planes, @w, @b)
    """

    name: ClassVar[str] = "integer-inputs"
    stage: ClassVar[Stage] = Stage.REST

    nhwc: bool = option(False, "images are given with their channels last")

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Every input that is quantised in one way only."""
        result = PassResult(False)
        for value in graph.inputs:
            why = _refusal(graph, value)
            if why:
                result.remarks.append(self.remark("refused", value.name, why))
                continue
            self._retype(graph, value)
            result.modified = True
            encoding = value.type.affine
            scale, zero = encoding.scale, encoding.zero_point
            message = f"takes codes: real = {scale:.8g} * (code - {zero})"
            result.remarks.append(self.remark("applied", value.name, message))
        return result

    def _retype(self, graph: Graph, value: Value) -> None:
        nodes = list(dict.fromkeys(value.users))
        type_ = nodes[0].output.type
        given: Value = value
        if self.nhwc and type_.rank == 4:
            shape = tuple(type_.shape[axis] for axis in TO_NHWC)
            value.type = type_.with_(shape=shape)
            given = build(
                graph,
                "transpose",
                [value],
                {"perm": TO_NCHW},
                loc=value.name,
                before=nodes[0],
            ).output
        else:
            value.type = type_
        for node in nodes:
            graph.replace(node, [given])


def _refusal(graph: Graph, value: Value) -> str:
    """Why an input keeps its type; "" if it need not."""
    readers: list[Node] = list(dict.fromkeys(value.users))
    if graph.is_output(value):
        return "it is an output too"
    if not readers or any(node.op != "quantize" for node in readers):
        return "it is not only quantised"
    types = {node.output.type for node in readers}
    return "it is quantised in several ways" if len(types) > 1 else ""
