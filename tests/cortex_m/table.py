"""Prints what the networks of MLPerf Tiny take on each core, as rows of Markdown.

python -m tests.cortex_m.table [core ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import dlcc
from tests.conftest import DATA
from tests.cortex_m.board import BOARDS, run
from tests.cortex_m.networks import NETWORKS, inputs, quantised


def main(cores: list[str]) -> None:
    """One row a network and core: flash, arena, stack, instructions, products."""
    print("| network | core | flash | arena | stack | instructions | multiply-accumulates |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name, model in NETWORKS.items():
        graph = quantised(DATA, name)
        samples = inputs(DATA, name, 2, graph.inputs[0].type.affine)
        for core in cores or BOARDS:
            with tempfile.TemporaryDirectory() as folder:
                made = dlcc.compile(graph, f"{folder}/a", passes=(), target=core, emit=("a",))
                seen = run(BOARDS[core], Path(folder, "a"), model, samples, Path(folder, "w"))
            layers = made.program.report["layers"]
            macs = sum(layer["macs"] for layer in layers)  # type: ignore[attr-defined]
            numbers = (seen.flash, made.program.arena_bytes, seen.stack, seen.instructions, macs)
            print(f"| {name} | {core} | " + " | ".join(f"{n:,}" for n in numbers) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
