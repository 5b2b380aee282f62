"""Costs of blocks by LLVM's scheduling models."""

from __future__ import annotations

import shutil

import pytest

from dlcc.cycles import mca
from dlcc.cycles.code import Instruction
from dlcc.errors import DlccError, ExitCode

pytestmark = pytest.mark.skipif(
    not any(shutil.which(f"llvm-mca{s}") for s in ("", "-14", "-15", "-16", "-19")),
    reason="no llvm-mca",
)
TRIPLE = "aarch64-unknown-linux-gnu"


def block(*lines: str) -> list[Instruction]:
    return [Instruction(4 * i, text) for i, text in enumerate(lines)]


def test_a_chain_costs_its_latency_and_independent_work_its_throughput():
    machine = mca.Machine(mca.find_tools(), TRIPLE, "cortex-a72", ())
    chain = block(*["fmul v0.4s, v0.4s, v1.4s"] * 8)
    apart = block(*[f"fmul v{i}.4s, v{i}.4s, v31.4s" for i in range(8)])
    costs = machine.costs([chain, apart])
    # LLVM's model of the A57 and A72: latency 5, and one multiplication of 128 bits a cycle
    assert costs.cycles[0] == pytest.approx(40, abs=1)
    assert costs.cycles[1] == pytest.approx(8, abs=1)
    assert costs.unknown == ()
    assert costs.model == "A57"


def test_long_blocks_are_repeated_less_often_and_keep_their_order():
    machine = mca.Machine(mca.find_tools(), TRIPLE, "cortex-a53", ())
    long = block(*[f"add x{i % 8}, x{i % 8}, x9" for i in range(800)])
    short = block("add x0, x0, x9")
    costs = machine.costs([short, long, short])
    assert costs.cycles[0] == costs.cycles[2] == pytest.approx(1, abs=0.1)
    assert costs.cycles[1] == pytest.approx(400, rel=0.05)  # two a cycle


def test_calls_cost_an_instruction_that_does_nothing():
    machine = mca.Machine(mca.find_tools(), TRIPLE, "cortex-a72", ())
    costs = machine.costs([block("bl 0"), block("ret"), block("blr x3")])
    assert all(0 < cycles < 1.5 for cycles in costs.cycles)


def test_unreadable_instructions_are_named():
    machine = mca.Machine(mca.find_tools(), TRIPLE, "cortex-a72", ())
    costs = machine.costs([block("frobnicate x1", "add x0, x0, #1")])
    assert costs.unknown == ("frobnicate x1",)
    assert costs.cycles[0] < 2


def test_unknown_cores_are_refused():
    with pytest.raises(DlccError, match="no scheduling model of cortex-a1") as caught:
        mca.Machine(mca.find_tools(), TRIPLE, "cortex-a1", ())
    assert caught.value.code == ExitCode.TARGET


def test_absent_tools_are_told_with_the_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    mca.find_tools.cache_clear()
    with pytest.raises(DlccError, match="no llvm-mca") as caught:
        mca.find_tools()
    assert "apt install" in caught.value.fix
