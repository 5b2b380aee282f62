"""The only door to TVM: schedules and TIR in, object code with a plain C interface out.

Nothing here imports tvm until it is used, so ``from dlcc import tir`` is free and ``import dlcc``
stays fast. All of TVM that the rest of the project needs is reached through this package, because
TVM renames things at every release.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlcc.tir.build import (
        LIBC_SYMBOLS,
        LLVMTarget,
        assembly,
        compile_object,
        llvm_ir,
        undefined_symbols,
    )
    from dlcc.tir.builder import KernelBuilder, lanes_of
    from dlcc.tir.math import Statements, exp
    from dlcc.tir.rounding import separate
    from dlcc.tir.te_kernels import elementwise_like

_HOME = {
    "LIBC_SYMBOLS": "dlcc.tir.build",
    "LLVMTarget": "dlcc.tir.build",
    "assembly": "dlcc.tir.build",
    "compile_object": "dlcc.tir.build",
    "llvm_ir": "dlcc.tir.build",
    "separate": "dlcc.tir.rounding",
    "undefined_symbols": "dlcc.tir.build",
    "KernelBuilder": "dlcc.tir.builder",
    "lanes_of": "dlcc.tir.builder",
    "exp": "dlcc.tir.math",
    "Statements": "dlcc.tir.math",
    "elementwise_like": "dlcc.tir.te_kernels",
}
_TVM = {"te": "tvm.te", "s_tir": "tvm.s_tir", "tirx": "tvm.tirx", "T": "tvm.script.tirx"}
_TVM["bfloat16"] = "dlcc.tir.bfloat16"
_TVM["float16"] = "dlcc.tir.float16"
_TVM["neon"] = "dlcc.tir.neon"

__all__ = [
    "LIBC_SYMBOLS",
    "KernelBuilder",
    "LLVMTarget",
    "Statements",
    "assembly",
    "compile_object",
    "elementwise_like",
    "exp",
    "lanes_of",
    "llvm_ir",
    "separate",
    "undefined_symbols",
]


def __getattr__(name: str) -> Any:
    """Loads ``name`` at first use: ours by its home module, or te, s_tir, tirx and T of TVM."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _TVM:
        return importlib.import_module(_TVM[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
