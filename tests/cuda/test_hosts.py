"""Libraries for GPUs behind AArch64 hosts: built here, and run up to the driver they lack."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dlcc.artifact import write_artifact
from dlcc.objects.elf import ElfFile
from targets import get_targets
from tests.cuda.programs import rows_program
from tests.emulation.machine import CORTEX_A72

HERE = Path(__file__).parent
AARCH64 = 183
"""EM_AARCH64."""


def test_targets() -> None:
    both = get_targets("cuda-arm")
    assert [t.name for t in both] == ["cuda-arm:sm_87", "cuda-arm:sm_90"]
    assert {t.triple for t in both} == {"aarch64-unknown-linux-gnu"}


@pytest.mark.skipif(bool(CORTEX_A72.absent), reason=CORTEX_A72.absent or "present")
def test_program_of_an_aarch64_host(tmp_path: Path) -> None:
    """The whole runtime is linked, starts without a driver, and says what it misses."""
    program = replace(rows_program("sm_87"), triple=get_targets("cuda-arm")[0].triple)
    artifact = write_artifact(program, tmp_path / "rows", emit=("so", "a"))
    library = ElfFile((artifact.folder / "librows.so").read_bytes())
    assert library.machine == AARCH64
    assert json.loads((artifact.folder / "manifest.json").read_text())["variant"] == "sm_87"
    source = tmp_path / "main.c"
    source.write_text(
        '#include <stdio.h>\n#include "rows.h"\n'
        "int main(int count, char **words) {\n"
        "  rows_t *net;\n"
        "  const int status = rows_create(words[count - 1], 1, &net);\n"
        '  printf("%d %s", status, rows_error());\n'
        "  return 0;\n}\n"
    )
    CORTEX_A72.compile(
        source, "-I", artifact.folder, artifact.folder / "librows.a", "-lpthread", "-ldl",
        "-o", tmp_path / "main",
    )  # fmt: skip
    told = CORTEX_A72.run(tmp_path / "main", artifact.folder / "rows.weights").decode()
    assert told.startswith("7 there is no NVIDIA driver: libcuda.so.1")
