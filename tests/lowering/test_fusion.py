"""Fused groups: the same bytes as one layer after the other, and golden decisions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import dlcc
from dlcc.artifact import write_artifact
from dlcc.driver import build_object
from dlcc.ir import Graph
from dlcc.lowering import fusion
from dlcc.lowering.bands import Accesses
from dlcc.lowering.fusion import Candidate, choose_groups
from dlcc.lowering.lower import lower
from dlcc.program import FusedStep
from targets import get_target
from tests.lowering.graphs import affine, conv, typed
from tests.targets.running import isa_params

KIB = 1 << 10


def block(graph, x, out, *, channels=24, stride=1, kernel=3, loc="b"):
    """expand - depthwise - project, with the skip where the shapes allow it."""
    hidden, pad, c = 3 * x.type.shape[1], kernel // 2, x.type.shape[1]
    wide = conv(graph, x, hidden, out=out, kernel=1, loc=f"{loc}.expand")
    deep = conv(
        graph,
        wide,
        hidden,
        out=out,
        kernel=kernel,
        groups=hidden,
        strides=(stride, stride),
        pads=(pad, pad, pad, pad),
        loc=f"{loc}.depthwise",
    )
    skip = x if stride == 1 and channels == c else None
    return conv(graph, deep, channels, out=out, kernel=1, residual=skip, loc=f"{loc}.project")


def network(*, integer: bool, height: int = 37, width: int = 33) -> Graph:
    """A stem, inverted residuals of all kinds, and plain convolutions, on an odd image."""
    out = affine() if integer else None
    graph = Graph("net")
    value = graph.add_input("x", typed((1, 3, height, width), out))
    pads = {"pads": (1, 1, 1, 1)}
    value = conv(graph, value, 24, out=out, loc="stem", **pads)
    value = block(graph, value, out, loc="one")
    value = block(graph, value, out, kernel=5, channels=20, loc="two")
    value = block(graph, value, out, stride=2, loc="three")
    value = conv(graph, value, 40, out=out, strides=(2, 1), loc="down", **pads)
    value = conv(graph, value, 16, out=out, dilations=(1, 2), loc="last", **pads)
    graph.set_outputs([value], ["y"])
    return graph


def small_cache(name: str, size: int):
    return replace(get_target(f"cpu:{name}"), l2_bytes=size)


def feed(graph, *, integer):
    shape, rng = graph.inputs[0].type.shape, np.random.default_rng(3)
    if integer:
        return rng.integers(0, 256, shape).astype(np.uint8)
    return rng.standard_normal(shape).astype(np.float32)


def outputs(program, folder, x):
    """Bytes of the output on 1 to 4 threads, each of a second run."""
    write_artifact(program, folder)
    for threads in (1, 2, 3, 4):
        with dlcc.load(folder, threads=threads) as model:
            model.run({"x": x})
            yield model.run({"x": x})["y"].tobytes()


@pytest.mark.parametrize("integer", [False, True], ids=["f32", "u8"])
@pytest.mark.parametrize("isa", isa_params("sse4", "avx2", "avx512vnni", "amx"))
def test_fused_and_plain_networks_give_the_same_bytes(isa, integer, tmp_path, monkeypatch):
    """With costs under which everything that fits is fused, for two sizes of windows."""
    graph = network(integer=integer)
    code: list[bytes] = []

    def build_once(functions, chosen):
        code.append(code[0] if code else build_object(functions, chosen))
        return code[0]

    monkeypatch.setattr(fusion, "OUTER_BANDWIDTH", 1e6)
    results = set()
    for kib in (0, 100, 1000):
        monkeypatch.setattr(fusion, "SHARE", kib / 4 if integer else kib)
        target = small_cache(isa.name, 1 * KIB)
        program = lower(graph, target, build_once, threads=4, fuse=kib > 0)
        fused = [s for s in program.steps if isinstance(s, FusedStep)]
        members = sum(len(s.members) for s in fused)
        assert members > 8 if kib else members == 0
        results.update(outputs(program, tmp_path / f"{kib}", feed(graph, integer=integer)))
    (result,) = results
    assert len(np.unique(np.frombuffer(result, np.uint8 if integer else np.float32))) > 50


def test_equal_input_gives_equal_programs():
    target = small_cache("avx2", 192 * KIB)
    first, second = (
        lower(network(integer=False), target, lambda *_: b"", threads=2) for _ in range(2)
    )
    assert first == second
    assert first.report == second.report


def test_the_arena_shrinks_and_the_report_names_the_groups():
    graph, target = network(integer=False, height=96, width=96), small_cache("avx2", 2048 * KIB)
    plain, fused = (
        lower(graph, target, lambda *_: b"", threads=1, fuse=fuse) for fuse in (False, True)
    )
    assert fused.arena_bytes < 0.6 * plain.arena_bytes
    report = fused.report["fusion"]
    steps = [s for s in fused.steps if isinstance(s, FusedStep)]
    assert [" + ".join(g["layers"]) for g in report["groups"]] == [s.layer for s in steps]
    assert any(
        "one.expand" in g["layers"] and "one.project" in g["layers"] for g in report["groups"]
    )
    assert plain.report["fusion"] == {"groups": [], "apart": []}


# -- decisions ---------------------------------------------------------------------------------


def rows_of(items, size):
    edges = np.arange(items + 1) * size // items
    return np.stack([edges[:-1], edges[1:]], 1)


def pointwise(index, items, size, **changes):
    """Step ``index`` of a chain: reads value ``index`` and writes value ``index + 1``."""
    spans = rows_of(items, size)
    fields = {
        "layer": f"l{index}",
        "touches": frozenset({index, index + 1}),
        "accesses": Accesses(items, {index: spans}, {index + 1: spans}),
        "seconds": 1e-4,
        "weight_bytes": 4 * KIB,
    }
    return Candidate(**fields | changes)


def decide(steps, size, *, cache=1 << 20, threads=1, ends=None):
    """Groups as (first, last) over the values between the steps."""
    inner = range(1, len(steps)) if ends is None else ends
    return choose_groups(steps, dict.fromkeys(inner, size), cache=cache, threads=threads)


def spans(found):
    return [(g.first, g.last) for g in found.groups]


BIG = 4 << 20


def test_large_values_are_fused_and_small_ones_are_not():
    assert spans(decide([pointwise(i, 64, BIG) for i in range(4)], BIG)) == [(0, 3)]
    small = decide([pointwise(i, 64, 64 * KIB) for i in range(4)], 64 * KIB)
    assert spans(small) == []
    assert set(small.apart) == {0, 1, 2}
    assert "stay in the cache" in small.apart[0]


def test_without_a_known_cache_nothing_is_fused():
    assert spans(decide([pointwise(i, 64, BIG) for i in range(3)], BIG, cache=0)) == []


def test_weights_that_fill_the_cache_keep_steps_apart():
    steps = [pointwise(i, 64, BIG, weight_bytes=400 * KIB) for i in range(3)]
    found = decide(steps, BIG)
    assert spans(found) == []
    assert "of weights" in found.apart[0]


def test_a_step_of_unknown_footprint_ends_a_group():
    steps = [pointwise(i, 64, BIG) for i in range(5)]
    steps[2] = pointwise(2, 64, BIG, accesses=None)
    found = decide(steps, BIG)
    assert spans(found) == [(0, 1), (3, 4)]
    assert "l2" in found.apart[1]


def test_a_value_that_is_needed_later_is_not_made_to_pass_through_a_window():
    steps = [pointwise(i, 64, BIG) for i in range(4)]
    steps.append(pointwise(4, 64, BIG, touches=frozenset({4, 5, 2})))
    steps[4] = replace(steps[4], accesses=None)
    found = decide(steps, BIG)
    assert spans(found) == [(0, 1), (2, 3)]


def test_a_band_that_does_not_fit_keeps_steps_apart():
    whole = np.tile(np.array([[0, BIG]]), (64, 1))
    steps = [pointwise(i, 64, BIG) for i in range(2)]
    steps[1] = replace(steps[1], accesses=Accesses(64, {1: whole}, {2: rows_of(64, BIG)}))
    found = decide(steps, BIG)
    assert spans(found) == []
    assert "bytes of windows" in found.apart[0]
