"""Basic blocks from a listing and the emulator's counts."""

from __future__ import annotations

from collections import Counter

from dlcc.cycles.code import basic_blocks, parse
from dlcc.cycles.emulator import one_run

LISTING = """
run:\tfile format elf64-littleaarch64

Disassembly of section .text:

0000000000001000 <sum>:
    1000:      \tmov\tx2, #0x0                  // =0
    1004:      \tldr\tw3, [x0], #0x4
    1008:      \tadd\tx2, x2, x3
    100c:      \tsubs\tx1, x1, #0x1
    1010:      \tb.ne\t0x1004 <sum+0x4>
    1014:      \tbl\t0x1020 <end>
    1018:      \tret

0000000000001020 <end>:
    1020:      \tret
"""


def test_a_listing_gives_instructions_with_their_targets():
    functions = parse(LISTING)
    assert [len(code) for code in functions.values()] == [7, 1]
    branch = functions["sum"][4]
    assert (branch.address, branch.text, branch.target) == (0x1010, "b.ne 0", 0x1004)
    assert functions["sum"][0].text == "mov x2, #0x0"


def test_x86_comments_and_symbols_are_cut_off():
    line = " 1002: \tvpbroadcastd\t-0xc66a(%rip), %ymm5 # 0x10003d4 <digits+0x164>"
    (instruction,) = parse(f"0000000000001002 <f>:\n{line}")["f"]
    assert instruction.text == "vpbroadcastd -0xc66a(%rip), %ymm5"
    assert instruction.target == -1


def test_blocks_that_overlap_add_up():
    # the emulator enters the loop once from above, with the instruction before it
    runs = {(0x1000, 5): 1, (0x1004, 4): 9, (0x1014, 1): 1, (0x1020, 1): 1, (0x1018, 1): 1}
    blocks = list(basic_blocks(parse(LISTING), runs))
    found = [(b.function, b.instructions[0].address, len(b.instructions), b.runs) for b in blocks]
    assert found == [
        ("sum", 0x1000, 1, 1),
        ("sum", 0x1004, 4, 10),
        ("sum", 0x1014, 1, 1),
        ("sum", 0x1018, 1, 1),
        ("end", 0x1020, 1, 1),
    ]
    assert sum(b.executed for b in blocks) == sum(n * times for (_, n), times in runs.items())


def test_code_that_does_not_run_is_left_out():
    blocks = list(basic_blocks(parse(LISTING), {(0x1020, 1): 3}))
    assert [(b.function, b.runs) for b in blocks] == [("end", 3)]


def test_what_marks_cost_falls_out_of_two_phases():
    mark, work = (0x2000, 7), (0x3000, 4)
    start = Counter({work: 5, (0x9000, 1): 100})
    once, twice = Counter({mark: 2, work: 10}), Counter({mark: 2, work: 20})
    assert one_run([start, once, twice, Counter()]) == {work: 10}
