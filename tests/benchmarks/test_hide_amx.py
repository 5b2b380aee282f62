"""The seccomp filter: its instructions, run here one by one, and the system's answer under it."""

from __future__ import annotations

import errno
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.hide_amx import (
    ARCH_PRCTL,
    ARCH_REQ_XCOMP_PERM,
    AUDIT_ARCH_X86_64,
    filter_bytes,
)

ROOT = Path(__file__).parents[2]
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
ARCH_GET_FS = 0x1003


def verdict(number: int, arch: int, argument: int) -> int:
    """What the kernel's interpreter of classic BPF returns for a system call."""
    data = struct.pack("=IIQQ", number, arch, 0, argument)
    code = list(struct.iter_unpack("=HBBI", filter_bytes()))
    place, accumulator = 0, 0
    while True:
        operation, yes, no, operand = code[place]
        place += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x15:
            place += yes if accumulator == operand else no
        else:
            assert operation == 0x06
            return int(operand)


@pytest.mark.parametrize(
    ("number", "arch", "argument", "expected"),
    [
        (ARCH_PRCTL, AUDIT_ARCH_X86_64, ARCH_REQ_XCOMP_PERM, REFUSE),
        (ARCH_PRCTL, AUDIT_ARCH_X86_64, ARCH_GET_FS, ALLOW),
        (ARCH_PRCTL, 0x40000003, ARCH_REQ_XCOMP_PERM, ALLOW),  # i386 has another table of calls
        (1, AUDIT_ARCH_X86_64, ARCH_REQ_XCOMP_PERM, ALLOW),
    ],
)
def test_filter(number: int, arch: int, argument: int, expected: int) -> None:
    assert verdict(number, arch, argument) == expected


@pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="not Linux on x86-64"
)
def test_system_refuses_amx_and_nothing_else() -> None:
    code = (
        "import ctypes\n"
        "from benchmarks.peers.hide_amx import *\n"
        "hide_amx()\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"place = ctypes.c_ulong(); get = ctypes.c_ulong({ARCH_GET_FS})\n"
        "done = libc.syscall(ctypes.c_long(ARCH_PRCTL), get, ctypes.byref(place))\n"
        "print(done, place.value > 0)\n"
        "print(may_use_amx(), ctypes.get_errno())\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True", "False", str(errno.EPERM)]
