"""The half that runs on the machine with the GPU. Needs Python and numpy."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.bundle import Bundle
from benchmarks.gpu.catalogue import CONTENDERS
from benchmarks.gpu.kernels import PRECISION, Load, multiplying_layers, peaks
from benchmarks.peers.artifacts import Artifacts
from benchmarks.peers.engines import Job, sample_of
from benchmarks.peers.measure import Bench, Settings
from benchmarks.peers.results import Group, Results, load_results
from benchmarks.peers.session import Slices
from dlcc.bench import cpu_description
from dlcc.cuda.architecture import ARCHITECTURES
from dlcc.cuda.driver import DeviceError, driver

QUEUE: Final = 8
"""Inferences that are under way together where throughput is asked for."""

KERNEL_RUNS: Final = 15
Say = Callable[[str], None]


def machine() -> dict[str, Any]:
    """The GPU, its driver and the host.

    Raises:
        DeviceError: there is no GPU, or no driver.
    """
    call, name, version = driver(), ctypes.create_string_buffer(96), ctypes.c_int()
    capability = call.capability(0)
    device = ctypes.c_int()
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDeviceGetName", name, len(name), device)
    call("cuDriverGetVersion", ctypes.byref(version))
    return {
        "gpu": name.value.decode(),
        "capability": capability,
        "driver": f"CUDA {version.value // 1000}.{version.value % 1000 // 10}",
        "cpu": cpu_description()[0],
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def queue_of(batch: int) -> int:
    """Inferences between two waits: one for latency."""
    return 1 if batch == 1 else QUEUE


def run_networks(
    bundle: Bundle,
    networks: Sequence[str],
    batches: Sequence[int],
    contenders: Sequence[str],
    settings: Settings,
    path: Path,
    say: Say,
) -> Results:
    """Times networks in interleaved rounds; a run that was cut short goes on where it ended."""
    bench = Bench(
        bundle,
        Artifacts(bundle, bundle.models),
        settings,
        Slices(None, 0.0),
        say,
        CONTENDERS,
        machine,
        queue_of,
    )
    groups = [Group(name, 1, True, batch) for batch in batches for name in networks]
    results = load_results([path]) if path.exists() else Results()
    bench.run(groups, contenders, results, path)
    return results


def run_kernels(
    bundle: Bundle,
    network: str,
    batch: int,
    bits: Sequence[int],
    load: Load,
    path: Path,
    say: Say,
) -> None:
    """Measures what the GPU can do, and the shares of that which a network's layers reach."""
    facts = machine()
    fitting = [name for name, a in ARCHITECTURES.items() if a.runs(facts["capability"])]
    cubins = [bundle.peak(name) for name in reversed(fitting) if bundle.peak(name).exists()]
    if not cubins:
        say(f"no cubin was prepared for sm_{facts['capability']}: no peak is measured")
        return
    found: dict[str, Any] = {"machine": facts, "network": network, "batch": batch, "layers": {}}
    found["peaks"] = peaks(cubins[0].read_bytes(), load)
    say("  ".join(f"{name} {2e-12 * rate:.4g} TOP/s" for name, rate in found["peaks"].items()))
    job = Job("", "", "", str(bundle.samples(network)), 1, (), batch=batch)
    for width in bits:
        folder = bundle.models / f"{network}-{width}"
        if folder.exists():
            layers = multiplying_layers(folder, sample_of(job), KERNEL_RUNS)
            found["layers"][PRECISION[width]] = [asdict(layer) for layer in layers]
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def check_gpu() -> str:
    """Why nothing can be measured here; "" if it can."""
    try:
        driver().capability(0)
    except DeviceError as error:
        return f"there is no NVIDIA GPU, or no driver for it: {error}"
    return ""
