"""One library for several feature levels: the same bytes from each, chosen when it is loaded."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import dlcc
import targets
from dlcc.artifact import Artifact
from dlcc.cli.console import Console
from dlcc.cli.verifying import show_certificates
from dlcc.driver import compile as compile_network
from dlcc.errors import DlccError, ExitCode
from dlcc.lowering.lower import lower_variants
from dlcc.lowering.variants import Variant, select
from targets.cpu.levels import LEVELS
from targets.isa import host_flags, supports
from tests.test_end_to_end import feed_for, small_net

RUNNABLE = [name for name, isa in LEVELS.items() if supports(isa, host_flags())]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The small network in codes, for SSE4, AVX2 and the best level of this machine."""
    if "avx2" not in RUNNABLE:
        pytest.skip("this CPU has no AVX2")
    levels = dict.fromkeys([RUNNABLE[-1], "sse4", "avx2"])
    folder = tmp_path_factory.mktemp("fat") / "net"
    return compile_network(small_net(), folder, target=f"cpu:{'+'.join(levels)}", keep_ir=True)


def test_every_variant_gives_the_same_bytes(library):
    artifact, graph = library.artifact, library.optimised.graph
    levels = [name for name in LEVELS if name in ("sse4", "avx2", RUNNABLE[-1])]
    assert list(artifact.variants) == levels
    with dlcc.load(artifact.folder) as net:
        assert net.variant == RUNNABLE[-1]
    for seed in range(2):
        feed = feed_for(graph, seed)
        want = next(iter(dlcc.execute(graph, feed).values()))
        for name in levels:
            for threads in (1, 2):
                with dlcc.load(artifact.folder, threads=threads, variant=name) as net:
                    np.testing.assert_array_equal(net(*feed.values()), want)


def test_weights_are_shared_and_the_rest_is_told(library):
    rows = library.artifact.manifest["weights"]["variants"]
    assert rows[0]["added_bytes"] == rows[0]["read_bytes"]
    assert all(row["added_bytes"] < row["read_bytes"] for row in rows[1:])
    content = library.artifact.manifest["weights"]["content_bytes"]
    assert sum(row["added_bytes"] for row in rows) <= content
    functions = [
        {step["function"] for step in library.artifact.variant(name)["steps"]}
        for name in library.artifact.variants
    ]
    assert sum(map(len, functions)) == len(set.union(*functions))


def test_certificates_of_all_variants_are_verified(library, capsys):
    show_certificates(Console(True), library.artifact.folder, None, None, {})
    told = json.loads(capsys.readouterr().out)["certificates"]
    assert told


def test_targets_are_ordered_and_told_apart():
    names = [t.name for t in targets.get_targets("cpu:amx+sse4+avx2")]
    assert names == ["cpu:sse4", "cpu:avx2", "cpu:amx"]
    assert targets.joined_name(targets.get_targets("cpu:avx2+sse4")) == "cpu:sse4+avx2"
    assert [t.name for t in targets.get_targets("arm")] == ["arm:neon", "arm:dotprod", "arm:i8mm"]
    assert [t.name for t in targets.get_targets("arm:dotprod")] == ["arm:dotprod"]
    named = [t.name for t in targets.get_targets("arm:cortex-a76+raspberry-pi-4")]
    assert named == ["arm:raspberry-pi-4", "arm:cortex-a76"]
    for name, why in {
        "arm:cortex-a72+cortex-a53": "cannot be in one library",
        "cpu:avx2+avx2": "cannot be in one library",
        "cpu:avx2+abacus": "no target 'cpu:abacus'",
        "cpu:avx2+": "no target 'cpu:avx2\\+'",
        "gpu:a+b": "no target",
        "arm:apple-m1+cortex-a78": "different systems",
        "armv7:apple-m1": "no target 'armv7:apple-m1'",
    }.items():
        with pytest.raises(DlccError, match=why) as caught:
            targets.get_targets(name)
        assert caught.value.code == ExitCode.TARGET


def test_rows_may_be_missing_from_some_variants():
    made = targets.without_rows(targets.get_targets("cpu:avx2+amx"), ("implicit-gemm-amx",))
    assert "implicit-gemm-amx" not in {row.name for row in made[1].rows}
    with pytest.raises(DlccError) as caught:
        targets.without_rows(made, ("abacus",))
    assert caught.value.code == ExitCode.USAGE


def test_variants_that_gain_nothing_are_left_out():
    """In float32 all levels of AArch64 compute alike."""
    found = targets.get_targets("arm")
    program = lower_variants([small_net()], found, lambda *_: b"", every=False)
    assert [p.variant for p in program.variants] == ["neon"]
    assert set(program.report["left_out"]) == {"dotprod", "i8mm"}
    program = lower_variants([small_net()], found, lambda *_: b"")
    assert [p.variant for p in program.variants] == ["neon", "dotprod", "i8mm"]
    assert len({p.arena_bytes for p in program.variants}) == 1
    assert program.better[1].features[-1] == "i8mm"


def test_a_variant_that_no_cpu_would_run_is_left_out():
    program = targets.get_targets("cpu:sse4+avx2")
    sse4, avx2 = (Variant(replace(t, features=("sse4_1",)), [[]]) for t in program)
    kept, reasons = select([sse4, avx2], every=True)
    assert kept == [avx2]
    assert reasons == {"sse4": "every CPU that runs it runs avx2"}
    both = (targets.get_target("cpu:avx2"), targets.get_target("arm"))
    with pytest.raises(ValueError, match="one architecture"):
        lower_variants([small_net()], both, lambda *_: b"")


def test_manifests_name_what_was_asked_for(library):
    name = library.artifact.manifest["target"]
    assert targets.joined_name(targets.get_targets(name)) == name
    assert Artifact.open(library.artifact.folder).manifest["better"]
