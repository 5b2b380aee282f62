"""Recurrent weights of 8 bits: integer products of states as codes, by each machine's instructions.

Beside the float32 states a thread keeps their codes, as the instruction wants them: bytes for
``vpdpbusd`` (unsigned, 128 more than the code, which sums start without), ``sdot`` and ``smull``,
16-bit integers for ``pmaddwd``, and bytes for scalar code. Weights are packed unit by unit with the
gates side by side, and with the few of one instruction's step together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dlcc import tir
from dlcc.ops.recurrent_codes import STEPS
from targets.isa import Isa
from targets.kernels import arm_words
from targets.kernels.gemm import Unit, unit_for, word_unit
from targets.kernels.recurrent_cell import Products
from targets.kernels.recurrent_spec import Block, RecurrentSpec

_VNNI = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}
_MADD = {
    16: "llvm.x86.avx512.pmaddw.d.512",
    8: "llvm.x86.avx2.pmadd.wd",
    4: "llvm.x86.sse2.pmadd.wd",
}

_OFFSET = 128
"""What ``vpdpbusd`` sees more than the code of a state."""


def code_unit(isa: Isa) -> Unit:
    """What multiplies codes: ``vnni``, ``madd``, ``sdot``, ``smull``, or ``scalar``."""
    isa = isa.without_amx()
    if isa.lanes == 1:
        return Unit("scalar", 1, 1, isa.registers)
    unit = word_unit(unit_for(isa, "u8", amx=False))
    return replace(unit, kind="sdot") if unit.kind == "usdot" else unit


def state_dtype(unit: Unit) -> str:
    """Of the codes of states in memory."""
    return {"vnni": "uint8", "madd": "int16"}.get(unit.kind, "int8")


def packed_codes(
    spec: RecurrentSpec, block: Block, codes: np.ndarray, unit: Unit
) -> list[np.ndarray]:
    """[G*H,H] for each phase, flat.

    As int8 [vectors / block.vectors, H / unit.k, gates, block.vectors, lanes, unit.k].
    """
    units, padded, step = spec.units, block.padded(spec.units), unit.k
    by_gate = np.zeros((spec.gates, padded, -(-units // step) * step), np.int8)
    by_gate[:, :units, :units] = codes.reshape(spec.gates, units, units)
    out = []
    for phase in spec.phases:
        part = by_gate[list(phase)].reshape(
            len(phase), -1, block.vectors, block.lanes, by_gate.shape[2] // step, step
        )
        out.append(np.ascontiguousarray(part.transpose(1, 4, 0, 2, 3, 5)).reshape(-1))
    return out


def unit_constants(
    spec: RecurrentSpec, block: Block, codes: np.ndarray, multipliers: np.ndarray, unit: Unit
) -> dict[str, np.ndarray]:
    """What each unit's gates need, [G, padded H]: ``multipliers``, and what sums start from."""
    padded = np.zeros((spec.gates, block.padded(spec.units)), np.float32)
    padded[:, : spec.units] = multipliers.reshape(spec.gates, spec.units)
    out: dict[str, np.ndarray] = {"multipliers": padded.reshape(-1)}
    if unit.kind == "vnni":
        start = np.zeros(padded.shape, np.int32)
        sums = codes.astype(np.int64).sum(axis=1).reshape(spec.gates, spec.units)
        start[:, : spec.units] = -_OFFSET * sums
        out["starts"] = start.reshape(-1)
    return out


class CodedProducts(Products):
    """As integers."""

    reset = 2
    accumulator = "int32"

    def __init__(
        self,
        kb: tir.KernelBuilder,
        spec: RecurrentSpec,
        block: Block,
        pointers: dict[str, Any],
        unit: Unit,
    ) -> None:
        super().__init__(kb, spec, block, pointers)
        self.unit, self.step = unit, unit.k

    @property
    def codes(self) -> Any:
        """The thread's codes of states: h twice, and r h."""
        return self.pointers["codes"]

    def factor(self, at: Any) -> Any:
        """A word of codes."""
        kb, lanes = self.kb, self.block.lanes
        if self.unit.kind == "scalar":
            return kb.cast(kb.load(self.codes, at), "int32")
        word = kb.splat(kb.reinterpret(kb.load(self.codes, at, self.step), "int32"), lanes)
        return kb.reinterpret(word, "int16" if self.unit.kind == "madd" else "int8", self._bytes)

    @property
    def _bytes(self) -> int:
        """Codes of a vector."""
        return self.block.lanes * self.step

    def weight(self, weights: Any, at: Any) -> Any:
        """Codes, widened for instructions that take 16 bits, and for none."""
        kb, kind = self.kb, self.unit.kind
        value = kb.load(weights, at, self._bytes)
        wide = {"madd": "int16", "scalar": "int32"}.get(kind)
        return value if wide is None else kb.cast(value, wide)

    def multiply_add(self, total: Any, state: Any, weight: Any) -> Any:
        """One instruction, or two and three."""
        kb, unit = self.kb, self.unit
        if unit.kind == "scalar":
            return total + state * weight
        if unit.kind == "vnni":
            return kb.pure(_VNNI[unit.lanes], "int32", unit.lanes, total, state, weight)
        if unit.kind == "madd":
            return total + kb.pure(_MADD[unit.lanes], "int32", unit.lanes, state, weight)
        return arm_words.multiply_add(kb, unit, total, state, weight)

    def first(self, gate: int, unit: Any) -> Any:
        """Without what the offset of the codes will add."""
        if self.unit.kind != "vnni":
            return super().first(gate, unit)
        at = unit + gate * self.block.padded(self.spec.units)
        return self.kb.load(self.pointers["starts"], at, self.block.lanes)

    def real(self, total: Any, gate: int, at: Any) -> Any:
        """Times the unit's multiplier, rounded."""
        place = at.unit + gate * self.block.padded(self.spec.units)
        factor = self.kb.load(self.pointers["multipliers"], place, self.block.lanes)
        return tir.separate(self.kb.cast(total, "float32") * factor)

    def keep(self, place: Any, h: Any) -> None:
        """Its code."""
        kb, lanes = self.kb, self.block.lanes
        ends = (kb.const(end, "float32", lanes) for end in (-STEPS, STEPS))
        scaled = tir.separate(h * kb.const(STEPS, "float32", lanes))
        code = kb.lrint(kb.clamp(scaled, *ends))
        if self.unit.kind == "vnni":
            code = code + kb.const(_OFFSET, "int32", lanes)
        kb.store(self.codes, place, kb.cast(code, state_dtype(self.unit)))

    def keep_reset(self, place: Any, value: Any) -> None:
        """Its code, behind those of the states."""
        size = self.block.item * self.block.padded(self.spec.units)
        self.keep(self.reset * size + place, value)

    def begin(self, rows: int) -> None:
        """Codes of the initial states."""
        kb, lanes = self.kb, self.block.lanes
        vectors = rows * self.block.padded(self.spec.units) // lanes
        with kb.loop(0, vectors, "vector") as vector:
            at = kb.let(vector * lanes, "at")
            self.keep(at, kb.let(kb.load(self.pointers["state"], at, lanes), "h"))
