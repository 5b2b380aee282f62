"""Products summed in 16 bits: what is proven of them, and kernels at the very bound."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlcc.analysis.accumulators import Bounds
from targets.cpu.levels import AVX2, LEVELS
from targets.kernels.blocking import choose_blocking
from targets.kernels.conv import conv2d, conv_cost, geometry, pair_sums
from targets.kernels.pairs import PairSums, best_sums, proven_steps, separated
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue
from tests.targets.footprints import check_footprints
from tests.targets.reference import conv_accumulators, finish
from tests.targets.running import Runner, isa_params
from tests.targets.test_gemm_kernels import CASES, conv_specs
from tests.targets.test_gemm_kernels import typed as with_zero_point

ANY = Bounds(0, 255)
MADD = ("sse4", "avx2", "avx512")


def packed_of(rows: np.ndarray, runs: int, lanes: int = 1) -> np.ndarray:
    """Weights [channels, K] as one group [1, blocks, runs, steps, lanes, 4]."""
    split = rows.reshape(len(rows) // lanes, lanes, runs, -1, 4)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 1, 4))[None].astype(np.int8)


def instruction(codes: np.ndarray, packed: np.ndarray, length: int) -> np.ndarray:
    """What vpmaddubsw, vpaddw and vpmaddwd give for codes [runs, steps, 4] and one channel."""
    weights = packed[0, 0, :, :, 0].astype(np.int64)
    pairs = (codes.astype(np.int64) * weights).reshape(*codes.shape[:2], 2, 2).sum(-1)
    pairs = np.clip(pairs, -(1 << 15), (1 << 15) - 1)
    runs, steps, _ = pairs.shape
    if length > steps:
        pairs, steps = pairs.reshape(1, runs * steps, 2), runs * steps
    total = np.int64(0)
    for at in range(0, steps, length):
        sums = pairs[:, at : at + length].sum(axis=1).astype(np.int16)  # modulo 2^16
        total = total + sums.astype(np.int64).sum()
    return total


def worst_codes(packed: np.ndarray, data: Bounds) -> list[np.ndarray]:
    """Codes that make the sums of one channel as large, and as small, as can be."""
    positive = packed[0, 0, :, :, 0] > 0
    return [
        np.where(positive, data.high, data.low),
        np.where(positive, data.low, data.high),
    ]


# -- proofs ----------------------------------------------------------------------------------------


@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([(0, 255), (0, 127), (0, 15), (3, 200), (7, 7)]),
    st.sampled_from([127, 66, 40, 9, 2]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_what_is_proven_holds_and_nothing_less_would_do(runs, steps, ends, reach, seed):
    rng = np.random.default_rng(seed)
    data = Bounds(*ends)
    packed = packed_of(rng.integers(-reach, reach + 1, (1, runs * steps * 4)), runs)
    proven = proven_steps(packed, data)
    weights = packed[0, 0, :, :, 0].astype(np.int64)
    tried = [*worst_codes(packed, data)]
    tried += [rng.integers(ends[0], ends[1] + 1, weights.shape) for _ in range(4)]
    for codes in tried:
        if proven:
            assert instruction(codes, packed, proven) == (codes * weights).sum()
    if not proven:  # there are codes for which a pair saturates
        low, high = (np.minimum, np.maximum)
        ends_of = [f(weights * ends[0], weights * ends[1]) for f in (low, high)]
        sums = [e.reshape(-1, 2).sum(axis=1) for e in ends_of]
        assert sums[0].min() < -(1 << 15) or sums[1].max() >= 1 << 15


def test_every_code_of_a_small_layer():
    """Brute force: all codes of 2 bits, scaled to the ends of a byte, against all lengths."""
    rng = np.random.default_rng(0)
    values = (0, 85, 170, 255)
    found = set()
    for _ in range(60):
        packed = packed_of(rng.choice([-127, -64, -3, 1, 64, 65, 100], (1, 4)), 1)
        weights = packed[0, 0, :, :, 0].astype(np.int64)
        right = all(
            instruction(codes, packed, 1) == (codes * weights).sum()
            for codes in (np.array(c).reshape(1, 1, 4) for c in product(values, repeat=4))
        )
        assert right == (proven_steps(packed, ANY) == 1)
        found.add(right)
    assert found == {True, False}


@pytest.mark.parametrize(
    ("pair", "proven"),
    [
        ((64, 64), 1),
        ((64, 65), 0),
        ((-64, -64), 1),
        ((-65, -64), 0),
        ((127, -127), 1),
        ((1, 127), 1),
    ],
)
def test_the_bound_of_a_pair_is_exact(pair, proven):
    """255 * 128 = 32640 fits and 255 * 129 = 32895 does not; -32768 is -128.5 * 255."""
    assert proven_steps(packed_of(np.array([[0, 0, *pair]]), 1), ANY) == proven


def test_sums_may_be_as_long_as_they_fit():
    ones = np.ones((1, 4 * 64))
    assert proven_steps(packed_of(ones, 4), Bounds(0, 255)) == 64  # 2 * 64 * 255 = 32640
    assert proven_steps(packed_of(np.ones((1, 4 * 66)), 1), Bounds(0, 255)) == 16
    assert proven_steps(packed_of(np.ones((1, 4 * 66)), 3), Bounds(0, 255)) == 22
    assert proven_steps(packed_of(ones * 127, 4), Bounds(0, 255)) == 0
    assert proven_steps(packed_of(ones * 127, 4), Bounds(0, 1)) == 64
    one = packed_of(np.concatenate([ones, ones * 60]), 4, lanes=2)
    assert proven_steps(one, Bounds(0, 255)) == 1  # the widest channel decides


@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_separated_weights_add_up_and_fit(steps, blocks, seed):
    rng = np.random.default_rng(seed)
    rows = rng.integers(-128, 128, (blocks * 4, steps * 4))
    packed = packed_of(rows, 1, lanes=4)
    kept, extra = separated(packed, ANY)
    assert proven_steps(kept, ANY) >= 1
    total = kept.astype(np.int64)
    for block, (start, stop) in enumerate(zip(extra.starts, extra.starts[1:], strict=False)):
        for (run, step), weights in zip(
            extra.steps[start:stop], extra.weights[start:stop], strict=True
        ):
            assert weights.any()
            assert proven_steps(weights[None, None, None, None], ANY) == 1
            total[0, block, run, step] += weights
    np.testing.assert_array_equal(total, packed)
    sums = best_sums(packed, ANY)
    assert (sums.extra > 0) == (proven_steps(packed, ANY) == 0)
    assert sums.extra == len(extra.steps)


# -- kernels ---------------------------------------------------------------------------------------


class PairCase:
    """A layer whose weights and codes drive 16-bit sums to their ends."""

    def __init__(self, spec, isa, reach, data=ANY, steps=None, seed=0) -> None:
        rng = np.random.default_rng(seed)
        kernel = (spec.oc, spec.c // spec.groups, spec.kh, spec.kw)
        self.w = rng.integers(-reach, reach + 1, kernel).astype(np.int8)
        self.w[0] = np.where(rng.random(kernel[1:]) < 0.5, -reach, reach)
        self.x = rng.choice([data.low, data.high], (spec.n, spec.h, spec.w, spec.c), p=[0.2, 0.8])
        self.x = self.x.astype(np.uint8)
        acc = conv_accumulators(self.x, self.w, spec)
        spread = max(float(acc.std()), 1.0)
        bias = (rng.standard_normal(spec.oc) * spread - acc.mean(axis=(0, 1, 2))).astype(np.int32)
        scale = (2 if spec.epilogue.out == "f32" else 60) / spread
        factor = (rng.uniform(0.5, 1.5, spec.oc) * scale).astype(np.float32)
        ratio = rng.uniform(1, 40, spec.oc).astype(np.float32)
        self.inputs, residual = [self.x], None
        if spec.epilogue.residual == "u8":
            residual = rng.integers(0, 256, acc.shape, dtype=np.uint8)
        if spec.epilogue.residual == "f32":
            residual = rng.standard_normal(acc.shape).astype(np.float32)
        if residual is not None:
            self.inputs.append(residual)
        self.want = finish(acc, spec.epilogue, bias, factor, ratio, residual)
        self.sums = pair_sums(spec, isa, self.w, data)
        if steps is not None:
            assert not self.sums.extra
            self.sums = PairSums(min(steps, self.sums.steps), data=data)
        given = (spec, isa, self.w, bias, factor, ratio)
        self.plan = conv2d(*given, pairs=self.sums)
        self.out = np.full(acc.shape, 77, NUMPY[spec.epilogue.out])


WAYS = {
    "extra": {"reach": 127},
    "one": {"reach": 64, "steps": 1},
    "two": {"reach": 32, "steps": 2},
    "four": {"reach": 16, "steps": 4},
    "eight": {"reach": 2, "data": Bounds(0, 60), "steps": 8},
    "row": {"reach": 3, "data": Bounds(0, 31)},
    "all": {"reach": 2, "data": Bounds(0, 15)},
}


FEW = ("grouped-large", "linear-m5-f32-residual", "narrow", "residual-relu6")
"""Layers that are computed in all ways."""


def integer(name: str) -> ConvSpec:
    return with_zero_point(CASES[name], "u8")


@pytest.fixture(scope="module", params=isa_params(*MADD))
def table(request):
    """All cases in all ways planned for one ISA and compiled together."""
    isa = request.param
    ways = WAYS if isa.name == "avx2" else {k: WAYS[k] for k in ("extra", "all")}
    cases = {
        (name, way): PairCase(integer(name), isa, **ways[way])
        for name, way in product(CASES, ways)
        if way in ("extra", "all") or name in FEW
    }
    return cases, Runner([case.plan for case in cases.values()], request.param)


@pytest.mark.parametrize("name", CASES)
def test_against_numpy(table, name):
    cases, runner = table
    slack = 64 if CASES[name].input_slack else 0
    for case in (case for (of, _), case in cases.items() if of == name):
        assert len(np.unique(case.want)) > 5
        got = runner.run(case.plan, case.inputs, case.out, 3, slack=slack)
        np.testing.assert_array_equal(got, case.want)


def test_every_way_is_taken(table):
    cases, _ = table
    taken = {(case.sums.steps, case.sums.extra > 0) for case in cases.values()}
    assert (1, True) in taken
    if any(way == "two" for _, way in cases):
        assert {(n, False) for n in (1, 2, 4, 8)} <= taken
    wide = cases["wide", "all"]
    assert wide.sums.steps == 3 * 3 * 64 // 4
    assert wide.plan.kernel == "conv-pairs 16-bit sums of 576"


def test_extra_steps_are_told_by_constants_alone(table):
    cases, runner = table
    old = cases["wide", "extra"]
    isa = next(i for i in LEVELS.values() if set(old.plan.features) == set(i.vector_flags()))
    new = PairCase(integer("wide"), isa, 90, seed=4)
    assert new.sums.extra != old.sums.extra
    assert [s.name_key for s in new.plan.steps] == [s.name_key for s in old.plan.steps]
    np.testing.assert_array_equal(runner.run(new.plan, new.inputs, new.out), new.want)


def test_footprints(table):
    cases, runner = table
    case = cases["wide", "extra"]
    check_footprints(runner, case.plan, case.inputs, case.out)


@pytest.mark.parametrize("isa", isa_params("avx2"))
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(spec=conv_specs(), way=st.sampled_from(sorted(WAYS)))
def test_random_shapes(isa, spec, way):
    case = PairCase(spec, isa, **WAYS[way], seed=1)
    got = Runner([case.plan], isa).run(case.plan, case.inputs, case.out, 2)
    np.testing.assert_array_equal(got, case.want)


@pytest.mark.parametrize("isa", isa_params("avx2"))
def test_at_the_very_bound(isa):
    """All codes at an end and weights of their sign: sums of 2^15 - 1 and -2^15 in all 16 bits."""
    spec = ConvSpec(1, 1, 5, 128, 16, epilogue=Epilogue("f32"))
    row = np.full(128, 4)  # each of both halves: 64 * 4 * 127 = 32512
    row[:34] += np.tile([1, 1, 0, 0], 9)[:34]  # the first half: 32512 + 18 * 127 > 2^15
    row[:4] = [6, 6, 4, 4]
    short = np.where(np.arange(128) % 4 < 2, 4, 0)
    short[0] += 2  # 127 * 258 = 32766
    x = np.full((1, 1, 5, 128), 127, np.uint8)
    for sign in (1, -1):
        for weights, whole in ((short, True), (row, False)):
            w = np.zeros((16, 128, 1, 1), np.int8)
            w[:, :, 0, 0] = sign * weights
            sums = pair_sums(spec, isa, w, Bounds(0, 127))
            assert (sums.steps == 32) == whole
            bias, factor = np.zeros(16, np.int32), np.ones(16, np.float32)
            plan = conv2d(spec, isa, w, bias, factor, pairs=sums)
            got = Runner([plan], isa).run(plan, [x], np.zeros((1, 1, 5, 16), np.float32))
            np.testing.assert_array_equal(got, np.full(got.shape, sign * 127 * weights.sum()))


def test_nothing_is_planned_without_its_proof():
    spec = ConvSpec(1, 4, 4, 16, 16)
    w = np.full((16, 16, 1, 1), 60, np.int8)
    given = (spec, AVX2, w, np.zeros(16, np.int32), np.ones(16, np.float32))
    assert pair_sums(spec, AVX2, w, ANY) == PairSums(1)
    with pytest.raises(ValueError, match="sums of 2 steps are not proven"):
        conv2d(*given, pairs=PairSums(2))
    conv2d(*given, pairs=PairSums(2, data=Bounds(0, 120)))
    w[3, 0] = 90
    with pytest.raises(ValueError, match="sums of 1 steps are not proven"):
        conv2d(*given, pairs=PairSums(1))
    assert pair_sums(spec, AVX2, w, ANY) == PairSums(1, 1)


@pytest.mark.parametrize("name", MADD)
def test_cost_falls_with_longer_sums_and_rises_with_extra_steps(name):
    isa, spec = LEVELS[name], ConvSpec(1, 14, 14, 256, 256)
    costs = [conv_cost(spec, isa, pairs=PairSums(n)) for n in (64, 16, 8, 4, 2, 1)]
    costs += [conv_cost(spec, isa, pairs=PairSums(1, n)) for n in (100, 1000)]
    assert costs == sorted(costs)
    assert (
        costs[0] < costs[5] < conv_cost(spec, isa) < conv_cost(spec, isa, pairs=PairSums(1, 4000))
    )


@pytest.mark.parametrize("name", MADD)
def test_blocks_fit_the_registers(name):
    isa = LEVELS[name]
    for spec in CASES:
        geo = geometry(integer(spec), isa, pairs=PairSums(1))
        blocking, _ = choose_blocking(geo.gemm, geo.unit)
        cuts = (blocking.rows, blocking.cols, blocking.channels)
        rows, cols, blocks = (max(cut.sizes) for cut in cuts)
        assert rows * cols * blocks + blocks + geo.unit.spare <= isa.registers
