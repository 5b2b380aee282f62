"""--verify-numerics at the end of a compilation: the library's results against the reference's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from dlcc.analysis.sample import record, tolerances
from dlcc.errors import DlccError, ExitCode
from dlcc.executable import random_feed
from dlcc.ir import Graph
from dlcc.ir.encodings import Array
from dlcc.program import Program
from dlcc.runtime.loader import load


@dataclass(frozen=True)
class Verification:
    """What a library is held to before its folder is put in place.

    Attributes:
        graph: what was compiled.
        feeds: stored arrays by input name, one mapping for each sample.
        variants: names of the variants of the kernels that this machine runs.
        imported: the graph as it was imported, where only exact passes lie between and the borders
            are the same; its reference is compared with too.
        tf32: the kernels round operands of float32 to TF32.
    """

    graph: Graph = field(repr=False)
    feeds: Sequence[Mapping[str, Array]] = field(repr=False)
    variants: tuple[str, ...]
    imported: Graph | None = field(default=None, repr=False)
    tf32: bool = False

    def check(self, folder: Path) -> None:
        """Run the artifact in ``folder`` on every feed with every variant.

        Each output has the reference's bytes where the numerics define them, else it is within
        what :func:`dlcc.analysis.sample.tolerances` states, in units of its largest magnitude.

        Raises:
            DlccError: VERIFICATION, an output is not near enough.
        """
        allowed = tolerances(self.graph, tf32=self.tf32)
        references = [("the compiled graph", self.graph)]
        if self.imported is not None:
            references.append(("the imported graph", self.imported))
        for variant in self.variants:
            with load(folder, variant=variant) as model:
                for number, feed in enumerate(self.feeds):
                    # the references first: they stop where a loop does not end
                    made = [record(graph, feed, what).outputs for what, graph in references]
                    results = model.run(feed)
                    for (what, graph), wanted in zip(references, made, strict=True):
                        rows = zip(self.graph.output_names, wanted, allowed, strict=True)
                        for name, contents, share in rows:
                            # an exact pass may still change how float32 numbers are rounded
                            share = max(share, max(allowed)) if graph is self.imported else share
                            place = f"output {name!r}, sample {number}, variant {variant}"
                            _compare(results[name], contents, share, what, place)


def check_all(checks: Iterable[Verification], folder: Path) -> None:
    """Run the artifact in ``folder`` as each shape profile's verification says.

    Raises:
        DlccError: VERIFICATION, an output is not near enough.
    """
    for one in checks:
        one.check(folder)


def prepare(
    graph: Graph,
    imported: Graph | None,
    program: Program,
    here: Collection[str],
    given: Iterable[Mapping[str, Array]],
    count: int,
    *,
    tf32: bool = False,
) -> Verification | str:
    """What to hold a library to, or why this machine cannot.

    Args:
        graph: what was compiled.
        imported: see :class:`Verification`.
        program: ``graph`` lowered.
        here: names of variants that this machine could run.
        given: stored samples, of which the first ``count`` are taken; seeded ones make up the rest.
        count: number of samples.
        tf32: the kernels round operands of float32 to TF32.
    """
    variants = tuple(p.variant for p in program.variants if p.variant in here)
    if not variants:
        return "the library was not run: this machine runs no variant of its kernels"
    feeds: list[Mapping[str, Array]] = list(islice(given, count))
    feeds += [random_feed(program.inputs, seed) for seed in range(len(feeds), count)]
    return Verification(graph, feeds, variants, imported, tf32)


def _compare(got: Array, contents: bytes, share: float, what: str, place: str) -> None:
    want = np.frombuffer(contents, got.dtype).reshape(got.shape)
    a, b = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    worst = 0.0
    if not np.array_equal(a, b, equal_nan=True):
        with np.errstate(invalid="ignore"):
            strange = np.array_equal(a[~finite], b[~finite], equal_nan=True)
            worst = float(np.max(np.abs(a - b)[finite], initial=0.0)) if strange else np.inf
    peak = float(np.max(np.abs(b[finite]), initial=0.0))
    if not worst <= share * peak:  # a NaN is never near enough
        raise DlccError(
            ExitCode.VERIFICATION,
            f"the compiled library disagrees with the reference of {what}",
            where=place,
            why=f"largest difference {worst:.3g}, largest magnitude {peak:.3g}; allowed is "
            + (f"{share:g} of it" if share else "none"),
            fix="report it with the model; --without ROW may avoid the kernel, nothing was written",
        )
