"""Mutated input for the importer, the graph's text, and the artifact loader.

``python -m tests.fuzz.hostile [--count N] [--seed S] [--seconds T]`` tells the rate, the stages
that the mutations reached, and every fault. Only messages to act on may come out, and what is
accepted must be right: it is verified, some of it executed, a little of it compiled and compared.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.fuzz import worker
from tests.fuzz.attempts import attempt
from tests.fuzz.seeds import Corpus, corpus
from tests.fuzz.worker import Findings


@contextmanager
def prepared(*, wide: bool) -> Iterator[Corpus]:
    """The corpus, its artifacts in memory where the system has a place for that."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield corpus(Path(folder), wide=wide)


def run(given: Corpus, numbers: range) -> Findings:
    """The mutations of these numbers."""
    return worker.run(numbers, partial(attempt, corpus=given))


def kinds(findings: Findings) -> list[str]:
    """Each kind of fault once: where it happened, its text, and numbers that have it."""
    found: dict[str, list[int]] = {}
    for number, text in sorted(findings.faults.items()):
        places = [line for line in text.splitlines() if line.startswith("  File")]
        last = re.sub(r"\d+", "N", text.splitlines()[-1])[:60]
        found.setdefault("\n".join([*places[-2:], last]), []).append(number)
    return [
        f"{findings.faults[numbers[0]]}    --seed {numbers[0]} --count 1"
        f" ({len(numbers)} of this kind)\n"
        for numbers in found.values()
    ]


def main() -> int:
    """Run mutations; print each kind of fault once, then the stages."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.hostile")
    parser.add_argument("--count", type=int, default=10_000, help="mutations")
    parser.add_argument("--seed", type=int, default=0, help="number of the first")
    parser.add_argument("--seconds", type=float, default=0, help="end after that, 0: never")
    parser.add_argument("--slice", type=int, default=20_000, help="mutations between reports")
    given = parser.parse_args()
    whole = Findings()
    with prepared(wide=True) as seeds:
        start, done = time.perf_counter(), 0
        while done < given.count:
            first = given.seed + done
            part = min(given.slice, given.count - done)
            found = run(seeds, range(first, first + part))
            done += part
            whole.add_all(found)
            seconds = time.perf_counter() - start
            print(f"{done} mutations, {done / seconds:.0f} per second", flush=True)
            if given.seconds and seconds > given.seconds:
                break
    _tell(whole, done, seconds)
    return int(bool(whole.faults))


def _tell(whole: Findings, done: int, seconds: float) -> None:
    for text in kinds(whole):
        print(text)
    for stage, count in sorted(whole.stages.items()):
        print(f"{count:9} {100 * count / done:6.2f} %  {stage}")
    slow, number = whole.slowest
    print(f"slowest {slow:.1f} s (--seed {number}), largest process {whole.peak >> 20} MiB")
    print(f"{done} mutations, {done / seconds:.0f} per second, {len(whole.faults)} faults")


if __name__ == "__main__":
    sys.exit(main())
