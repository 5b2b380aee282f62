"""Check random graphs: ``python -m tests.fuzz SEED [--count N] [--bits 8] [--seconds T]``."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import onnx

from tests.fuzz.check import check
from tests.fuzz.graphs import random_model


def main() -> int:
    """Check the seeds; a single one that fails is cut to its first nodes that still fail."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("seed", type=int)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--bits", type=int, default=32, choices=(8, 32))
    parser.add_argument("--batch", type=int, default=50, help="graphs in one library")
    parser.add_argument("--save", type=Path, help="write the model of SEED there")
    parser.add_argument("--seconds", type=float, help="begin no further library after that time")
    given = parser.parse_args()
    if given.save:
        onnx.save(random_model(given.seed).model, given.save)
    start, count, wrong = time.perf_counter(), Counter[str](), 0
    for first in range(given.seed, given.seed + given.count, given.batch):
        if given.seconds and time.perf_counter() - start > given.seconds:
            print(f"stopped before {first}")
            break
        last = min(first + given.batch, given.seed + given.count)
        findings = check(range(first, last), given.bits)
        count += findings.count
        wrong += len(findings.wrong)
        for seed, why in sorted(findings.wrong.items()):
            print(f"{seed}: {why}", flush=True)
    if given.count == 1 and wrong:
        _shrink(given.seed, given.bits)
    print(f"{wrong} wrong, {dict(count)}, {time.perf_counter() - start:.1f} s")
    return int(bool(wrong))


def _shrink(seed: int, bits: int) -> None:
    total = len(random_model(seed).model.graph.node)
    for nodes in range(1, total + 1):
        findings = check([seed], bits, nodes)
        if findings.wrong:
            print(f"fails with its first {nodes} of {total} nodes: {findings.wrong[seed]}")
            print(onnx.printer.to_text(random_model(seed, nodes).model))
            return


if __name__ == "__main__":
    sys.exit(main())
