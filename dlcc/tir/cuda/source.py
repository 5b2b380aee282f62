"""TIR functions as the text of kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import tirx

from dlcc.tir.c99.expressions import CHOICE, PRIMARY, Expressions, Text, dtype_of
from dlcc.tir.c99.lowering import lower_scalar, scalar_module
from dlcc.tir.c99.names import TYPES
from dlcc.tir.c99.statements import Function, children, printed
from dlcc.tir.cuda.grid import GRID, SHARED, THREADS
from dlcc.tir.loops import ITEMS

_ITEMS = "dlcc.work_items"
_PRIVATE = "dlcc.private"


def on_items(func: Any, work_items: int, threads: int, private: Mapping[int, int]) -> Any:
    """``func``, written for a CPU, as a kernel whose every thread computes one work item.

    Args:
        func: of scalar code; see :mod:`dlcc.program` for its interface.
        work_items: of its steps.
        threads: of a block.
        private: by position the parameters of which every item has so many bytes of its own.
    """
    offsets = ",".join(f"{position}:{size}" for position, size in private.items())
    made = func.with_attr(_ITEMS, work_items).with_attr(THREADS, threads)
    return made.with_attr(_PRIVATE, offsets)


def cuda_source(functions: Mapping[str, Any]) -> str:
    """The kernels as CUDA C++, without the functions that they call.

    Args:
        functions: by name, made by :class:`~dlcc.tir.cuda.GridBuilder` or :func:`on_items`.

    Raises:
        Unprintable: one is written for a CPU's vectors or instructions.
    """
    return "\n".join(_kernel(name, functions[name]) for name in sorted(functions))


def _kernel(name: str, func: Any) -> str:
    grid = GRID in func.attrs
    lowered = func if grid else lower_scalar(name, func, int(func.attrs[_ITEMS]))
    if grid:
        lowered = tirx.transform.LowerIntrin()(scalar_module(name, func))[name]
    made = printed(_Kernel, list(lowered.params), lowered.body)
    count = len(lowered.params) - (2 if grid else 0)
    parameters = [
        f"{'' if param in made.stored else 'const '}{TYPES[str(param.dtype)]} *__restrict__ {text}"
        for param, text in zip(lowered.params[:count], made.parameters[:count], strict=True)
    ]
    places = ("threadIdx.x", "blockIdx.x")
    lines = [
        f"  const int32_t {text} = (int32_t){place};"
        for text, place in zip(made.parameters[count:], places, strict=False)
    ]
    if made.shares:
        lines.append("  extern __shared__ __align__(1024) uint8_t dlcc_shared[];")
    if not grid:
        lines.append(
            "  const int32_t dlcc_item = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x);"
        )
        for place in filter(None, str(func.attrs[_PRIVATE]).split(",")):
            position, size = map(int, place.split(":"))
            bits = int(lowered.params[position].dtype.bits)
            lines.append(
                f"  {made.parameters[position]} += dlcc_item * INT64_C({size * 8 // bits});"
            )
    bounds = f"__launch_bounds__({int(func.attrs[THREADS])})"
    head = f'extern "C" __global__ void {bounds} {name}({", ".join(parameters)}) {{'
    return "\n".join([head, *lines, *made.lines, "}", ""])


class _Expressions(Expressions):
    """With calls of the functions of the prelude, and addresses."""

    def _call(self, e: Any) -> Text:
        name = str(e.op.name).rpartition(".")[2]
        if name == "address_of":
            return f"&{self.text(e.args[0], PRIMARY)}", PRIMARY
        if name in ("call_pure_extern", "call_extern"):
            called = str(e.args[0].value)
            if called.startswith("dlcc_"):
                arguments = ", ".join(self.text(a, CHOICE) for a in e.args[1:])
                return f"{called}({arguments})", PRIMARY
        return super()._call(e)


def _stored_by_calls(stmt: Any) -> set[Any]:
    """Buffers whose addresses are what ``dlcc_store...`` of the prelude is called with first."""
    found: set[Any] = set()
    call: Any = getattr(stmt, "value", None)
    if type(call).__name__ == "Call" and str(call.op.name).endswith("call_extern"):
        name, *arguments = call.args
        if str(name.value).startswith("dlcc_store"):
            found.add(arguments[0].args[0].source)
    return found.union(*map(_stored_by_calls, children(stmt)))


class _Kernel(Function):
    """The body of one kernel.

    Attributes:
        shares: whether it has shared memory.
    """

    shares = False
    expressions_of = _Expressions

    def __init__(self, params: list[Any], body: Any, skip: frozenset[Any] = frozenset()) -> None:
        super().__init__(params, body, skip)
        self.stored |= _stored_by_calls(body)

    def _allocbuffer(self, stmt: Any) -> list[str]:
        buffer = stmt.buffer
        if str(buffer.scope()) != SHARED:
            return super()._allocbuffer(stmt)
        self.shares = True
        place = str(buffer.name).rpartition("_at_")[2]
        name, kind = self.names.give(buffer), TYPES[str(buffer.dtype)]
        return [f"{kind} *const {name} = ({kind} *)(dlcc_shared + {place});"]

    def _for(self, stmt: Any) -> list[str]:
        if ITEMS in stmt.annotations:
            return self._thread_item(stmt)
        lines = super()._for(stmt)
        if stmt.kind == tirx.ForKind.UNROLLED:
            head = next(i for i, line in enumerate(lines) if line.startswith("for ("))
            lines.insert(head, "#pragma unroll")
        return lines

    def _thread_item(self, stmt: Any) -> list[str]:
        """A loop over work items, of which each thread computes one."""
        extent = self.expressions.text(stmt.extent)
        with self.names.block():
            name = self.names.give(stmt.loop_var)
            body = self._block(stmt.body)
        kind = TYPES[dtype_of(stmt.loop_var)]
        return [f"if (dlcc_item < {extent}) {{", f"  const {kind} {name} = dlcc_item;", *body, "}"]

    def _evaluate(self, stmt: Any) -> list[str]:
        if type(stmt.value).__name__ == "Call":
            return self._statement(f"{self.expressions.text(stmt.value)};")
        return super()._evaluate(stmt)
