"""Cubins: what is read of them, and programs that no GPU could run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dlcc.artifact.check import check_program
from dlcc.cuda.architecture import Architecture
from dlcc.cuda.cubin import read_cubin
from dlcc.errors import DlccError, ExitCode
from dlcc.objects import ObjectError
from dlcc.program import Arg, Launch, Program
from tests.cuda.programs import cubin, rows_program, two_shapes


@pytest.mark.parametrize("name", ["sm_80", "sm_90"])
def test_kernels_are_read(name: str) -> None:
    found = read_cubin(cubin(name))
    assert str(found.architecture) == name
    assert set(found.kernels) == {"add_bias", "reverse", "double_all"}
    kernel = found.kernels["reverse"]
    assert (kernel.shared_bytes, kernel.max_threads, kernel.parameters) == (512, 128, (8, 8))
    assert (kernel.local_bytes, kernel.code_bytes > 0) == (0, True)
    assert 0 < kernel.registers <= 255


def test_what_is_no_cubin() -> None:
    with pytest.raises(ObjectError):
        read_cubin(b"no ELF file")
    broken = bytearray(cubin("sm_80"))
    broken[18:20] = (62).to_bytes(2, "little")
    with pytest.raises(ObjectError, match="it is for machine 62, not for an NVIDIA GPU"):
        read_cubin(bytes(broken))


@pytest.mark.parametrize(
    ("name", "device", "runs"),
    [
        ("sm_80", 80, True),
        ("sm_80", 89, True),
        ("sm_86", 80, False),
        ("sm_80", 90, False),
        ("sm_90a", 90, True),
        ("sm_100", 103, True),
    ],
)
def test_who_runs_what(name: str, device: int, runs: bool) -> None:
    architecture = Architecture.named(name)
    assert architecture is not None
    assert architecture.runs(device) is runs
    assert Architecture.named("sm_81x") is None


def _changed(**fields: Any) -> Program:
    """The row program with other fields of its second step."""
    program = rows_program()
    steps = list(program.steps)
    steps[1] = replace(steps[1], **fields)
    return replace(program, steps=tuple(steps))


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (lambda: _changed(function="absent"), "the cubin lacks it"),
        (lambda: _changed(launch=None), "a GPU runs kernels only"),
        (lambda: _changed(args=(Arg("input"),)), "1 addresses for parameters of"),
        (lambda: _changed(launch=Launch((0, 1, 1), (128, 1, 1))), "its grid is"),
        (lambda: _changed(launch=Launch((1, 1, 1), (1, 1, 65))), "its block is"),
        (lambda: _changed(launch=Launch((1, 1, 1), (256, 1, 1))), "256 threads in a block"),
        (lambda: _changed(launch=Launch((1, 1, 1), (8, 1, 1), 1 << 18)), "of shared memory, sm_80"),
        (lambda: replace(rows_program(), features=("sm_90",)), "sm_80, not sm_90"),
        (lambda: replace(rows_program(), features=("avx2",)), "features are avx2"),
        (lambda: replace(rows_program(), threads=2), "threads=2"),
        (lambda: replace(two_shapes(), alignment=512), "memory is aligned to 256"),
        (lambda: replace(rows_program(), object_code=b"none"), "the cubin is unusable"),
    ],
)
def test_programs_that_no_gpu_runs(program: Any, text: str) -> None:
    with pytest.raises(DlccError, match=text) as caught:
        check_program(program())
    assert caught.value.code == ExitCode.INTERNAL
