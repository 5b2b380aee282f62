"""Bounds of the stack, held against what code really takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import dlcc
from dlcc.artifact import Artifact
from dlcc.artifact.stack import stack_bytes
from dlcc.artifact.stack.aarch64 import AArch64
from dlcc.artifact.stack.arm import A32, T32
from dlcc.artifact.stack.instruction import UnknownCode
from dlcc.artifact.stack.x86 import X86
from dlcc.inspection import inspect_artifact
from dlcc.objects.elf import ElfFile
from tests.emulation.machine import ARMV7, CORTEX_A72, Machine
from tests.runtime.programs import HERE, zig
from tests.test_end_to_end import small_net

NATIVE = Machine("", "", ("-target", "x86_64-linux-gnu.2.17"), "")
MACHINES = [
    pytest.param(NATIVE, id="x86"),
    pytest.param(CORTEX_A72, id="aarch64", marks=CORTEX_A72.missing),
    pytest.param(ARMV7, id="a32", marks=ARMV7.missing),
]
THUMB = replace(ARMV7, zig=(*ARMV7.zig, "-mthumb"))
TARGETS = {CORTEX_A72: "arm:neon", ARMV7: "armv7"}
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
@pytest.mark.parametrize("machine", [*MACHINES, pytest.param(THUMB, id="t32", marks=ARMV7.missing)])
def test_functions_take_what_is_said(machine: Machine, optimisation: str, tmp_path: Path) -> None:
    flags = [optimisation, "-fPIC", "-fno-stack-protector", "-fno-sanitize=all"]
    plain, program = tmp_path / "frames.o", tmp_path / "program"
    zig("cc", *machine.zig, *flags, "-c", HERE / "frames.c", "-o", plain)
    zig("cc", *machine.zig, *flags, "-DMEASURE", HERE / "frames.c", "-o", program)
    code = plain.read_bytes()
    taken = {name: int(n) for name, n in map(str.split, run(machine, program).splitlines())}
    assert len(taken) == 10
    for name, most in taken.items():
        bound = stack_bytes(code, name, CALLEES)
        if bound is None:  # a table of jumps that stands in the code
            assert name == "frame_switch", name
            assert machine in (ARMV7, THUMB)
            continue
        external = LIBC if name == "frame_copied" else 0
        assert most <= max(bound + ENTRY + external, taken["frame_none"]), (name, bound)
        if name != "frame_switch":  # which takes another of its ways
            assert bound - 300 <= most, (name, bound)
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
        dlcc.compile(small_net(), out, bits=8, target=TARGETS[machine], emit=("a",), name="net")
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
    assert X86().decode(bytes.fromhex("4d29c4"), 0).offset == 0  # sub r12, r8
    arm = {
        0xCB2963FF: (AArch64(), "sub sp, sp, x9"),
        0xE04DD001: (A32(), "sub sp, sp, r1"),
        0xE08FF100: (A32(), "add pc, pc, r0, lsl #2"),
        0x4485: (T32(), "add sp, r0"),
        0x0D01EBAD: (T32(), "sub.w sp, sp, r1"),
    }
    for word, (decoder, _) in arm.items():
        with pytest.raises(UnknownCode):
            decoder.decode(word.to_bytes(4, "little"), 0)


def test_code_of_arm_that_only_looks_like_it() -> None:
    """Neighbours of what moves the stack pointer or jumps, in the maps of instructions."""
    plain = (0xE752F315, 0xE320F000, 0xF57FF05B, 0xE35D0000, 0xF2400150, 0xE0010392)
    for word in plain:  # smmul, nop, dmb, cmp sp, NEON, mul
        found = A32().decode(word.to_bytes(4, "little"), 0)
        assert (found.kind, found.offset, found.targets) == ("next", 0, ())
    pop = bytes.fromhex("18bf70bd")  # it ne; popne {r4, r5, r6, pc}
    assert T32().decode(pop, 2).kind == "next"
    assert T32().decode(pop[2:], 0).kind == "end"
    loops = {
        "0ff009c0": ("branch", (-12,)),
        "4ef001e0": ("next", ()),
        "40f009c0": ("branch", (20,)),
    }
    for code, (kind, targets) in loops.items():  # le, dls, wls
        found = T32().decode(bytes.fromhex(code), 0)
        assert (found.kind, found.targets) == (kind, targets)
    table = bytes.fromhex("dfe800f0020304000000")  # tbb [pc, r0]: three targets
    assert T32().decode(table, 0).targets == (8, 10, 12)


def test_other_machines_are_not_known(kernels: bytes) -> None:
    other = bytearray(kernels)
    other[18] = 8  # MIPS
    assert stack_bytes(bytes(other), "relu", []) is None
    assert stack_bytes(kernels, "relu", []) is not None
