"""The default TIR of every op on ARM, against the references; all in one run of one program."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc import tir
from targets.isa import Isa
from tests.emulation.machine import Kernels
from tests.ops import (
    test_binary,
    test_cast,
    test_index,
    test_linear,
    test_logic,
    test_norm,
    test_pool,
    test_quant,
    test_reduce,
    test_resize,
    test_shape,
    test_softmax,
    test_unary,
)
from tests.ops.tir_harness import Case, arguments, compare, logical, lower
from tests.targets.running import MACHINES, isa_params, llvm_target

MODULES = (
    test_binary, test_cast, test_index, test_linear, test_logic, test_norm, test_pool, test_quant,
    test_reduce, test_resize, test_shape, test_softmax, test_unary,
)  # fmt: skip


def one_of_each(cases: list[Case]) -> list[Case]:
    """The last case of every op, which is one on codes where there are such."""
    return list({made.node.op: made for made in cases}.values())


def check(cases: list[Case], isa: Isa, folder) -> None:
    """Compiles the cases together, runs them on the level's machine and compares."""
    kernels = {f"k{i}": lower(made, f"k{i}", isa.lanes) for i, made in enumerate(cases)}
    code = tir.compile_object({n: k.func for n, k in kernels.items()}, llvm_target(isa))
    arrays, calls, results, dtypes = [], [], [], []
    for (name, kernel), made in zip(kernels.items(), cases, strict=True):
        read, written = arguments(made, kernel)
        first = len(arrays)
        arrays += [(array, 0, 64) for array in read]
        arrays += [(array, 0, array.dtype.itemsize) for array in written]
        results += range(first + len(read), len(arrays))
        dtypes += [array.dtype for array in written]
        half = kernel.items // 2
        which = list(range(first, len(arrays)))
        calls += [(name, which, 0, half), (name, which, half, kernel.items)]
    data = iter(Kernels(code, MACHINES[isa.name], folder).run(arrays, calls, results))
    of_type = iter(dtypes)
    for made in cases:
        written = [np.frombuffer(next(data), next(of_type)) for _ in made.node.outputs]
        compare(made, logical(made, written))


@pytest.mark.parametrize("isa", isa_params("armv7"))
def test_one_case_of_each(isa, tmp_path):
    check(one_of_each([c for m in MODULES for c in m.tir_cases()]), isa, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("isa", isa_params("neon", "armv7"))
def test_all_cases(isa, tmp_path):
    check([c for m in MODULES for c in m.tir_cases()], isa, tmp_path)
