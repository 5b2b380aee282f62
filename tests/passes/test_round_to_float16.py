"""The float16 pass: what the range of half precision changes of what the bfloat16 pass does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.analysis.verify import verify
from dlcc.errors import DlccError
from dlcc.frontends.onnx_export import to_onnx
from dlcc.ir import BFLOAT16, FLOAT16, I64
from dlcc.ir.text import load, save
from passes import PassManager
from passes.pipelines import default_pipeline
from tests.passes.test_round_to_bfloat16 import refused, small

PASS = "round-to-float16"


def test_rounding_is_that_of_ieee_754() -> None:
    """Half to even, denormal numbers included; what is larger than the largest is infinite."""
    quantum = 2.0**-24  # of denormal numbers
    real = [0.5, 1.5, 2.5, 1023.5, 0.49, 1 / 3, np.nextafter(np.float32(0.5), 1)]
    got = FLOAT16.rounded(np.array(real, np.float32) * np.float32(quantum)) / quantum
    np.testing.assert_array_equal(got, [0, 2, 2, 1024, 0, 0, 1])
    steps = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 65504, 65519.996, 65520, -1e9], np.float32)
    want = [1, 1 + 2.0**-9, 65504, 65504, np.inf, -np.inf]
    np.testing.assert_array_equal(FLOAT16.rounded(steps), np.array(want, np.float32))
    assert np.isnan(FLOAT16.rounded(np.array([np.nan], np.float32))).all()
    assert (FLOAT16.largest, FLOAT16.stored_bytes(FLOAT16.encode(steps))) == (65504.0, 12)
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    np.testing.assert_array_equal(FLOAT16.rounded(finite.astype(np.float32)), finite)


def test_between_layers_and_nearer_than_bfloat16(net: Any, tmp_path: Path) -> None:
    graph = small(net)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    before, other = execute(graph, feed)["y0"], graph.copy()
    result = PassManager(PASS).run(graph)
    verify(graph)
    assert {n.loc for n in graph.nodes if n.output.type.is_float16} == {
        "stem", "relu", "point", "sum", "pool", "flat",
    }  # fmt: skip
    statistics = result.records[0].statistics
    assert statistics["float16_layers"] == 3
    assert 0 < statistics["max_weight_error"] <= 2**-11
    after = execute(graph, feed)["y0"]
    PassManager("round-to-bfloat16").run(other)
    assert 0 < np.abs(after - before).max() < np.abs(execute(other, feed)["y0"] - before).max()
    save(graph, tmp_path / "net.dlir")
    assert "f32[1,8,8,8]!float16<>" in (tmp_path / "net.dlir").read_text()
    np.testing.assert_array_equal(execute(load(tmp_path / "net.dlir"), feed)["y0"], after)


def test_layers_of_larger_weights_stay_float32(net: Any) -> None:
    x, wide = net.input(2, 4), np.ones((4, 4), np.float32)
    wide[0, :3] = (65520, -70000, 65504)
    y = net.op("linear", x, net.graph.add_constant(wide, name="w"), loc="wide")
    table = net.graph.add_constant(np.full((5, 4), 1e5, np.float32), name="table")
    rows = net.op("gather", table, net.input(2, name="i", dtype=I64), axis=0, loc="rows")
    graph = net.done(net.linear(net.op("add", y, rows, loc="sum"), 4, loc="fc"))
    result = PassManager(PASS).run(graph)
    reasons = refused(result)
    assert reasons["wide"] == (
        "2 of its weights are too large for float16 (up to 70000, 65504 is the largest)"
    )
    assert "20 of its weights" in reasons["rows"]
    layers = {n.loc: n for n in graph.nodes}
    assert layers["wide"].input(1).type.is_dense
    assert not layers["wide"].output.type.short_float
    assert layers["fc"].input(1).type.is_float16


def test_no_mix_with_bfloat16(net: Any) -> None:
    graph = net.done(net.linear(net.linear(net.input(2, 4), 4), 4))
    PassManager(PASS).run(graph)
    with pytest.raises(DlccError, match="float16 numbers is not written"):
        to_onnx(graph)
    value = graph.nodes[0].output
    value.type = value.type.with_(encoding=BFLOAT16)
    with pytest.raises(DlccError, match="multiplies bfloat16 and float16"):
        verify(graph)


def test_the_target_says_which_of_both_16_bits_means() -> None:
    assert default_pipeline(16).endswith(",round-to-bfloat16")
    assert default_pipeline(16, "float16").endswith(",round-to-float16")
