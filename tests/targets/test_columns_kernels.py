"""Convolutions over staged columns against numpy, and the stem layers that are served by them."""

from __future__ import annotations

import pytest

from targets.cpu.levels import AMX, AVX512VNNI
from targets.kernels.columns import columns_of, columns_refusal
from targets.kernels.conv import conv2d, conv_cost
from targets.kernels.spec import ConvSpec, Epilogue
from tests.targets.footprints import check_footprints
from tests.targets.running import Runner, isa_params
from tests.targets.test_gemm_kernels import Case

OUT = Epilogue("u8", 3, 250, 10)
SPECS = {
    "stem-3x3": ConvSpec(1, 23, 30, 3, 24, 3, 3, (2, 2), pads=(0, 0, 1, 1)),
    "stem-7x7": ConvSpec(2, 19, 21, 3, 64, 7, 7, (2, 2), pads=(3, 3, 3, 3)),
    "stem-5x5": ConvSpec(1, 28, 28, 1, 6, 5, 5, pads=(2, 2, 2, 2)),
    "no-borders": ConvSpec(1, 20, 17, 2, 16, 4, 3),
    "narrow": ConvSpec(1, 9, 3, 3, 17, 3, 2, pads=(1, 1, 1, 2)),
    "tall": ConvSpec(1, 49, 10, 1, 40, 10, 4, (2, 2), pads=(5, 1, 5, 1)),
    "dilated-rows": ConvSpec(1, 17, 12, 4, 32, 3, 3, dilation=(3, 1), pads=(3, 1, 3, 1)),
    "many-channels": ConvSpec(2, 20, 11, 3, 150, 3, 3, (1, 2), pads=(1, 1, 1, 1)),
    "wide-columns": ConvSpec(1, 24, 40, 3, 33, 11, 11, (4, 4), pads=(2, 2, 2, 2)),
    "most-padding": ConvSpec(1, 2, 2, 8, 16, 5, 5, pads=(4, 4, 4, 4)),
    "f32-out": ConvSpec(1, 9, 10, 16, 20, 3, 3, pads=(1, 1, 1, 1), epilogue=Epilogue("f32")),
}
SPECS = {
    name: ConvSpec(
        **{**spec.__dict__, "in_zero_point": 9, "epilogue": OUT}
        if spec.epilogue == Epilogue()
        else spec.__dict__
    )
    for name, spec in SPECS.items()
}


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("isa", isa_params("amx"))
def test_against_numpy(isa, amx):
    def plan(*args):
        return conv2d(*args, amx=amx, columns=True)

    cases = {name: Case(spec, isa, plan=plan) for name, spec in SPECS.items()}
    runner = Runner([case.plan for case in cases.values()], isa)
    for case in cases.values():
        for cuts in (1, 3):
            case.check(runner.run(case.plan, case.inputs, case.out, cuts))
        check_footprints(runner, case.plan, case.inputs, case.out)


def test_a_row_is_one_run_per_window():
    stage = columns_of(SPECS["stem-7x7"])
    assert (stage.column, stage.at_once, stage.part, stage.registers) == (21, 3, 16, 2)
    assert stage.bytes >= stage.columns * 21


def test_refusals():
    spec = SPECS["stem-3x3"]
    assert "permutation" in columns_refusal(spec, AVX512VNNI)
    assert columns_refusal(spec, AMX) == ""
    wide = ConvSpec(1, 9, 9, 32, 8, 3, 3)
    assert "96 bytes" in columns_refusal(wide, AMX)
    assert "no dense" in columns_refusal(ConvSpec(1, 9, 9, 8, 8, 1, 3), AMX)
    assert "may not be read" in columns_refusal(
        ConvSpec(1, 9, 9, 3, 8, 3, 3, input_slack=False), AMX
    )


def test_a_stem_of_many_kernel_rows_is_predicted_faster_so():
    spec = ConvSpec(1, 224, 224, 3, 64, 7, 7, (2, 2), pads=(3, 3, 3, 3), epilogue=OUT)
    assert conv_cost(spec, AMX, columns=True) < conv_cost(spec, AMX)
