"""Runs kernel plans of GPUs on numpy arrays, by the emulator."""

from __future__ import annotations

import ctypes
from itertools import product

import numpy as np

from dlcc.codegen import device_source
from dlcc.cuda.nvrtc import compile_cubin
from dlcc.lowering.kernel import KernelPlan, KernelStep
from targets.cuda import ALIGNMENT, SLACK
from tests.cuda.emulator import add_module
from tests.targets.running import guarded

_UINT3 = ctypes.c_uint * 3


class Kernel(ctypes.Structure):
    """``emulated_kernel`` of emulator/kernel.h."""

    _fields_ = (
        ("parameters", ctypes.c_uint),
        ("registers", ctypes.c_uint),
        ("shared_bytes", ctypes.c_uint),
        ("max_threads", ctypes.c_uint),
        (
            "run",
            ctypes.CFUNCTYPE(
                ctypes.c_char_p,
                ctypes.c_void_p,
                _UINT3,
                _UINT3,
                _UINT3,
                ctypes.c_uint,
                ctypes.c_int,
            ),
        ),
    )


class GridRunner:
    """Compiles plans (all functions at once) and runs them, every array between guard pages.

    Attributes:
        source: the CUDA C++.
        cubin: what NVRTC makes of it.
    """

    def __init__(self, plans: list[KernelPlan], architecture: str = "sm_80") -> None:
        builders = {s.name_key: s.build for plan in plans for s in plan.steps}
        functions = {key: build() for key, build in builders.items()}
        self.source = device_source(functions)
        self.cubin = compile_cubin(self.source, architecture)
        self.library = ctypes.CDLL(str(add_module(self.cubin, self.source)))

    def run(
        self,
        plan: KernelPlan,
        inputs: list[np.ndarray],
        output: np.ndarray,
        *,
        reverse: bool = False,
        aligned: bool = False,
    ) -> np.ndarray:
        """Runs ``plan``, blocks and threads from the first to the last or the other way round.

        ``aligned``: inputs stand where arrays of the arena do, else they just end before a page.
        """
        places = {
            ("in", i): guarded(array, SLACK if aligned else 0, ALIGNMENT if aligned else 16)
            for i, array in enumerate(inputs)
        }
        places[("out", 0)] = guarded(output, 0, 16)
        for name, array in plan.constants.items():
            places[("const", name)] = guarded(np.ascontiguousarray(array), SLACK, ALIGNMENT)
        for i, size in enumerate(plan.scratch):
            places[("scratch", i)] = guarded(np.full(size, 0xCD, np.uint8), SLACK, ALIGNMENT)
        for step in plan.steps:
            self._launch(step, [places[arg] for arg in step.args], reverse)
        return places[("out", 0)].copy()

    def _launch(self, step: KernelStep, arrays: list[np.ndarray], reverse: bool) -> None:
        assert step.launch is not None
        kernel = Kernel.in_dll(self.library, f"dlcc_emulated_{step.name_key}")
        assert kernel.parameters == len(arrays)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        arguments = (ctypes.c_void_p * len(pointers))(*map(ctypes.addressof, pointers))
        grid, block = _UINT3(*step.launch.grid), _UINT3(*step.launch.block)
        blocks = list(product(*map(range, reversed(step.launch.grid))))
        for z, y, x in reversed(blocks) if reverse else blocks:
            size = step.launch.shared_bytes
            fault = kernel.run(arguments, grid, block, _UINT3(x, y, z), size, int(reverse))
            assert fault is None, fault.decode()
