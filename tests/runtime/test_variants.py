"""Libraries with several variants of their kernels: which one runs, and what is told of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.artifact import Artifact, account, write_artifact
from dlcc.artifact.check import check_program
from dlcc.errors import DlccError, ExitCode
from dlcc.inspection import inspect_artifact
from dlcc.program import Arg, Program, Step, WeightEntry
from dlcc.runtime.binding import Library
from tests.runtime.programs import (
    BIAS,
    COLUMNS,
    HERE,
    ROWS,
    files_of,
    missing_feature,
    row_program,
    row_reference,
    run_bare,
    zig,
    zig_cc,
)

X = np.random.default_rng(5).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def _object(folder: Path, prefix: str) -> bytes:
    output = folder / f"{prefix}.o"
    names = [f"-D{name}={prefix}_{name}" for name in ("add_row", "relu")]
    zig_cc("-O2", "-fPIC", *names, "-c", HERE / "kernels.c", "-o", output)
    return output.read_bytes()


def _fast(program: Program, folder: Path, name: str, *features: str) -> Program:
    """A variant in one step and without relu, so that its results tell it from the least one."""
    args = (Arg("input"), Arg("weights", 64), Arg("output"))
    step = Step(f"{name} bias", f"{name}_add_row", args, ROWS)
    return replace(
        program,
        variant=name,
        steps=(step,),
        object_code=_object(folder, name),
        features=("sse2", *features),
        better=(),
        report={},
    )


@pytest.fixture(scope="module")
def program(kernels: bytes, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """A variant for every CPU, one for CPUs like this, and one for no CPU that there is."""
    folder = tmp_path_factory.mktemp("variants")
    least = replace(row_program(kernels), variant="least")
    fast = _fast(least, folder, "fast", "sse4_1")
    future = _fast(least, folder, "future", missing_feature())
    return replace(least, better=(fast, future))


@pytest.fixture(scope="module")
def artifact(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(program, tmp_path_factory.mktemp("out") / "out").folder


def test_the_best_variant_that_the_cpu_runs_is_taken(artifact: Path) -> None:
    with dlcc.load(artifact, threads=2) as net:
        assert net.variant == "fast"
        np.testing.assert_array_equal(net(X), X + BIAS)
        assert [step.layer for step in net.profile(X)] == ["fast bias"]
    with dlcc.load(artifact, threads=2, variant="least") as net:
        assert net.variant == "least"
        np.testing.assert_array_equal(net(X), row_reference(X))
        assert [step.function for step in net.profile(X)] == ["add_row", "relu"]


def test_a_variant_that_cannot_run_is_refused_with_words(artifact: Path, program: Program) -> None:
    with pytest.raises(DlccError) as caught:
        dlcc.load(artifact, variant="future")
    assert caught.value.code == ExitCode.TARGET
    why = f"variant future needs {missing_feature()}, which this CPU lacks"
    assert caught.value.why == why
    with pytest.raises(DlccError) as caught:
        dlcc.load(artifact, variant="quick")
    assert caught.value.code == ExitCode.USAGE
    assert "'least', 'fast', 'future'" in caught.value.why


def test_no_variant_fits(program: Program, tmp_path: Path) -> None:
    feature = missing_feature()
    future = replace(program.better[1], features=("sse2", feature, "avx512_vp2intersect"))
    least = replace(program, features=("sse2", feature), better=(future,))
    write_artifact(least, tmp_path / "out")
    with pytest.raises(DlccError) as caught:
        dlcc.load(tmp_path / "out")
    assert caught.value.why == f"the library needs {feature}, which this CPU lacks"


def test_the_c_interface_tells_of_variants(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include <string.h>\n#include "rows.h"\n'
        "#define CHECK(x) if (!(x)) return printf(#x), 1\n"
        "int main(int count, char **arguments) {\n"
        "  const rows_info_t *info = rows_info();\n"
        "  CHECK(count == 2 && info->abi == 2 && info->variant_count == 3);\n"
        "  CHECK(ROWS_STEPS == 2 && info->step_count == 2);\n"
        "  CHECK(info->steps == info->variants[0].steps);\n"
        "  CHECK(info->features == info->variants[0].features);\n"
        '  CHECK(strcmp(info->variants[2].name, "future") == 0);\n'
        "  CHECK(info->variants[1].step_count == 1 && info->variants[1].steps[1] == NULL);\n"
        "  rows_t *net, *none = (rows_t *)&count;\n"
        "  CHECK(rows_create(arguments[1], 1, &net) == ROWS_OK);\n"
        '  CHECK(strcmp(rows_error(), "") == 0);\n'  # nothing failed
        "  CHECK(rows_variant(net) == &info->variants[1] && rows_variant(NULL) == NULL);\n"
        "  rows_destroy(net);\n"
        '  CHECK(rows_create_variant(arguments[1], 1, "least", &net) == ROWS_OK);\n'
        "  CHECK(rows_variant(net) == info->variants);\n"
        "  rows_destroy(net);\n"
        "  CHECK(rows_create_variant(NULL, 1, NULL, &none) == ROWS_INVALID_ARGUMENT && !none);\n"
        '  CHECK(rows_create_variant(NULL, 1, "", &none) == ROWS_INVALID_ARGUMENT);\n'
        '  CHECK(strcmp(rows_error(), "there is no variant \\"\\", the library holds '
        'least, fast, future") == 0);\n'
        '  CHECK(rows_create_variant(NULL, 1, "future", &none) == ROWS_UNSUPPORTED_CPU);\n'
        "  return 0;\n}\n"
    )
    flags = [f"-I{artifact}", f"-Wl,-rpath,{artifact}"]
    zig_cc(*flags, tmp_path / "main.c", artifact / "librows.so", "-o", tmp_path / "main")
    done = run_bare(tmp_path / "main", artifact / "rows.weights", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("", 0)


def test_manifest_and_inspect_tell_of_each_variant(artifact: Path, program: Program) -> None:
    opened = Artifact.open(artifact)
    assert list(opened.variants) == ["least", "fast", "future"]
    assert opened.manifest["features"] == ["sse2"]
    assert opened.variant("fast")["features"] == ["sse2", "sse4_1"]
    rows = opened.manifest["weights"]["variants"]
    assert [row["read_bytes"] for row in rows] == [64, 64, 64]
    assert [row["added_bytes"] for row in rows] == [64, 0, 0]
    assert all(row["code_bytes"] > 0 for row in rows)
    entries = {e["name"]: e["variants"] for e in opened.manifest["weights"]["entries"]}
    assert entries == {"b": ["least", "fast", "future"], "tail": []}
    assert sum(size for _, _, size in account(opened)) > 0
    assert inspect_artifact(artifact).facts["shown_variant"] == "future"
    layers = [layer.layer for layer in inspect_artifact(artifact, variant="fast").layers]
    assert layers == ["fast bias"]
    measured = inspect_artifact(artifact, profile=True, threads=1)
    assert measured.facts["shown_variant"] == "fast"
    assert measured.layers[0].seconds is not None
    with pytest.raises(DlccError) as caught:
        inspect_artifact(artifact, variant="quick")
    assert caught.value.code == ExitCode.USAGE


def test_report_tells_of_each_variant(artifact: Path) -> None:
    report = json.loads((artifact / "report.json").read_bytes())
    assert [row["variant"] for row in report["better"]] == ["fast", "future"]


@pytest.mark.parametrize("options", [{"pack": "size"}, {"embed": True, "emit": ("so", "a", "o")}])
def test_stored_weights_serve_all_variants(program: Program, tmp_path: Path, options: dict) -> None:
    for name in ("one", "two"):
        write_artifact(program, tmp_path / name, **options)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    for name, want in (("least", row_reference(X)), ("fast", X + BIAS)):
        with dlcc.load(tmp_path / "one", variant=name) as net:
            np.testing.assert_array_equal(net(X), want)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"variant": "least"}, "two variants share a name"),
        ({"arena_bytes": 1 << 20}, "a variant is of another network"),
        ({"object_code": b""}, "the object code is unusable"),
    ],
)
def test_variants_that_do_not_belong_together(program: Program, changes: dict, why: str) -> None:
    better = replace(program.better[0], **changes)
    with pytest.raises(DlccError) as caught:
        check_program(replace(program, better=(better,)))
    assert (caught.value.code, caught.value.what) == (ExitCode.INTERNAL, why)


def test_variants_share_no_function(program: Program) -> None:
    twin = replace(program, variant="twin", better=())
    with pytest.raises(DlccError, match="two variants share a function"):
        check_program(replace(program, better=(twin,)))


def test_a_variant_checks_the_weights_that_it_reads(program: Program, tmp_path: Path) -> None:
    """Damage elsewhere is found by the SHA-256 of the file alone, which the C library leaves."""
    place = 3 << 12
    weights = (program.weights.ljust(place, b"\0") + BIAS.tobytes()).ljust(place + 100, b"\0")
    entries = (*program.weight_entries, WeightEntry("fast bias", "b", place, 64, "dense<f32>"))
    shared = {"weights": weights, "weight_entries": entries}
    fast = program.better[0]
    step = replace(fast.steps[0], args=(Arg("input"), Arg("weights", place), Arg("output")))
    fast = replace(fast, **shared, steps=(step,))
    artifact = write_artifact(replace(program, **shared, better=(fast,)), tmp_path / "out")
    (library, file) = (artifact.path(suffix) for suffix in (".so", ".weights"))
    assert library is not None
    assert file is not None
    image, mark = file.read_bytes(), int(artifact.manifest["fingerprint"], 16)
    for at, damaged in ((64 + 64, "least"), (64 + place, "fast"), (64 + 8000, "neither")):
        file.write_bytes(image[:at] + b"\7" + image[at + 1 :])
        for name in ("least", "fast"):
            if name != damaged:
                Library(library, "rows", file, 1, mark, name).close()
                continue
            with pytest.raises(DlccError, match="the hash of its content is wrong"):
                Library(library, "rows", file, 1, mark, name)


def test_static_library_links_with_musl(program: Program, tmp_path: Path) -> None:
    write_artifact(program, tmp_path / "out", emit=("a",), embed=True)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "rows.h"\n'
        "int main(void) {\n  static float x[24 * 16], y[24 * 16];\n"
        "  const void *inputs[] = {x};\n  void *outputs[] = {y};\n  rows_t *net;\n"
        '  if (rows_create("absent", 2, &net) == ROWS_OK) return 1;\n  puts(rows_error());\n'
        "  if (rows_create(NULL, 2, &net) != ROWS_OK) return 2;\n"
        "  puts(rows_variant(net)->name);\n"
        "  return rows_run(net, inputs, outputs) == ROWS_OK ? 0 : 3;\n}\n"
    )
    flags = ["-target", "x86_64-linux-musl", "-static", "-I", tmp_path / "out", "-Wall", "-Werror"]
    library = tmp_path / "out" / "librows.a"
    zig("cc", *flags, tmp_path / "main.c", library, "-o", tmp_path / "main")
    done = run_bare(tmp_path / "main", cwd=tmp_path)
    told = "cannot open the weights file absent: no such file\nfast\n"
    assert (done.stdout, done.returncode) == (told, 0)
