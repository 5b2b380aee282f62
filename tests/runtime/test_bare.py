"""The interface without an operating system: header and runtime around kernels of object code."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlcc.artifact.bare import arena_bytes, bare_header, bare_model_source, check_bare
from dlcc.artifact.csource import weights_assembly
from dlcc.errors import DlccError
from dlcc.program import FusedStep
from tests.runtime.programs import COLUMNS, HERE, ROWS, row_program, row_reference, zig_cc

STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Wconversion", "-Werror")


@pytest.fixture(scope="module")
def program_folder(kernels: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rows.h, rows.c and what is linked with them."""
    folder = tmp_path_factory.mktemp("bare")
    program = row_program(kernels, threads=1)
    (folder / "rows.h").write_text(bare_header(program, "rows", alignment=8))
    names = {"add_row": "add_row", "relu": "relu"}
    (folder / "rows.c").write_text(bare_model_source(program, "rows", names))
    (folder / "kernels.o").write_bytes(kernels)
    (folder / "weights.bin").write_bytes(program.weights)
    text = weights_assembly("rows", str(folder / "weights.bin"))
    (folder / "weights.S").write_text(text.replace("rows_weights_image", "rows_weights"))
    zig_cc(*STRICT, "-c", folder / "rows.c", "-o", folder / "rows.o")
    return folder


def test_runs_and_refuses_bad_pointers(program_folder: Path) -> None:
    caller = program_folder / "caller"
    objects = [program_folder / name for name in ("rows.o", "kernels.o", "weights.S")]
    source = HERE / "bare_caller.c"
    zig_cc(*STRICT, "-I", program_folder, source, *objects, "-o", caller)
    x = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    done = subprocess.run([caller], input=x.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == row_reference(x).tobytes()


def test_header_is_cpp_too(program_folder: Path) -> None:
    source = program_folder / "user.cpp"
    source.write_text('#include "rows.h"\nrows_arena_t arena;\n')
    zig_cc("-x", "c++", "-std=c++11", "-Wextra", "-c", source, "-o", program_folder / "user.o")


def test_needs_no_library(program_folder: Path) -> None:
    from dlcc.tir import undefined_symbols

    needed = undefined_symbols((program_folder / "rows.o").read_bytes())
    assert needed - {"_GLOBAL_OFFSET_TABLE_"} == {"add_row", "relu", "rows_weights"}


def test_arena_is_whole_words(kernels: bytes) -> None:
    program = row_program(kernels, threads=1)
    sizes = {0: 8, 8: 8, 9: 16}
    assert {n: arena_bytes(replace(program, arena_bytes=n)) for n in sizes} == sizes


def test_refuses_other_runtimes_programs(kernels: bytes) -> None:
    program = row_program(kernels, threads=1)
    check_bare(program)
    with pytest.raises(DlccError, match="planned for 4 threads"):
        check_bare(replace(program, threads=4))
    with pytest.raises(DlccError, match="fused"):
        check_bare(replace(program, steps=(FusedStep((), (), 1),)))
