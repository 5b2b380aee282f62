"""Bounds of the stack, held against what code really takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import dlcc
from dlcc.artifact import Artifact
from dlcc.artifact.elf import ElfFile
from dlcc.artifact.stack import stack_bytes
from dlcc.artifact.stack.aarch64 import AArch64
from dlcc.artifact.stack.instruction import UnknownCode
from dlcc.artifact.stack.x86 import X86
from dlcc.inspection import inspect_artifact
from tests.emulation.machine import CORTEX_A72, Machine
from tests.runtime.programs import HERE, zig
from tests.test_end_to_end import small_net

NATIVE = Machine("", "", ("-target", "x86_64-linux-gnu.2.17"), "")
MACHINES = [
    pytest.param(NATIVE, id="x86"),
    pytest.param(CORTEX_A72, id="aarch64", marks=CORTEX_A72.missing),
]
CALLEES = ("callee_small", "callee_large")
ENTRY = 32
"""Bytes that getting into a function on a fresh stack takes."""
LIBC = 512
"""Bytes allowed to memcpy, locks and the like."""


def run(machine: Machine, program: Path, *arguments: object) -> str:
    command = [str(program), *map(str, arguments)]
    if machine is not NATIVE:
        command = [machine.qemu, "-L", machine.sysroot, "-cpu", machine.cpu, *command]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout


@pytest.mark.parametrize("optimisation", ["-O0", "-O2", "-Oz"])
@pytest.mark.parametrize("machine", MACHINES)
def test_functions_take_what_is_said(machine: Machine, optimisation: str, tmp_path: Path) -> None:
    flags = [optimisation, "-fPIC", "-fno-stack-protector", "-fno-sanitize=all"]
    plain, program = tmp_path / "frames.o", tmp_path / "program"
    zig("cc", *machine.zig, *flags, "-c", HERE / "frames.c", "-o", plain)
    zig("cc", *machine.zig, *flags, "-DMEASURE", HERE / "frames.c", "-o", program)
    code = plain.read_bytes()
    for line in run(machine, program).splitlines():
        name, taken = line.split()
        bound = stack_bytes(code, name, CALLEES)
        assert bound is not None, name
        external = LIBC if name == "frame_copied" else 0
        assert int(taken) <= bound + ENTRY + external, (name, bound)
        if name != "frame_switch":  # which takes another of its ways
            assert bound - 300 <= int(taken), (name, bound)
    assert stack_bytes(code, "frame_pointer", ["callee_small"]) < 1000
    assert stack_bytes(code, "unknown_size", []) is None
    assert stack_bytes(code, "unknown_depth", []) is None
    assert stack_bytes(code, "absent", []) is None


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for this machine, in 8 bits."""
    out = tmp_path_factory.mktemp("native") / "out"
    dlcc.compile(small_net(), out, bits=8, emit=("a", "o"), name="net")
    return out


@pytest.mark.parametrize("machine", MACHINES)
def test_a_run_takes_what_is_said(machine: Machine, native: Path, tmp_path: Path) -> None:
    out = native
    if machine is not NATIVE:
        out = tmp_path / "out"
        dlcc.compile(small_net(), out, bits=8, target="arm:neon", emit=("a",), name="net")
    bound = Artifact.open(out).manifest["stack_bytes"]
    flags = ["-DNAME=net", '-DHEADER="net.h"', "-I", out, HERE / "stack_user.c", out / "libnet.a"]
    zig("cc", *machine.zig, "-O1", *flags, "-lpthread", "-o", tmp_path / "program")
    for threads in (1, 2):
        taken = int(run(machine, tmp_path / "program", out / "net.weights", threads))
        assert bound / 4 <= taken <= bound + ENTRY + LIBC  # not all of a frame may be written
    assert f"| stack | {bound} |" in (out / "INTEGRATION.md").read_text()
    assert inspect_artifact(out).facts["stack_bytes"] == bound


def test_instructions_are_as_long_as_the_disassembler_has_them(native: Path) -> None:
    """Kernels with vectors, and the C around them."""
    tool = shutil.which("llvm-objdump") or shutil.which("objdump")
    if tool is None:
        pytest.skip("no objdump")
    path = native / "net.o"
    text = subprocess.run([tool, "-d", "-j", ".text", path], capture_output=True, text=True).stdout
    starts = {int(at, 16) for at in re.findall(r"^ *([0-9a-f]+):\t?", text, re.MULTILINE)}
    data = path.read_bytes()
    section = next(s for s in ElfFile(data).sections if s.name == ".text")
    code = data[section.offset : section.offset + section.size]
    assert len(starts) > 1000
    decoder, at, found = X86(), 0, set()
    while at < len(code):
        found.add(at)
        at += decoder.decode(code, at).size
    assert found - starts == set()


def test_code_that_moves_the_stack_unforeseeably() -> None:
    x86 = {
        "4829c4": "sub rsp, rax",
        "488b2424": "mov rsp, [rsp]",
        "5c": "pop rsp",
        "488d2404": "lea rsp, [rsp + rax]",
        "06": "push es: no such instruction",
    }
    for code in x86:
        with pytest.raises(UnknownCode):
            X86().decode(bytes.fromhex(code) + bytes(8), 0)
    with pytest.raises(UnknownCode, match="ends within"):
        X86().decode(b"\x48\x81", 0)
    assert X86().decode(bytes.fromhex("4d29c4"), 0).push == 0  # sub r12, r8
    sub_sp_x9 = (0xCB2963FF).to_bytes(4, "little")
    with pytest.raises(UnknownCode):
        AArch64().decode(sub_sp_x9, 0)


def test_other_machines_are_not_known(kernels: bytes) -> None:
    other = bytearray(kernels)
    other[18] = 8  # MIPS
    assert stack_bytes(bytes(other), "relu", []) is None
    assert stack_bytes(kernels, "relu", []) is not None
