"""Accepted mutations, compiled and compared with the reference.

``python -m tests.fuzz.compiled [--batches N] [--seed S]``: a batch are some forty graphs, compiled
as one library in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import islice

import numpy as np
import onnx

from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from tests.fuzz import worker
from tests.fuzz.attempts import MOST_NUMBERS, family, feed_of, importer, mutant
from tests.fuzz.check import OPEN, Case, Findings, compare_compiled, shares
from tests.fuzz.graphs import Sample
from tests.fuzz.hostile import prepared
from tests.fuzz.seeds import Corpus
from tests.fuzz.sketch import SUMS

GRAPHS, SPAN = 40, 240
"""Graphs in one library at most, and mutations that they are among."""

SECONDS = 300.0
"""What a library may take."""


def accepted(numbers: range, corpus: Corpus) -> Iterator[Case]:
    """The mutations of models among ``numbers`` that are imported and can be compared."""
    for number in filter(lambda n: family(n) is importer, numbers):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                graph = import_onnx(mutant(number, corpus))
            except DlccError:
                continue
        numbers_held = sum(v.type.elements for v in graph.values())
        # a jump (Floor, say) behind sums of any order may go either way
        errors = {name: max(share, SUMS) for name, share in shares(graph).items()}
        if graph.nodes and numbers_held <= MOST_NUMBERS and OPEN not in errors.values():
            outputs = onnx.ModelProto()  # of the graph: some have more than their model
            for name in graph.output_names:
                outputs.graph.output.add(name=name)
            yield Case(Sample(number, outputs, feed_of(graph, number), errors), graph)


def batch(first: int, corpus: Corpus) -> tuple[str, str]:
    """Compile what is accepted from mutation ``first`` on; the stage, and what differs."""
    findings = Findings()
    cases = list(islice(accepted(range(first, first + SPAN), corpus), GRAPHS))
    compare_compiled(cases, 32, findings)
    lines = [f"mutation {number}: {why}\n" for number, why in sorted(findings.wrong.items())]
    return f"{findings.count['graphs']} graphs", "".join(lines)


def run(given: Corpus, seed: int, batches: int) -> tuple[int, worker.Findings]:
    """Batches from mutation ``seed`` on; how many graphs they held, and what is wrong."""
    firsts = range(seed, seed + batches * SPAN, SPAN)
    found = worker.run(firsts, partial(batch, corpus=given), size=8, seconds=SECONDS)
    counts = {stage: int(stage.split()[0]) for stage in found.stages if stage.endswith("graphs")}
    return sum(counts[stage] * found.stages[stage] for stage in counts), found


def main() -> int:
    """Compile batches and print what differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.compiled")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="number of the first mutation")
    given = parser.parse_args()
    with prepared(wide=True) as seeds:
        graphs, found = run(seeds, given.seed, given.batches)
    for first, text in sorted(found.faults.items()):
        print(f"--seed {first} --batches 1:\n{text}")
    print(f"{graphs} graphs compiled, {len(found.faults)} of {given.batches} batches with faults")
    return int(bool(found.faults))


if __name__ == "__main__":
    sys.exit(main())
