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
from targets import arm
from targets.arm import ARMV7_FAMILY, FAMILY
from targets.cpu.levels import LEVELS
from targets.isa import Isa, host_flags, supports
from tests.emulation.machine import (
    ARMV7,
    CORTEX_A72,
    CORTEX_A76,
    NEWEST,
    SVE256,
    Call,
    Kernels,
    Placed,
)
from tests.tir.linking import Library

_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18
_PROT_NONE = 0


def request_tiles() -> None:
    """Asks Linux for the AMX tile registers, once per process."""
    ctypes.CDLL(None).syscall(158, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)


Job = tuple[KernelPlan, list[np.ndarray], np.ndarray]
"""A plan, its inputs, and what its output holds before."""

ARM_LEVELS = {**arm.LEVELS, arm.ARMV7.name: arm.ARMV7, **arm.ARMV7_LEVELS}
MACHINES = {
    "neon": CORTEX_A72,
    "dotprod": CORTEX_A76,
    "i8mm": NEWEST,
    "sve256": SVE256,
    "armv7": ARMV7,
    "vfpv4": ARMV7,
}
"""Where kernels of an ARM level run: on the oldest machine that has it."""


def isa_params(*names: str) -> list:
    """pytest parameters of these levels; those that this machine lacks are skipped.

    Levels of ARM are emulated.
    """
    params = []
    for name in names or LEVELS:
        if name in ARM_LEVELS:
            marks = [pytest.mark.isa(name), MACHINES[name].missing]
            params.append(pytest.param(ARM_LEVELS[name], id=name, marks=marks))
            continue
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
    triple = "x86_64-unknown-linux-gnu"
    if isa.name in ARM_LEVELS:
        triple = (ARMV7_FAMILY if isa.arch == "armv7" else FAMILY).triple
    return tir.LLVMTarget(triple, isa.mcpu, isa.mattr)


class Runner:
    """Compiles plans (all functions at once) and runs them."""

    def __init__(self, plans: list[KernelPlan], isa: Isa) -> None:
        if isa.dot == "amx":
            request_tiles()
        builders = {s.name_key: s.build for plan in plans for s in plan.steps}
        functions = {key: build() for key, build in builders.items()}
        self.code = tir.compile_object(functions, llvm_target(isa))
        self.machine = MACHINES.get(isa.name)
        self.folder = tempfile.TemporaryDirectory()
        if self.machine is None:
            self.library = Library(self.code, Path(self.folder.name))
        else:
            self.kernels = Kernels(self.code, self.machine, Path(self.folder.name))

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
        if self.machine is not None:
            return self._emulated([(plan, inputs, output)], cuts, slack)[0]
        memory = self.memory(plan, inputs, output, slack)
        for step, pointers in memory:
            edges = [step.work_items * i // cuts for i in range(cuts + 1)]
            for begin, end in reversed(list(pairwise(edges))):
                self.library.call(step.name_key, pointers, begin, end)
        return memory[-1][1][-1].copy()

    def run_all(self, jobs: list[Job], cuts: int = 1, slack: int = ARENA_SLACK) -> list[np.ndarray]:
        """:meth:`run` of many plans: another machine is started only once."""
        if self.machine is not None:
            return self._emulated(jobs, cuts, slack)
        return [self.run(*job, cuts, slack) for job in jobs]

    def _emulated(self, jobs: list[Job], cuts: int, slack: int) -> list[np.ndarray]:
        """:meth:`run` on another machine, which checks the borders of arrays in the same way."""
        arrays: list[Placed] = []
        calls: list[Call] = []
        results = []
        for plan, inputs, output in jobs:
            places: dict = {("in", i): (array, slack, 1) for i, array in enumerate(inputs)}
            places[("out", 0)] = (output, 0, output.dtype.itemsize)
            for name, array in plan.constants.items():
                places[("const", name)] = (array, ARENA_SLACK, 64)
            for i, size in enumerate(plan.scratch):
                places[("scratch", i)] = (np.full(size, 0xCD, np.uint8), ARENA_SLACK, 64)
            for i, size in enumerate(plan.thread_scratch):
                places[("thread_scratch", i)] = (np.full(size, 0xCD, np.uint8), 0, 64)
            order = {key: len(arrays) + index for index, key in enumerate(places)}
            arrays += places.values()
            for step in plan.steps:
                edges = [step.work_items * i // cuts for i in range(cuts + 1)]
                which = [order[arg] for arg in step.args]
                calls += [(step.name_key, which, b, e) for b, e in reversed(list(pairwise(edges)))]
            results.append(calls[-1][1][-1])
        made = self.kernels.run(arrays, calls, results)
        shapes = [arrays[result][0] for result in results]
        return [
            np.frombuffer(data, array.dtype).reshape(array.shape)
            for data, array in zip(made, shapes, strict=True)
        ]

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
