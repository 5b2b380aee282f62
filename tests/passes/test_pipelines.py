"""The default pipeline on random networks: it verifies, converges and keeps the outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlcc.errors import DlccError
from dlcc.ir import F64
from passes import parse_pipeline, print_pipeline
from passes.pipelines import OPTIMISE, default_pipeline


def ops(graph: Any) -> list[str]:
    return [node.op for node in graph.nodes]


def test_the_text_is_canonical() -> None:
    assert print_pipeline(parse_pipeline(OPTIMISE)) == OPTIMISE
    assert all(not step.lossy for step in parse_pipeline(OPTIMISE))


def test_widths() -> None:
    assert default_pipeline(32) == OPTIMISE
    assert default_pipeline(8).startswith(OPTIMISE + ",quantize{")
    with pytest.raises(DlccError, match="no default pipeline for 7 bits"):
        default_pipeline(7)


def _layer(net: Any, x: Any, rng: Any) -> Any:
    c, size = x.type.shape[1], x.type.shape[2]
    flat = (c, size * size)
    same = {"pads": (1, 1, 1, 1)}
    choices = {
        "conv": lambda: net.conv(x, int(rng.choice([2, 4])), bias=bool(rng.integers(2)), **same),
        "depthwise": lambda: net.conv(x, c, groups=c, **same),
        "norm": lambda: net.norm(x),
        "relu": lambda: net.op("relu", x),
        "clip": lambda: net.op("clip", x, min=-1.0, max=1.5),
        "sigmoid": lambda: net.op("sigmoid", x),
        "mul": lambda: net.op("mul", x, net.random(1, c, 1, 1)),
        "div": lambda: net.op("div", x, net.random(c, 1, 1, positive=True)),
        "add": lambda: net.op("add", net.random(1, c, 1, 1), x),
        "sub": lambda: net.op("sub", x, net.random(1)),
        "self": lambda: net.op("add", x, net.conv(x, c, **same)),
        "twice": lambda: net.op("add", net.norm(net.conv(x, c, **same)), net.conv(x, c, 1)),
        "last": lambda: net.op(
            "transpose",
            net.op("relu", net.op("transpose", x, perm=(0, 2, 3, 1))),
            perm=(0, 3, 1, 2),
        ),
        "flat": lambda: net.op(
            "reshape", net.op("reshape", x, shape=flat), shape=(1, c, size, size)
        ),
        "padded": lambda: net.conv(net.op("pad", x, pads=(0, 0, 1, 1, 0, 0, 1, 1)), 4),
        "pool": lambda: net.op("max_pool2d", x, kernel=(3, 3), **same),
        "average": lambda: net.op("avg_pool2d", x, kernel=(3, 3), **same),
        "dead": lambda: (net.op("exp", x), x)[1],
        "transposed": lambda: net.norm(
            net.op("conv_transpose2d", x, net.random(c, 4, 3, 3), pads=(1, 1, 1, 1))
        ),
    }
    return choices[str(rng.choice(sorted(choices)))]()


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(net: Any, run: Any, seed: int) -> None:
    """In float64, so that a difference is a mistake and not rounding."""
    net.dtype, rng = F64, np.random.default_rng(seed)
    net.rng = rng
    x = net.input(1, 3, 6, 6)
    kept = []
    for _ in range(12):
        x = _layer(net, x, rng)
        if rng.integers(8) == 0:
            kept.append(x)
    head = net.op(
        "reduce_mean", net.op("transpose", x, perm=(0, 2, 3, 1)), axes=(1, 2), keepdims=False
    )
    graph = net.done(net.op("softmax", net.linear(head, 5)), x, *kept)
    before = len(graph.nodes)
    run(graph, OPTIMISE, tolerance=1e-10)
    assert len(graph.nodes) <= before
    assert "batch_norm" not in ops(graph)
    again = run(graph, OPTIMISE)
    assert not [r.name for r in again.records if r.modified]


def test_residual_network(net: Any, golden: Any) -> None:
    """A basic block whose shortcut is a slice and a pad (He et al. 2016, option A)."""
    x = net.input(1, 4, 8, 8)
    stem = net.op("relu", net.norm(net.conv(x, 4, bias=False, pads=(1,) * 4, loc="c1"), loc="n1"))
    y = net.conv(stem, 8, bias=False, pads=(1,) * 4, strides=(2, 2), loc="c2")
    y = net.op("relu", net.norm(y, loc="n2"), loc="r2")
    y = net.norm(net.conv(y, 8, bias=False, pads=(1,) * 4, loc="c3"), loc="n3")
    steps = {"starts": (0, 0), "ends": (8, 8), "axes": (2, 3), "steps": (2, 2)}
    short = net.op("pad", net.op("slice", stem, **steps), pads=(0, 2, 0, 0, 0, 2, 0, 0))
    y = net.op("relu", net.op("add", y, short, loc="sum"), loc="r3")
    y = net.op("avg_pool2d", y, kernel=(4, 4), loc="pool")
    y = net.linear(net.op("reshape", y, shape=(1, 8)), 10, loc="fc")
    golden(net.done(y), OPTIMISE)
