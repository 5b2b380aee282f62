"""The whole corpus of hostile files, the same for the same seed.

``python -m tests.hostile.corpus FOLDER [SEED]`` writes it, one folder per file.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np

from tests.hostile import (
    bodies,
    files,
    mutants,
    names,
    nodes,
    requests,
    sizes,
    structure,
    text,
)  # fmt: skip
from tests.hostile.case import Case

FAMILIES = (
    files.broken, files.outside, files.tensors, structure.graphs, structure.nesting,
    sizes.terabytes, sizes.windows, sizes.indices, nodes.attributes, nodes.types, nodes.scales,
    names.names, text.texts, mutants.mutants, bodies.bodies, bodies.wide, requests.requests,
    requests.empty, requests.weights,
)  # fmt: skip


def corpus(seed: int = 0) -> list[Case]:
    """Every case; what is random in a family depends on the seed and the family alone."""
    cases: list[Case] = []
    for family in FAMILIES:
        rng = np.random.default_rng([seed, zlib.crc32(family.__name__.encode())])
        cases += family(rng)
    return cases


def main(arguments: list[str]) -> None:
    """Write the corpus into a new folder."""
    folder, seed = Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0
    cases = corpus(seed)
    for index, case in enumerate(cases):
        case.write(folder / f"{index:04}")
    sys.stdout.write(f"{len(cases)} files in {folder}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
