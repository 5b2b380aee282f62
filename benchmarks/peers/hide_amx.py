"""Hiding AMX from an engine: the system refuses the permission that every user of it must ask for.

Linux keeps the tile state disabled until a process calls ``arch_prctl(ARCH_REQ_XCOMP_PERM, 18)``
(Documentation/arch/x86/xstate.rst of the kernel); a tile instruction before that ends the process.
A seccomp filter that fails this call with EPERM therefore works on all engines alike, whatever
their own switches do, and an engine that used AMX all the same would crash rather than cheat.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

ARCH_REQ_XCOMP_PERM = 0x1023
XFEATURE_XTILEDATA = 18
ARCH_PRCTL = 158  # on x86-64
AUDIT_ARCH_X86_64 = 0xC000003E

_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2

Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, jump if true, jump if false, operand."""

FILTER: tuple[Instruction, ...] = (
    (_LOAD, 0, 0, _ARCH),
    (_JUMP_EQUAL, 0, 5, AUDIT_ARCH_X86_64),
    (_LOAD, 0, 0, _NUMBER),
    (_JUMP_EQUAL, 0, 3, ARCH_PRCTL),
    (_LOAD, 0, 0, _FIRST_ARGUMENT),
    (_JUMP_EQUAL, 0, 1, ARCH_REQ_XCOMP_PERM),
    (_RETURN, 0, 0, _FAIL | errno.EPERM),
    (_RETURN, 0, 0, _ALLOW),
)


def filter_bytes() -> bytes:
    """:data:`FILTER` as the kernel takes it."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in FILTER)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def hide_amx() -> None:
    """Install the filter in this process, for good, threads and children to come included.

    Raises:
        OSError: the system does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(filter_bytes(), len(filter_bytes()))
    program = _Program(len(FILTER), ctypes.addressof(code))
    zero = ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero) != 0 or (
        libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), ctypes.byref(program)) != 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def may_use_amx() -> bool:
    """Whether the system grants this process AMX; asking is what grants it."""
    libc = ctypes.CDLL(None, use_errno=True)
    request = (ctypes.c_long(ARCH_PRCTL), ctypes.c_ulong(ARCH_REQ_XCOMP_PERM))
    return bool(libc.syscall(*request, ctypes.c_ulong(XFEATURE_XTILEDATA)) == 0)
