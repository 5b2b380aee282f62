"""Runs kernel plans on numpy arrays, and says which instruction sets this machine has."""

from __future__ import annotations

import ctypes
import mmap
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dlcc import tir
from dlcc.lowering.kernel import ARENA_SLACK, KernelPlan
from targets.cpu.levels import LEVELS, host_flags, supports
from targets.isa import Isa
from tests.tir.linking import Library

_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18
_PROT_NONE = 0


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


def guarded(array: np.ndarray, slack: int, align: int = 1) -> np.ndarray:
    """A copy of ``array`` that ends ``slack`` bytes before a page nobody may touch.

    With ``align`` > 1 the end is moved down until the start is aligned.
    """
    size = -(-array.nbytes // align) * align + slack
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    whole = np.frombuffer(memory, np.uint8)
    whole[:] = 0xFF  # NaN as bfloat16 and as float32
    end = pages * mmap.PAGESIZE
    fence = ctypes.c_void_p(whole.ctypes.data + end)
    assert ctypes.CDLL(None).mprotect(fence, ctypes.c_size_t(mmap.PAGESIZE), _PROT_NONE) == 0
    start = end - size
    view = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
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
        self,
        plan: KernelPlan,
        inputs: list[np.ndarray],
        output: np.ndarray,
        cuts: int = 1,
        slack: int = ARENA_SLACK,
    ) -> np.ndarray:
        """Runs ``plan``; every step in ``cuts`` ranges, the last range first.

        ``slack``: bytes that may be read after input 0 (and 1, where it is no residual).
        """
        memory = self.memory(plan, inputs, output, slack)
        for step, pointers in memory:
            edges = [step.work_items * i // cuts for i in range(cuts + 1)]
            for begin, end in reversed(list(pairwise(edges))):
                self.library.call(step.name_key, pointers, begin, end)
        return memory[-1][1][-1].copy()

    def memory(
        self, plan: KernelPlan, inputs: list[np.ndarray], output: np.ndarray, slack: int
    ) -> list:
        """Each step with its arrays. Touching a byte that is none of theirs is a segfault."""
        items = output.dtype.itemsize
        places = {("in", i): guarded(array, slack) for i, array in enumerate(inputs)}
        places[("out", 0)] = guarded(output, 0, items)
        for name, array in plan.constants.items():
            places[("const", name)] = guarded(array, ARENA_SLACK, 64)
        for i, size in enumerate(plan.scratch):
            places[("scratch", i)] = guarded(np.full(size, 0xCD, np.uint8), ARENA_SLACK, 64)
        for i, size in enumerate(plan.thread_scratch):
            places[("thread_scratch", i)] = guarded(np.full(size, 0xCD, np.uint8), 0, 64)
        return [(step, [places[arg] for arg in step.args]) for step in plan.steps]
