"""Lengths of x86-64 instructions, and which of them move the stack pointer or jump.

Intel SDM volume 2, chapter 2 (formats) and appendix A (opcode maps). Every instruction has to be
measured to find the next one; of most no more than that is known here.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlcc.artifact.stack.instruction import Instruction, UnknownCode

_RSP, _RBP = 4, 5
_PREFIXES = frozenset(b"\x66\x67\xf2\xf3\x2e\x36\x3e\x26\x64\x65\xf0")


def _opcodes(text: str) -> frozenset[int]:
    """``"00-03 70"``: opcodes in hexadecimal, single ones and ranges."""
    found: set[int] = set()
    for word in text.split():
        low, _, high = word.partition("-")
        found |= set(range(int(low, 16), int(high or low, 16) + 1))
    return frozenset(found)


# Map 0, the opcodes of one byte.
_MODRM = _opcodes(
    "00-03 08-0b 10-13 18-1b 20-23 28-2b 30-33 38-3b 63 69 6b 80 81 83-8f c0 c1 c6 c7 d0-d3 d8-df "
    "f6 f7 fe ff"
)
_BYTE = _opcodes("04 0c 14 1c 24 2c 34 3c 6a 6b 70-7f 80 83 a8 b0-b7 c0 c1 c6 cd e0-e7 eb")
_WORD = _opcodes("05 0d 15 1d 25 2d 35 3d 68 69 81 a9 c7 e8 e9")
_PLAIN = _opcodes("50-5f 90-99 9b-9f a4-a7 aa-af c3 c9 cc f4 f5 f8-fd")
_IMMEDIATE_MOVES = _opcodes("b8-bf")
_ON_REGISTERS = _opcodes("01 03 29 2b 81 83 89 8b 8d")
# Map 1, after 0F.
_BARE_1 = _opcodes("05 0b 30-33 77 a0-a2 a8 a9 c8-cf")
_BYTE_1 = _opcodes("70-73 a4 ac ba c2 c4-c6")
_JUMPS_1 = _opcodes("80-8f")


@dataclass(frozen=True)
class _Form:
    """Where the parts of an instruction are: its map, opcode, ModRM byte and what follows it."""

    map: int
    opcode: int
    rex: int
    at: int
    """Of the byte behind the opcode."""


class X86:
    """See :class:`dlcc.artifact.stack.instruction.Decoder`."""

    frame_pointer = _RBP
    return_bytes = 8
    relocated_bytes = 4

    def decode(self, code: bytes, at: int) -> Instruction:
        """See the protocol."""
        try:
            form, narrow = _form(code, at)
            end, number = _end(code, form, narrow)
        except IndexError:
            raise UnknownCode("the code ends within an instruction") from None
        size = end - at
        if form.map == 0:
            return _one_byte(code, form, size, end, number)
        if form.map == 1 and form.opcode in _JUMPS_1:
            return Instruction(size, targets=(end + number,), kind="branch")
        if form.map == 1 and form.opcode == 0x0B:  # ud2
            return Instruction(size, kind="end")
        return Instruction(size)


def _form(code: bytes, at: int) -> tuple[_Form, bool]:
    """The form, and whether immediates of 4 bytes are of 2."""
    narrow = False
    while code[at] in _PREFIXES:
        narrow |= code[at] == 0x66
        at += 1
    first = code[at]
    if first == 0xC5:  # VEX: map 1
        return _Form(17, code[at + 2], 0, at + 3), narrow
    if first == 0xC4:
        return _Form(16 + (code[at + 1] & 31), code[at + 3], 0, at + 4), narrow
    if first == 0x62:  # EVEX
        return _Form(32 + (code[at + 1] & 7), code[at + 4], 0, at + 5), narrow
    rex = 0
    if first & 0xF0 == 0x40:
        rex, at = first, at + 1
    if code[at] != 0x0F:
        return _Form(0, code[at], rex, at + 1), narrow and not rex & 8
    if code[at + 1] in (0x38, 0x3A):
        table = 2 if code[at + 1] == 0x38 else 3
        return _Form(table, code[at + 2], rex, at + 3), narrow
    return _Form(1, code[at + 1], rex, at + 2), narrow


def _end(code: bytes, form: _Form, narrow: bool) -> tuple[int, int]:
    """Where the instruction ends, and its immediate number."""
    at = form.at
    if _has_modrm(form):
        at += _modrm_bytes(code, at)
    size = _immediate_bytes(code, form, 2 if narrow else 4)
    if at + size > len(code):
        raise IndexError
    return at + size, int.from_bytes(code[at : at + size], "little", signed=True)


def _has_modrm(form: _Form) -> bool:
    if form.map == 0:
        if form.opcode in _MODRM:
            return True
        if form.opcode in _BYTE | _WORD | _PLAIN | _IMMEDIATE_MOVES:
            return False
        raise UnknownCode(f"opcode {form.opcode:02x}")
    if form.map == 1:
        return form.opcode not in _BARE_1 | _JUMPS_1
    return not (form.map == 17 and form.opcode == 0x77)  # vzeroupper


def _modrm_bytes(code: bytes, at: int) -> int:
    """Bytes of ModRM, SIB and displacement."""
    mode, rm = code[at] >> 6, code[at] & 7
    if mode == 3:
        return 1
    size = 1 + (rm == 4) + (0, 1, 4)[mode]
    if mode == 0 and (rm == 5 or (rm == 4 and code[at + 1] & 7 == 5)):
        size += 4
    return size


def _immediate_bytes(code: bytes, form: _Form, word: int) -> int:
    opcode = form.opcode
    if form.map in (3, 19, 35):
        return 1
    if form.map in (1, 17, 33):
        return 4 if form.map == 1 and opcode in _JUMPS_1 else int(opcode in _BYTE_1)
    if form.map != 0:
        return 0
    if opcode in _IMMEDIATE_MOVES:
        return 8 if form.rex & 8 else word
    if opcode in (0xF6, 0xF7) and code[form.at] >> 3 & 7 < 2:  # test
        return 1 if opcode == 0xF6 else word
    return 1 if opcode in _BYTE else word if opcode in _WORD else 0


def _one_byte(code: bytes, form: _Form, size: int, end: int, number: int) -> Instruction:
    opcode = form.opcode
    if opcode in (0xE8, 0xE9, 0xEB):
        return Instruction(size, targets=(end + number,), kind="call" if opcode == 0xE8 else "jump")
    if 0x70 <= opcode < 0x80 or opcode in (0xE0, 0xE1, 0xE2, 0xE3):
        return Instruction(size, targets=(end + number,), kind="branch")
    if opcode in (0xC3, 0xCC, 0xF4):
        return Instruction(size, kind="end")
    if opcode == 0xFF:
        group = code[form.at] >> 3 & 7
        if group in (2, 4):
            return Instruction(size, kind="call" if group == 2 else "jump")
        return Instruction(size, offset=8 if group == 6 else 0)
    if 0x50 <= opcode < 0x58 or opcode in (0x68, 0x6A):
        return Instruction(size, offset=8)
    if 0x58 <= opcode < 0x60:
        if opcode == 0x5C and not form.rex & 1:
            raise UnknownCode("pop rsp")
        return Instruction(size, offset=-8)
    if opcode == 0xC9:  # leave
        return Instruction(size, base=_RBP, offset=-8)
    return _stack_pointer(code, form, size, number)


def _stack_pointer(code: bytes, form: _Form, size: int, number: int) -> Instruction:
    """Moves and arithmetic, where they are of the stack pointer."""
    if not form.rex & 8 or form.opcode not in _ON_REGISTERS:
        return Instruction(size)
    modrm = code[form.at]
    mode = modrm >> 6
    register = (modrm >> 3 & 7) + (form.rex << 1 & 8)
    other = (modrm & 7) + (form.rex << 3 & 8)
    if form.opcode == 0x8D:
        return _address(code, form, size, register)
    if form.opcode == 0x8B and mode != 3 and register == _RSP:
        raise UnknownCode("the stack pointer is loaded")
    if mode != 3:
        return Instruction(size)
    if form.opcode in (0x81, 0x83):
        return _arithmetic(register & 7, number, size) if other == _RSP else Instruction(size)
    into, source = (register, other) if form.opcode in (0x8B, 0x2B, 0x03) else (other, register)
    if form.opcode not in (0x89, 0x8B):
        if into == _RSP:
            raise UnknownCode("a stack frame of a size that is computed")
        return Instruction(size)
    if into == _RSP:
        return Instruction(size, base=source)
    return Instruction(size, into) if source == _RSP else Instruction(size)


def _arithmetic(operation: int, number: int, size: int) -> Instruction:
    """By a constant: add, and, sub; the others (cmp) leave the stack pointer alone."""
    if operation == 0:
        return Instruction(size, offset=-number)
    if operation == 4:
        return Instruction(size, align=-number)
    return Instruction(size, offset=number if operation == 5 else 0)


def _address(code: bytes, form: _Form, size: int, into: int) -> Instruction:
    """``lea`` of a register and a constant."""
    modrm, at = code[form.at], form.at + 1
    mode, base = modrm >> 6, (modrm & 7) + (form.rex << 3 & 8)
    if modrm & 7 == 4:
        base = (code[at] & 7) + (form.rex << 3 & 8)
        indexed = code[at] >> 3 & 7 != 4 or form.rex & 2
        at += 1
        if indexed:
            base = -1
    if mode == 0 or base < 0 or _RSP not in (into, base):
        if into == _RSP:
            raise UnknownCode("a stack frame of a size that is computed")
        return Instruction(size)
    shift = int.from_bytes(code[at : at + (1 if mode == 1 else 4)], "little", signed=True)
    if base == _RSP and into == _RSP:
        return Instruction(size, offset=-shift)
    if base == _RSP:
        return Instruction(size, into, offset=-shift)
    return Instruction(size, base=base, offset=-shift)
