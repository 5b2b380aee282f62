"""Kernels that skip zeros against decode-then-dense in numpy, on every ISA at hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from targets.cpu.levels import AVX2, AVX512VNNI, LEVELS
from targets.kernels import sparse_panel as sparse_panel_module
from targets.kernels.sparse_conv import sparse_conv, sparse_conv_cost
from targets.kernels.sparse_gather import refusal as gather_refusal
from targets.kernels.sparse_gather import sparse_gather
from targets.kernels.sparse_gemv import sparse_gemv, sparse_gemv_cost
from targets.kernels.sparse_layer import Layer
from targets.kernels.sparse_pack import column_places, entry_counts, find_entries, weight_matrix
from targets.kernels.sparse_panel import refusal as panel_refusal
from targets.kernels.sparse_panel import sparse_panel
from targets.kernels.sparse_tiles import sparse_tiles
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue
from tests.targets.footprints import check_footprints
from tests.targets.reference import conv_accumulators, finish
from tests.targets.running import ARENA_SLACK, ARM_LEVELS, Runner, isa_params

FLOAT_ULPS = 8
"""Bound of a float sum: so many ulps of the sum of the products' magnitudes."""


def zeros_of(rng, rows: int, columns: int, block: tuple[int, int], density: float) -> np.ndarray:
    """A random mask [rows, columns] of blocks."""
    r, c = block
    kept = rng.random((-(-rows // r), -(-columns // c))) < density
    return np.kron(kept, np.ones(block, bool))[:rows, :columns]


class SparseCase:
    """Random data for a spec with zeros in the weights, and the reference output."""

    def __init__(
        self,
        spec: ConvSpec,
        block: tuple[int, int],
        density: float,
        seed: int,
        *,
        worst: bool = False,
    ) -> None:
        """``worst``: codes and weights of the largest sums."""
        rng = np.random.default_rng(seed)
        self.spec, shape, integer = spec, (spec.n, spec.h, spec.w, spec.c), spec.in_dtype == "u8"
        kernel = (spec.oc, spec.kh, spec.kw, spec.c)
        mask = zeros_of(rng, spec.oc, spec.kh * spec.kw * spec.c, block, density).reshape(kernel)
        if integer:
            self.x = rng.integers(0, 256, shape, dtype=np.uint8)
            w = rng.integers(1, 128, kernel).astype(np.int8) * rng.choice([-1, 1], kernel)
            if worst:
                self.x, w = rng.choice(np.array([0, 255], np.uint8), shape), np.full_like(w, -128)
                self.x[..., : spec.c // 2] = 0
            self.bias = rng.integers(-3000, 3000, spec.oc).astype(np.int32)
            factor = rng.uniform(5e-4, 2e-3, spec.oc).astype(np.float32)
        else:
            self.x = rng.standard_normal(shape).astype(np.float32)
            w = rng.standard_normal(kernel).astype(np.float32)
            self.bias, factor = rng.standard_normal(spec.oc).astype(np.float32), None
        w = (w * mask).astype(np.float32 if factor is None else np.int8)
        self.w = np.ascontiguousarray(w.transpose(0, 3, 1, 2))
        self.factor, self.ratio = factor, rng.uniform(1, 40, spec.oc).astype(np.float32)
        acc = conv_accumulators(self.x, self.w, spec)
        self.inputs, kind = [self.x], spec.epilogue.residual
        if kind == "u8":
            self.inputs.append(rng.integers(0, 256, acc.shape, dtype=np.uint8))
        elif kind == "f32":
            self.inputs.append(rng.standard_normal(acc.shape).astype(np.float32))
        residual = self.inputs[1] if kind else None
        self.want = finish(acc, spec.epilogue, self.bias, factor, self.ratio, residual)
        self.out = np.full(acc.shape, 77, NUMPY[spec.epilogue.out])
        self.bound = None
        if not integer:
            magnitude = conv_accumulators(np.abs(self.x), np.abs(self.w), spec)
            magnitude += np.abs(self.bias) + (0 if residual is None else np.abs(residual))
            self.bound = FLOAT_ULPS * np.finfo(np.float32).eps * magnitude

    def planned(self, plan, isa):
        """The plan of a kernel for this case."""
        assert (self.factor is None) == (self.spec.in_dtype == "f32")
        layer = Layer(self.spec, self.w, self.bias, self.factor, self.ratio)
        return plan(layer, isa)

    def check(self, got: np.ndarray) -> None:
        """Bit for bit for integers, within the bound for f32."""
        if self.bound is None:
            np.testing.assert_array_equal(got, self.want)
        else:
            assert np.all(np.abs(got - self.want) <= self.bound)


def typed(spec: ConvSpec, dtype: str) -> ConvSpec:
    """``spec`` with u8 activations (zero point 7) or as the nearest f32 layer."""
    if dtype == "u8":
        return replace(spec, in_zero_point=7)
    residual = "f32" if spec.epilogue.residual else None
    return replace(spec, in_dtype="f32", epilogue=Epilogue("f32", -9, 11, residual=residual))


U8 = Epilogue("u8", 3, 250, 10)
GEMV = {
    "blocks-16x4": (ConvSpec(1, 1, 1, 208, 64, epilogue=U8), (16, 4)),
    "blocks-32x4-uneven": (ConvSpec(1, 1, 1, 203, 77, epilogue=U8), (32, 4)),
    "columns-of-16": (ConvSpec(1, 1, 1, 131, 100, epilogue=Epilogue("s8", -90, 99, -4)), (16, 1)),
    "few-outputs": (ConvSpec(1, 1, 1, 90, 5, epilogue=Epilogue("f32", -8.0, 9.0)), (4, 4)),
    "residual": (ConvSpec(1, 1, 1, 64, 48, epilogue=Epilogue("u8", 0, 255, 3, "u8", 9)), (16, 2)),
    "no-slack": (ConvSpec(1, 1, 1, 37, 33, epilogue=U8, input_slack=False), (8, 8)),
}


def check_all(cases: dict, plan, isa, cuts: tuple[int, ...]) -> None:
    """All cases on one machine, in each number of ranges."""
    plans = {key: case.planned(plan, isa) for key, case in cases.items()}
    runner = Runner(list(plans.values()), isa)
    for slack in (0, ARENA_SLACK):
        some = {k: case for k, case in cases.items() if case.spec.input_slack == (slack > 0)}
        jobs = [(plans[key], case.inputs, case.out) for key, case in some.items()]
        for count in cuts:
            made = runner.run_all(jobs, count, slack)
            for case, got in zip(some.values(), made, strict=True):
                case.check(got)


NEON_LEVELS = [name for name in ARM_LEVELS if name != "sve256"]
"""sve256 computes these layers as i8mm does."""


@pytest.mark.parametrize("isa", isa_params(*LEVELS, *NEON_LEVELS))
@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_gemv_against_numpy(isa, dtype):
    cases = {
        (name, density): SparseCase(typed(spec, dtype), block, density, 3)
        for name, (spec, block) in GEMV.items()
        for density in (0.0, 0.1, 0.5, 1.0)
    }
    check_all(cases, sparse_gemv, isa, (1, 3))


@pytest.mark.parametrize("isa", isa_params("neon", "armv7"))
def test_sums_of_the_lowest_weights_fit(isa):
    for cases, plan in ((GEMV, sparse_gemv), (CONV, sparse_conv)):
        spec, block = next(iter(cases.values()))
        worst = SparseCase(typed(spec, "u8"), block, 0.4, 1, worst=True)
        check_all({"worst": worst}, plan, isa, (1,))


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni"))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_gemv_of_any_shape(isa, data):
    k, n = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    block = data.draw(st.tuples(st.sampled_from([1, 4, 16, 32]), st.sampled_from([1, 2, 4])))
    spec = typed(ConvSpec(1, 1, 1, k, n, epilogue=U8), data.draw(st.sampled_from(["u8", "f32"])))
    case = SparseCase(spec, block, data.draw(st.floats(0, 1)), data.draw(st.integers(0, 99)))
    plan = case.planned(sparse_gemv, isa)
    case.check(Runner([plan], isa).run(plan, case.inputs, case.out, 2))


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([(1, 1), (4, 1), (4, 2), (4, 4), (2, 2)]),
    st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_entries_hold_every_weight_once(n, k, rows, cut, density):
    depth, pieces = cut
    rng = np.random.default_rng(n * k)
    matrix = rng.integers(1, 100, (n, k)) * (rng.random((n, k)) < density)
    entries = find_entries(matrix, rows, depth, pieces)
    np.testing.assert_array_equal(entries.counts, entry_counts(matrix, rows, depth, pieces))
    width, back = depth // pieces, np.zeros((n + rows, k + depth), np.int64)
    for row, (start, end) in enumerate(zip(entries.starts, entries.starts[1:], strict=False)):
        for entry in range(start, end):
            for piece in range(pieces):
                at = int(entries.columns[entry, piece])
                part = entries.values[entry, :, piece * width : (piece + 1) * width]
                back[row * rows : (row + 1) * rows, at : at + width] += part
    np.testing.assert_array_equal(back[:n, :k], matrix)
    assert not back[n:].any()
    assert not back[:, k:].any()


def test_places_of_columns():
    spec = ConvSpec(1, 5, 6, 3, 2, 2, 3, dilation=(2, 1), pads=(1, 0, 1, 2))
    weights = np.arange(2 * 3 * 2 * 3).reshape(2, 3, 2, 3)
    padded = np.arange(7 * 8 * 3).reshape(7, 8, 3)
    window = padded[0:3:2, 0:3].reshape(-1)
    np.testing.assert_array_equal(padded.reshape(-1)[column_places(spec, spec.padded[1])], window)
    by_hand = np.moveaxis(weights, 1, -1).reshape(2, -1)
    np.testing.assert_array_equal(weight_matrix(weights), by_hand)


def stored_bytes(plan) -> int:
    """Bytes of the weights of a plan: values, places, and what says whose they are."""
    return sum(plan.constants[name].nbytes for name in ("weight", "index", "groups"))


@pytest.mark.parametrize(("isa", "dtype"), [(AVX512VNNI, "u8"), (AVX512VNNI, "f32"), (AVX2, "u8")])
def test_gemv_stores_what_is_kept(isa, dtype):
    case = SparseCase(typed(ConvSpec(1, 1, 1, 2048, 512, epilogue=U8), dtype), (16, 4), 0.1, 1)
    kept = int(np.count_nonzero(case.w)) * case.w.itemsize
    places = kept // (16 * 4)  # 2 bytes of 64 at most, of 32 where two codes are multiplied
    assert stored_bytes(case.planned(sparse_gemv, isa)) <= kept + 4 * places + 16 * 32


def test_gemv_cost_falls_with_the_weights():
    spec = typed(ConvSpec(1, 1, 1, 1024, 512, epilogue=U8), "u8")
    costs = [
        sparse_gemv_cost(spec, AVX512VNNI, SparseCase(spec, (16, 4), density, 2).w)
        for density in (1.0, 0.5, 0.2, 0.05)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0] / 4


CONV = {
    "3x3": (ConvSpec(1, 9, 11, 16, 40, 3, 3, pads=(1, 0, 1, 2), epilogue=U8), (16, 4)),
    "1x1-many": (ConvSpec(1, 7, 9, 40, 130, epilogue=Epilogue("s8", -90, 99, -4)), (32, 4)),
    "strided": (ConvSpec(2, 8, 9, 12, 33, 3, 2, stride=(2, 1), pads=(1, 1, 0, 0)), (16, 4)),
    "dilated": (ConvSpec(1, 12, 9, 8, 64, 3, 3, dilation=(2, 3), pads=(2, 3, 2, 3)), (16, 4)),
    "rows": (ConvSpec(1, 1, 7, 37, 50, epilogue=U8, input_slack=False), (4, 2)),
    "residual": (ConvSpec(1, 6, 7, 64, 70, epilogue=Epilogue("u8", 9, 240, 9, "u8", 5)), (8, 8)),
}


@pytest.mark.parametrize("isa", isa_params(*LEVELS, *NEON_LEVELS))
@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_conv_against_numpy(isa, dtype):
    cases = {
        (name, density): SparseCase(typed(spec, dtype), block, density, 3)
        for name, (spec, block) in CONV.items()
        for density in (0.0, 0.3, 1.0)
    }
    check_all(cases, sparse_conv, isa, (1, 3))
    if isa.arch == "x86":
        case = cases["3x3", 0.3]
        plan = case.planned(sparse_conv, isa)
        check_footprints(Runner([plan], isa), plan, case.inputs, case.out)


def test_conv_cost_falls_with_the_weights():
    spec = typed(ConvSpec(1, 14, 14, 64, 64, 3, 3, pads=(1, 1, 1, 1), epilogue=U8), "u8")
    costs = [
        sparse_conv_cost(spec, AVX512VNNI, SparseCase(spec, (16, 4), density, 2).w)
        for density in (1.0, 0.5, 0.2, 0.05)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0] / 4


GATHER = {
    "scattered": (ConvSpec(1, 1, 1, 700, 40, epilogue=U8), (1, 1)),
    "codes-by-four": (ConvSpec(1, 1, 1, 203, 50, epilogue=Epilogue("f32", -8.0, 9.0)), (1, 4)),
    "blocks-4x4": (ConvSpec(1, 1, 1, 96, 70, epilogue=Epilogue("s8", -90, 99, -4)), (4, 4)),
    "residual": (ConvSpec(1, 1, 1, 64, 21, epilogue=Epilogue("u8", 0, 255, 3, "u8", 9)), (2, 4)),
    "no-slack": (ConvSpec(1, 1, 1, 37, 33, epilogue=U8, input_slack=False), (8, 1)),
}


@pytest.mark.parametrize("isa", isa_params(*[name for name in LEVELS if name != "sse4"]))
@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_gather_against_numpy(isa, dtype):
    cases = {
        (name, density): SparseCase(typed(spec, dtype), block, density, 3)
        for name, (spec, block) in GATHER.items()
        for density in (0.0, 0.002, 0.2, 1.0)
    }
    plans = {key: case.planned(sparse_gather, isa) for key, case in cases.items()}
    runner = Runner(list(plans.values()), isa)
    for key, case in cases.items():
        slack = ARENA_SLACK if case.spec.input_slack else 0
        for cuts in (1, 3):
            case.check(runner.run(plans[key], case.inputs, case.out, cuts, slack))


@pytest.mark.parametrize("isa", isa_params("avx2", "avx512vnni"))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_gather_of_any_shape(isa, data):
    k, n = data.draw(st.integers(1, 1200)), data.draw(st.integers(1, 40))
    block = data.draw(st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 4])))
    spec = typed(ConvSpec(1, 1, 1, k, n, epilogue=U8), data.draw(st.sampled_from(["u8", "f32"])))
    density = data.draw(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5]))
    case = SparseCase(spec, block, density, data.draw(st.integers(0, 99)))
    plan = case.planned(sparse_gather, isa)
    case.check(Runner([plan], isa).run(plan, case.inputs, case.out, 2))


def test_gathers_need_an_instruction_for_them():
    spec = ConvSpec(1, 1, 1, 64, 64)
    assert gather_refusal(spec, LEVELS["sse4"]) == "the instruction set cannot gather"
    assert not gather_refusal(spec, AVX2)
    assert "no product of one row" in gather_refusal(replace(spec, w=2), AVX2)


def test_gather_stores_two_bytes_a_code():
    case = SparseCase(typed(ConvSpec(1, 1, 1, 2048, 256, epilogue=U8), "u8"), (1, 1), 0.1, 1)
    kept = int(np.count_nonzero(case.w))
    assert stored_bytes(case.planned(sparse_gather, AVX512VNNI)) <= 2.1 * kept + 8 * 256


PLANES = {
    **{name: CONV[name] for name in ("3x3", "1x1-many", "strided", "dilated", "residual")},
    "rows": (ConvSpec(1, 1, 37, 40, 64, epilogue=Epilogue("f32", -8.0, 9.0)), (32, 4)),
    "wide": (ConvSpec(1, 3, 41, 4, 20, 3, 3, pads=(0, 2, 1, 1), epilogue=U8), (32, 4)),
    "images": (ConvSpec(2, 5, 18, 72, 32, 3, 3, (1, 2), pads=(1, 1, 1, 1), epilogue=U8), (32, 4)),
}


@pytest.mark.parametrize("isa", isa_params("amx"))
def test_tiles_against_numpy(isa):
    cases = {
        (name, density): SparseCase(replace(spec, in_zero_point=200), block, density, 3)
        for name, (spec, block) in PLANES.items()
        for density in ((0.0, 0.1, 1.0) if name == "3x3" else (0.2,))
    }
    plans = {key: case.planned(sparse_tiles, isa) for key, case in cases.items()}
    runner = Runner(list(plans.values()), isa)
    for key, case in cases.items():
        for cuts in (1, 3):
            case.check(runner.run(plans[key], case.inputs, case.out, cuts))


X86_LEVELS = ("sse4", "avx2", "avxvnni", "avx512vnni", "amx")


@pytest.mark.parametrize("isa", isa_params(*X86_LEVELS, "neon", "dotprod", "i8mm", "armv7"))
@pytest.mark.parametrize("dtype", ["u8", "f32"])
def test_panels_against_numpy(isa, dtype):
    blocks = {"3x3": (1, 1), "strided": (1, 4), "images": (4, 4), "dilated": (2, 4)}
    cases = {
        (name, density): SparseCase(typed(spec, dtype), blocks.get(name, (1, 1)), density, 3)
        for name, (spec, _) in PLANES.items()
        for density in ((0.0, 0.2) if name == "3x3" else (0.2,))
    }
    refused = {panel_refusal(case.spec, isa) for case in cases.values()}
    if dtype == "u8" and isa.dot == "madd":
        assert refused == {"the instruction set cannot multiply words of codes"}
        return
    assert refused == {""}
    plans = {key: case.planned(sparse_panel, isa) for key, case in cases.items()}
    runner = Runner(list(plans.values()), isa)
    jobs = [(plans[key], case.inputs, case.out) for key, case in cases.items()]
    for cuts in (1, 3):
        for case, got in zip(cases.values(), runner.run_all(jobs, cuts), strict=True):
            case.check(got)


@pytest.mark.parametrize("isa", isa_params("sse4", "avx2", "avx512vnni"))
@pytest.mark.parametrize("planes", [1, 3])
def test_panels_in_chunks_of_planes(isa, planes, monkeypatch):
    """Chunks that the last does not fill, and block rows without an entry in some of them."""
    monkeypatch.setattr(sparse_panel_module, "_chunk", lambda *_: planes)
    dtypes = ["f32"] if isa.dot == "madd" else ["u8", "f32"]
    cases = [
        SparseCase(typed(CONV[name][0], dtype), block, density, 5)
        for name, block in (("3x3", (1, 1)), ("residual", (4, 4)))
        for density in (0.01, 0.3)
        for dtype in dtypes
    ]
    plans = [case.planned(sparse_panel, isa) for case in cases]
    runner = Runner(plans, isa)
    for plan, case in zip(plans, cases, strict=True):
        case.check(runner.run(plan, case.inputs, case.out, 2))
