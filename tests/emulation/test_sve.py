"""Vectors of SVE: used where they are long enough, and never trusted where they are not."""

from __future__ import annotations

import pytest

import dlcc
from dlcc.driver import compile as compile_network
from dlcc.lowering.lower import prepare
from tests.emulation.machine import CORTEX_A72, NEWEST, SVE128, SVE256, start_network
from tests.emulation.test_networks import DIGITS, digits

pytestmark = SVE256.missing
NEED = "needs i8mm, sve, svei8mm, sve256, which this CPU lacks; compile with --target arm:neon"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A library with and without SVE, samples, and the reference's results."""
    folder, samples = tmp_path_factory.mktemp("sve") / "net", digits(3)
    made = compile_network(
        DIGITS,
        folder,
        target="arm:neon+neoverse-v1",
        calibration=lambda: ({"image": x} for (x,) in samples),
    )
    better = made.artifact.manifest["better"]
    assert {"sve", "svei8mm", "sve256"} <= set(better[-1]["features"])
    graph = prepare(made.optimised.graph)
    want = [next(iter(dlcc.execute(graph, {"image": x}).values())) for (x,) in samples]
    return folder, samples, b"".join(y.tobytes() for y in want)


@pytest.mark.parametrize(
    ("machine", "variant"),
    [(SVE256, "neoverse-v1"), (NEWEST, "neoverse-v1"), (SVE128, "neon"), (CORTEX_A72, "neon")],
    ids=["256", "512", "128", "none"],
)
def test_the_length_of_vectors_decides(network, machine, variant):
    folder, samples, want = network
    done = start_network(folder, machine, samples, 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().split() == ["variant", variant]
    assert done.stdout == want


def test_short_vectors_are_refused_with_words(network):
    folder, samples, want = network
    for machine, words in (
        (SVE128, "needs sve256, which this CPU lacks; compile with --target arm:i8mm"),
        (CORTEX_A72, NEED.replace("needs ", "needs atomics, asimdrdm, asimdhp, asimddp, ")),
    ):
        done = start_network(folder, machine, samples, variant="neoverse-v1")
        assert done.returncode == 3
        assert done.stderr.decode() == f"variant neoverse-v1 {words}\n"
    for size, status in ((32, 0), (16, 4)):  # a thread's vectors may be cut at any time
        done = start_network(folder, SVE256, samples, variant="neoverse-v1", vector=size)
        assert done.returncode == status
        assert done.stdout == (b"" if status else want)
    assert "sve256, which this thread no longer has" in done.stderr.decode()
