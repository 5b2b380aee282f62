"""Writes TIR directly, statement by statement, for kernels whose every instruction matters.

A schedule describes a kernel by transformations of a naive one; the register-blocked kernels are
shorter and clearer when the code that wanted is written down. :class:`KernelBuilder` is a thin
emitter: flat one-dimensional buffers, loops as ``with`` blocks, values bound to names, vectors by
their lane count, LLVM intrinsics by name. What it makes needs no loop passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.ir import StringImm

from dlcc.tir import bfloat16, clamping, float16, rounding
from dlcc.tir.build import LOWERED
from dlcc.tir.loops import items_loop

_UNBOUNDED = 2**31 - 1
"""Declared length of pointer parameters: their true length is the caller's business."""


def vector_type(dtype: str, lanes: int) -> str:
    """TVM's name of ``lanes`` elements of ``dtype``: ``float32x16``, or ``float32`` for one."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def lanes_of(value: Any) -> int:
    """Vector lanes of an expression."""
    return int(value.ty.dtype.lanes)


def _pieces(count: int, lanes: int) -> Iterator[tuple[int, int]]:
    """``count`` elements as vectors of ``lanes``, ``lanes / 2``, ...: starts and lane counts."""
    at = 0
    while at < count:
        while lanes > count - at:
            lanes //= 2
        yield at, lanes
        at += lanes


class KernelBuilder:
    """Emits one kernel function with the interface of :mod:`dlcc.program`.

    Attributes:
        begin: first work item (int32 expression).
        end: one past the last work item.

    ``bfloat16``: the CPU has the instructions of AVX512-BF16. ``llvm``: LLVM IR of functions for
    :meth:`extern`; they are inlined.
    """

    def __init__(self, name: str, *, bfloat16: bool = False, llvm: str = "") -> None:
        self.name = name
        self._bfloat16 = bfloat16
        self._llvm = {"": llvm}
        self.begin = tirx.Var("begin", "int32")
        self.end = tirx.Var("end", "int32")
        self._params: list[Any] = []
        self._scopes: list[list[Any]] = [[]]
        self._names = 0

    # -- memory ---------------------------------------------------------------------------------

    def pointer(self, name: str, dtype: str, align: int = 64) -> Any:
        """Adds a pointer parameter: a flat buffer of ``dtype``, ``align`` bytes aligned."""
        buffer = tirx.decl_buffer((_UNBOUNDED,), dtype, name=name, data_alignment=align)
        self._params.append(buffer)
        return buffer

    def alloc(self, dtype: str, elements: int, name: str = "local") -> Any:
        """A stack array of the current scope; indexed by constants only, it becomes registers."""
        name = self._fresh(name)
        buffer = tirx.decl_buffer((elements,), dtype, name=name, data_alignment=64)
        self._emit(tirx.AllocBuffer(buffer))
        return buffer

    def alloc_aligned(self, dtype: str, elements: int) -> tuple[Any, Any]:
        """A stack array that stays in memory, and the index of its first 64-byte aligned element.

        TVM aligns stack arrays to 16 bytes only, whatever they ask for; vectors that cross cache
        lines cost twice. 4-byte dtypes only.
        """
        buffer = self.alloc(dtype, elements + 16)
        address = tirx.reinterpret("int64", self.address(buffer, 0))
        gap = tirx.bitwise_and(tirx.IntImm("int64", 0) - address, tirx.IntImm("int64", 63))
        return buffer, self.let(tirx.shift_right(self.cast(gap, "int32"), 2), "aligned")

    def load(self, buffer: Any, index: Any, lanes: int = 1) -> Any:
        """``lanes`` consecutive elements of ``buffer`` from ``index``."""
        return tirx.BufferLoad(buffer, [self._range(index, lanes)])

    def store(self, buffer: Any, index: Any, value: Any) -> None:
        """Stores a scalar or vector at ``index`` of ``buffer``."""
        self._emit(tirx.BufferStore(buffer, value, [self._range(index, lanes_of(value))]))

    def store_first(self, buffer: Any, index: Any, value: Any, count: int) -> None:
        """Stores only the first ``count`` lanes of ``value``, and touches nothing beyond."""
        lanes = lanes_of(value)
        if count >= lanes:
            self.store(buffer, index, value)
            return
        spare = self.alloc(str(buffer.dtype), lanes)
        self.store(spare, 0, value)
        for at, piece in _pieces(count, lanes):
            self.store(buffer, index + at, self.load(spare, at, piece))

    def load_first(self, buffer: Any, index: Any, lanes: int, count: int) -> Any:
        """A vector of ``lanes`` whose first ``count`` are loaded; nothing beyond is touched."""
        if count >= lanes:
            return self.load(buffer, index, lanes)
        spare = self.alloc(str(buffer.dtype), lanes)
        self.store(spare, 0, self.const(0, str(buffer.dtype), lanes))
        for at, piece in _pieces(count, lanes):
            self.store(spare, at, self.load(buffer, index + at, piece))
        return self.load(spare, 0, lanes)

    def address(self, buffer: Any, index: Any) -> Any:
        """The address of element ``index``."""
        return tirx.address_of(self.load(buffer, index))

    # -- values ---------------------------------------------------------------------------------

    def let(self, value: Any, name: str = "v") -> Any:
        """Evaluates ``value`` here, once; returns the name that stands for it."""
        if isinstance(value, int):
            return tirx.IntImm("int32", value)
        var = tirx.Var(self._fresh(name), value.ty)
        self._emit(tirx.Bind(var, value))
        return var

    def const(self, value: float, dtype: str, lanes: int = 1) -> Any:
        """A constant, or a vector full of it."""
        made = tirx.FloatImm if dtype.startswith("float") else tirx.IntImm
        return self.splat(made(dtype, value), lanes)

    @staticmethod
    def splat(value: Any, lanes: int) -> Any:
        """``value`` in every lane."""
        return value if lanes == 1 else tirx.Broadcast(value, lanes)

    @staticmethod
    def cast(value: Any, dtype: str) -> Any:
        """``value`` converted to ``dtype``, lane by lane."""
        return tirx.Cast(vector_type(dtype, lanes_of(value)), value)

    @staticmethod
    def reinterpret(value: Any, dtype: str, lanes: int = 1) -> Any:
        """The same bits as another type of the same total width."""
        return tirx.reinterpret(vector_type(dtype, lanes), value)

    @staticmethod
    def lrint(value: Any) -> Any:
        """float32 numbers within the range of int32, rounded half to even to int32."""
        return rounding.lrint(value)

    @staticmethod
    def clamp(value: Any, low: Any, high: Any) -> Any:
        """float32 numbers in [low, high], ``low`` for NaN."""
        return clamping.clamp(value, low, high)

    @staticmethod
    def between(value: Any, low: Any, high: Any) -> Any:
        """float32 numbers in [low, high]; NaN stays NaN."""
        return clamping.between(value, low, high)

    def rounded(self, value: Any, short: str) -> Any:
        """float32 numbers rounded to ``bf16`` or ``f16``, as they are held."""
        if short == "f16":
            return float16.rounded(value)
        if self._bfloat16 and lanes_of(value) == bfloat16.NATIVE_LANES:
            return bfloat16.rounded_natively(value)
        return bfloat16.rounded(value)

    @staticmethod
    def widened(value: Any) -> Any:
        """Real numbers of any type as float32: bfloat16 (held as uint16), float16, float32."""
        held = str(value.ty.dtype).partition("x")[0]
        by = {bfloat16.HELD: bfloat16.widened, float16.HELD: float16.widened}.get(held)
        return value if by is None else by(value)

    @staticmethod
    def shuffle(value: Any, order: Sequence[int], *more: Any) -> Any:
        """The vector whose lane i is lane ``order[i]`` of ``value`` (and ``more`` behind it)."""
        given = (1 + len(more)) * lanes_of(value)
        missing = -(-max(0, len(order) - given) // lanes_of(value))
        vectors = [value, *more, *([value] * missing)]  # TVM wants as many lanes as it gives
        return tirx.Shuffle(vectors, [tirx.IntImm("int32", lane) for lane in order])

    @staticmethod
    def pure(name: str, dtype: str, lanes: int, *args: Any) -> Any:
        """Calls an LLVM intrinsic without side effects."""
        return tirx.call_llvm_pure_intrin(vector_type(dtype, lanes), name, *args)

    @staticmethod
    def extern(name: str, dtype: str, lanes: int, *args: Any) -> Any:
        """Calls a function of the builder's ``llvm``, which has no side effects."""
        return tirx.call_pure_extern(vector_type(dtype, lanes), name, *args)

    def include(self, name: str, llvm: str) -> None:
        """Adds LLVM IR of the function ``name`` for :meth:`extern`."""
        self._llvm[name] = llvm

    def effect(self, name: str, *args: Any) -> None:
        """Calls an LLVM intrinsic for its side effect."""
        self._emit(tirx.Evaluate(tirx.call_llvm_intrin("void", name, *args)))

    def call(self, name: str, *args: Any) -> None:
        """Calls a function of the builder's ``llvm`` for what it does to memory."""
        self._emit(tirx.Evaluate(tirx.call_extern("void", name, *args)))

    def prefetch(self, buffer: Any, index: Any, level: int = 2) -> None:
        """Asks for the cache line of element ``index`` in the first- or second-level cache.

        No address is an error: what is not mapped is not fetched.
        """
        hints = (tirx.IntImm("int32", hint) for hint in (0, 4 - level, 1))  # read, locality, data
        self.effect("llvm.prefetch", self.address(buffer, index), *hints)

    # -- control --------------------------------------------------------------------------------

    @contextmanager
    def loop(self, start: Any, stop: Any, name: str = "i") -> Iterator[Any]:
        """A loop over ``[start, stop)``; gives its variable.

        A loop of exactly one constant iteration is written without a loop.
        """
        if isinstance(start, int) and isinstance(stop, int) and stop - start == 1:
            yield tirx.IntImm("int32", start)
            return
        var = tirx.Var(self._fresh(name), "int32")
        self._scopes.append([])
        yield var
        body = self._close()
        if start is self.begin and stop is self.end:
            self._emit(items_loop(var, start, stop, body))
            return
        low = tirx.IntImm("int32", start) if isinstance(start, int) else start
        extent = stop - start
        extent = tirx.IntImm("int32", extent) if isinstance(extent, int) else extent
        self._emit(tirx.For(var, low, extent, tirx.ForKind.SERIAL, body))

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Statements that run only if ``condition`` holds (no block for Python's ``True``)."""
        if condition is True:
            yield
            return
        self._scopes.append([])
        yield
        self._emit(tirx.IfThenElse(condition, self._close(), None))

    def build(self) -> Any:
        """The finished PrimFunc."""
        if len(self._scopes) != 1:
            raise ValueError(f"{self.name}: built inside an open loop")
        body = self._close()
        for text in (bfloat16.NATIVE if self._bfloat16 else "", *self._llvm.values()):
            if text:
                zero = tirx.IntImm("int32", 0)
                body = tirx.AttrStmt(zero, "pragma_import_llvm", StringImm(text), body)
        func = tirx.PrimFunc([*self._params, self.begin, self.end], body)
        func = func.with_attr("global_symbol", self.name).with_attr("tirx.noalias", True)
        return func.with_attr(LOWERED, 1)

    # -- internals ------------------------------------------------------------------------------

    def _fresh(self, stem: str) -> str:
        self._names += 1
        return f"{stem}_{self._names}"

    def _emit(self, stmt: Any) -> None:
        self._scopes[-1].append(stmt)

    def _close(self) -> Any:
        stmts = self._scopes.pop()
        if not stmts:
            return tirx.Evaluate(tirx.IntImm("int32", 0))
        return stmts[0] if len(stmts) == 1 else tirx.SeqStmt(stmts)

    @staticmethod
    def _range(index: Any, lanes: int) -> Any:
        start = tirx.IntImm("int32", index) if isinstance(index, int) else index
        return start if lanes == 1 else tirx.Ramp(start, 1, lanes)
