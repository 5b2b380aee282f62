from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dlcc.artifact import write_artifact
from dlcc.artifact.check import check_program, dtype_of, known_features
from dlcc.errors import DlccError, ExitCode
from dlcc.program import Arg, Jump, Program, TensorInfo, WeightEntry
from tests.runtime.programs import TRIPLE, floats, row_program, zig_cc


def _with_arg(arg: Arg) -> Callable[[Program], Program]:
    def change(program: Program) -> Program:
        first = replace(program.steps[0], args=(arg, *program.steps[0].args[1:]))
        return replace(program, steps=(first, *program.steps[1:]))

    return change


def _step(**fields: object) -> Callable[[Program], Program]:
    return lambda p: replace(p, steps=(replace(p.steps[0], **fields), *p.steps[1:]))  # type: ignore[arg-type]


FAULTS: dict[str, tuple[Callable[[Program], Program], str]] = {
    "threads": (lambda p: replace(p, threads=0), "threads=0"),
    "arena": (lambda p: replace(p, arena_bytes=-1), "arena_bytes=-1"),
    "feature": (lambda p: replace(p, features=("avx1024",)), "avx1024"),
    "two inputs of one name": (lambda p: replace(p, inputs=(floats(1), floats(2))), "share a name"),
    "negative dimension": (lambda p: replace(p, inputs=(floats(-1),)), "negative dimension"),
    "dtype": (lambda p: replace(p, inputs=(TensorInfo("x", "int3", ()),)), "int3"),
    "zero byte": (lambda p: replace(p, name="a\0b"), "cannot be a C string"),
    "lone surrogate": (lambda p: replace(p, name="\udc80"), "cannot be a C string"),
    "work items": (_step(work_items=2**31), "work_items=2147483648"),
    "jump to nowhere": (_step(jump=Jump(Arg("arena"), 99, True)), "to step 99"),
    "jump on an input": (_step(jump=Jump(Arg("input"), 1, True)), "not in the arena"),
    "max threads": (_step(max_threads=-1), "max_threads=-1"),
    "input index": (_with_arg(Arg("input", index=1)), "input 1 of 1"),
    "output index": (_with_arg(Arg("output", index=-1)), "output -1 of 1"),
    "offset behind": (_with_arg(Arg("weights", 192)), "bytes 192 to 192 of 131"),
    "offset before": (_with_arg(Arg("arena", -64)), "bytes -64"),
    "alignment": (_with_arg(Arg("arena", 4)), "no multiple of 64"),
    "stride": (_with_arg(Arg("arena", 0, per_thread=100)), "stride 100"),
    "scratch too small": (_with_arg(Arg("arena", 0, per_thread=512)), "bytes 0 to 2048 of 1664"),
    "scratch in weights": (_with_arg(Arg("weights", 0, per_thread=64)), "per_thread=64"),
    "memory": (_with_arg(Arg("stack")), "unknown memory 'stack'"),  # type: ignore[arg-type]
    "output unwritten": (lambda p: replace(p, steps=p.steps[:1]), "no step writes"),
    "kernel missing": (_step(function="gemm"), "the object lacks 'gemm'"),
    "kernel arity": (
        lambda p: replace(p, steps=(*p.steps, replace(p.steps[0], args=p.steps[0].args[:2]))),
        "3 and 2 arguments",
    ),
    "no object": (lambda p: replace(p, object_code=b""), "not a little-endian ELF"),
    "entries overlap": (
        lambda p: replace(
            p, weight_entries=(WeightEntry("a", "w", 0, 65, ""), WeightEntry("b", "w", 64, 1, ""))
        ),
        "b.w at 64, a.w ends at 65",
    ),
    "entry behind": (
        lambda p: replace(p, weight_entries=(WeightEntry("a", "w", 128, 4, ""),)),
        "ends at 132 of 131",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_programs_are_refused(fault: str, kernels: bytes, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    with pytest.raises(DlccError) as caught:
        write_artifact(change(row_program(kernels)), tmp_path / "out")
    assert caught.value.code == ExitCode.INTERNAL
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sound_program_passes(kernels: bytes) -> None:
    check_program(row_program(kernels))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "float expf(float); int32_t k(float *y, int b, int e) { *y = expf(*y); return 0; }",
            "expf",
        ),
        ("int zlibVersion(void); int32_t k(void *y, int b, int e) { return zlibVersion(); }", "zl"),
        (
            "int (*__TVMBackendParallelLaunch)(void) __attribute__((weak));"
            "int32_t k(void *y, int b, int e) { return __TVMBackendParallelLaunch(); }",
            "TVM's runtime",
        ),
    ],
)
def test_kernels_may_call_libc_only(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "k.c").write_text("#include <stdint.h>\n" + source)
    zig_cc("-fPIC", "-O2", "-c", tmp_path / "k.c", "-o", tmp_path / "k.o")
    program = replace(row_program((tmp_path / "k.o").read_bytes()), steps=(), outputs=())
    with pytest.raises(DlccError, match=message):
        check_program(program)


def test_dtypes_of_ml_dtypes_are_known() -> None:
    assert dtype_of(TensorInfo("x", "bfloat16", (2,))).itemsize == 2
    assert dtype_of(TensorInfo("x", "bool", (2,))).itemsize == 1


def test_feature_names_are_read_from_the_runtime() -> None:
    assert {"avx2", "fma", "avx512_vnni", "amx_int8", "avx_vnni"} <= known_features(TRIPLE)
