"""The arithmetic of limits, their file, and the program that measures them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dlcc.errors import DlccError, ExitCode
from dlcc.inspection import Layer, work_of
from dlcc.limits import NEEDS, Limits, Work, measure
from dlcc.limits.measure import READ_SIZES, limits_for, without_dips

AMX = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "amx_int8")
LIMITS = Limits(
    "a CPU",
    1,
    {"fp32.sse4": 10.0, "fp32.avx512": 80.0, "int8.avx512vnni": 400.0, "int8.amx": 3200.0,
     "bf16.amx": 1600.0},
    {100: 50.0, 1000: 20.0, 10_000: 4.0},
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "features", "rate"),
    [
        ("int8", AMX, 3200.0),
        ("int8", AMX[:-1], 400.0),
        ("fp32", AMX, 80.0),
        ("fp32", (), 10.0),
        ("bf16", AMX, 80.0),  # without the instructions, bf16 is computed in fp32
        ("bf16", (*AMX, "amx_bf16"), 1600.0),
    ],
)
def test_peak_that_the_code_may_use(kind: str, features: tuple[str, ...], rate: float) -> None:
    assert LIMITS.mac_rate(kind, features) == rate


def test_read_rate_of_the_memory_that_holds_the_data() -> None:
    sizes = (1, 100, 101, 1000, 10_000, 10**9)
    assert [LIMITS.read_rate(n) for n in sizes] == [50.0, 50.0, 20.0, 20.0, 4.0, 4.0]


def test_least_time_is_that_of_the_slower_resource() -> None:
    assert LIMITS.least_seconds(Work("int8", 6400, 0, 0), AMX, 0) == 2.0
    # 80 bytes of weights from among 5000, and 100 of activations from the first level
    assert LIMITS.least_seconds(Work("int8", 6400, 80, 100), AMX, 5000) == 80 / 4 + 100 / 50


def test_json() -> None:
    assert Limits.from_json(json.loads(json.dumps(LIMITS.to_json()))) == LIMITS


def test_smaller_data_is_never_slower() -> None:
    assert without_dips({1: 9.0, 2: 5.0, 4: 7.0, 8: 6.0}) == {1: 9.0, 2: 7.0, 4: 7.0, 8: 6.0}


@pytest.mark.parametrize(
    ("encoding", "kind"),
    [
        ("u8 x s8/axis0 x s32/axis0 -> u8", "int8"),
        ("u8 x u8 -> u8", "int8"),
        ("u8 x s8/axis0 -> f32", "int8"),
        ("f32 x f32 -> f32", "fp32"),
        ("f32 -> u8", "fp32"),
        ("bf16 x bf16 x f32 -> bf16", "bf16"),
        ("", "fp32"),
    ],
)
def test_work_of_a_layer(encoding: str, kind: str) -> None:
    layer = Layer("a", "conv2d", "k", "", encoding, (1,), 10, 7, None, 30)
    assert work_of(layer) == Work(kind, 7, 10, 30)
    assert work_of(layer).bytes == 40


def test_program_measures_every_loop_of_this_cpu(tmp_path: Path) -> None:
    limits = limits_for(1, tmp_path / "limits.json")
    assert "int8.sse4" in limits.macs
    assert set(limits.macs) <= set(NEEDS)
    assert min(limits.macs.values()) > 0
    assert tuple(limits.reads) == READ_SIZES
    assert list(limits.reads.values()) == sorted(limits.reads.values(), reverse=True)


def test_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fake(threads: int) -> Limits:
        calls.append(threads)
        return Limits("a CPU", threads, LIMITS.macs, LIMITS.reads)

    monkeypatch.setattr(measure, "measure", fake)
    file = tmp_path / "limits.json"
    assert limits_for(1, file) == limits_for(1, file)
    assert calls == [1]
    many = len(os.sched_getaffinity(0)) + 5
    assert limits_for(many, file).threads == many - 5
    assert len(json.loads(file.read_text())) == len(calls)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    limits_for(1)
    (tmp_path / "cache" / "dlcc" / "limits.json").write_text("not JSON")
    before = len(calls)
    assert limits_for(1).threads == 1  # a damaged cache is made anew
    assert len(calls) == before + 1


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"key": {"cpu": "x"}}'])
def test_file_of_something_else(tmp_path: Path, text: str) -> None:
    file = tmp_path / "limits.json"
    file.write_text(text)
    with pytest.raises(DlccError) as caught:
        limits_for(1, file)
    assert caught.value.code == ExitCode.DATA
    assert file.read_text() == text
