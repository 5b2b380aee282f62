"""Kernels that fetch weights ahead: the same results, and only where weights are beyond L2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlcc import tir
from dlcc.lowering.kernel import KernelPlan
from targets.isa import Isa
from targets.kernels.conv import conv2d
from targets.kernels.spec import ConvSpec, Epilogue
from tests.targets.running import Runner, isa_params, llvm_target
from tests.targets.test_gemm_kernels import Case

LONG = ConvSpec(1, 1, 1, 4131, 280, in_zero_point=7)
"""A linear layer with 1.1 MB of weights, whose steps and channels leave tails."""

SHORT = replace(LONG, c=250, oc=4500)
"""As many weights in streams that are shorter than the distance fetched ahead."""

DEEP = ConvSpec(1, 7, 7, 130, 152, 3, 3, pads=(1, 1, 1, 1), in_zero_point=7)
"""Few pixels, several groups of channel blocks of different sizes, 180 KB of weights."""


def _on_vectors(*args):
    return conv2d(*args, amx=False)


def _assembly(plan: KernelPlan, isa: Isa) -> str:
    return tir.assembly({s.name_key: s.build() for s in plan.steps}, llvm_target(isa))


@pytest.mark.parametrize("isa", isa_params())
@pytest.mark.parametrize("spec", [LONG, SHORT], ids=["long", "short"])
def test_linear_layers_read_once(isa, spec):
    case = Case(spec, isa, plan=_on_vectors)
    case.check(Runner([case.plan], isa).run(case.plan, case.inputs, case.out))
    assert "prefetch" in _assembly(case.plan, isa)


@pytest.mark.parametrize("isa", isa_params("amx"))
@pytest.mark.parametrize("spec", [DEEP, LONG], ids=["deep", "long"])
def test_tiles_of_the_next_group(isa, spec):
    case = Case(spec, isa)
    case.check(Runner([case.plan], isa).run(case.plan, case.inputs, case.out))
    assert "prefetcht1" in _assembly(case.plan, isa)


READ_REPEATEDLY = replace(LONG, w=60)
"""As many weights, for several blocks of pixels."""


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni"))
@pytest.mark.parametrize(
    "spec",
    [replace(LONG, c=2000), replace(LONG, in_dtype="f32", epilogue=Epilogue("f32"))],
    ids=["within-l2", "float32"],
)
def test_other_layers_on_vectors_fetch_nothing(isa, spec):
    assert "prefetch" not in _assembly(Case(spec, isa).plan, isa)


@pytest.mark.parametrize("isa", isa_params("avx2"))
def test_widened_products_fetch_no_weights_that_are_read_repeatedly(isa):
    assert "prefetch" not in _assembly(Case(READ_REPEATEDLY, isa).plan, isa)


@pytest.mark.parametrize("isa", isa_params("avxvnni", "avx512vnni"))
def test_dot_products_fetch_the_next_steps_and_the_next_channels(isa):
    case = Case(READ_REPEATEDLY, isa)
    case.check(Runner([case.plan], isa).run(case.plan, case.inputs, case.out))
    code = _assembly(case.plan, isa)
    assert "prefetcht0" in code
    assert "prefetcht1" in code


@pytest.mark.parametrize("isa", isa_params("amx"))
@pytest.mark.parametrize(
    "spec", [replace(DEEP, c=40), replace(DEEP, h=40, w=40)], ids=["within-l2", "many-blocks"]
)
def test_other_layers_on_tiles_fetch_nothing(isa, spec):
    assert "prefetch" not in _assembly(Case(spec, isa).plan, isa)
