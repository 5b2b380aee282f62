"""Compiled networks give the same on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.driver import compile as compile_network
from dlcc.lowering.lower import prepare
from tests.emulation.machine import (
    ARMV7,
    CORTEX_A72,
    CORTEX_A76,
    NEWEST,
    SVE256,
    run_network,
    start_network,
)
from tests.test_end_to_end import feed_for, small_net

MACHINES = {
    "cortex-a72": (CORTEX_A72, "arm:neon"),
    "cortex-a76": (CORTEX_A76, "arm:dotprod"),
    "max": (NEWEST, "arm:i8mm"),
    "armv7": (ARMV7, "armv7"),
    "sve256": (SVE256, "arm:neoverse-v1"),
}


DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"


def digits(count: int) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(1)
    return [[rng.random((1, 1, 8, 8), dtype=np.float32)] for _ in range(count)]


def on_machines(*names: str) -> list:
    """pytest parameters; those with SVE are slow ones, as test_sve.py has a network for them."""
    return [
        pytest.param(
            *MACHINES[name],
            id=name,
            marks=[MACHINES[name][0].missing, *([pytest.mark.slow] if name == "sve256" else [])],
        )
        for name in names or MACHINES
    ]


@pytest.mark.parametrize(("machine", "target"), on_machines("cortex-a72", "armv7"))
def test_float_network(tmp_path, machine, target):
    graph = small_net()
    feeds = [feed_for(graph, seed) for seed in range(2)]
    want = [next(iter(dlcc.execute(graph, feed).values())) for feed in feeds]
    compile_network(graph, tmp_path / "net", target=target, bits=32)
    samples = [list(feed.values()) for feed in feeds]
    made = [run_network(tmp_path / "net", machine, samples, threads) for threads in (1, 2)]
    assert made[0] == made[1]
    got = np.frombuffer(made[0], np.float32).reshape(len(feeds), *want[0].shape)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("machine", "target"), on_machines("cortex-a72"))
def test_missing_features_are_refused_with_words(tmp_path, machine, target):
    graph = small_net()
    compile_network(graph, tmp_path / "net", target="arm:i8mm", bits=32)
    done = start_network(tmp_path / "net", machine, [list(feed_for(graph).values())])
    assert done.returncode == 3
    told = done.stderr.decode()
    assert "the library needs" in told
    assert "i8mm" in told
    assert "--target arm:neon" in told


@pytest.mark.parametrize(("machine", "target"), on_machines())
def test_integer_network_gives_the_bytes_of_the_reference(tmp_path, machine, target):
    samples = digits(8)
    made = compile_network(
        DIGITS,
        tmp_path / "net",
        target=target,
        bits=8,
        calibration=lambda: ({"image": x} for (x,) in samples),
    )
    graph = prepare(made.optimised.graph)
    want = [next(iter(dlcc.execute(graph, {"image": x}).values())) for (x,) in samples]
    assert len({y.tobytes() for y in want}) == len(samples)
    for threads in (1, 2):
        got = run_network(tmp_path / "net", machine, samples, threads)
        assert got == b"".join(y.tobytes() for y in want)


@pytest.mark.parametrize(
    ("machine", "variant"),
    [
        pytest.param(CORTEX_A72, "neon", id="cortex-a72", marks=CORTEX_A72.missing),
        pytest.param(CORTEX_A76, "dotprod", id="cortex-a76", marks=CORTEX_A76.missing),
        pytest.param(NEWEST, "i8mm", id="max", marks=NEWEST.missing),
    ],
)
def test_one_library_runs_the_best_variant_of_each_machine(fat, machine, variant):
    folder, samples, want = fat
    made = start_network(folder, machine, samples, 2)
    assert made.returncode == 0
    assert made.stderr.decode().split() == ["variant", variant]
    assert made.stdout == want
    if variant == "neon":
        done = start_network(folder, machine, samples, variant="dotprod")
        assert done.returncode == 3
        assert "variant dotprod needs" in done.stderr.decode()
    for other in ("neon", "dotprod")[: ("neon", "dotprod", "i8mm").index(variant)]:
        done = start_network(folder, machine, samples, variant=other)
        assert done.stderr.decode().split() == ["variant", other]
        assert done.stdout == want


@pytest.fixture(scope="module")
def fat(tmp_path_factory):
    """A library with all levels that pay, samples, and the reference's results."""
    folder, samples = tmp_path_factory.mktemp("fat") / "net", digits(4)
    made = compile_network(
        DIGITS, folder, target="arm", calibration=lambda: ({"image": x} for (x,) in samples)
    )
    graph = prepare(made.optimised.graph)
    want = [next(iter(dlcc.execute(graph, {"image": x}).values())) for (x,) in samples]
    return folder, samples, b"".join(y.tobytes() for y in want)
