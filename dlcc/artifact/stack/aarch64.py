"""Instructions of AArch64 that move the stack pointer or jump (Arm DDI 0487, section C4.1)."""

from __future__ import annotations

from dlcc.artifact.stack.instruction import SP, Instruction, UnknownCode

_SP = 31
_VECTOR_BYTES = 256
"""Bytes of the longest SVE vector that the architecture allows."""

# Pre-indexed stores and post-indexed loads with base sp: mask, value, bit and width of the signed
# immediate, its unit.
_INDEXED = (
    (0xFFC003E0, 0xA98003E0, 15, 7, 8),  # stp x, x
    (0xFFC003E0, 0xA8C003E0, 15, 7, 8),  # ldp x, x
    (0xFFC003E0, 0x6D8003E0, 15, 7, 8),  # stp d, d
    (0xFFC003E0, 0x6CC003E0, 15, 7, 8),  # ldp d, d
    (0xFFC003E0, 0xAD8003E0, 15, 7, 16),  # stp q, q
    (0xFFC003E0, 0xACC003E0, 15, 7, 16),  # ldp q, q
    (0xFFE00FE0, 0xF8000FE0, 12, 9, 1),  # str x
    (0xFFE00FE0, 0xF84007E0, 12, 9, 1),  # ldr x
    (0xFFE00FE0, 0xFC000FE0, 12, 9, 1),  # str d
    (0xFFE00FE0, 0xFC4007E0, 12, 9, 1),  # ldr d
    (0xFFE00FE0, 0x3C800FE0, 12, 9, 1),  # str q
    (0xFFE00FE0, 0x3CC007E0, 12, 9, 1),  # ldr q
)


def _signed(word: int, bit: int, width: int) -> int:
    value = word >> bit & ((1 << width) - 1)
    return value - (1 << width) if value >> (width - 1) else value


def _register(number: int) -> int:
    return SP if number == _SP else number


class AArch64:
    """See :class:`dlcc.artifact.stack.instruction.Decoder`."""

    frame_pointer = 29
    return_bytes = 0
    relocated_bytes = 0

    def decode(self, code: bytes, at: int) -> Instruction:
        """See the protocol."""
        word = int.from_bytes(code[at : at + 4], "little")
        return _jump(word, at) or _move(word) or Instruction(4)


def _jump(word: int, at: int) -> Instruction | None:
    if word & 0x7C000000 == 0x14000000:  # b, bl
        target = at + 4 * _signed(word, 0, 26)
        return Instruction(4, targets=(target,), kind="call" if word >> 31 else "jump")
    if word & 0xFF000000 == 0x54000000 or word & 0x7E000000 == 0x34000000:  # b.cond, cbz
        return Instruction(4, targets=(at + 4 * _signed(word, 5, 19),), kind="branch")
    if word & 0x7E000000 == 0x36000000:  # tbz
        return Instruction(4, targets=(at + 4 * _signed(word, 5, 14),), kind="branch")
    if word & 0xFE000000 == 0xD6000000:  # to a register
        call = word & 0xFFFFFC1F == 0xD63F0000
        returns = word & 0xFFFFFC1F == 0xD65F0000
        return Instruction(4, kind="call" if call else "end" if returns else "jump")
    if word & 0xFFE0001F in (0xD4200000, 0x00000000):  # brk, udf
        return Instruction(4, kind="end")
    return None


def _move(word: int) -> Instruction | None:
    """What changes or copies the stack pointer."""
    for mask, value, bit, width, unit in _INDEXED:
        if word & mask == value:
            return Instruction(4, offset=-unit * _signed(word, bit, width))
    into, base = word & 31, word >> 5 & 31
    if word & 0xBF800000 == 0x91000000 or word & 0xFF800000 == 0xD1000000:  # add, sub: immediate
        number = (word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0)
        lower = number if word >> 30 & 1 else -number
        return Instruction(4, _register(into), _register(base), lower)
    if word & 0xFF800000 == 0x92000000 and into == _SP:  # and sp, x, #immediate
        zeros = 64 - (word >> 10 & 63) - 1
        return Instruction(4, base=_register(base), align=1 << zeros)
    if word & 0xFFE0F800 == 0x04205000 and into == _SP:  # addvl
        if word >> 16 & 31 != _SP:
            raise UnknownCode("addvl of another register")
        return Instruction(4, offset=-_signed(word, 5, 6) * _VECTOR_BYTES)
    if word & 0xFFE0001F == 0xCB20001F:  # sub sp, x, x
        raise UnknownCode("a stack frame of a size that is computed")
    return None
