"""Runs kernel plans on numpy arrays, and says which instruction sets this machine has."""

from __future__ import annotations

import ctypes
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dlcc import tir
from dlcc.lowering.kernel import ARENA_SLACK, KernelPlan
from targets.cpu.isa import LEVELS, Isa, host_flags, supports
from tests.tir.linking import Library

_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


def request_tiles() -> None:
    """Asks Linux for the AMX tile registers, once per process."""
    ctypes.CDLL(None).syscall(158, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)


def isa_params(*names: str) -> list:
    """pytest parameters of these levels; those that this machine lacks are skipped."""
    params = []
    for name in names or LEVELS:
        isa = LEVELS[name]
        missing = sorted(set(isa.flags) - host_flags())
        skip = pytest.mark.skipif(not supports(isa, host_flags()), reason=f"no {missing}")
        params.append(pytest.param(isa, id=name, marks=[pytest.mark.isa(name), skip]))
    return params


def aligned(array: np.ndarray, slack: int = ARENA_SLACK, junk: int = 0xAB) -> np.ndarray:
    """A 64-byte aligned copy of ``array`` with ``slack`` bytes of junk behind it."""
    raw = np.full(array.nbytes + slack + 64, junk, np.uint8)
    start = -raw.ctypes.data % 64
    view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def llvm_target(isa: Isa) -> tir.LLVMTarget:
    """The LLVM target of an instruction set."""
    return tir.LLVMTarget("x86_64-unknown-linux-gnu", isa.mcpu, isa.mattr)


class Runner:
    """Compiles plans (all functions at once) and runs them."""

    def __init__(self, plans: list[KernelPlan], isa: Isa) -> None:
        if isa.dot == "amx":
            request_tiles()
        builders = {s.name_key: s.build for plan in plans for s in plan.steps}
        functions = {key: build() for key, build in builders.items()}
        self.code = tir.compile_object(functions, llvm_target(isa))
        with tempfile.TemporaryDirectory() as folder:
            self.library = Library(self.code, Path(folder))

    def run(
        self, plan: KernelPlan, inputs: list[np.ndarray], output: np.ndarray, cuts: int = 1
    ) -> np.ndarray:
        """Runs ``plan``; every step in ``cuts`` ranges, the last range first."""
        memory = self.memory(plan, inputs, output)
        for step, pointers in memory:
            edges = [step.work_items * i // cuts for i in range(cuts + 1)]
            for begin, end in reversed(list(pairwise(edges))):
                self.library.call(step.name_key, pointers, begin, end)
        return memory[-1][1][-1]

    def memory(self, plan: KernelPlan, inputs: list[np.ndarray], output: np.ndarray) -> list:
        """Each step with its arrays."""
        scratch = [aligned(np.full(size, 0xCD, np.uint8)) for size in plan.scratch]
        constants = {name: aligned(array) for name, array in plan.constants.items()}
        places = {("in", i): aligned(array) for i, array in enumerate(inputs)}
        places |= {("scratch", i): array for i, array in enumerate(scratch)}
        places |= {("const", name): array for name, array in constants.items()}
        places[("out", 0)] = aligned(output)
        return [(step, [places[arg] for arg in step.args]) for step in plan.steps]
