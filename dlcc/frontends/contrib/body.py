"""What the importers of this package compose operators with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlcc.frontends.fold import fold_nodes
from dlcc.frontends.registry import OnnxNode, Unsupported, importer_for
from dlcc.ir import Value
from dlcc.ir.encodings import Array
from dlcc.ops.movement import sliced
from dlcc.ops.shape import reshaped

DOMAIN = "com.microsoft"

OPSET = 22
"""The opset of ONNX that compositions are written in."""


@dataclass(frozen=True)
class Body:
    """The operators that one node becomes, named after it."""

    node: OnnxNode

    def __call__(
        self, op: str, inputs: Sequence[Value | None], part: str = "", **attrs: Any
    ) -> Value:
        """An op of the IR with one result, folded where its operands are known."""
        start = len(self.node.graph.nodes)
        made = self.node.build(op, inputs, attrs, suffix=part)
        return fold_nodes(self.node.graph, start, made)[0]

    def onnx(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        part: str = "",
        attrs: Mapping[str, Any] | None = None,
        outputs: int = 1,
    ) -> list[Value]:
        """What ONNX's ``op_type`` of :data:`OPSET` becomes."""
        importer = importer_for("", op_type, OPSET)
        assert importer is not None, op_type
        view = replace(
            self.node, op_type=op_type, name=self.node.name + part, domain="", opset=OPSET,
            inputs=tuple(inputs), attrs=attrs or {}, output_count=outputs, outputs=(),
        )  # fmt: skip
        start = len(self.node.graph.nodes)
        return fold_nodes(self.node.graph, start, list(importer(view)))

    def constant(self, values: Array | float, like: Value, name: str) -> Value:
        """A constant of the element type of ``like``."""
        return self.node.graph.add_constant(np.asarray(values, like.type.dtype.numpy), name=name)

    def sum(self, terms: Sequence[Value | None], part: str = "") -> Value:
        """The sum of those that are present; the last addition has the name ``part``."""
        first, *rest = (term for term in terms if term is not None)
        for index, term in enumerate(rest):
            last = index == len(rest) - 1
            first = self("add", [first, term], part if last else f"{part}.sum{index}")
        return first

    def scaled(self, value: Value, factor: float, part: str) -> Value:
        """``value * factor``."""
        if factor == 1.0:
            return value
        return self("mul", [value, self.constant(factor, value, "factor")], part)

    def transpose(self, value: Value, perm: Sequence[int], part: str) -> Value:
        """``value`` with its axes in the order ``perm``."""
        if tuple(perm) == tuple(range(value.type.rank)):
            return value
        return self("transpose", [value], part, perm=tuple(perm))

    def reshape(self, value: Value, shape: Sequence[int], part: str) -> Value:
        """``value`` in ``shape``."""
        start = len(self.node.graph.nodes)
        return fold_nodes(self.node.graph, start, [reshaped(self.node, value, shape, part)])[0]

    def cut(self, value: Value, axis: int, start: int, end: int, part: str) -> Value:
        """``value[start:end]`` along ``axis``."""
        first = len(self.node.graph.nodes)
        made = sliced(self.node, value, [start], [end], [axis], [1], part)
        return fold_nodes(self.node.graph, first, [made])[0]

    def channels_first(self, value: Value, part: str) -> Value:
        """[N,...,C] as [N,C,...]."""
        rank = value.type.rank
        return self.transpose(value, (0, rank - 1, *range(1, rank - 1)), part)

    def channels_last(self, value: Value, part: str = "") -> Value:
        """[N,C,...] as [N,...,C]."""
        return self.transpose(value, (0, *range(2, value.type.rank), 1), part)


def whole(node: OnnxNode, key: str, default: int = 0) -> int:
    """An integer attribute."""
    return int(node.attrs.get(key, default))


def real(node: OnnxNode, key: str, default: float) -> float:
    """A float attribute."""
    return float(node.attrs.get(key, default))


def refuse_if(condition: object, why: str) -> None:
    """Refuse the node where ``condition`` holds.

    Raises:
        Unsupported: with ``why``.
    """
    if condition:
        raise Unsupported(why)
