"""From one accumulator at a time to the stored output, on Cortex-M.

The same numbers as :mod:`targets.kernels.epilogue`, in scalar instructions: ``vcvtr`` rounds by the
mode of the FPSCR, which is half to even unless a program changes it, and converts with saturation;
``qadd`` adds the zero point with saturation, so that ``clamp(rint(t * m) + zy, lo, hi)`` needs no
clamp of floats. Zero points and bounds are part of the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlcc import tir
from targets.kernels.spec import NUMPY, Epilogue


@dataclass
class Finish:
    """Emits the way out for one output buffer."""

    kb: Any
    epilogue: Epilogue
    y: Any
    residual: Any = None

    def rint(self, real: Any) -> Any:
        """float32, rounded half to even, as int32 with saturation."""
        kb = self.kb
        return kb.reinterpret(kb.pure("llvm.arm.vcvtr", "float32", 1, real), "int32")

    def store(self, total: Any, multiplier: Any, ratio: Any, index: Any) -> None:
        """Stores an int32 accumulator, its bias added, at ``index`` of the output."""
        kb, out = self.kb, self.epilogue
        if ratio is not None:
            code = kb.cast(kb.load(self.residual, index), "int32")
            zero = kb.const(out.residual_zero_point, "int32")
            total = kb.let(total + self.rint(kb.cast(code - zero, "float32") * ratio), "total")
        self.store_real(kb.cast(total, "float32") * multiplier, index)

    def store_real(self, real: Any, index: Any) -> None:
        """Stores a float32 number of output steps (of the output's unit, where it is f32)."""
        kb, out = self.kb, self.epilogue
        low, high = out.bounds
        if out.out == "f32":
            if low > -float("inf"):
                real = tir.tirx.max(kb.const(low, "float32"), real)  # in this order NaN stays
            if high < float("inf"):
                real = tir.tirx.min(kb.const(high, "float32"), real)
            kb.store(self.y, index, real)
            return
        code = kb.let(self.rint(real), "code")
        if out.out_zero_point:
            zero = kb.const(out.out_zero_point, "int32")
            code = kb.let(kb.pure("llvm.arm.qadd", "int32", 1, code, zero), "code")
        width = kb.const(8, "int32")
        if out.out == "u8":
            code = kb.let(kb.pure("llvm.arm.usat", "int32", 1, code, width), "code")
        else:
            code = kb.let(kb.pure("llvm.arm.ssat", "int32", 1, code, width), "code")
        least, most = {"u8": (0, 255), "s8": (-128, 127)}[out.out]
        if low > least:
            code = tir.tirx.max(code, kb.const(int(low), "int32"))
        if high < most:
            code = tir.tirx.min(code, kb.const(int(high), "int32"))
        kb.store(self.y, index, kb.cast(code, NUMPY[out.out]))
