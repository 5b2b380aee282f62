"""The benchmark of compressed weights: masks, graphs, break-even."""

import numpy as np
import pytest

import dlcc
from benchmarks import compressed
from benchmarks.compressed import Row


def test_rows_have_the_dense_kernels_first_and_names_of_their_own():
    rows = list(compressed.rows_of(["fc", "conv"], ""))
    assert rows[:2] == [Row("fc", "dense", 32), Row("fc", "dense", 8)]
    assert len({row.folder for row in rows}) == len(rows)
    assert {row.pattern for row in compressed.rows_of(["fc"], "16x4-8")} == {"dense", "block16x4"}


def test_masks_have_the_blocks_of_the_pattern():
    mask = compressed.mask_of(Row("x", "block4x2", 8, 0.7), (8, 6, 3, 3), np.random.default_rng(0))
    blocks = np.moveaxis(mask, 1, -1).reshape(2, 4, 27, 2)
    assert np.all(blocks == blocks[:, :1, :, :1])
    assert 0.05 < mask.mean() < 0.6


@pytest.mark.parametrize("bits", [8, 32])
def test_the_graph_is_a_layer_with_sparse_weights(bits, monkeypatch):
    small = ("conv2d", (1, 4, 5, 5), (8, 4, 3, 3), {"pads": (1, 1, 1, 1)})
    monkeypatch.setitem(compressed.SHAPES, "conv", small)
    graph = compressed.graph_of(Row("conv", "block4x2", bits, 0.5))
    layer = graph.nodes[1]
    assert layer.op == "conv2d"
    assert layer.input(1).type.encoding.pattern == "block4x2"
    assert 0.2 < (layer.input(1).decoded() == 0).mean() < 0.8
    x = np.zeros((1, 4, 5, 5), np.uint8 if bits == 8 else np.float32)
    assert dlcc.execute(graph, {"x": x})["y"].shape == (1, 8, 1, 1)


@pytest.mark.parametrize("pattern", compressed.LOW_BITS)
def test_low_bits_hold_every_weight(pattern, monkeypatch):
    small = ("linear", (1, 40), (80, 40), {})
    monkeypatch.setitem(compressed.SHAPES, "fc", small)
    graph = compressed.graph_of(Row("fc", pattern, 8))
    stored = graph.nodes[-1].input(1)
    bits = 1 if pattern == "binary" else 2 if pattern == "ternary" else int(pattern[3:])
    assert len(np.unique(stored.decoded())) == (2 if bits == 1 else 2**bits - 1)
    assert stored.type.encoding.stored_bytes(stored.constant.parts) <= 400 * bits + 2 * 4 * 80
    assert dlcc.execute(graph, {"x": np.ones((1, 40), np.uint8)})["y"].dtype == np.uint8


@pytest.mark.parametrize("pattern", compressed.CODEBOOKS)
def test_codebooks_are_drawn_at_random(pattern, monkeypatch):
    monkeypatch.setitem(compressed.SHAPES, "fc", ("linear", (1, 9216), (16, 9216), {}))
    graph = compressed.graph_of(Row("fc", pattern, 32))
    stored = graph.nodes[-1].input(1)
    assert stored.decoded().shape == (16, 9216)
    assert stored.type.encoding == compressed.CODEBOOKS[pattern][0]
    assert dlcc.execute(graph, {"x": np.ones((1, 9216), np.float32)})["y"].shape == (1, 16)


def test_break_even_lies_where_the_times_cross():
    points = [(0.5, 30.0), (0.9, 10.0), (0.7, 20.0)]
    assert compressed.break_even(points, 15.0) == "80 %"
    assert compressed.break_even(points, 40.0) == "<50 %"
    assert compressed.break_even(points, 5.0) == "-"
    decoded = [(0.5, float("inf")), *points[1:]]
    assert compressed.break_even(decoded, 40.0) == "<70 %"


def test_decoded_weights_are_no_crossing():
    told = {key: {"weights": key} for key in ("dense", "decoded", "compressed")}
    found = {
        Row("conv", "dense", 32): (9.0, told["dense"]),
        Row("conv", "dense", 8): (3.0, told["dense"]),
        Row("conv", "block4x4", 8, 0.5): (2.9, told["decoded"]),
        Row("conv", "block4x4", 8, 0.9): (2.0, told["compressed"]),
    }
    crossed = {(p, b): at for p, b, at in compressed.crossings(found, "conv")}
    assert crossed["block4x4", 8] == ["<90 %", "<90 %"]
