"""Instructions of 32-bit ARM that move the stack pointer or jump, in both encodings.

Arm DDI 0406, chapters A5 (A32, words of 4 bytes) and A6 (T32, words of 2 or 4).
"""

from __future__ import annotations

from dlcc.artifact.stack.instruction import SP, Instruction, Kind, UnknownCode

_SP, _LR, _PC = 13, 14, 15


def _signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) else value


def _register(number: int) -> int:
    return SP if number == _SP else number


def _moved(size: int, into: int, base: int, lower: int, align: int = 1) -> Instruction:
    return Instruction(size, _register(into), _register(base), lower, align)


def _popped(size: int, count: int, returns: bool, always: bool) -> Instruction:
    """Loaded from the stack; what only happens under a condition does not make it smaller."""
    if not always:
        return Instruction(size)
    return Instruction(size, offset=-count, kind="end" if returns else "next")


class A32:
    """See :class:`dlcc.artifact.stack.instruction.Decoder`."""

    frame_pointer = 11
    return_bytes = 0
    relocated_bytes = 0

    def decode(self, code: bytes, at: int) -> Instruction:
        """See the protocol."""
        word = int.from_bytes(code[at : at + 4], "little")
        always = word >> 28 >= 14
        if word >> 28 == 15 and word & 0x0E000000 != 0x0A000000:  # NEON, barriers, hints
            return Instruction(4)
        return _jump(word, at, always) or _block(word, always) or _arithmetic(word)


def _jump(word: int, at: int, always: bool) -> Instruction | None:
    onward: Kind = "jump" if always else "branch"
    if word & 0x0E000000 == 0x0A000000:  # b, bl, blx
        target = at + 8 + 4 * _signed(word & 0xFFFFFF, 24)
        call = word >> 24 & 1 or word >> 28 == 15
        return Instruction(4, targets=(target,), kind="call" if call else onward)
    if word & 0x0FFFFFF0 == 0x012FFF30:  # blx of a register
        return Instruction(4, kind="call")
    if word & 0x0FFFFFFF in (0x012FFF1E, 0x01A0F00E):  # bx lr, mov pc, lr
        return Instruction(4, kind="end" if always else "next")
    if word & 0x0FFFFFF0 == 0x012FFF10:  # bx
        return Instruction(4, kind="jump")
    if word & 0x0FF000F0 == 0x07F000F0:  # udf
        return Instruction(4, kind="end")
    loads = word & 0x0C10F000 == 0x0410F000 and word & 0x000F0000 != 0x000D0000
    loads = loads and word & 0x02000010 != 0x02000010  # what is not arithmetic (smmul)
    if loads or _computes(word, _PC):
        raise UnknownCode("a jump by a table")  # which may stand in the code
    return None


def _block(word: int, always: bool) -> Instruction | None:
    """Registers stored on the stack and loaded from it."""
    if word & 0x0FFF0000 == 0x092D0000:  # push
        return Instruction(4, offset=4 * (word & 0xFFFF).bit_count())
    if word & 0x0FFF0000 == 0x08BD0000:  # pop
        return _popped(4, 4 * (word & 0xFFFF).bit_count(), bool(word & 0x8000), always)
    if word & 0x0FFF0000 == 0x052D0000:  # str, pre-indexed
        return Instruction(4, offset=word & 0xFFF)
    if word & 0x0FFF0000 == 0x049D0000:  # ldr, post-indexed
        return _popped(4, word & 0xFFF, word >> 12 & 15 == _PC, always)
    if word & 0x0FBF0E00 == 0x0D2D0A00:  # vpush
        return Instruction(4, offset=4 * (word & 0xFF))
    if word & 0x0FBF0E00 == 0x0CBD0A00:  # vpop
        return _popped(4, 4 * (word & 0xFF), False, always)
    return None


def _arithmetic(word: int) -> Instruction:
    into, base = word >> 12 & 15, word >> 16 & 15
    number, by = word & 0xFF, word >> 7 & 30
    rotated = (number >> by | number << (32 - by)) & 0xFFFFFFFF
    if word & 0x0FE00000 == 0x02400000:  # sub
        return _moved(4, into, base, rotated)
    if word & 0x0FE00000 == 0x02800000:  # add
        return _moved(4, into, base, -rotated)
    if word & 0x0FFF0FF0 == 0x01A00000:  # mov
        return _moved(4, into, word & 15, 0)
    if word & 0x0FE0007F == 0x07C0001F and word >> 7 & 31 == 0:  # bfc #0
        return _moved(4, into, into, 0, 2 << (word >> 16 & 31))
    if word & 0x0FE00000 == 0x03C00000:  # bic
        return _moved(4, into, base, 0, rotated + 1)
    if _computes(word, _SP):
        raise UnknownCode("a stack frame of a size that is computed")
    return Instruction(4)


def _computes(word: int, into: int) -> bool:
    """Whether it is arithmetic or logic with that result.

    Not so comparisons, writes of the status and hints (MSR), multiplications and loads and stores
    of less than a word.
    """
    if word & 0x0C000000 or word & 0x0FB00000 in (0x01200000, 0x03200000):
        return False
    compares = word & 0x01900000 == 0x01100000
    return word >> 12 & 15 == into and not compares and word & 0x0E000090 != 0x00000090


class T32:
    """See :class:`dlcc.artifact.stack.instruction.Decoder`."""

    frame_pointer = 7
    return_bytes = 0
    relocated_bytes = 0

    def decode(self, code: bytes, at: int) -> Instruction:
        """See the protocol."""
        first, always = _half(code, at), not _in_block(code, at)
        if first >> 11 < 0b11101:
            return _short(first, at, always)
        word = first << 16 | _half(code, at + 2)
        if word & 0xFFFFFFE0 == 0xE8DFF000:
            return _table(code, at, 2 if word & 0x10 else 1)
        return _wide_jump(word, at, always) or _wide_block(word, always) or _wide_move(word)


def _half(code: bytes, at: int) -> int:
    return int.from_bytes(code[at : at + 2], "little")


def _in_block(code: bytes, at: int) -> bool:
    """Whether an ``it`` before the instruction may make it conditional.

    Where the second half of another instruction looks like one, more ways are followed than are.
    """
    for back in range(1, 9):
        if at < 2 * back:
            return False
        word = _half(code, at - 2 * back)
        if word & 0xFF00 == 0xBF00 and word & 15:
            count = 4 - (word & -word & 15).bit_length() + 1
            if back <= 2 * count:
                return True
    return False


def _table(code: bytes, at: int, width: int) -> Instruction:
    """A jump by a table behind it, which ends where the first of its targets starts."""
    start = at + 4
    targets: list[int] = []
    entry = start
    while entry + width <= min([len(code), *targets]):
        target = start + 2 * int.from_bytes(code[entry : entry + width], "little")
        entry += width
        if target >= entry:  # else padding
            targets.append(target)
    return Instruction(4, targets=tuple(targets), kind="jump")


def _short(word: int, at: int, always: bool) -> Instruction:
    """An instruction of 2 bytes."""
    onward: Kind = "jump" if always else "branch"
    if word & 0xFE00 == 0xB400:  # push
        return Instruction(2, offset=4 * (word & 0x1FF).bit_count())
    if word & 0xFE00 == 0xBC00:  # pop
        return _popped(2, 4 * (word & 0x1FF).bit_count(), bool(word & 0x100), always)
    if word & 0xFF00 == 0xB000:  # add, sub sp
        number = 4 * (word & 0x7F)
        return Instruction(2, offset=number if word & 0x80 else -number)
    if word & 0xF800 == 0xA800:  # add r, sp
        return _moved(2, word >> 8 & 7, _SP, -4 * (word & 0xFF))
    if word & 0xFF00 == 0x4700:  # bx, blx
        if word & 0x80:
            return Instruction(2, kind="call")
        if word >> 3 & 15 == _LR:
            return Instruction(2, kind="end" if always else "next")
        return Instruction(2, kind="jump")
    if word & 0xF800 == 0x2000:  # mov of a constant
        return Instruction(2, writes=word >> 8 & 7)
    into = (word & 7) | (word >> 4 & 8)
    if word & 0xFF00 == 0x4600 and into != _PC:  # mov
        return _moved(2, into, word >> 3 & 15, 0)
    if word & 0xFD00 == 0x4400 and into in (_SP, _PC):  # add, mov
        raise UnknownCode("a jump by a table, or a stack frame of a size that is computed")
    if word & 0xF000 == 0xD000 and word & 0x0F00 < 0x0E00:  # b<c>
        target = at + 4 + 2 * _signed(word & 0xFF, 8)
        return Instruction(2, targets=(target,), kind="branch")
    if word & 0xF800 == 0xE000:  # b
        return Instruction(2, targets=(at + 4 + 2 * _signed(word & 0x7FF, 11),), kind=onward)
    if word & 0xF500 == 0xB100:  # cbz, cbnz
        target = at + 4 + 2 * ((word >> 3 & 31) + (word >> 4 & 32))
        return Instruction(2, targets=(target,), kind="branch")
    return Instruction(2, kind="end" if word & 0xFF00 == 0xDE00 else "next")  # udf


def _wide_jump(word: int, at: int, always: bool) -> Instruction | None:
    if word & 0xFF80D001 == 0xF000C001:
        return _loop(word, at)
    if word & 0xF8008000 == 0xF0008000:
        return _wide_branch(word, at, always)
    if word & 0xFF70F000 in (0xF850F000, 0xF8D0F000) and word & 0x000F0000 != 0x000D0000:
        raise UnknownCode("a jump by a table")
    return None


def _wide_branch(word: int, at: int, always: bool) -> Instruction | None:
    """b<c>.w, b.w, bl (encodings T3, T4, T1); None for hints and system instructions."""
    sign, j1, j2, low = word >> 26 & 1, word >> 13 & 1, word >> 11 & 1, word & 0x7FF
    if word & 0x5000 == 0:
        if word >> 22 & 15 >= 14:
            return Instruction(4, kind="end") if word & 0xFFF0F000 == 0xF7F0A000 else None
        value = sign << 20 | j2 << 19 | j1 << 18 | (word >> 16 & 0x3F) << 12 | low << 1
        return Instruction(4, targets=(at + 4 + _signed(value, 21),), kind="branch")
    i1, i2 = 1 ^ j1 ^ sign, 1 ^ j2 ^ sign
    value = sign << 24 | i1 << 23 | i2 << 22 | (word >> 16 & 0x3FF) << 12 | low << 1
    onward: Kind = "jump" if always else "branch"
    kind: Kind = "call" if word & 0x4000 else onward
    return Instruction(4, targets=(at + 4 + _signed(value, 25),), kind=kind)


def _loop(word: int, at: int) -> Instruction:
    """The loops of ARMv8.1-M (Arm DDI 0553, C2.4.103, C2.4.324): over one, or back to its start."""
    distance = 2 * ((word & 0x7FE) | (word >> 11 & 1))
    if word & 0x2000:  # dls
        return Instruction(4)
    if word & 0x000F0000 == 0x000F0000:  # le
        return Instruction(4, targets=(at + 4 - distance,), kind="branch")
    return Instruction(4, targets=(at + 4 + distance,), kind="branch")


def _wide_block(word: int, always: bool) -> Instruction | None:
    if word & 0xFFFF0000 == 0xE92D0000:  # push
        return Instruction(4, offset=4 * (word & 0xFFFF).bit_count())
    if word & 0xFFFF0000 == 0xE8BD0000:  # pop
        return _popped(4, 4 * (word & 0xFFFF).bit_count(), bool(word & 0x8000), always)
    if word & 0xFFFF0F00 == 0xF84D0D00:  # str, pre-indexed
        return Instruction(4, offset=word & 0xFF)
    if word & 0xFFFF0F00 == 0xF85D0B00:  # ldr, post-indexed
        return _popped(4, word & 0xFF, word >> 12 & 15 == _PC, always)
    if word & 0xFF7F0000 == 0xE96D0000:  # strd, pre-indexed
        return Instruction(4, offset=4 * (word & 0xFF) * (-1 if word & 0x00800000 else 1))
    if word & 0xFF7F0000 == 0xE87D0000 or word & 0xFF7F0000 == 0xE8FD0000:  # ldrd, post-indexed
        return _popped(4, 4 * (word & 0xFF), False, always)
    if word & 0xFFBF0E00 == 0xED2D0A00:  # vpush
        return Instruction(4, offset=4 * (word & 0xFF))
    if word & 0xFFBF0E00 == 0xECBD0A00:  # vpop
        return _popped(4, 4 * (word & 0xFF), False, always)
    return None


def _wide_move(word: int) -> Instruction:
    """Arithmetic and moves with the stack pointer or a copy of it."""
    into, base = word >> 8 & 15, word >> 16 & 15
    plain = (word >> 15 & 0x800) | (word >> 4 & 0x700) | (word & 0xFF)
    compares = into == _PC
    if word & 0xFBE08000 == 0xF1A00000 and not compares:  # sub.w
        return _moved(4, into, base, _expanded(plain))
    if word & 0xFBE08000 == 0xF1000000 and not compares:  # add.w
        return _moved(4, into, base, -_expanded(plain))
    if word & 0xFBF08000 == 0xF2A00000:  # subw
        return _moved(4, into, base, plain)
    if word & 0xFBF08000 == 0xF2000000:  # addw
        return _moved(4, into, base, -plain)
    if word & 0xFFEF70F0 == 0xEA4F0000:  # mov.w
        return _moved(4, into, word & 15, 0)
    if word & 0xFFFF8020 == 0xF36F0000 and word & 0x70C0 == 0:  # bfc #0
        return _moved(4, into, into, 0, 2 << (word & 31))
    if word & 0xFBE08000 == 0xF0200000:  # bic
        return _moved(4, into, base, 0, _expanded(plain) + 1)
    if into == _SP and (word & 0xFE008000 == 0xEA000000 or word & 0xFA008000 == 0xF0000000):
        raise UnknownCode("a stack frame of a size that is computed")
    return Instruction(4)


def _expanded(code: int) -> int:
    """The number that a modified immediate of T32 stands for."""
    value, pattern = code & 0xFF, code >> 8 & 3
    if code >> 10 == 0:
        return (value, value * 0x10001, value * 0x1000100, value * 0x1010101)[pattern]
    return (0x80 | code & 0x7F) << (32 - (code >> 7))
