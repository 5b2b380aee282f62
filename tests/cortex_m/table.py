"""Prints what the networks of MLPerf Tiny take on each core, as rows of Markdown.

python -m tests.cortex_m.table [core or bits of the weights ...]
"""

from __future__ import annotations

import sys
import tempfile
from itertools import product
from pathlib import Path

import dlcc
from tests.conftest import DATA
from tests.cortex_m.board import BOARDS, run
from tests.cortex_m.networks import NETWORKS, inputs, quantised


def main(words: list[str]) -> None:
    """One row a network, width and core: flash, arena, stack, instructions, products."""
    cores = [word for word in words if not word.isdigit()]
    widths = [int(word) for word in words if word.isdigit()]
    print("| network | bits | core | flash | arena | stack | instructions | multiply-accumulates |")
    print("|---|--:|---|--:|--:|--:|--:|--:|")
    for name, bits in product(NETWORKS, widths or (8, 4)):
        graph, model = quantised(DATA, name, bits), NETWORKS[name]
        samples = inputs(DATA, name, 2, graph.inputs[0].type.affine)
        for core in cores or BOARDS:
            with tempfile.TemporaryDirectory() as folder:
                made = dlcc.compile(graph, f"{folder}/a", passes=(), target=core, emit=("a",))
                seen = run(BOARDS[core], Path(folder, "a"), model, samples, Path(folder, "w"))
            layers = made.program.report["layers"]
            macs = sum(layer["macs"] for layer in layers)  # type: ignore[attr-defined]
            numbers = (seen.flash, made.program.arena_bytes, seen.stack, seen.instructions, macs)
            print(f"| {name} | {bits} | {core} | " + " | ".join(f"{n:,}" for n in numbers) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
