"""Networks compiled for GPUs, not run: each launch of the manifest is within what a GPU has.

With ``-m slow``: the third-party models and the networks of the benchmark, at all widths.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
import pytest

from benchmarks.peers.catalogue import NETWORKS
from dlcc.artifact import Artifact
from dlcc.cuda.architecture import ARCHITECTURES, MOST_BLOCK, MOST_GRID
from dlcc.driver import compile as compile_network
from tests.cuda.test_networks import DIGITS
from tests.test_end_to_end import LARGE, SMALL

CACHE = Path(os.environ.get("DLCC_BENCH") or Path.home() / ".cache" / "dlcc-bench") / "models"
REGISTERS = 65536
"""Of a multiprocessor; a block's threads have to have theirs at the same time."""

UNIT, WARP = 8, 32
SPILLED = 2048
"""Bytes of local memory of a thread that a kernel of these networks has at most."""


def _faults(folder: Path) -> list[str]:
    """What no GPU could launch, or what should be in registers and is not."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    found = []
    for record in (manifest, *manifest["better"]):
        gpu = ARCHITECTURES[record["variant"]]
        assert record["steps"]
        for step in record["steps"]:
            block, grid = step["block"], step["grid"]
            threads = block[0] * block[1] * block[2]
            warps = -(-threads // WARP)
            registers = warps * WARP * -(-max(step["registers"], 1) // UNIT) * UNIT
            bounds = (
                all(1 <= size <= most for size, most in zip(grid, MOST_GRID, strict=True)),
                all(1 <= size <= most for size, most in zip(block, MOST_BLOCK, strict=True)),
                threads <= 1024,
                registers <= REGISTERS,
                step["shared_bytes"] <= gpu.shared_bytes,
                step["local_bytes"] <= SPILLED,
                len(step["after"]) == len(set(step["after"])),
            )
            if not all(bounds):
                found.append(f"{gpu} {step['layer']}: {bounds} {step}")
    return found


def _check(model: Path, folder: Path, bits: int) -> None:
    inputs = onnx.load(model, load_external_data=False).graph.input
    names = {d.dim_param for i in inputs for d in i.type.tensor_type.shape.dim if d.dim_param}
    shapes = dict.fromkeys(names, 1)
    compile_network(model, folder, target="cuda:sm_80+sm_90", bits=bits, shapes=shapes)
    assert not _faults(folder)


def test_rows(rows: Artifact) -> None:
    assert not _faults(rows.folder)


@pytest.mark.slow
def test_digits(tmp_path: Path) -> None:
    _check(DIGITS, tmp_path / "out", 8)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_models(models_dir: Path, tmp_path: Path, name: str, bits: int) -> None:
    _check(models_dir / f"{name}.onnx", tmp_path / "out", bits)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_benchmark_networks(tmp_path: Path, name: str, bits: int) -> None:
    model = CACHE / f"{name}.onnx"
    if not model.exists():
        pytest.skip(f"{name}.onnx is made by: python -m benchmarks.peers setup")
    _check(model, tmp_path / "out", bits)
