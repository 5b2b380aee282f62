"""Builds kernels for a grid of threads, statement by statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx

from dlcc.tir.build import LOWERED
from dlcc.tir.builder import KernelBuilder

THREADS = "dlcc.threads"
"""Attribute of a kernel: threads of a block."""

GRID = "dlcc.grid"
"""Attribute of a kernel whose last two parameters are its thread and its block."""

SHARED = "shared"
"""Scope of memory that the threads of a block share; its place is in the buffer's name."""


class GridBuilder(KernelBuilder):
    """Emits one kernel without ``begin`` and ``end``: threads know their places instead.

    Memory that threads share is one array, asked for at the launch (:attr:`shared_bytes`). What the
    hardware has beside plain arithmetic are functions of ``dlcc/cuda/prelude.cuh``, called by
    :meth:`call` and :meth:`extern`; they take pointers to local arrays for several registers.

    Attributes:
        thread: number of the thread in its block (int32 expression).
        block: number of the block in the grid.
        shared_bytes: shared memory of a block so far.
    """

    def __init__(self, name: str, threads: int) -> None:
        super().__init__(name)
        self.threads = threads
        self.thread = tirx.Var("thread", "int32")
        self.block = tirx.Var("block", "int32")
        self.shared_bytes = 0

    def shared(self, dtype: str, elements: int, name: str = "tile", align: int = 16) -> Any:
        """An array in shared memory."""
        self.shared_bytes = -(-self.shared_bytes // align) * align
        buffer = self.overlay(dtype, elements, name, self.shared_bytes)
        self.shared_bytes += elements * int(buffer.dtype.itemsize)
        return buffer

    def overlay(self, dtype: str, elements: int, name: str = "overlay", start: int = 0) -> Any:
        """Shared memory from byte ``start`` on under another name and as another type."""
        place = f"{self._fresh(name)}_at_{start}"
        buffer = tirx.decl_buffer((elements,), dtype, name=place, scope=SHARED)
        self._emit(tirx.AllocBuffer(buffer))
        return buffer

    def sync(self) -> None:
        """A barrier of the block's threads."""
        self.call("dlcc_sync")

    @contextmanager
    def unrolled(self, start: int, stop: int, name: str = "i") -> Iterator[Any]:
        """A loop that the compiler unrolls."""
        if stop - start == 1:
            yield tirx.IntImm("int32", start)
            return
        var = tirx.Var(self._fresh(name), "int32")
        self._scopes.append([])
        yield var
        body = self._close()
        low, extent = (tirx.IntImm("int32", n) for n in (start, stop - start))
        self._emit(tirx.For(var, low, extent, tirx.ForKind.UNROLLED, body))

    def build(self) -> Any:
        """The finished PrimFunc."""
        if len(self._scopes) != 1:
            raise ValueError(f"{self.name}: built inside an open loop")
        func = tirx.PrimFunc([*self._params, self.thread, self.block], self._close())
        func = func.with_attr("global_symbol", self.name).with_attr("tirx.noalias", True)
        return func.with_attr(LOWERED, 1).with_attr(GRID, 1).with_attr(THREADS, self.threads)
