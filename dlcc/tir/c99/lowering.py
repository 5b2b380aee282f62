"""A kernel on its way to C: scalar loops over flat buffers, for all its work items at once."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx

from dlcc.program import KernelSource
from dlcc.tir import rounding
from dlcc.tir.build import LOWERED, block_passes
from dlcc.tir.c99.names import TYPES
from dlcc.tir.c99.statements import Function, printed
from dlcc.tir.loops import rewrite_loops, split_loops


def _passes() -> list[Any]:
    """Simplifies, and plans the arrays."""
    st, tt = s_tir.transform, tirx.transform
    return [
        tt.ConvertSSA(),
        st.StmtSimplify(),
        tt.StorageRewrite(),
        st.HoistIfThenElse(),
        tt.UnrollLoop(),
        st.StmtSimplify(),
        tt.RemoveNoOp(),
        st.RewriteUnsafeSelect(),
    ]


def scalar_module(name: str, func: Any) -> Any:
    """A module of ``func`` alone, for a machine without vectors."""
    target = tvm.target.Target({"kind": "c"})
    mod = tvm.IRModule({name: func.with_attr("global_symbol", name)})
    return tirx.transform.BindTarget(target.with_host(target))(mod)


def lower_scalar(name: str, func: Any, work_items: int) -> Any:
    """``func`` as scalar loops, computing the items ``[0, work_items)``; begin and end are gone."""
    rounding.register_operators()
    with tvm.transform.PassContext(opt_level=3):
        mod = scalar_module(name, func)
        scheduled = func.attrs is None or LOWERED not in func.attrs
        if scheduled:
            mod = tvm.ir.transform.Sequential(block_passes())(mod)
            mod = tvm.IRModule({name: split_loops(mod[name])})
        whole = mod[name]
        begin, end = whole.params[-2:]
        items = {begin: tirx.IntImm("int32", 0), end: tirx.IntImm("int32", work_items)}
        mod = tvm.IRModule({name: whole.specialize(items)})
        if scheduled:  # what a builder has written is as simple as it should be
            mod = s_tir.transform.StmtSimplify()(tirx.transform.ConvertSSA()(mod))
            mod = tvm.IRModule({name: _without_unit_loops(mod[name])})
            mod = tvm.ir.transform.Sequential(_passes())(mod)
        return tirx.transform.LowerIntrin()(mod)[name]


def _without_unit_loops(func: Any) -> Any:
    """``func`` with loops of one iteration replaced by their bodies."""

    def replace(loop: Any, body: Any) -> Any:
        if not isinstance(loop.extent, tirx.IntImm) or int(loop.extent) != 1:
            return None
        return tirx.SeqStmt([tirx.Bind(loop.loop_var, loop.min), body])

    body = rewrite_loops(func.body, replace)
    return tirx.PrimFunc(func.params, body, func.ret_type, func.attrs)


def print_kernel(name: str, func: Any, work_items: int) -> KernelSource:
    """The C of a kernel for all of its ``work_items``.

    Raises:
        Unprintable: it is written for a machine's vectors or instructions.
    """
    lowered = lower_scalar(name, func, work_items)
    made = printed(Function, list(lowered.params), lowered.body)
    types = []
    for param in lowered.params:
        constant = "" if param in made.stored else "const "
        types.append(f"{constant}{TYPES[str(param.dtype)]}")
    lines = [
        f"  (void){n};"
        for n, p in zip(made.parameters, lowered.params, strict=True)
        if p not in made.used
    ]
    text = "\n".join([*lines, *made.lines])
    apart = func.attrs is None or LOWERED not in func.attrs or "tirx.noalias" in func.attrs
    return KernelSource(tuple(types), tuple(made.parameters), text, apart)
