"""TIR functions of a program -> machine code, or C source."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from dlcc.cuda.architecture import ARCHITECTURES
from dlcc.cuda.nvrtc import compile_cubin
from dlcc.errors import DlccError, ExitCode
from dlcc.lowering.target import Target
from dlcc.program import KernelSource


def build_object(functions: dict[str, Any], target: Target) -> bytes:
    """Compile TIR functions for a target; b"" where there are none.

    Raises:
        DlccError: TARGET, the compiler for a GPU is not installed.
    """
    if target.device and functions:
        code = ARCHITECTURES[target.mcpu].code
        return compile_cubin(device_source(functions), str(code))
    from dlcc.tir.build import LLVMTarget, compile_object

    if not functions:  # a network without numbers: LLVM has nothing to do
        return b""
    return compile_object(functions, LLVMTarget(target.triple, target.mcpu, target.mattr))


def device_source(functions: Mapping[str, Any]) -> str:
    """The kernels of a GPU as CUDA C++, with what they call."""
    from dlcc.tir.cuda import cuda_source

    prelude = files("dlcc.cuda").joinpath("prelude.cuh").read_text("utf-8")
    return f"{prelude}\n{cuda_source(functions)}"


def print_sources(
    functions: dict[str, Any], work_items: Mapping[str, int], target: Target
) -> dict[str, KernelSource]:
    """The kernels as portable C.

    Raises:
        DlccError: one is written for a machine's vectors or instructions.
    """
    from dlcc.tir.c99 import Unprintable, print_kernel

    try:
        return {name: print_kernel(name, f, work_items[name]) for name, f in functions.items()}
    except Unprintable as error:
        raise DlccError(
            ExitCode.UNSUPPORTED,
            "a kernel cannot be written as portable C",
            where="--emit c",
            why=f"for {target.name} it has {error}",
            fix="compile for --target c",
        ) from error
