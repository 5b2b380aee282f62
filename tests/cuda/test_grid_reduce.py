"""Reductions, softmax over any axis and group normalisation on the emulated GPU."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.ir.encodings import BFLOAT16, DENSE, FLOAT16
from targets.kernels.grid_machine import Machine
from targets.kernels.grid_rows import View, rows_cost
from targets.rows.grid_reduce import GridGroupNormRow, GridReduceRow
from targets.rows.grid_rows import GridSoftmaxRow
from tests.cuda.running import GridRunner
from tests.ops.tir_harness import Operand, affine, case, constant, f32, physical, reference, u8

AMPERE = Machine(108, 1.4e9, mma=True, shared_bytes=163 << 10)
LONG, SHORT = (2, 5, 9, 37), (3, 70, 2, 3)


def reductions():
    made = {}
    for kind in ("mean", "sum", "max", "min", "l1", "l2", "sum_square", "prod"):
        for axes in ((3,), (1, 2), (0, 1, 2, 3)):
            attrs = {"axes": axes, "keepdims": kind != "sum"}
            made[f"{kind}-{axes}"] = case(f"reduce_{kind}", [f32(*LONG, scale=0.9)], attrs)
    hole = f32(3, 50)
    hole.array[1, 31] = np.nan
    made["nan"] = case("reduce_max", [hole], {"axes": (1,)})
    for layout in ("", "nhwc"):
        for shape in (LONG, SHORT):
            attrs = {"axes": (2, 3), "keepdims": True}
            x = u8(*shape, layout=layout)
            for out in (affine(0.02, 7), DENSE):
                name = f"pool-{layout}{shape}{out}"
                made[name] = case("reduce_mean", [x], attrs, out=out, layout=layout)
            made[f"max-{layout}{shape}"] = case(
                "reduce_max", [x], attrs, out=x.encoding, layout=layout
            )
    for op in ("argmax", "argmin"):
        hole = f32(4, 33, 6)
        hole.array[1, 20, 3] = np.nan
        for x in (hole, u8(4, 33, 6)):
            for axis, last in ((1, False), (2, True)):
                attrs = {"axis": axis, "keepdims": last, "select_last_index": last}
                made[f"{op}-{x.encoding.name}-{axis}"] = case(op, [x], attrs)
    for p, axis in ((1, 1), (2, -1)):
        x = f32(3, 40, 5)
        x.array[1] = 0
        x.array[2, 7, 2] = np.nan
        made[f"lp-{p}"] = case("lp_norm", [x], {"axis": axis, "p": p})
    return made


def group_norms():
    made = {}
    for layout in ("", "nhwc"):
        for groups in (1, 2, 6):
            for count in (0, 2):
                x = f32(2, 6, 5, 7, seed=groups, layout=layout)
                parts = [constant(f32(6, seed=s).array) for s in (1, 2)][:count]
                parts = [*parts, *[None] * (2 - count)]
                attrs = {"groups": groups, "epsilon": 1e-3}
                made[f"{layout}-{groups}-{count}"] = case(
                    "group_norm", [x, *parts], attrs, layout=layout
                )
    made["instance"] = case("instance_norm", [f32(2, 6, 15), None, None])
    return made


def softmaxes():
    made = {}
    for axis in (1, 2):
        for x, out in ((f32(2, 9, 7, 40, scale=4.0), DENSE), (u8(2, 9, 7, 40), affine(1 / 256))):
            made[f"{axis}-{out}"] = case("softmax", [x], {"axis": axis}, out=out)
    made["channels"] = case("softmax", [f32(2, 9, 7, 5, layout="nhwc")], {"axis": 2}, layout="nhwc")
    return made


def check(jobs) -> None:
    """``jobs``: rows, and the cases that each of them is to serve."""
    made = [(row, name, one) for row, cases in jobs for name, one in cases.items()]
    for row, name, one in made:
        assert not row.refuses(one.node), (name, row.refuses(one.node))
    plans = [row.plan(one.node) for row, _, one in made]
    runner = GridRunner(plans)
    for (_, name, one), plan in zip(made, plans, strict=True):
        want = physical(reference(one)[0], one.node.output.type)
        x = physical(one.arrays[0], one.node.input(0).type)
        results = [
            runner.run(plan, [x], np.zeros_like(want), reverse=reverse) for reverse in (False, True)
        ]
        np.testing.assert_array_equal(*results, err_msg=name)
        if x.dtype == np.float32 and want.dtype == np.float32:
            np.testing.assert_allclose(results[0], want, rtol=2e-5, atol=3e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(results[0], want, err_msg=name)


ROWS = ((GridReduceRow, reductions), (GridGroupNormRow, group_norms), (GridSoftmaxRow, softmaxes))


@pytest.mark.slow
@pytest.mark.parametrize(("row", "cases"), ROWS)
def test_against_the_reference(row, cases):
    check([(row(AMPERE), cases())])


def test_one_of_each_kind():
    """One place in memory and one type of each."""
    wanted = (
        "mean-(3,)",
        "l2-(1, 2)",
        f"pool-nhwc{SHORT}",
        "argmax-dense",
        "nan",
        "lp-1",
        "nhwc-2-2",
    )
    wanted += ("-2-2", "2-")
    jobs = [
        (row(AMPERE), {n: made for n, made in cases().items() if n.startswith(wanted)})
        for row, cases in ROWS
    ]
    assert all(cases for _, cases in jobs)
    check(jobs)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", [BFLOAT16, FLOAT16])
def test_short_floats(encoding):
    x = np.random.default_rng(1).standard_normal((2, 6, 9, 8)).astype(np.float32)
    given = Operand(encoding.encode(x)["values"], encoding)
    row, norm = GridReduceRow(AMPERE), GridGroupNormRow(AMPERE)
    reduced = case("reduce_mean", [given], {"axes": (2, 3), "keepdims": True})
    grouped = case("group_norm", [given, None, None], {"groups": 3}, out=encoding)
    plans = [row.plan(reduced.node), norm.plan(grouped.node)]
    runner = GridRunner(plans)
    for plan, made, room in zip(plans, (reduced, grouped), (2e-5, 2e-2), strict=True):
        (want,) = reference(made)
        got = runner.run(plan, made.arrays[:1], np.zeros_like(want))
        decode = made.node.output.type.encoding.decode
        real = [decode({"values": array}, want.shape) for array in (got, want)]
        np.testing.assert_allclose(*real, rtol=room, atol=room)


def test_refusals():
    row, norm = GridReduceRow(AMPERE), GridGroupNormRow(AMPERE)

    def why(op, x, attrs, **other):
        return row.refuses(case(op, [x], attrs, **other).node)

    assert "no neighbours" in why("reduce_sum", f32(3, 4, 5), {"axes": (0, 2)})
    assert "no sum of codes" in why("reduce_sum", u8(3, 4), {"axes": (1,)})
    assert "is quantised" in why("reduce_mean", f32(3, 4), {"axes": (1,)}, out=affine(0.1))
    whole = Operand(np.zeros((3, 4), np.int64))
    assert "float32 numbers" in why("reduce_max", whole, {"axes": (1,)})
    moved = why("reduce_sum", f32(2, 3, 4, 5, layout="nhwc"), {"axes": (0,)})
    assert "another order" in moved
    scale = f32(4)
    made = case("group_norm", [f32(2, 4, 5), scale, None], {"groups": 2})
    assert "not known at compile time" in norm.refuses(made.node)


def test_blocks_take_several_narrow_rows():
    """Global average pooling of channels that lie side by side reads 32 of them at once."""
    view = View.of(1, 49, 1280)
    assert (view.together, view.depth, view.blocks) == (32, 8, 40)
    assert View.rows(3, 5000).threads == 256
    assert rows_cost(View.rows(1, 1 << 20), AMPERE) > 10 * rows_cost(View.rows(1, 1 << 12), AMPERE)
