"""Machine code of GPU kernels: the instructions that were wanted, in registers, within limits."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dlcc.codegen import device_source
from dlcc.cuda.architecture import ARCHITECTURES, MOST_THREADS
from dlcc.cuda.cubin import Kernel, read_cubin
from dlcc.cuda.nvrtc import compile_cubin
from targets.cuda.table import machine_of
from targets.kernels.grid_gemm import grid_gemm
from targets.kernels.grid_sparse import grid_sparse
from targets.kernels.grid_sparse_blocks import grid_blocks
from targets.kernels.spec import NUMPY, ConvSpec, Epilogue

SPEC = ConvSpec(64, 28, 28, 128, 128, 3, 3, pads=(1, 1, 1, 1))
WANTED = {
    ("u8", "sm_75"): ("IDP.4A.U8.S8", "LDS.U.128"),
    ("u8", "sm_80"): ("IMMA.16832.U8.S8", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128"),
    ("u8", "sm_90"): ("IGMMA.64x128x32.U8.S8", "LDGSTS.E.BYPASS.128"),
    ("f16", "sm_80"): ("HMMA.16816.F32", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128"),
    ("f16", "sm_90"): ("HGMMA.64x128x16.F32", "LDGSTS.E.BYPASS.128"),
    ("bf16", "sm_90"): ("HGMMA.64x128x16.F32.BF16", "LDGSTS.E.BYPASS.128"),
    ("f32", "sm_80"): ("FFMA", "LDS.128", "LDGSTS.E.BYPASS.128"),
    ("tf32", "sm_80"): ("HMMA.1688.F32.TF32", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128"),
    ("f32", "sm_90"): ("FFMA", "LDS.128", "LDGSTS.E.BYPASS.128"),
}
"""What the products, and what brings operands, should be."""

WANTED_SPARSE = {
    ("u8", "sm_80"): ("IMMA.SP.16864.S8.U8", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128", "LDS.128"),
    ("f16", "sm_80"): ("HMMA.SP.16832.F32", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128", "LDS.128"),
    ("bf16", "sm_90"): ("HMMA.SP.16832.F32.BF16", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128"),
}
"""The same on sparse tensor cores."""

STORED = ("STG.E.128", "LDG.E.128.CONSTANT")
"""Results, and what the epilogue reads: sums left in shared memory are taken up 16 bytes wide."""


def disassembler() -> Path:
    spec = find_spec("nvidia")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [p for place in places for p in Path(place).glob("*/bin/nvdisasm")]
    if not found:
        pytest.skip("needs the Python package nvidia-cuda-nvdisasm")
    return found[0]


def compiled(dtype: str, architecture: str, make=grid_gemm) -> tuple[Kernel, bytes]:
    codes, tf32 = dtype == "u8", dtype == "tf32"
    dtype = "f32" if tf32 else dtype
    spec = ConvSpec(
        *(SPEC.n, SPEC.h, SPEC.w, SPEC.c, SPEC.oc, 3, 3),
        pads=SPEC.pads,
        in_dtype=dtype,
        epilogue=Epilogue("u8" if codes else "f32", residual="u8" if codes else "f32"),
    )
    weights = np.zeros((spec.oc, spec.c, 3, 3), "int8" if codes else NUMPY[dtype])
    multiplier = np.ones(spec.oc, np.float32) if codes else None
    machine = machine_of(ARCHITECTURES[architecture], tf32=tf32)
    plan = make(spec, weights, np.zeros(spec.oc), multiplier, multiplier, machine)
    (step,) = plan.steps
    code = str(ARCHITECTURES[architecture].code)
    cubin = compile_cubin(device_source({step.name_key: step.build()}), code)
    assert step.launch is not None
    kernel = read_cubin(cubin).kernels[step.name_key]
    threads, shared = np.prod(step.launch.block), step.launch.shared_bytes + kernel.shared_bytes
    assert threads <= min(MOST_THREADS, kernel.max_threads)
    assert threads * kernel.registers <= 65536
    assert shared <= machine.shared_bytes
    return kernel, cubin


def instructions(cubin: bytes, folder: Path) -> Counter[str]:
    """How often each machine instruction occurs."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    command = [str(disassembler()), "-c", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ )?([A-Z][\w.]+)", text, re.M))


@pytest.mark.parametrize(("dtype", "architecture"), WANTED)
def test_instructions(dtype, architecture, tmp_path):
    check_code(*compiled(dtype, architecture), WANTED[dtype, architecture], tmp_path)


@pytest.mark.parametrize(
    ("dtype", "architecture"),
    [
        pytest.param(*key, marks=() if key == ("u8", "sm_80") else pytest.mark.slow)
        for key in WANTED_SPARSE
    ],
)
def test_sparse_instructions(dtype, architecture, tmp_path):
    wanted = WANTED_SPARSE[dtype, architecture]
    check_code(*compiled(dtype, architecture, grid_sparse), wanted, tmp_path)


@pytest.mark.slow
def test_instructions_of_present_blocks(tmp_path):
    wanted = (*WANTED["u8", "sm_80"], "LDG.E.CONSTANT")
    check_code(*compiled("u8", "sm_80", grid_blocks), wanted, tmp_path)


def check_code(kernel: Kernel, cubin: bytes, wanted: tuple[str, ...], tmp_path: Path) -> None:
    """The instructions ``wanted`` are there, accesses are wide, sums are in registers."""
    found = instructions(cubin, tmp_path)
    for name in (*wanted, *STORED):
        assert any(known.startswith(name) for known in found), (name, found.most_common())
    narrow = [name for name in found if name.startswith("STG.") and ".128" not in name]
    assert not narrow, "a store is narrower than it could be"
    assert not any(name.startswith(("LDL", "STL")) for name in found), "sums are not in registers"
    assert kernel.local_bytes == 0


def test_the_same_source_gives_the_same_cubin():
    assert compiled("u8", "sm_80")[1] == compiled("u8", "sm_80")[1]
