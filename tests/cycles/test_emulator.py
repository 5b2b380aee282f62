"""Counts of executed instructions by the plugin of the emulator."""

from __future__ import annotations

import shutil

import pytest

from dlcc.artifact.toolchain import Toolchain
from dlcc.cycles import emulator
from dlcc.cycles.code import basic_blocks, disassemble
from dlcc.cycles.mca import find_tools
from dlcc.errors import DlccError, ExitCode

TRIPLE = "aarch64-unknown-linux-gnu"
PROGRAM = """
#include <unistd.h>
void count(long n);
__asm__(".text\\n.global count\\n.type count, @function\\ncount:\\n"
        "1: subs x0, x0, #1\\n nop\\n b.ne 1b\\n ret\\n.size count, .-count\\n");
int main(void) {
  for (int phase = 0; phase < 3; phase++) {
    for (int i = 0; i < (phase == 2 ? 2 : 1); i++) count(1000);
    close(-77777);
  }
  return 0;
}
"""
needs_emulator = pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="no qemu-aarch64")


@needs_emulator
@pytest.mark.skipif(shutil.which("llvm-objdump") is None, reason="no llvm-objdump")
def test_every_instruction_of_a_known_loop_is_counted(tmp_path):
    (tmp_path / "loop.c").write_text(PROGRAM)
    Toolchain(TRIPLE, tmp_path).link_static("loop.c", "loop", {}, tmp_path, [])
    phases = emulator.count_phases("qemu-aarch64", [tmp_path / "loop"], tmp_path)
    runs = emulator.one_run(phases)
    functions = disassemble(find_tools().objdump, tmp_path / "loop", ["--mattr=+all"])
    blocks = [b for b in basic_blocks(functions, runs) if b.function == "count"]
    assert [(len(b.instructions), b.runs) for b in blocks] == [(3, 1000), (1, 1)]


@needs_emulator
def test_a_program_that_fails_is_told(tmp_path):
    (tmp_path / "fail.c").write_text("int main(void) { return 7; }")
    Toolchain(TRIPLE, tmp_path).link_static("fail.c", "fail", {}, tmp_path, [])
    with pytest.raises(DlccError, match="does not run in qemu-aarch64") as caught:
        emulator.count_phases("qemu-aarch64", [tmp_path / "fail"], tmp_path)
    assert caught.value.code == ExitCode.TARGET
    assert "status 7" in caught.value.why


def test_absent_emulators_are_told_with_the_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(DlccError, match="no qemu-aarch64") as caught:
        emulator.emulator_for(TRIPLE)
    assert "qemu-user" in caught.value.fix


def test_what_has_no_linux_is_refused():
    with pytest.raises(DlccError, match="cannot be counted"):
        emulator.emulator_for("thumbv8.1m.main-none-eabihf")
