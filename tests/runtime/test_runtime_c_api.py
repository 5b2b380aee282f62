from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from dlcc.artifact import Artifact, write_artifact
from dlcc.artifact.check import known_features
from dlcc.objects.elf import ElfFile
from tests.runtime.programs import (
    HERE,
    RUNTIME,
    TRIPLE,
    missing_feature,
    renamed,
    row_program,
    run_bare,
    zig_cc,
)

LIBC = {"libc.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2"}


def _link_caller(folder: Path, output: Path, *, library: str) -> None:
    flags: list[str | Path] = ["-I", folder, HERE / "caller.c", folder / library]
    zig_cc(*flags, "-o", output, "-Wl,-rpath,$ORIGIN/out", "-lpthread")


@pytest.mark.parametrize("library", ["librows.so", "librows.a", "rows.o"])
def test_c_program_with_empty_environment(library: str, rows: Artifact, tmp_path: Path) -> None:
    program = tmp_path / "caller"
    (tmp_path / "out").symlink_to(rows.folder)
    _link_caller(rows.folder, program, library=library)
    needed = set(ElfFile(program.read_bytes()).needed())
    assert needed - {"librows.so"} <= LIBC
    assert ("librows.so" in needed) is (library == "librows.so")
    done = run_bare(program, rows.folder / "rows.weights", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("ok\n", "")
    # Without a path: the file of that name in the working directory.
    done = run_bare(program, "-", cwd=rows.folder)
    assert (done.stdout, done.stderr) == ("ok\n", "")
    done = run_bare(program, "-", cwd=tmp_path)
    assert "rows.weights: no such file" in done.stdout


@pytest.mark.parametrize("library", ["librows.so", "librows.a", "rows.o"])
def test_c_program_with_embedded_weights(library: str, kernels: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_artifact(row_program(kernels), out, emit=("so", "a", "o"), embed=True)
    _link_caller(out, tmp_path / "caller", library=library)
    done = run_bare(tmp_path / "caller", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.parametrize("standard", ["c++98", "c++20"])
def test_header_is_cpp(standard: str, rows: Artifact, kernels: bytes, tmp_path: Path) -> None:
    write_artifact(renamed(row_program(kernels), "class"), tmp_path / "out")
    (tmp_path / "main.cpp").write_text(
        '#include "rows.h"\n#include "class.h"\n#include "rows.h"\n'
        "int main() { rows_t *a = 0; class_t *b = 0; rows_destroy(a); class_destroy(b);\n"
        "  rows_status_t s = rows_run(a, 0, 0); return s == ROWS_INVALID_ARGUMENT ? 0 : 1; }\n"
    )
    flags = [f"-std={standard}", "-Wextra", "-I", rows.folder, "-I", tmp_path / "out"]
    zig_cc(*flags, "-c", tmp_path / "main.cpp", "-o", tmp_path / "main.o")
    libraries = [rows.folder / "librows.a", tmp_path / "out" / "libclass.so"]
    rpath = f"-Wl,-rpath,{tmp_path / 'out'}"
    # Linked as C: nothing in it may need libstdc++.
    zig_cc(tmp_path / "main.o", *libraries, "-o", tmp_path / "main", rpath)
    assert run_bare(tmp_path / "main", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("kind", ["so", "a", "o"])
def test_two_networks_in_one_program(kind: str, kernels: bytes, tmp_path: Path) -> None:
    """Both have kernels of the same names; one is another network by its weights."""
    names = ("alpha", "beta")
    for name, bias in zip(names, (b"\0\0\x80?", b"\0\0\0@"), strict=True):
        weights = bytes(64) + bias * 16 + b"\1\2\3"
        program = replace(row_program(kernels, name), weights=weights)
        write_artifact(program, tmp_path / name, emit=(kind,), embed=True)
    calls = "".join(
        f"""
  {n}_t *{n};
  if ({n}_create(NULL, 2, &{n}) != {n.upper()}_OK) {{ puts({n}_error()); return 1; }}
  if ({n}_run({n}, inputs, outputs) != {n.upper()}_OK) {{ puts({n}_error()); return 1; }}
  printf("%g\\n", y[0]);"""
        for n in names
    )
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "alpha.h"\n#include "beta.h"\n'
        "static float x[24 * 16], y[24 * 16];\n"
        "int main(void) {\n  const void *inputs[] = {x};\n  void *outputs[] = {y};"
        f"{calls}\n  alpha_destroy(alpha);\n  beta_destroy(beta);\n  return 0;\n}}\n"
    )
    files = {"so": "lib{}.so", "a": "lib{}.a", "o": "{}.o"}[kind]
    libraries = [tmp_path / n / files.format(n) for n in names]
    paths = [f"-I{tmp_path / n}" for n in names] + [f"-Wl,-rpath,{tmp_path / n}" for n in names]
    zig_cc(*paths, tmp_path / "main.c", *libraries, "-o", tmp_path / "main", "-lpthread")
    assert run_bare(tmp_path / "main", cwd=tmp_path).stdout == "1\n2\n"


def test_refusal_of_a_missing_feature_from_c(kernels: bytes, tmp_path: Path) -> None:
    feature = missing_feature()
    program = replace(row_program(kernels), features=("sse2", feature))
    write_artifact(program, tmp_path / "out", embed=True)
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "rows.h"\n'
        "int main(void) {\n  rows_t *net;\n"
        "  if (rows_create(NULL, 0, &net) != ROWS_UNSUPPORTED_CPU || net) return 1;\n"
        "  puts(rows_error());\n  puts(rows_info()->features[1]);\n  return 0;\n}\n"
    )
    flags = [f"-I{tmp_path / 'out'}", f"-Wl,-rpath,{tmp_path / 'out'}"]
    library = tmp_path / "out" / "librows.so"
    zig_cc(*flags, tmp_path / "main.c", library, "-o", tmp_path / "main")
    lines = run_bare(tmp_path / "main", cwd=tmp_path).stdout.splitlines()
    text = f"the library needs {feature}, which this CPU lacks; compile with --target cpu:"
    assert lines[0].startswith(text)
    assert lines[1] == feature


def test_cpu_features_agree_with_the_kernel(tmp_path: Path) -> None:
    """cpuid in the runtime and Linux's /proc/cpuinfo say the same for every name."""
    (tmp_path / "main.c").write_text(
        "#define DLCC_CODE(x) x\n#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n"
        "#include <unistd.h>\n#include <sys/syscall.h>\n"
        '#include "cpu_x86_64.h"\n'
        "int main(void) {\n"
        "  for (size_t i = 0; i < sizeof dlcc_cpu_features / sizeof *dlcc_cpu_features; i++)\n"
        '    printf("%s %d\\n", dlcc_cpu_features[i].name, '
        "dlcc_cpu_has(dlcc_cpu_features[i].name));\n"
        '  printf("level %s\\nunknown %d\\n", dlcc_cpu_level(), dlcc_cpu_has("avx1024"));\n'
        '  printf("permit %d\\n", dlcc_cpu_permit("amx_int8"));\n'
        "  dlcc_cpu_relax();\n  return 0;\n}\n"
    )
    source = tmp_path / "main.c"
    zig_cc("-D_GNU_SOURCE", "-I", RUNTIME, source, "-o", tmp_path / "main")
    lines = run_bare(tmp_path / "main", cwd=tmp_path).stdout.splitlines()
    found = dict(line.split() for line in lines)
    level, unknown, permit = (found.pop(k) for k in ("level", "unknown", "permit"))
    assert known_features(TRIPLE) == set(found)
    flags = set(Path("/proc/cpuinfo").read_text().split())
    # Older kernels do not name the newest features; those they name must be found.
    assert {name for name in found if name in flags} <= {n for n, v in found.items() if v == "1"}
    old = {n for n in found if n.startswith(("avx5", "avx2", "fma", "sse", "bmi"))}
    assert {n for n in old if found[n] == "1"} <= flags
    assert unknown == "-1"
    assert permit == ("0" if "amx_int8" in flags else "-1")
    assert level.removeprefix("cpu:")


def test_advised_targets_exist() -> None:
    """The names in a refusal are targets of the command line, with the feature they stand for."""
    from targets.cpu.levels import LEVELS

    source = (RUNTIME / "cpu_x86_64.h").read_text()
    rows = source.partition("dlcc_cpu_levels[][2]")[2].partition("};")[0]
    pairs = [row.strip(' {},"').split('", "') for row in rows.splitlines() if "cpu:" in row]
    assert len(pairs) == 5
    for target, feature in pairs:
        assert feature in LEVELS[target.removeprefix("cpu:")].flags
    assert '"cpu:sse4"' in source
    assert "sse4" in LEVELS


def test_header_is_strict_c99(rows: Artifact, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text('#include "rows.h"\nint dlcc_unused;\n')
    flags = ["-std=c99", "-Wextra", "-pedantic", "-I", rows.folder]
    zig_cc(*flags, "-c", tmp_path / "main.c", "-o", tmp_path / "main.o")


def test_example_of_the_manual_compiles(kernels: bytes, tmp_path: Path) -> None:
    manual = (RUNTIME.parents[2] / "docs" / "artifact.md").read_text()
    example = manual.partition("```c\n")[2].partition("```")[0]
    write_artifact(renamed(row_program(kernels), "net"), tmp_path / "out")
    (tmp_path / "main.c").write_text(example)
    flags = ["-std=c99", "-Wextra", "-I", tmp_path / "out"]
    zig_cc(*flags, tmp_path / "main.c", tmp_path / "out" / "libnet.so", "-o", tmp_path / "main")


def test_readelf_agrees(rows: Artifact) -> None:
    library = rows.folder / "librows.so"
    try:
        text = subprocess.run(
            ["readelf", "-dW", str(library)], capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        pytest.skip("no readelf")
    for name in ElfFile(library.read_bytes()).needed():
        assert f"Shared library: [{name}]" in text
    assert text.count("Shared library") == len(rows.manifest["needed"])
    assert "[librows.so]" in text
