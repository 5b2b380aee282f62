"""The runtime for GPUs on the emulated driver: runs, graphs, devices, failures."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import dlcc
from dlcc.artifact import Artifact
from dlcc.errors import DlccError, ExitCode
from tests.cuda.emulator import Emulator
from tests.cuda.programs import SHARED, rows_reference, some_rows


def test_runs(rows: Artifact, emulator: Emulator) -> None:
    before = emulator.allocations
    with dlcc.load(rows.folder) as model:
        for seed in range(3):
            x = some_rows(seed)
            assert np.array_equal(model(x), rows_reference(x))
        with emulator.reversed():
            assert np.array_equal(model(x), rows_reference(x))
        times = model.profile(x)
        assert [t.layer for t in times] == ["bias", "turn", "fold"]
        assert all(t.nanoseconds > 0 for t in times)
        assert model.threads == 1
    assert emulator.allocations == before


def test_one_graph_runs_all(rows: Artifact, emulator: Emulator) -> None:
    with dlcc.load(rows.folder) as model:
        before = {f: emulator.calls(f) for f in ("cuGraphLaunch", "cuLaunchKernel")}
        x = some_rows()
        model(x)
        model(x)
        assert emulator.calls("cuGraphLaunch") == before["cuGraphLaunch"] + 2
        assert emulator.calls("cuLaunchKernel") == before["cuLaunchKernel"]


def test_instances_share_weights_and_code(rows: Artifact, emulator: Emulator) -> None:
    with dlcc.load(rows.folder) as first:
        loads, allocations = emulator.calls("cuModuleLoadData"), emulator.allocations
        with dlcc.load(rows.folder) as second:
            assert emulator.calls("cuModuleLoadData") == loads
            assert emulator.allocations == allocations + 2  # arena, and inputs with outputs
            x = some_rows()
            assert np.array_equal(first(x), second(x))
        assert emulator.allocations == allocations


def test_two_instances_in_two_threads(rows: Artifact, emulator: Emulator) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        with dlcc.load(rows.folder) as model:
            for run in range(10):
                x = some_rows(10 * seed + run)
                if not np.array_equal(model(x), rows_reference(x)):
                    wrong.append(run)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("capability", "variant"), [("8.0", "sm_80"), ("8.9", "sm_80"), ("9.0", "sm_90")]
)
def test_the_best_variant_runs(
    rows: Artifact, emulator: Emulator, capability: str, variant: str
) -> None:
    with emulator.devices(capability), dlcc.load(rows.folder) as model:
        assert model.variant == variant
        assert np.array_equal(model(some_rows()), rows_reference(some_rows()))


@pytest.mark.parametrize("capability", ["7.5", "10.0"])
def test_another_architecture(rows: Artifact, emulator: Emulator, capability: str) -> None:
    with emulator.devices(capability), pytest.raises(DlccError) as caught:
        dlcc.load(rows.folder)
    assert caught.value.code == ExitCode.TARGET
    assert "the library is for sm_80, sm_90, and device 0 (Emulated GPU 0) is" in caught.value.why
    assert caught.value.fix == f"compile with --target cuda:sm_{capability.replace('.', '')}"


def test_no_device(rows: Artifact, emulator: Emulator) -> None:
    with emulator.devices(""), pytest.raises(DlccError, match="finds no GPU") as caught:
        dlcc.load(rows.folder)
    assert caught.value.code == ExitCode.TARGET


@pytest.mark.parametrize(
    ("function", "code", "text"),
    [
        ("cuModuleLoadData", 209, "no kernel image is available for execution on the device"),
        ("cuGraphInstantiateWithFlags", 1, "invalid argument"),
        ("cuFuncSetAttribute", 1, "CUDA_ERROR_INVALID_VALUE"),
        ("cuMemAlloc_v2", 2, "no device memory for the weights of 576 bytes"),
        ("cuEventCreate", 999, "an error of a newer driver, 999"),
    ],
)
def test_a_failure_to_start(
    rows: Artifact, emulator: Emulator, function: str, code: int, text: str
) -> None:
    before = emulator.allocations
    emulator.fail(function, code)
    with pytest.raises(DlccError, match=text):
        dlcc.load(rows.folder)
    assert emulator.allocations == before


@pytest.mark.parametrize("function", ["cuGraphLaunch", "cuStreamSynchronize"])
def test_a_failure_to_run(rows: Artifact, emulator: Emulator, function: str) -> None:
    with dlcc.load(rows.folder) as model:
        emulator.fail(function, 700)
        with pytest.raises(DlccError) as caught:
            model(some_rows())
        assert caught.value.why == (
            f"{function} failed: an illegal memory access was encountered "
            "(CUDA_ERROR_ILLEGAL_ADDRESS, 700)"
        )
        assert np.array_equal(model(some_rows()), rows_reference(some_rows()))


def test_the_manifest_tells_of_launches(rows: Artifact) -> None:
    assert rows.manifest["device"] == "cuda"
    assert rows.manifest["features"] == ["sm_80"]
    assert [v["features"] for v in rows.manifest["better"]] == [["sm_90"]]
    bias, turn, fold = rows.manifest["steps"]
    assert (bias["grid"], bias["block"]) == ([4, 1, 1], [128, 1, 1])
    assert [s["shared_bytes"] for s in (bias, turn, fold)] == [0, 512, SHARED]
    assert all(s["registers"] > 0 and s["local_bytes"] == 0 for s in (bias, turn, fold))
    assert all(s["code_bytes"] > 0 for s in (bias, turn, fold))


def test_stack_is_known(rows: Artifact) -> None:
    assert 0 < rows.manifest["stack_bytes"] < 8192
