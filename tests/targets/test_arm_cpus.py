"""Every ARM core and board that can be named is one that LLVM knows and the runtime can check."""

from __future__ import annotations

import re

import pytest

from dlcc import tir
from dlcc.artifact.check import known_features
from dlcc.errors import DlccError, ExitCode
from targets import get_target
from targets.arm import ARMV7_FAMILY, FAMILY

TARGETS = [f.target(v) for f in (FAMILY, ARMV7_FAMILY) for v in f.variants()]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_kernels_compile_for_it(target):
    kb = tir.KernelBuilder("triple")
    x, y = kb.pointer("x", "float32"), kb.pointer("y", "int32")
    kb.store(y, 0, kb.lrint(kb.load(x, 0, 4) * kb.const(3.0, "float32", 4)))
    llvm = tir.LLVMTarget(target.triple, target.mcpu, target.mattr)
    code = tir.compile_object({"triple": kb.build()}, llvm)
    assert tir.undefined_symbols(code) == frozenset()
    assert set(target.features) <= known_features(target.triple)


@pytest.mark.parametrize("name", ["arm:cortex-x3", "arm:neoverse-v1"])
def test_no_instruction_is_taken_that_the_library_does_not_ask_for(name):
    target = get_target(name)
    assert "sve2" not in target.features
    kb = tir.KernelBuilder("square")
    x = kb.pointer("x", "int64")
    value = kb.load(x, 0, 4)
    kb.store(x, 0, value * value)  # a single instruction of SVE
    llvm = tir.LLVMTarget(target.triple, target.mcpu, target.mattr)
    assert not re.search(r"\bz\d+\.d", tir.assembly({"square": kb.build()}, llvm))


def test_unknown_cores_are_refused():
    with pytest.raises(DlccError, match="no target 'arm:cortex-a1'") as caught:
        get_target("arm:cortex-a1")
    assert caught.value.code == ExitCode.TARGET
    assert "cortex-a72" in caught.value.why
