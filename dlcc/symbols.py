"""Functions that object code may call: what every C library has, and the compiler's own library."""

from __future__ import annotations

LIBC = frozenset({"memcpy", "memmove", "memset"})
"""LLVM recognises such loops, and may call them unasked."""

MACOS = frozenset({"bzero", "memset_pattern4", "memset_pattern8", "memset_pattern16"})
"""The same of macOS."""

_AEABI = """
dadd dsub drsub dmul ddiv dcmpeq dcmplt dcmple dcmpge dcmpgt dcmpun
fadd fsub frsub fmul fdiv fcmpeq fcmplt fcmple fcmpge fcmpgt fcmpun
d2f f2d d2iz d2uiz d2lz d2ulz f2iz f2uiz f2lz f2ulz i2d ui2d l2d ul2d i2f ui2f l2f ul2f h2f f2h d2h
lmul llsl llsr lasr ldivmod uldivmod idiv uidiv idivmod uidivmod
memcpy memcpy4 memcpy8 memmove memmove4 memmove8 memset memset4 memset8 memclr memclr4 memclr8
"""

AEABI = frozenset(f"__aeabi_{name}" for name in _AEABI.split())
"""What 32-bit ARM has no instructions for: 64-bit division, float64 on small cores, ... (Run-time
ABI for the Arm Architecture, section 5). libgcc and compiler-rt both define it."""
