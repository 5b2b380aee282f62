"""The prune pass: patterns against brute force, scopes, thresholds, encodings, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import F64, Affine, Codebook, Graph, ResidualCodebook, Sparse, Ternary
from dlcc.ir.compressed import matrix_view
from passes import PassContext, PassManager, PipelineResult
from passes.compression.masks import Units, fitted_pattern
from tests.passes.conftest import Net

Array = np.ndarray[Any, Any]


def prune(graph: Graph, options: str, context: PassContext | None = None) -> PipelineResult:
    return PassManager(f"prune{{{options}}}").run(graph, context or PassContext())


def weight(graph: Graph, index: int = 0) -> Array:
    return graph.nodes[index].input(1).decoded()


def pattern(graph: Graph, index: int = 0) -> str:
    encoding = graph.nodes[index].input(1).type.encoding
    assert isinstance(encoding, Sparse)
    return encoding.pattern


def refused(result: PipelineResult) -> dict[str, str]:
    return {r.loc: r.message for r in result.remarks if r.kind == "refused"}


def chain(net: Net) -> Graph:
    x = net.input(1, 8, 6, 6)
    y = net.conv(net.conv(x, 16, loc="a", pads=(1, 1, 1, 1)), 24, 1, loc="b")
    flat = net.op("reshape", y, shape=(1, 24 * 36))
    return net.done(net.linear(flat, 10, loc="c"))


def layers(graph: Graph) -> list[Array]:
    return [n.input(1).decoded() for n in graph.nodes if n.op in ("conv2d", "linear")]


def test_pruned_to_blocks(net: Net, golden: Any) -> None:
    golden(chain(net), "prune{sparsity=0.75 pattern=block8x4 exclude=c}")


def test_the_network_computes_with_what_remains(net: Net) -> None:
    graph = chain(net)
    dense = graph.copy()
    prune(graph, "sparsity=0.6")
    for node, twin in zip(dense.nodes, graph.nodes, strict=True):
        if node.op != "reshape":
            node.set_input(1, dense.add_constant(twin.input(1).decoded()))
    feed = {"x": np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)}
    np.testing.assert_array_equal(execute(graph, feed)["y0"], execute(dense, feed)["y0"])


# -- patterns ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 0.99), st.integers(0, 9))
def test_unstructured_drops_the_smallest(rows: int, columns: int, share: float, seed: int) -> None:
    net = Net(seed)
    graph = net.done(net.linear(net.input(1, columns), rows))
    before = weight(graph)
    prune(graph, f"sparsity={share!r}")
    after = weight(graph)
    dropped = min(round(share * before.size), before.size - 1)
    assert np.count_nonzero(after == 0) == dropped
    np.testing.assert_array_equal(after[after != 0], before[after != 0])
    if dropped:
        assert np.abs(before[after == 0]).max() <= np.abs(after[after != 0]).min()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 10), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9)
)
def test_blocks_of_the_least_energy_are_dropped(
    outputs: int, channels: int, r: int, c: int, seed: int
) -> None:
    net = Net(seed)
    graph = net.done(net.conv(net.input(1, channels, 4, 4), outputs))
    before = weight(graph)
    prune(graph, f"sparsity=0.5 pattern=block{r}x{c}")
    rows, after = matrix_view(before), matrix_view(weight(graph))
    energies, kept = [], []
    for i in range(0, rows.shape[0], r):
        for j in range(0, rows.shape[1], c):
            block, left = rows[i : i + r, j : j + c], after[i : i + r, j : j + c]
            assert not left.any() or np.array_equal(left, block)
            energies.append(float((block.astype(np.float64) ** 2).sum()))
            kept.append(bool(left.any()))
    assert kept.count(True) == max(1, len(kept) - round(0.5 * len(kept)))
    worst = min(e for e, k in zip(energies, kept, strict=True) if k)
    assert all(e <= worst for e, k in zip(energies, kept, strict=True) if not k)


def test_n_of_m_along_the_input_channels(net: Net) -> None:
    graph = net.done(net.conv(net.input(1, 8, 6, 6), 5))
    before = weight(graph)
    result = prune(graph, "pattern=2:4")
    groups = np.moveaxis(weight(graph), 1, -1).reshape(-1, 4)
    assert np.all(np.count_nonzero(groups, axis=1) == 2)
    largest = np.sort(np.abs(np.moveaxis(before, 1, -1).reshape(-1, 4)), axis=1)[:, 2:]
    np.testing.assert_array_equal(np.sort(np.abs(groups), axis=1)[:, 2:], largest)
    assert result.records[0].statistics["sparsity"] == 0.5


@pytest.mark.parametrize(("text", "share"), [("balanced", 4), ("balanced1", 1), ("balanced6", 6)])
def test_balanced_shares_hold_equal_counts(net: Net, text: str, share: int) -> None:
    graph = net.done(net.conv(net.input(1, 5, 6, 6), 12))
    before = matrix_view(weight(graph))
    prune(graph, f"sparsity=0.8 pattern={text}", PassContext(target={"sparse_rows": 8}))
    assert pattern(graph) == f"balanced{share}"
    after = matrix_view(weight(graph)).reshape(12 // share, -1)
    count = round(0.2 * 12 * 45 / (12 // share))
    assert np.count_nonzero(after, axis=1).tolist() == [count] * (12 // share)
    for old, new in zip(before.reshape(after.shape), after, strict=True):
        assert np.abs(old[new == 0]).max() <= np.abs(new[new != 0]).min()


@pytest.mark.parametrize(
    ("shape", "facts", "fitted"),
    [
        ((64, 32, 3, 3), {}, "block16x4"),
        ((64, 32, 3, 3), {"sparse_rows": 32, "sparse_columns": 4}, "block32x4"),
        ((10, 30), {"sparse_rows": 16, "sparse_columns": 4}, "block10x2"),
        ((32, 1, 3, 3), {"sparse_rows": 8, "sparse_columns": 4}, "block8x1"),
        ((7,), {}, "block7x1"),
    ],
)
def test_block_suits_layer_and_target(shape: Any, facts: Any, fitted: str) -> None:
    assert fitted_pattern("block", shape, facts) == fitted


@pytest.mark.parametrize("shape", [(6, 10), (5, 3, 2, 3)])
def test_columns_of_blocks(shape: tuple[int, ...]) -> None:
    units, depth = Units.of("block2x4", shape), math.prod(shape[1:])
    columns = units.columns
    assert sorted(columns[columns >= 0].tolist()) == list(range(depth))
    for block in units.places.reshape(-1, 8):
        own = {int(p) % depth for p in block if p >= 0}
        assert any(own == {int(c) for c in row if c >= 0} for row in columns)


def test_rows_compete_alone() -> None:
    scores = np.array([[9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 3.0, 4.0]])
    units = Units.of("unstructured", (2, 4), per_row=True)
    np.testing.assert_array_equal(units.kept(units.scores(scores), 4), [[1, 1, 0, 0], [0, 0, 1, 1]])
    blocks = Units.of("block2x2", (4, 4), per_row=True)
    assert blocks.places.shape == (2, 2, 4)


# -- how many ----------------------------------------------------------------------------------


def test_threshold(net: Net) -> None:
    graph = chain(net)
    before = layers(graph)
    prune(graph, "threshold=0.8")
    for old, new in zip(before, layers(graph), strict=True):
        np.testing.assert_array_equal(new, np.where(np.abs(old) >= 0.8, old, 0))


def test_deviations(net: Net) -> None:
    x = net.input(1, 20)
    w = net.rng.standard_normal((30, 20))
    y = net.op("linear", x, net.const(w), loc="a")
    z = net.op("linear", x, net.const(100 * w), loc="b")
    graph = net.done(y, z)
    prune(graph, "deviations=1.5")
    first, second = weight(graph, 0), weight(graph, 1)
    np.testing.assert_array_equal(first != 0, np.abs(w) >= 1.5 * w.std())
    np.testing.assert_array_equal(first != 0, second != 0)


def test_threshold_of_a_block_is_its_root_mean_square(net: Net) -> None:
    w = np.array([[3.0, 0.1, 1.0, 1.0], [0.1, 0.1, 1.0, -1.0]], np.float32)
    graph = net.done(net.op("linear", net.input(1, 4), net.const(w)))
    prune(graph, "threshold=1.2 pattern=block2x2")  # 1.5 and 1.0
    np.testing.assert_array_equal(weight(graph), w * np.array([1, 1, 0, 0]))


def test_global_scope_has_one_threshold(net: Net) -> None:
    x = net.input(1, 40)
    y = net.op("linear", x, net.const(net.rng.standard_normal((20, 40))), loc="large")
    z = net.op("linear", x, net.const(0.1 * net.rng.standard_normal((20, 40))), loc="small")
    graph = net.done(y, z)
    both = np.concatenate([weight(graph, 0), weight(graph, 1)])
    statistics = prune(graph, "sparsity=0.5 scope=global").records[0].statistics
    assert statistics["sparsity"] == 0.5
    after = np.concatenate([weight(graph, 0), weight(graph, 1)])
    assert np.abs(both[after == 0]).max() <= np.abs(after[after != 0]).min()
    assert np.count_nonzero(weight(graph, 0)) > 2 * np.count_nonzero(weight(graph, 1))


def test_global_scope_leaves_every_layer_something(net: Net) -> None:
    x = net.input(1, 40)
    y = net.op("linear", x, net.const(net.rng.standard_normal((20, 40))), loc="large")
    z = net.op("linear", x, net.const(1e-6 * net.rng.standard_normal((3, 40))), loc="small")
    graph = net.done(y, z)
    prune(graph, "sparsity=0.5 scope=global pattern=block1x4")
    assert np.count_nonzero(weight(graph, 1)) == 4


# -- encodings ---------------------------------------------------------------------------------


def test_bytes_are_those_of_the_weights_file(net: Net) -> None:
    graph = net.done(net.linear(net.input(1, 64), 32))
    statistics = prune(graph, "sparsity=0.75").records[0].statistics
    value = graph.nodes[0].input(1)
    assert value.constant is not None
    assert sum(a.nbytes for a in value.constant.parts.values()) == statistics["bytes_after"]
    assert statistics["bytes_after"] == 32 * 64 // 4 * 4 + 32 * 64 // 8
    assert statistics["bytes_before"] == 32 * 64 * 4


def test_what_is_smaller_dense_stays_dense(net: Net) -> None:
    graph = net.done(net.linear(net.input(1, 64), 32))
    result = prune(graph, "sparsity=0.01")
    assert graph.nodes[0].input(1).type.is_dense
    assert np.count_nonzero(weight(graph) == 0) == 20
    assert "dense, which is smaller" in result.remarks[0].message


def test_codes_stay_codes(net: Net) -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((12, 16)).astype(np.float32)
    for encoding in (
        Affine.symmetric(8, np.abs(values).max(axis=1) / 127, 0),
        Affine.symmetric(4, np.array([0.3]), None),
        Ternary((1.0,), (0.5,)),
        Codebook(3),
    ):
        net = Net()
        graph = net.done(
            net.op("linear", net.input(1, 16), net.graph.add_constant(values, encoding=encoding))
        )
        before = weight(graph)
        prune(graph, "sparsity=0.9")
        made, after = graph.nodes[0].input(1).type.encoding, weight(graph)
        assert isinstance(made, Sparse)
        assert made.inner == encoding
        assert np.count_nonzero(after) <= 19
        np.testing.assert_array_equal(after[after != 0], before[after != 0])


def test_pruned_again(net: Net) -> None:
    graph = net.done(net.linear(net.input(1, 64), 32))
    prune(graph, "sparsity=0.5")
    half = weight(graph)
    prune(graph, "sparsity=0.9 pattern=block4x4")
    assert pattern(graph) == "block4x4"
    after = weight(graph)
    np.testing.assert_array_equal(after[after != 0], half[after != 0])


def test_a_shared_weight_stays_shared(net: Net) -> None:
    x, w = net.input(2, 16), net.random(16, 16)
    y = net.op("linear", net.op("linear", x, w, loc="a"), w, loc="b")
    graph = net.done(y)
    result = prune(graph, "sparsity=0.5")
    assert graph.nodes[0].input(1) is graph.nodes[1].input(1)
    assert result.records[0].statistics["layers"] == 1


# -- refusals ----------------------------------------------------------------------------------


def test_layers_by_name(net: Net) -> None:
    graph = chain(net)
    result = prune(graph, "sparsity=0.5 only=[a,b] exclude=b")
    assert refused(result) == {"b": "excluded by option", "c": "not chosen by option"}
    assert [np.mean(w == 0) for w in layers(graph)] == [0.5, 0.0, 0.0]


def test_depthwise_layers_stay_unless_asked_for(net: Net) -> None:
    x = net.conv(net.input(1, 8, 6, 6), 8, groups=8, loc="depthwise", pads=(1, 1, 1, 1))
    x = net.conv(x, 8, groups=2, loc="grouped", pads=(1, 1, 1, 1))
    graph = net.done(net.op("conv_transpose2d", x, net.random(8, 1, 2, 2), groups=8, loc="up"))
    every = graph.copy()
    found = refused(prune(graph, "sparsity=0.5"))
    assert set(found) == {"depthwise", "up"}
    assert "carry a channel each" in found["depthwise"]
    assert [(w == 0).mean() for w in layers(graph)] == [0.0, 0.5]
    assert not refused(prune(every, "sparsity=0.5 depthwise"))
    assert [(w == 0).mean() for w in layers(every)] == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.parametrize(
    ("options", "shape", "why"),
    [
        ("pattern=2:4", (4, 6), "groups of 4 do not divide axis 1"),
        ("sparsity=0.5 pattern=balanced3", (4, 6), "shares of 3 do not divide 4 rows"),
        ("threshold=1e9", (4, 6), "none of its weights reaches 1e+09"),
        ("threshold=1e-9", (4, 6), "no weight would be dropped"),
        ("sparsity=0", (4, 6), "no weight would be dropped"),
    ],
)
def test_layers_that_stay(net: Net, options: str, shape: tuple[int, int], why: str) -> None:
    graph = net.done(net.linear(net.input(1, shape[1]), shape[0], loc="a"))
    before = str(graph)
    result = prune(graph, options)
    assert why in refused(result)["a"]
    assert str(graph) == before


def test_weights_that_cannot_be_pruned(net: Net) -> None:
    x = net.input(1, 8)
    bad = np.full((8, 8), np.nan, np.float32)
    tied = net.random(8, 8)
    residual = net.graph.add_constant(
        net.rng.standard_normal((8, 8)).astype(np.float32), encoding=ResidualCodebook(4, 2, 4)
    )
    y = net.op("linear", x, net.const(bad), loc="nan")
    y = net.op("linear", y, net.const(np.zeros((8, 8), np.float32)), loc="zero")
    y = net.op("linear", y, net.input(8, 8, name="other"), loc="given")
    y = net.op("linear", y, residual, loc="coded")
    y = net.op("linear", y, tied, loc="tied")
    graph = net.done(y, net.op("relu", tied, loc="reader"))
    assert refused(prune(graph, "sparsity=0.5")) == {
        "nan": "its weight holds NaN or infinite numbers",
        "zero": "its weight is all zero",
        "given": "its weight is not constant",
        "coded": "sparse: residual_codebook cannot be the inner encoding",
        "tied": "its weight is read by relu 'reader' too",
    }


def test_float64(net: Net) -> None:
    net.dtype = F64
    graph = net.done(net.linear(net.input(2, 8), 8))
    prune(graph, "sparsity=0.5")
    assert weight(graph).dtype == np.float64
    assert pattern(graph) == "unstructured"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "one of sparsity, threshold and deviations"),
        ("sparsity=0.5 threshold=1", "2 of them are"),
        ("sparsity=1", "no weight would be left"),
        ("sparsity=1.5", "must be a number from 0 to 1"),
        ("sparsity=-0.1", "must be a number from 0 to 1"),
        ("threshold=-1", "at least 0"),
        ("pattern=2:4 sparsity=0.5", "takes no sparsity"),
        ("pattern=2:4 scope=global", "takes no sparsity, threshold or scope"),
        ("threshold=0.1 scope=global", "goes with sparsity"),
        ("sparsity=0.5 pattern=4:2", "keeps more than there are"),
        ("sparsity=0.5 pattern=diagonal", "write unstructured, N:M"),
        ("sparsity=0.5 pattern=block0x4", "unknown pattern"),
        ("sparsity=0.5 only=conv9", "no layer matches 'conv9'"),
    ],
)
def test_mistakes(net: Net, options: str, words: str) -> None:
    graph = net.done(net.linear(net.input(1, 8), 8, loc="a"))
    with pytest.raises(DlccError) as error:
        prune(graph, options)
    assert words in str(error.value)
    assert error.value.code == ExitCode.USAGE


def test_small_layers_keep_one_weight(net: Net) -> None:
    graph = net.done(net.linear(net.input(1, 2), 1))
    prune(graph, "sparsity=0.99")
    assert np.count_nonzero(weight(graph)) == 1
    assert math.isclose(np.abs(weight(graph)).max(), np.abs(weight(graph)).sum())


def test_the_driver_tells_what_suits_the_target(net: Net) -> None:
    from dlcc.driver import CompileOptions, optimise
    from targets import get_target

    graph = net.done(net.linear(net.input(1, 32), 64))
    options = CompileOptions(passes="prune{sparsity=0.5 pattern=block}")
    avx2 = optimise(graph, options, target=get_target("cpu:avx2"))
    assert pattern(avx2.graph) == "block8x4"
    assert pattern(optimise(graph, options).graph) == "block16x4"
