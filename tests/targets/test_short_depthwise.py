"""Depthwise convolutions summed in 16 bits: at the very bound, and never without proof."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcc.analysis.accumulators import Bounds
from dlcc.ir import Affine, Graph
from dlcc.ops import build
from targets.cpu.levels import AVX2, LEVELS
from targets.kernels.depthwise import depthwise, depthwise_cost, result_bits
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue
from tests.lowering.graphs import affine, typed
from tests.targets.reference import conv_accumulators, finish
from tests.targets.running import Runner, isa_params
from tests.targets.test_depthwise_kernels import CASES, layers
from tests.targets.test_pair_rows import line, lowered
from tests.targets.test_sparse_rows import check

ANY = Bounds(0, 255)
MADD = ("sse4", "avx2", "avx512")


class ShortCase:
    """A layer whose results reach the ends of 16 bits.

    ``x``: the input; by default all codes are at one end of a byte.
    """

    def __init__(self, spec: ConvSpec, isa, seed: int = 0, x: np.ndarray | None = None) -> None:
        rng = np.random.default_rng(seed)
        zero = spec.in_zero_point
        taps = spec.kh * spec.kw
        reach = max(1, min(127, 2**16 // (256 * taps)))
        self.w = rng.integers(-reach, reach + 1, (spec.c, 1, spec.kh, spec.kw)).astype(np.int8)
        flat = self.w.reshape(spec.c, -1).astype(np.int64)
        ends = np.stack([flat * -zero, flat * (255 - zero)])
        low, high = np.minimum(ends.min(0), 0).sum(1), np.maximum(ends.max(0), 0).sum(1)
        top = rng.random(spec.c) < 0.5  # as far up, or down, as the bias can shift the range
        self.bias = np.where(top, 2**15 - 1 - high, -(2**15) - low).astype(np.int32)
        shape = (spec.n, spec.h, spec.w, spec.c)
        self.x = rng.choice([0, 255], shape).astype(np.uint8) if x is None else x
        acc = conv_accumulators(self.x, self.w, spec)
        factor = rng.uniform(1e-3, 4e-3, spec.c).astype(np.float32)
        ratio = rng.uniform(1, 40, spec.c).astype(np.float32)
        self.inputs, residual = [self.x], None
        if spec.epilogue.residual == "u8":
            residual = rng.integers(0, 256, acc.shape, dtype=np.uint8)
            self.inputs.append(residual)
        self.want = finish(acc, spec.epilogue, self.bias, factor, ratio, residual)
        self.plan = depthwise(spec, isa, self.w, self.bias, factor, ratio, short=ANY)
        self.out = np.full(acc.shape, 77, NUMPY[spec.epilogue.out])


def integer(spec: ConvSpec, zero_point: int) -> ConvSpec:
    epilogue = spec.epilogue if spec.epilogue != Epilogue() else Epilogue("u8", 3, 250, 100)
    return replace(spec, in_zero_point=zero_point, epilogue=epilogue)


@pytest.fixture(scope="module", params=isa_params(*MADD))
def table(request):
    """All cases planned for one ISA and compiled together."""
    cases = {
        (name, zero): ShortCase(integer(CASES[name], zero), request.param)
        for name, zero in product(CASES, (0, 131))
        if name != "int32-accumulator"
    }
    return cases, Runner([case.plan for case in cases.values()], request.param)


def test_against_numpy(table):
    cases, runner = table
    for (name, _), case in cases.items():
        slack = 64 if CASES[name].input_slack else 0
        assert len(np.unique(case.want)) > 5
        got = runner.run(case.plan, case.inputs, case.out, 3, slack=slack)
        np.testing.assert_array_equal(got, case.want)


@pytest.mark.parametrize("isa", isa_params("avx2"))
@pytest.mark.parametrize("zero", [0, 128, 255])
def test_at_the_very_bound(isa, zero):
    """Image 0 has the codes that give each channel its largest result, image 1 its smallest."""
    spec = ConvSpec(3, 3, 3, 37, 37, 3, 3, groups=37, in_zero_point=zero, epilogue=Epilogue("f32"))
    w = ShortCase(spec, isa).w[:, 0].transpose(1, 2, 0)
    x = np.stack([np.where(w > 0, 255, 0), np.where(w > 0, 0, 255), np.full(w.shape, zero)])
    case = ShortCase(spec, isa, x=x.astype(np.uint8))
    sums = conv_accumulators(case.x, case.w, spec) + case.bias
    assert {sums.max(), sums.min()} == {2**15 - 1, -(2**15)}
    assert result_bits(spec, case.w, case.bias, ANY) == 16
    got = Runner([case.plan], isa).run(case.plan, case.inputs, case.out)
    np.testing.assert_array_equal(got, case.want)


@given(spec=layers(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_no_result_leaves_the_proven_bits(spec, seed):
    rng = np.random.default_rng(seed)
    data = Bounds(*sorted(rng.choice(256, 2, replace=False).tolist()))
    spec = replace(spec, in_zero_point=int(rng.integers(data.low, data.high + 1)))
    w = rng.integers(-128, 128, (spec.c, 1, spec.kh, spec.kw))
    bias = rng.integers(-40000, 40000, spec.c)
    bits = result_bits(spec, w, bias, data)
    for _ in range(3):
        x = rng.choice([data.low, data.high], (spec.n, spec.h, spec.w, spec.c))
        sums = conv_accumulators(x, w, spec) + bias
        assert -(1 << (bits - 1)) <= sums.min()
        assert sums.max() < 1 << (bits - 1)


def test_nothing_is_planned_without_its_proof():
    spec = ConvSpec(1, 5, 5, 8, 8, 3, 3, groups=8, epilogue=Epilogue("u8"))
    w, factor = np.full((8, 1, 3, 3), 14, np.int8), np.ones(8, np.float32)
    bias = np.full(8, 2**15 - 1 - 255 * 9 * 14, np.int32)
    depthwise(spec, AVX2, w, bias, factor, short=ANY)
    bias[5] += 1
    with pytest.raises(ValueError, match="not proven to fit 16 bits"):
        depthwise(spec, AVX2, w, bias, factor, short=ANY)
    depthwise(spec, AVX2, w, bias, factor, short=Bounds(0, 254))


@pytest.mark.parametrize("name", MADD)
def test_short_sums_cost_less(name):
    spec = ConvSpec(1, 14, 14, 256, 256, 3, 3, groups=256, pads=(1, 1, 1, 1))
    isa = LEVELS[name]
    assert depthwise_cost(spec, isa, short=True) < depthwise_cost(spec, isa)


def depthwise_graph(reach: int) -> Graph:
    rng = np.random.default_rng(0)
    graph = Graph("net")
    x = graph.add_input("x", typed((1, 40, 9, 9), affine()))
    codes = rng.integers(-reach, reach + 1, (40, 1, 3, 3))
    codes[0] = reach
    encoding = Affine.symmetric(8, np.full(40, 0.01), 0)
    w = graph.add_constant((codes * 0.01).astype(np.float32), encoding=encoding, name="w")
    node = build(graph, "conv2d", [x, w], {"groups": 40, "pads": (1, 1, 1, 1)}, loc="layer")
    node.output.type = node.output.type.with_(encoding=affine())
    graph.set_outputs([node.output], ["y"])
    return graph


@pytest.mark.parametrize("isa", isa_params(*MADD))
def test_the_weights_decide(isa, tmp_path):
    program = lowered(depthwise_graph(12), isa.name)
    row = line(program, "layer")
    assert (row["kernel"], row["variant"]) == ("depthwise-16", "depthwise 16-bit sums")
    assert row["rejected"]["depthwise"].startswith("predicted")
    check(depthwise_graph(12), program, tmp_path / "net")
    program = lowered(depthwise_graph(120), isa.name)
    row = line(program, "layer")
    assert row["kernel"] == "depthwise"
    assert row["rejected"]["depthwise-16"] == "its sums take 20 bits"
    check(depthwise_graph(120), program, tmp_path / "wide")
