"""What depthwise kernels on bytes share: work items, kernel rows at borders, strips of columns.

Padding is the zero point: rows outside the input read any row, and their bytes are masked; border
strips are emitted by themselves, with the columns outside the input known.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from dlcc import tir
from targets.kernels.gemm import MIN_ITEMS
from targets.kernels.skeleton import divide
from targets.kernels.spec import Borders

EmitBlocks = Callable[[int, Any, int | None], None]
"""Emits a strip of all channel blocks of the work item: its width, its first output column, and
that column where it is a known number (None: no window leaves the input)."""


class RowItems(Borders):
    """A depthwise layer cut into work items; ``n``: images."""

    n: int

    @property
    @abstractmethod
    def blocks(self) -> int:
        """Vectors of channels."""

    @property
    def chunks(self) -> int:
        """Parts that the channels are cut into, to have work items enough."""
        return min(self.blocks, ceil(MIN_ITEMS / (self.n * self.oh)))

    @property
    def items(self) -> int:
        """Work items: output rows by channel chunks."""
        return self.n * self.oh * self.chunks


@dataclass
class RowEmitter:
    """The kernel being emitted; ``shape`` says what determines its code."""

    kb: tir.KernelBuilder
    shape: Any
    x: Any
    zero: Any
    pixel: Any = None
    blocks: tuple[Any, Any] = (None, None)
    """First channel block of the work item, and the end."""
    rows: list[tuple[Any, Any, Any]] = field(default_factory=list)
    """For each kernel row: start of the input row, and for rows that may lie on padding the byte
    masks of input and of zero point."""

    def masked(self, row: int, value: Any) -> Any:
        """Bytes of kernel row ``row``; zero points where it lies on padding."""
        _, keep, fill = self.rows[row]
        if keep is None:
            return value
        lanes = tir.lanes_of(value)
        kept = tir.tirx.bitwise_and(value, self.kb.splat(keep, lanes))
        return tir.tirx.bitwise_or(kept, self.kb.splat(fill, lanes))


def emit_items(em: RowEmitter, emit: EmitBlocks) -> None:
    """The loop over work items: an output row and a chunk of the channel blocks."""
    kb, shape = em.kb, em.shape
    per_chunk = ceil(shape.blocks / shape.chunks)
    with kb.loop(kb.begin, kb.end, "item") as item:
        rest, chunk = divide(kb, item, shape.chunks, "chunk")
        image, row = divide(kb, rest, shape.oh, "row")
        image = image if shape.n > 1 else 0
        row = row if shape.oh > 1 else 0
        em.pixel = kb.let((image * shape.oh + row) * shape.ow, "pixel")
        start = kb.let(chunk * per_chunk, "start")
        em.blocks = (start, kb.let(start + per_chunk, "stop"))
        inside = kb.let(_kernel_rows(em, image, row), "inside")
        if shape.row_borders:
            with kb.when(tir.tirx.Not(inside)):
                _strips(em, emit)
        em.rows = [(at, None, None) for at, _, _ in em.rows]
        with kb.when(inside if shape.row_borders else True):
            _strips(em, emit)


def _inside(shape: Any, col: int, size: int) -> bool:
    """Whether a strip reads the input's columns only, and fills its vectors."""
    return not shape.touches_border(col, size) and size % shape.fold == 0


def _strips(em: RowEmitter, emit: EmitBlocks) -> None:
    """One output row: border strips by themselves, the others in loops."""
    kb, shape = em.kb, em.shape
    start = 0
    for count, size in (shape.cols.first, shape.cols.rest):
        at = 0
        while at < count:
            inner = at
            while inner < count and _inside(shape, start + inner * size, size):
                inner += 1
            if inner > at:
                with kb.loop(at, inner, "strip") as strip:
                    emit(size, kb.let(strip * size + start, "col"), None)
                at = inner
            else:
                first = start + at * size
                emit(size, first, first)
                at += 1
        start += count * size


def _kernel_rows(em: RowEmitter, image: Any, row: Any) -> Any:
    """Sets where each kernel row reads; returns whether all of them lie inside the input."""
    kb, shape = em.kb, em.shape
    zero, last = (tir.tirx.IntImm("int32", v) for v in (0, shape.h - 1))
    em.rows = []
    first = kb.let(row * shape.stride[0] - shape.pads[0], "kernel_row")
    reach = (shape.kernel[0] - 1) * shape.dilation[0]
    for i in range(shape.kernel[0]):
        at = first + i * shape.dilation[0]
        keep = fill = None
        if shape.row_borders:
            within = tir.tirx.all(at >= 0, at < shape.h)
            keep = kb.let(tir.tirx.Select(within, _u8(255), _u8(0)), "keep")
            fill = kb.let(tir.tirx.bitwise_and(_u8(255) - keep, kb.load(em.zero, 0)), "fill")
            at = tir.tirx.max(tir.tirx.min(at, last), zero)
        start = (image * shape.h + at) * (shape.w * shape.c)
        em.rows.append((kb.let(start, "row_at"), keep, fill))
    return tir.tirx.all(first >= 0, first + reach < shape.h)


def _u8(value: int) -> Any:
    return tir.tirx.IntImm("uint8", value)
