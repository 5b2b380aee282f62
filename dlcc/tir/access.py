"""How an op writes its default TIR: in logical indices, whatever the layout in memory.

An op's ``compute`` reads its operands by ``ctx.read(i)(n, c, h, w)`` and declares its results by
``ctx.output(0, lambda n, c, h, w: ...)``. The context turns logical indices into places in memory,
so one definition serves NCHW and NHWC. Intermediate stages are ``ctx.stage(shape, body)``;
tables and other arrays known at compile time are ``ctx.constant(array)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import te

from dlcc.ir import BF16, Node, TensorType
from dlcc.ir.encodings import Array
from dlcc.ops.base import Quantised, op_of, type_error
from dlcc.tir import bfloat16, float16, minifloat

Reader = Callable[..., Any]


class TirContext:
    """Operands, results and constants of one node as TE tensors.

    Attributes:
        operands: one placeholder per operand in its physical shape and storage dtype; None where
            the operand is absent.
        constants: arrays declared by :meth:`constant`, with their placeholders.
        results: one tensor per output, set by :meth:`output`.
        item_axes: how many leading physical axes of the output a work item fixes (None: all but the
            last); an op that reduces over a whole row sets it (see ``elementwise_like``).
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.operands: list[te.Tensor | None] = [
            None if v is None else _placeholder(v.type, f"x{i}") for i, v in enumerate(node.inputs)
        ]
        self.constants: list[tuple[Array, te.Tensor]] = []
        self.results: list[te.Tensor | None] = [None] * len(node.outputs)
        self.item_axes: int | None = None

    def read(self, index: int) -> Reader:
        """Access to operand ``index`` by logical indices."""
        tensor, type_ = self.operands[index], self.node.input(index).type
        assert tensor is not None
        if type_.storage.is_narrow and self.node.op != "cast":
            raise type_error(self.node, f"{type_.storage} is read and written by casts only")
        read = self.view(tensor, type_)
        short = short_float(type_)
        if short is None:
            return read
        return lambda *logical: short.widened(read(*logical))

    @staticmethod
    def view(tensor: te.Tensor, type_: TensorType) -> Reader:
        """Access to ``tensor``, which is laid out as ``type_``, by logical indices."""
        permutation = type_.permutation
        if not type_.rank:
            return lambda: tensor[0]
        return lambda *logical: tensor[tuple(logical[axis] for axis in permutation)]

    def constant(self, array: Array) -> te.Tensor:
        """A placeholder for an array that the weights file will hold."""
        contents = np.ascontiguousarray(array)
        shape = contents.shape or (1,)
        tensor = te.placeholder(shape, str(contents.dtype), name=f"c{len(self.constants)}")
        self.constants.append((contents.reshape(shape), tensor))
        return tensor

    @staticmethod
    def stage(shape: tuple[int, ...], body: Callable[..., Any], name: str = "stage") -> te.Tensor:
        """An intermediate tensor; ``body`` may be a reduction (``te.sum(...)`` at its root)."""
        return te.compute(shape, body, name=name)

    def _selects_short_floats(self) -> bool:
        """Whether every result is one of the operands' 16-bit numbers."""
        node = self.node
        reals = [v.type for v in node.inputs if v is not None and v.type.dtype.is_float]
        moves = op_of(node).quantised is Quantised.SAME and node.op != "pad"  # pads with a number
        return moves and bool(reals) and all(short_float(type_) for type_ in reals)

    def output(self, index: int, body: Callable[..., Any]) -> None:
        """Declare output ``index`` by its logical indices."""
        type_ = self.node.outputs[index].type
        short = short_float(type_)
        if short is not None:
            body = _storing(
                body, short.truncated if self._selects_short_floats() else short.rounded
            )
        if not type_.rank:
            self.results[index] = te.compute((1,), lambda _: body(), name=f"y{index}")
            return
        permutation = type_.permutation

        def physical(*place: Any) -> Any:
            logical: list[Any] = [None] * type_.rank
            for index_expression, axis in zip(place, permutation, strict=True):
                logical[axis] = index_expression
            return body(*logical)

        self.results[index] = te.compute(type_.physical_shape, physical, name=f"y{index}")


def short_float(type_: TensorType) -> Any:
    """The module that widens and rounds numbers of this type; None if they are not to be.

    Numbers are bfloat16 in memory by their encoding, or because the border says so.
    """
    if type_.is_bfloat16 or type_.storage == BF16:
        return bfloat16
    return float16 if type_.is_float16 else None


def _storing(body: Callable[..., Any], store: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *logical: store(body(*logical))


def element(type_: TensorType) -> str:
    """The dtype of what a read of such a tensor gives, and of what its definition must give."""
    return "float32" if short_float(type_) else str(type_.storage.numpy)


def _placeholder(type_: TensorType, name: str) -> te.Tensor:
    short = short_float(type_)
    dtype = str(type_.storage.numpy) if short is None else short.HELD
    if type_.storage.is_narrow:
        dtype = minifloat.HELD
    return te.placeholder(type_.physical_shape or (1,), dtype, name=name)
