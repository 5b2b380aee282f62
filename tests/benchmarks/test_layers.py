"""The table of limits, from layers with known times."""

from __future__ import annotations

from benchmarks.peers.layers import Profile, profile_table
from dlcc.inspection import Layer


def layer(name: str, microseconds: float, limit: float) -> Layer:
    return Layer(name, "conv2d", "gemm", "", "", (), 0, 0, microseconds * 1e-6, 0, limit * 1e-6)


def test_worst_layers_come_first() -> None:
    layers = (layer("a", 10, 9), layer("b", 10, 2), layer("c", 30, 9), layer("d", 5, 1))
    found = Profile("lenet5", "int8", 1, layers)
    assert [row.layer for row in found.worst()] == ["c", "b", "d"]
    assert profile_table([found]).splitlines()[2] == (
        "| lenet5 | int8 | 1 | 0.055 | 0.021 | 38.2 % "
        "| c 21 of 30 gemm; b 8 of 10 gemm; d 4 of 5 gemm |"
    )
