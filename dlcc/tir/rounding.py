"""Rounding to the nearest integer, half to even, on every target.

Kernels ask for it by two operators of our own, which code generation lowers to what the target has:
:func:`rint` gives a float, :func:`lrint` an int32. 32-bit ARM before ARMv8 has no instruction for
it, and LLVM would call ``lrintf`` of the C library there, once for each lane. Written out it takes
a few vector instructions: adding and subtracting 2**23 leaves the nearest integer of every float
below it, because its last bit then counts one, and larger floats are integers already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import tvm
from tvm import tirx

_INTEGERS = 2.0**23
_SIGN = -0x80000000

_triple: ContextVar[str] = ContextVar("triple", default="")


@contextmanager
def generating(target: str) -> Iterator[None]:
    """Code is generated for the triple ``target`` meanwhile."""
    token = _triple.set(target)
    try:
        yield
    finally:
        _triple.reset(token)


def triple() -> str:
    """What code is being generated for ("" while none is)."""
    return _triple.get()


def rint(value: Any) -> Any:
    """``value`` (float32, any lanes) rounded to the nearest integer."""
    return tirx.call_intrin(value.ty.dtype, register_operators()["rint"], value)


def lrint(value: Any) -> Any:
    """The same as int32; ``value`` must be within its range."""
    dtype = str(value.ty.dtype).replace("float32", "int32")
    return tirx.call_intrin(dtype, register_operators()["lrint"], value)


def separate(value: Any) -> Any:
    """``value`` (float), rounded to its own type before any later operation sees it.

    Keeps LLVM from contracting ``separate(a * b) + c`` into a fused multiply-add. It becomes
    ``llvm.arithmetic.fence``: no instruction, and vectors stay vectors.
    """
    return tirx.call_intrin(value.ty.dtype, register_operators()["separate"], value)


@cache
def register_operators() -> dict[str, str]:
    """Registers our operators with TVM, once: short name to TVM's name."""
    meanings: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "separate": ("value that must be rounded before it is used", _lower_separate),
        "rint": ("nearest integer as a float, half to even", _lower_rint),
        "lrint": ("nearest integer as an int32, half to even", _lower_lrint),
    }
    for short, (text, lower) in meanings.items():
        register_operator(f"dlcc_{short}", text, lower)
    return {short: f"tirx.dlcc_{short}" for short in meanings}


def register_operator(name: str, text: str, lower: Callable[[Any], Any]) -> None:
    """Makes ``tirx.<name>`` an operator without side effects that ``lower`` lowers."""
    full = f"tirx.{name}"
    tvm.ir.op._ffi_api.RegisterOp(full, text)
    tvm.ir.op.register_op_attr(full, "TVectorizable", True)
    tvm.ir.op.register_op_attr(full, "TCallEffectKind", 1)  # pure
    tvm.ir.op.register_op_attr(full, "TScriptPrinterName", name)
    tirx.op.register_intrin_lowering(full, target="default", f=lower)


def _lower_separate(call: Any) -> Any:
    return tirx.call_llvm_pure_intrin(call.ty.dtype, "llvm.arithmetic.fence", call.args[0])


def _lower_rint(call: Any) -> Any:
    if _by_arithmetic():
        return _nearest(call.args[0])
    return tirx.call_llvm_pure_intrin(call.ty.dtype, "llvm.nearbyint", call.args[0])


def _lower_lrint(call: Any) -> Any:
    if _by_arithmetic():
        # the fence keeps TVM's range analysis from looking for integers in there
        return tirx.Cast(call.ty.dtype, separate(_nearest(call.args[0])))
    name = "llvm.lrint"
    if triple().startswith("aarch64") and int(call.ty.dtype.lanes) in (1, 4):
        name = "llvm.aarch64.neon.fcvtns"  # one instruction; LLVM makes two of the other
    return tirx.call_llvm_pure_intrin(call.ty.dtype, name, call.args[0])


def _by_arithmetic() -> bool:
    return triple().startswith(("armv7", "thumbv7"))


def _nearest(x: Any) -> Any:
    """The integer nearest to ``x``, as a float with the sign of ``x``."""
    lanes = int(x.ty.dtype.lanes)
    name = "" if lanes == 1 else f"x{lanes}"

    def full(value: float, dtype: str) -> Any:
        made = tirx.const(value, dtype)
        return made if lanes == 1 else tirx.Broadcast(made, lanes)

    def as_float(bits: Any) -> Any:
        return tirx.reinterpret(f"float32{name}", bits)

    bits = tirx.reinterpret(f"int32{name}", x)
    magnitude = as_float(tirx.bitwise_and(bits, full(~_SIGN, "int32")))
    shift = full(_INTEGERS, "float32")
    whole = tirx.reinterpret(f"int32{name}", separate(magnitude + shift) - shift)
    sign = tirx.bitwise_and(bits, full(_SIGN, "int32"))
    return tirx.Select(magnitude < shift, as_float(tirx.bitwise_or(whole, sign)), x)
