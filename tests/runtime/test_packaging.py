"""What lies beside a library: the example program, build files, C names."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from dlcc.artifact import Artifact, write_artifact
from dlcc.artifact.csource import header_source
from dlcc.artifact.packaging import Delivery, package_files
from dlcc.errors import DlccError, ExitCode
from dlcc.objects.elf import ElfFile
from dlcc.program import Program, Sample, TensorInfo
from tests.runtime.programs import row_program, row_reference, run_bare, zig_cc

STRICT = ("-Wextra", "-pedantic", "-Wconversion")
X = np.random.default_rng(4).normal(size=(24, 16)).astype(np.float32)


def sample(tolerance: float = 0.0, error: float = 0.0) -> Sample:
    outputs = row_reference(X)
    outputs[3, 5] += np.float32(error)
    return Sample((X.tobytes(),), (outputs.tobytes(),), (tolerance,), "made up")


@pytest.fixture(scope="module")
def rows(kernels: bytes, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("packaging") / "an artifact"
    return write_artifact(row_program(kernels), folder, emit=("so", "a", "o"), sample=sample())


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name}")
    return path


def run(*command: str | Path, cwd: Path, **settings: str) -> str:
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- the example program -----------------------------------------------------------------------


@pytest.mark.parametrize("library", ["librows.so", "librows.a", "rows.o"])
@pytest.mark.parametrize("standard", ["c99", "c++11"])
def test_example_runs(library: str, standard: str, rows: Artifact, tmp_path: Path) -> None:
    language = ["-x", "c++"] if "++" in standard else []
    flags = [*language, f"-std={standard}", *STRICT, "-c", rows.folder / "example.c"]
    zig_cc(*flags, "-o", tmp_path / "example.o")
    rpath = f"-Wl,-rpath,{rows.folder}"
    libraries = [rows.folder / library, "-lpthread", rpath]
    zig_cc(tmp_path / "example.o", *libraries, "-o", tmp_path / "example")
    done = run_bare(tmp_path / "example", cwd=rows.folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("rows: threads ")
    assert [*lines[1:2], lines[3], lines[-1]] == ["zeros", "recorded input", "ok"]
    assert lines[2].startswith("  y: 0 0 0 0 ... (384 elements)")
    assert run_bare(tmp_path / "example", rows.folder / "rows.weights", cwd=tmp_path).stdout
    missing = run_bare(tmp_path / "example", cwd=tmp_path)
    assert missing.returncode == 1
    assert "rows.weights: no such file" in missing.stderr


@pytest.mark.parametrize(
    ("tolerance", "error", "words"),
    [
        (0.0, 1e-6, "y is not the recorded output"),
        (1e-4, 1e-2, "y differs by 0.01"),
        (1e-4, np.nan, "y differs by inf"),
        (1e-4, 1e-4, ""),
    ],
)
def test_example_finds_another_output(
    tolerance: float, error: float, words: str, kernels: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    recorded = sample(tolerance, error)
    write_artifact(row_program(kernels), out, emit=("a",), embed=True, sample=recorded)
    zig_cc(*STRICT, out / "example.c", out / "librows.a", "-lpthread", "-o", tmp_path / "example")
    done = run_bare(tmp_path / "example", cwd=tmp_path)
    assert done.returncode == (1 if words else 0)
    assert words in done.stderr
    assert done.stdout.endswith("FAILED\n" if words else "ok\n")


def test_example_without_a_recorded_input(kernels: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_artifact(row_program(kernels), out, emit=("o",))
    assert not (out / "example_data.h").exists()
    zig_cc(*STRICT, out / "example.c", out / "rows.o", "-lpthread", "-o", tmp_path / "example")
    done = run_bare(tmp_path / "example", cwd=out)
    assert (done.returncode, done.stderr, "recorded" in done.stdout) == (0, "", False)


SPECIAL = [0.0, -0.0, 1.5, -1e-40, 3.4e38, 0.1, np.inf, -np.inf, np.nan]
ARRAYS = {
    "float32": np.array([*SPECIAL, 16777217, 1e-45], np.float32),
    "float64": np.array([*SPECIAL, 0.1 + 1e-17, 5e-324]),
    "float16": np.array([0, -0.0, 1, -1.5, 65504, 6e-8, np.inf, -np.inf, np.nan], np.float16),
    "bfloat16": np.array([0, 1, -1.5, 3e38, np.inf, np.nan], ml_dtypes.bfloat16),
    "bool": np.array([True, False]),
    "int8": np.array([-128, 127], np.int8),
    "uint8": np.array([0, 255], np.uint8),
    "int32": np.array([-(2**31), 2**31 - 1], np.int32),
    "uint32": np.array([0, 2**32 - 1], np.uint32),
    "int64": np.array([-(2**63), 2**63 - 1, -(2**31)], np.int64),
    "uint64": np.array([2**64 - 1], np.uint64),
    "empty": np.zeros(0, np.float32),
}


@pytest.mark.parametrize("tolerance", [0.0, 1e-6])
def test_numbers_of_every_dtype(tolerance: float, tmp_path: Path) -> None:
    """A stand-in for the library copies inputs to outputs and to a file."""
    tensors = tuple(TensorInfo(name, str(a.dtype), (a.size,)) for name, a in ARRAYS.items())
    contents = tuple(a.tobytes() for a in ARRAYS.values())
    program = Program("copy", tensors, tensors, (), 0, b"", (), b"", "x86_64-linux-gnu", ())
    recorded = Sample(contents, contents, (tolerance,) * len(tensors), "made up")
    made = package_files(Delivery(program, "copy", ("o",), True, 0, sample=recorded))
    made["copy.h"] = header_source(program, "copy").encode()
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    copies = "".join(
        f"  memcpy(outputs[{i}], inputs[{i}], {a.nbytes});\n"
        f"  fwrite(inputs[{i}], 1, {a.nbytes}, f);\n"
        for i, a in enumerate(ARRAYS.values())
    )
    (tmp_path / "stub.c").write_text(
        '#include <stdio.h>\n#include <string.h>\n#include "copy.h"\n'
        "static const copy_info_t info;\n"
        "const copy_info_t *copy_info(void) { return &info; }\n"
        "copy_status_t copy_create(const char *p, int n, copy_t **o) "
        "{ (void)p; (void)n; *o = 0; return COPY_OK; }\n"
        "int copy_threads(const copy_t *c) { (void)c; return 1; }\n"
        "void copy_destroy(copy_t *c) { (void)c; }\n"
        'const char *copy_error(void) { return ""; }\n'
        "copy_status_t copy_run(copy_t *c, const void *const *inputs, void *const *outputs) {\n"
        f'  FILE *f = fopen("copied", "wb");\n  (void)c;\n{copies}  fclose(f);\n'
        "  return COPY_OK;\n}\n"
    )
    zig_cc(tmp_path / "stub.c", "-c", "-o", tmp_path / "stub.o")
    zig_cc(*STRICT, tmp_path / "example.c", tmp_path / "stub.o", "-o", tmp_path / "example")
    done = run_bare(tmp_path / "example", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "copied").read_bytes() == b"".join(contents)
    shown = done.stdout.partition("recorded input")[2]
    assert "  float16: 0 -0 1 -1.5 ... (9 elements)" in shown
    assert f"  bfloat16: 0 1 -1.5 {float(ARRAYS['bfloat16'][3]):g} ... (6 elements)" in shown
    assert "  int8: -128 127\n" in shown


# -- build systems -----------------------------------------------------------------------------

PROJECT = """cmake_minimum_required(VERSION 3.13)
project(consumer C CXX)
find_package(rows CONFIG REQUIRED)
find_package(rows CONFIG REQUIRED)
add_executable(consumer "${rows_DIR}/example.c")
target_link_libraries(consumer PRIVATE rows::rows)
file(WRITE "${CMAKE_BINARY_DIR}/weights" "${rows_WEIGHTS}")
"""


@pytest.mark.parametrize("kind", ["so", "a", "o"])
def test_cmake_finds_and_links_it(
    kind: str, rows: Artifact, kernels: bytes, tmp_path: Path
) -> None:
    cmake = tool("cmake")
    tool("c++")
    folder = rows.folder
    if kind == "o":  # alone: of several forms it is never the one taken
        folder = tmp_path / "object"
        write_artifact(row_program(kernels), folder, emit=("o",), sample=sample())
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    static = f"-Drows_USE_STATIC_LIBS={'ON' if kind == 'a' else 'OFF'}"
    place = f"-Drows_DIR={folder}" if kind == "a" else f"-DCMAKE_PREFIX_PATH={folder}"
    run(cmake, "-S", tmp_path, "-B", tmp_path / "build", place, static, cwd=tmp_path)
    run(cmake, "--build", tmp_path / "build", cwd=tmp_path)
    weights = (tmp_path / "build" / "weights").read_text()
    assert weights == str(folder / "rows.weights")
    assert run(tmp_path / "build" / "consumer", weights, cwd=tmp_path).endswith("ok\n")
    needed = ElfFile((tmp_path / "build" / "consumer").read_bytes()).needed()
    assert ("librows.so" in needed) is (kind == "so")


def test_cmake_refuses_another_processor(rows: Artifact, tmp_path: Path) -> None:
    cmake = tool("cmake")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(consumer NONE)\n"
        "set(CMAKE_SYSTEM_PROCESSOR riscv64)\nfind_package(rows CONFIG REQUIRED)\n"
    )
    command = [cmake, "-S", ".", "-B", "build", f"-Drows_DIR={rows.folder}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "the network was compiled for x86_64, this build is for riscv64" in done.stderr


@pytest.mark.parametrize("kind", ["so", "a", "o"])
def test_pkg_config_flags_build_it(kind: str, kernels: bytes, tmp_path: Path) -> None:
    finder = tool("pkg-config")
    out = tmp_path / "moved"
    write_artifact(row_program(kernels), tmp_path / "out", emit=(kind,), sample=sample())
    (tmp_path / "out").rename(out)
    settings = {"PKG_CONFIG_PATH": str(out)}
    run(finder, "--validate", "rows", cwd=tmp_path, **settings)
    flags = run(finder, "--cflags", "--libs", "rows", cwd=tmp_path, **settings).split()
    zig_cc(out / "example.c", *flags, "-o", tmp_path / "example", f"-Wl,-rpath,{out}")
    weights = run(finder, "--variable=weights", "rows", cwd=tmp_path, **settings).strip()
    assert run(tmp_path / "example", weights, cwd=tmp_path).endswith("ok\n")


def test_commands_of_the_page_build_it(rows: Artifact, tmp_path: Path) -> None:
    """As they stand, in a shell."""
    page = (rows.folder / "INTEGRATION.md").read_text()
    shell = page.partition("```sh\n")[2].partition("```")[0]
    lines = [line for line in shell.splitlines() if line.startswith("cc ")]
    assert len(lines) == 3
    source = (rows.folder / "example.c").read_text()
    assert f" *   {lines[0]} && ./example\n" in source
    tool("cc")
    copy = tmp_path / "copy"
    shutil.copytree(rows.folder, copy)
    for line in lines:
        assert run("sh", "-c", f"{line} && ./example", cwd=copy).endswith("ok\n")


def test_page_states_the_interface(kernels: bytes, tmp_path: Path) -> None:
    program = row_program(kernels)
    codes = TensorInfo("y|z", "uint8", (2, 3), 0.25, 7)
    program = replace(program, inputs=program.inputs, outputs=(codes,), features=("avx2",))
    delivery = Delivery(program, "rows", ("a",), False, 1234, unpacked_bytes=99)
    page = package_files(delivery)["INTEGRATION.md"].decode()
    assert "| in 0 | x | float32 | 24 x 16 | 1536 | 4 |  |" in page
    assert "| out 0 | y\\|z | uint8 | 2 x 3 | 6 | 1 | 0.25 * (code - 7) |" in page
    assert f"| arena | {program.arena_bytes} |" in page
    assert "| weights | 1234 |" in page
    assert "| unpacked weights | 99 |" in page
    assert "avx2" in page
    assert "ROWS_UNSUPPORTED_CPU" in page
    assert "@" not in page
    assert "librows.a -lpthread" in page
    assert "librows.so" not in page


# -- C names -----------------------------------------------------------------------------------


def defined(library: bytes) -> set[str]:
    return {s.name for s in ElfFile(library).symbols() if s.is_global and s.section}


@pytest.mark.parametrize("pack", ["speed", "size"])
def test_every_global_symbol_has_the_prefix(pack: str, kernels: bytes, tmp_path: Path) -> None:
    options = {"emit": ("so", "a", "o"), "embed": True, "pack": pack}
    write_artifact(row_program(kernels), tmp_path / "out", name="chosen", **options)
    found = defined((tmp_path / "out" / "chosen.o").read_bytes())
    archive = (tmp_path / "out" / "libchosen.a").read_bytes()
    assert archive[archive.index(b"\x7fELF") :].startswith(
        (tmp_path / "out" / "chosen.o").read_bytes()
    )
    assert "chosen_kernel_add_row" in found
    assert {name for name in found if not name.startswith("chosen_")} == set()


@pytest.mark.parametrize("kind", ["so", "a", "o"])
def test_one_network_twice_in_one_program(kind: str, kernels: bytes, tmp_path: Path) -> None:
    """Under two names; each file sees the header of its own."""
    libraries, flags = [], []
    for name in ("left", "right"):
        out = tmp_path / name
        write_artifact(row_program(kernels), out, emit=(kind,), name=name, sample=sample())
        source = (out / "example.c").read_text().replace("int main(", f"int {name}_main(")
        (out / "example.c").write_text(f"int {name}_main(int argc, char **argv);\n{source}")
        zig_cc(*STRICT, "-c", out / "example.c", "-o", out / "example.o")
        libraries += [out / "example.o", out / {"o": f"{name}.o"}.get(kind, f"lib{name}.{kind}")]
        flags.append(f"-Wl,-rpath,{out}")
    (tmp_path / "main.c").write_text(
        "int left_main(int argc, char **argv);\nint right_main(int argc, char **argv);\n"
        "int main(int argc, char **argv) {\n"
        "  return argc == 3 ? left_main(2, argv) || right_main(2, argv + 1) : 2;\n}\n"
    )
    zig_cc(tmp_path / "main.c", *libraries, *flags, "-lpthread", "-o", tmp_path / "main")
    weights = [tmp_path / name / f"{name}.weights" for name in ("left", "right")]
    done = run_bare(tmp_path / "main", *weights, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout.count("ok\n")) == (0, "", 2)


@pytest.mark.parametrize("name", ["", "a-b", "2net", "size", "example", "x" * 65, "_net"])
def test_bad_c_names_are_refused(name: str, kernels: bytes, tmp_path: Path) -> None:
    with pytest.raises(DlccError, match="--name ") as caught:
        write_artifact(row_program(kernels), tmp_path / "out", name=name)
    assert caught.value.code == ExitCode.USAGE
    assert not (tmp_path / "out").exists()


def test_files_of_others_are_not_replaced(kernels: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_artifact(row_program(kernels), out, name="first")
    (out / "second.pc").write_text("mine")
    with pytest.raises(DlccError, match=r"second\.pc is in the folder") as caught:
        write_artifact(row_program(kernels), out, name="second")
    assert caught.value.code == ExitCode.OUTPUT
    assert (out / "second.pc").read_text() == "mine"
    assert Artifact.open(out).symbol == "first"
    assert os.listdir(tmp_path) == ["out"]
