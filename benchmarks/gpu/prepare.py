"""The half that needs no GPU: compiles, and puts all that a run needs into a folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.gpu.bundle import Bundle
from benchmarks.gpu.catalogue import BATCHES, HALF
from benchmarks.peers.artifacts import Artifacts, NoArtifact
from benchmarks.peers.setup import REPOSITORY, Cache
from dlcc import codegen
from dlcc.cuda.architecture import ARCHITECTURES

NEEDED: Final = ("benchmarks.gpu.__main__", "benchmarks.gpu.measure", "benchmarks.peers.worker")
"""Modules that a run starts with."""

ENGINES: Final = "benchmarks/gpu/engines"
PRECISIONS: Final = {32: "fp32", 16: "fp16", 8: "int8"}
RUN: Final = """#!/bin/sh
# Measures on this machine's first GPU; ./run --help lists the options.
cd "$(dirname "$0")" && exec "${PYTHON:-python3}" -m benchmarks.gpu run . "$@"
"""
Say = Callable[[str], None]


def used_sources() -> list[Path]:
    """Files of this project that a run loads, by loading them in a process of its own."""
    code = f"""
import importlib, sys
for name in {NEEDED}: importlib.import_module(name)
importlib.import_module("benchmarks.gpu.engines.dlcc")
for module in list(sys.modules.values()): print(getattr(module, "__file__", None) or "")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded = {Path(line) for line in done.stdout.splitlines() if line}
    mine = {path for path in loaded if path.is_relative_to(REPOSITORY)}
    packages = {
        init for path in mine for folder in path.parents
        if folder.is_relative_to(REPOSITORY) and (init := folder / "__init__.py").exists()
    }  # fmt: skip
    engines = set((REPOSITORY / ENGINES).glob("*.py"))
    networks = {REPOSITORY / "benchmarks/peers/networks.py"}
    packages_of_venv = {p for p in mine if "site-packages" in p.parts}
    return sorted((mine - packages_of_venv) | packages | engines | networks)


def peak_cubin(architecture: str) -> bytes:
    """The kernels that measure an architecture's peak."""
    prelude = files("dlcc.cuda").joinpath("prelude.cuh").read_text("utf-8")
    source = files("benchmarks.gpu").joinpath("peak.cu").read_text("utf-8")
    return codegen.compile_cubin(f"{prelude}\n{source}", str(ARCHITECTURES[architecture].code))


def cuda_artifacts(
    cache: Cache, architectures: Sequence[str], batches: Sequence[int], given: Path | None
) -> Artifacts:
    """Compiles every batch into one artifact, a shape profile each."""
    shapes = ("--shape", f"N={','.join(map(str, batches))}")
    target = f"cuda:{'+'.join(architectures)}"
    return Artifacts(cache, given, 1, BATCHES, target, shapes)


def prepare(
    cache: Cache,
    folder: Path,
    networks: Sequence[str],
    bits: Iterable[int],
    batches: Sequence[int],
    architectures: Sequence[str],
    say: Say,
    given: Path | None = None,
    onnx: bool = True,
) -> int:
    """Makes the folder anew.

    Args:
        cache: models and samples, and artifacts that were compiled before.
        folder: what to make.
        networks: their names.
        bits: 32, 16, 8.
        batches: sizes of batches.
        architectures: to compile for; sm_80 or newer.
        say: told what happens.
        given: take these ``NETWORK-BITS`` folders; compile nothing.
        onnx: with the models that peers need.

    Returns:
        How many artifacts could not be made.

    Raises:
        NoBundle: the folder is there and was not made by this command.
    """
    bundle, widths, failures = Bundle(folder), list(bits), 0
    if folder.exists() and any(folder.iterdir()):
        bundle.read()  # nothing else is ever removed
    shutil.rmtree(folder, ignore_errors=True)
    bundle.models.mkdir(parents=True)
    for path in used_sources():
        _copy(path, folder / path.relative_to(REPOSITORY))
    artifacts = cuda_artifacts(cache, architectures, batches, given)
    for network in networks:
        failures += sum(not _artifact(artifacts, bundle, network, b, say) for b in widths)
        _samples(cache, bundle, network)
        for pattern in (BATCHES, HALF) if onnx else ():
            if (source := cache.model(pattern, network)).exists():
                _copy(source, bundle.model(pattern, network))
    for architecture in architectures:
        bundle.peak(architecture).write_bytes(peak_cubin(architecture))
    bundle.write(networks, batches, widths, architectures)
    (folder / "run").write_text(RUN, "utf-8")
    (folder / "run").chmod(0o755)
    return failures


def archive(folder: Path) -> Path:
    """The folder as a tar file beside it; weights hardly get smaller, so it is not compressed."""
    path = folder.with_name(f"{folder.name}.tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, folder.name)
    return path


def _artifact(artifacts: Artifacts, bundle: Bundle, network: str, bits: int, say: Say) -> bool:
    try:
        made = artifacts.ready(network, PRECISIONS[bits])
    except NoArtifact as error:
        say(f"{network} at {bits} bits: FAILED: {error}")
        return False
    say(f"{network} at {bits} bits")
    shutil.copytree(made, bundle.models / f"{network}-{bits}")
    return True


def _samples(cache: Cache, bundle: Bundle, network: str) -> None:
    """Samples with the outputs of the fp32 network, and those to calibrate peers on."""
    with np.load(cache.model("{}.batches.npz", network)) as arrays:
        found = {name: arrays[name] for name in ("x", "y")}
    with np.load(cache.samples(network)) as arrays:
        found["calib"] = arrays["calib"]
    np.savez(bundle.samples(network), **found)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
