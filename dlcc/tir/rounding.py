"""Rounding to integers on every target.

Kernels ask for it by operators of our own, which code generation lowers to what the target has:
:func:`rint` gives a float, :func:`lrint` an int32, both half to even; :func:`floor` and
:func:`ceil` round down and up. 32-bit ARM before ARMv8 has no instruction for any of them, and LLVM
would call the C library there, once for each lane. Written out they take a few vector instructions:
adding and subtracting 2**23 leaves the nearest integer of every float32 below it, because its last
bit then counts one, and larger floats are integers already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import tvm
from tvm import te, tirx

_INTEGERS = {32: 2.0**23, 64: 2.0**52}
"""From where on every number of a float type of so many bits is an integer."""

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
    return _operator("rint", value)


def floor(value: Any) -> Any:
    """``value`` (float32 or float64, any lanes) rounded down."""
    return _operator("floor", value)


def ceil(value: Any) -> Any:
    """``value`` (float32 or float64, any lanes) rounded up."""
    return _operator("ceil", value)


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


def _operator(short: str, value: Any) -> Any:
    value = value.asobject() if isinstance(value, te.TensorSlice) else value
    return tirx.call_intrin(value.ty.dtype, register_operators()[short], value)


@cache
def register_operators() -> dict[str, str]:
    """Registers our operators with TVM, once: short name to TVM's name."""
    meanings: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "separate": ("value that must be rounded before it is used", _lower_separate),
        "rint": ("nearest integer as a float, half to even", _lower_rint),
        "floor": ("largest integer that is not larger", _lower_floor),
        "ceil": ("smallest integer that is not smaller", _lower_ceil),
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


def _lower_floor(call: Any) -> Any:
    def down(x: Any) -> Any:
        near = _nearest(x)
        return tirx.Select(near > x, near - _full(1.0, "float", x), near)

    if _by_arithmetic():
        return down(call.args[0])
    return tirx.call_llvm_pure_intrin(call.ty.dtype, "llvm.floor", call.args[0])


def _lower_ceil(call: Any) -> Any:
    def up(x: Any) -> Any:
        near = _nearest(x)
        return tirx.Select(near < x, near + _full(1.0, "float", x), near)

    if _by_arithmetic():
        return up(call.args[0])
    return tirx.call_llvm_pure_intrin(call.ty.dtype, "llvm.ceil", call.args[0])


def _by_arithmetic() -> bool:
    return triple().startswith(("armv7", "thumbv7"))


def _full(value: float, kind: str, x: Any) -> Any:
    """``value`` in every lane, as a ``kind`` as wide as the elements of ``x``."""
    lanes = int(x.ty.dtype.lanes)
    made = tirx.const(value, f"{kind}{x.ty.dtype.bits}")
    return made if lanes == 1 else tirx.Broadcast(made, lanes)


def _nearest(x: Any) -> Any:
    """The integer nearest to ``x``, as a float with the sign of ``x``."""
    width, lanes = int(x.ty.dtype.bits), int(x.ty.dtype.lanes)
    name, sign = "" if lanes == 1 else f"x{lanes}", -(1 << (width - 1))

    def as_float(bits: Any) -> Any:
        return tirx.reinterpret(f"float{width}{name}", bits)

    bits = tirx.reinterpret(f"int{width}{name}", x)
    magnitude = as_float(tirx.bitwise_and(bits, _full(~sign, "int", x)))
    shift = _full(_INTEGERS[width], "float", x)
    whole = tirx.reinterpret(f"int{width}{name}", separate(magnitude + shift) - shift)
    signs = tirx.bitwise_and(bits, _full(sign, "int", x))
    return tirx.Select(magnitude < shift, as_float(tirx.bitwise_or(whole, signs)), x)
