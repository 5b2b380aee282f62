"""From TIR functions to object code with the plain C interface of :mod:`dlcc.program`.

TVM's own pipeline ends in its packed calling convention and asks a runtime for temporaries. Neither
is wanted here, so this module runs its own short list of passes: pointer parameters become raw
pointers, allocations stay on the stack, and the only symbols an object may leave open are those of
:mod:`dlcc.symbols`.

Rounding: TVM switches LLVM's floating-point contraction on, so ``a * b + c`` becomes one fused
operation. That is what an fp32 reduction wants. Where each operation must round by itself (the
numbers contract of the integer layers, softmax, ...) put
:func:`dlcc.tir.rounding.separate` around the product.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir import PointerType, PrimType
from tvm.tirx.buffer import is_buffer_var

from dlcc.objects import read_object
from dlcc.symbols import AEABI, LIBC, MACOS
from dlcc.tir import rounding
from dlcc.tir.loops import hide_loops, show_loops, split_loops

LIBC_SYMBOLS = LIBC | AEABI
"""Symbols that object code may need."""

LOWERED = "dlcc.lowered"
"""Attribute of functions made by :class:`dlcc.tir.builder.KernelBuilder`: no loop passes needed."""


_AARCH64_OPTIONS = (
    # one load of four registers in a row in place of two, for want of which others are spilled
    "-disable-interleaved-load-combine:bool=1",
    # LLVM 22 renames registers to pair loads and stores, and with tbl of four registers loses some
    "-aarch64-load-store-renaming:bool=0",
)
"""What LLVM is told beside the target."""


@dataclass(frozen=True)
class LLVMTarget:
    """What LLVM generates code for.

    ``triple`` has four parts (``x86_64-unknown-linux-gnu``), ``mcpu`` is an LLVM CPU name and
    ``mattr`` lists LLVM features (``+avxvnni``, ``-prefer-256-bit``).
    """

    triple: str
    mcpu: str = ""
    mattr: tuple[str, ...] = ()

    @property
    def is_aarch64(self) -> bool:
        """Whether it is 64-bit ARM."""
        return self.triple.startswith("aarch64")

    def to_tvm(self) -> Any:
        """The same as a ``tvm.target.Target``, host included."""
        config: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple}
        if self.mcpu:
            config["mcpu"] = self.mcpu
        if self.mattr:
            config["mattr"] = list(self.mattr)
        if self.is_aarch64:
            config["cl-opt"] = list(_AARCH64_OPTIONS)
        if self.triple.startswith("thumb"):
            config["vector-width"] = 128  # of MVE; TVM has a warning where it is to guess
        if self.triple.endswith("eabihf"):
            config["mfloat-abi"] = "hard"
        target = tvm.target.Target(config)
        return target.with_host(target)


def _c_interface(func: Any) -> Any:
    """``func`` with raw pointers for its buffers and ``return 0`` at its end (plain C call)."""
    params, head = [], []
    for param in func.params:
        if is_buffer_var(param):
            pointer = tirx.Var(f"{param.name}_ptr", PointerType(param.ty.dtype))
            params.append(pointer)
            head.append(tirx.DeclBuffer(param, data=pointer))
        else:
            params.append(param)
    body = tirx.SeqStmt([*head, func.body, tirx.Return(tirx.IntImm("int32", 0))])
    made = tirx.PrimFunc(params, body, PrimType("int32"), func.attrs)
    return made.with_attr("calling_conv", 0).without_attr("tirx.is_entry_func")


def _pass(change: Callable[[Any], Any]) -> Any:
    """A pass of TVM's that changes each function."""
    return tirx.transform.prim_func_pass(lambda func, _module, _context: change(func), opt_level=0)


def block_passes() -> list[Any]:
    """Schedule blocks -> loops over flat buffers; keeps our loop annotations."""
    st, tt = s_tir.transform, tirx.transform
    return [
        st.CanonicalizeLoop(),
        st.LowerInitBlock(),
        st.PlanAndUpdateBufferAllocationLocation(),
        st.ConvertBlocksToOpaque(),
        st.CompactBufferAllocation(),
        st.LowerMatchBuffer(),
        st.StmtSimplify(),
        st.LowerOpaqueBlock(),
        _pass(hide_loops),
        tt.FlattenBuffer(),
        _pass(show_loops),
        tt.NarrowDataType(32),
    ]


def _loop_passes() -> list[Any]:
    """Vectorises, plans the stack, unrolls and simplifies."""
    st, tt = s_tir.transform, tirx.transform
    return [
        tt.ConvertSSA(),
        st.StmtSimplify(),
        st.LoopPartition(),
        tt.VectorizeLoop(True),
        tt.StorageRewrite(),
        st.HoistIfThenElse(),
        tt.UnrollLoop(),
        st.StmtSimplify(),
        tt.RemoveNoOp(),
        st.RewriteUnsafeSelect(),
        tt.CommonSubexprElim(),
        tt.VerifyMemory(),
    ]


def _counted(func: Any) -> Any:
    """``func``, made by ``KernelBuilder``, told that work items are not negative: an index is then
    divided, and widened, without regard to signs.
    """
    begin = func.params[-2]
    told = tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.assume", begin >= 0))
    return tirx.PrimFunc(func.params, tirx.SeqStmt([told, func.body]), func.ret_type, func.attrs)


def _lower(name: str, func: Any, target: Any, unsigned: bool) -> Any:
    """One function, down to what LLVM code generation takes."""
    if unsigned and func.attrs is not None and LOWERED in func.attrs:
        func = _counted(func)
    mod = tvm.IRModule({name: func.with_attr("global_symbol", name)})
    mod = tirx.transform.BindTarget(target)(mod)
    if func.attrs is None or LOWERED not in func.attrs:
        mod = tvm.ir.transform.Sequential(block_passes())(mod)
        mod = tvm.IRModule({name: split_loops(mod[name])})
        mod = tvm.ir.transform.Sequential(_loop_passes())(mod)
    mod = tvm.IRModule({name: _c_interface(mod[name])})
    return tirx.transform.LowerIntrin()(mod)[name]


def _codegen(funcs: Mapping[str, Any], target: LLVMTarget) -> Any:
    """TVM's LLVM module of all ``funcs``, in sorted order of their names."""
    if not funcs:
        raise ValueError("no functions to compile")
    rounding.register_operators()
    tvm_target = target.to_tvm()
    with tvm.transform.PassContext(opt_level=3), rounding.generating(target.triple):
        lowered = {
            name: _lower(name, funcs[name], tvm_target, target.is_aarch64) for name in sorted(funcs)
        }
        build = tvm.get_global_func(f"target.build.{tvm_target.kind.name}")
        return build(tvm.IRModule(lowered), tvm_target)


def compile_object(funcs: Mapping[str, Any], target: LLVMTarget) -> bytes:
    """Compiles ``funcs`` (symbol name -> PrimFunc) into one relocatable, position-free object.

    It is ELF, or Mach-O for a triple of macOS.

    Equal functions and target give equal bytes.

    Raises:
        ValueError: ``funcs`` is empty, or the code needs a symbol beyond ``LIBC_SYMBOLS`` (an
            ``exp`` that was not written out, a temporary too large for the stack, ...).
    """
    module = _codegen(funcs, target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.o"
        module.write_to_file(str(path), "o")
        code = path.read_bytes()
    unknown = undefined_symbols(code) - LIBC_SYMBOLS
    if "apple" in target.triple:
        unknown -= MACOS
    if unknown:
        raise ValueError(f"kernels need symbols that no C library part has: {sorted(unknown)}")
    return code


def assembly(funcs: Mapping[str, Any], target: LLVMTarget) -> str:
    """The assembly text of ``funcs``, for inspection."""
    return str(_codegen(funcs, target).inspect_source("s"))


def llvm_ir(funcs: Mapping[str, Any], target: LLVMTarget) -> str:
    """The LLVM IR of ``funcs`` (after optimisation), for inspection."""
    return str(_codegen(funcs, target).inspect_source("ll"))


def undefined_symbols(code: bytes) -> frozenset[str]:
    """Names that the relocatable object ``code`` uses and does not define (weak ones too).

    Raises:
        ObjectError: it is neither ELF nor Mach-O.
    """
    symbols = read_object(code).symbols()
    return frozenset(s.name for s in symbols if s.name and s.is_global and not s.section)
