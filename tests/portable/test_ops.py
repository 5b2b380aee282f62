"""The default TIR of every op as C, against the references; one file of C for a group of ops."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType

import pytest

from dlcc.tir.c99 import print_kernel
from tests.emulation.test_ops import MODULES, one_of_each
from tests.ops.tir_harness import Case, arguments, compare, logical, lower
from tests.portable.source import kernels


def check(cases: list[Case], folder: Path) -> None:
    """Prints the cases' kernels, compiles them without a warning, runs them and compares."""
    made = {f"k{i}": lower(one, f"k{i}", 1) for i, one in enumerate(cases)}
    printed = {name: print_kernel(name, k.func, k.items) for name, k in made.items()}
    library = kernels(printed, folder)
    for (name, kernel), one in zip(made.items(), cases, strict=True):
        read, written = arguments(one, kernel)
        library[name](*(ctypes.c_void_p(array.ctypes.data) for array in (*read, *written)))
        compare(one, logical(one, written))


def test_one_case_of_each(tmp_path: Path) -> None:
    check(one_of_each([case for module in MODULES for case in module.tir_cases()]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition("_")[2])
def test_all_cases(module: ModuleType, tmp_path: Path) -> None:
    check(module.tir_cases(), tmp_path)
