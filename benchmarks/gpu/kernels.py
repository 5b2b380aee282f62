"""Share of the multiply units' peak that layers reach, and how that peak is measured."""

from __future__ import annotations

import ctypes
import json
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

import dlcc
from dlcc.cuda.cubin import read_cubin
from dlcc.cuda.driver import Driver, driver
from dlcc.runtime.device import DeviceArray
from dlcc.runtime.loader import Model

SUMS: Final = 8
THREADS: Final = 256
"""As in peak.cu."""

WARPS: Final = THREADS // 32
PEAKS: Final = {"int8": 32, "fp16": 16, "bf16": 16, "fp32": 0}
"""Precision -> depth of a 16 x 8 product of a warp; 0: a product of every thread by itself."""

PRECISION: Final = {8: "int8", 16: "fp16", 32: "fp32"}
PRODUCTS: Final = ("conv2d", "linear", "matmul")
"""Operations that multiply."""

_MULTIPROCESSORS: Final = 16
"""The attribute of a device, in cuda.h."""


def products_of_round(precision: str, groups: bool = False) -> int:
    """Multiply-accumulates that a block of peak.cu does in a round, by warps or warpgroups."""
    depth = PEAKS[precision]
    if groups:
        return WARPS // 4 * SUMS * 64 * 256 * depth
    return WARPS * SUMS * 16 * 8 * depth if depth else THREADS * 4 * SUMS


@dataclass(frozen=True)
class Load:
    """How much the peak kernels are given.

    Attributes:
        blocks: for each multiprocessor.
        rounds: of each thread.
        launches: of which the fastest counts.
    """

    blocks: int = 8
    rounds: int = 20000
    launches: int = 7


@contextmanager
def _events(call: Driver) -> Iterator[list[ctypes.c_void_p]]:
    made = [ctypes.c_void_p(), ctypes.c_void_p()]
    for event in made:
        call("cuEventCreate", ctypes.byref(event), 0)
    yield made
    for event in made:
        call("cuEventDestroy_v2", event)


def peaks(cubin: bytes, load: Load) -> dict[str, float]:
    """Multiply-accumulates in a second, by precision, of the first GPU.

    Args:
        cubin: of peak.cu, for the GPU's architecture.
        load: how much to run.

    Raises:
        DeviceError: the driver refuses.
    """
    call, found = driver(), {}
    count, module = ctypes.c_int(), ctypes.c_void_p()
    rounds = DeviceArray.copy_of(np.array([load.rounds], np.int32))
    with call.on(0):
        device = ctypes.c_int()
        call("cuDeviceGet", ctypes.byref(device), 0)
        call("cuDeviceGetAttribute", ctypes.byref(count), _MULTIPROCESSORS, device)
        blocks = count.value * load.blocks
        out = DeviceArray(np.dtype(np.int32), (blocks * THREADS,), 0)
        call("cuModuleLoadData", ctypes.byref(module), cubin)
        kernels = [(precision, False) for precision in PEAKS]
        if read_cubin(cubin).architecture.exact:
            kernels += [(precision, True) for precision, depth in PEAKS.items() if depth]
        for precision, groups in kernels:
            function = ctypes.c_void_p()
            name = f"peak_{'group_' * groups}{precision}".encode()
            call("cuModuleGetFunction", ctypes.byref(function), module, name)
            seconds = min(_time(call, function, blocks, (out, rounds), load.launches))
            rate = blocks * load.rounds * products_of_round(precision, groups) / seconds
            found[precision] = max(found.get(precision, 0.0), rate)
        call("cuModuleUnload", module)
    return found


def _time(
    call: Driver,
    function: ctypes.c_void_p,
    blocks: int,
    arrays: tuple[DeviceArray, ...],
    launches: int,
) -> list[float]:
    """Seconds of launches after a first one."""
    places = [ctypes.c_uint64(array.address) for array in arrays]
    arguments = (ctypes.c_void_p * len(places))(*map(ctypes.addressof, places))
    sizes = (*(blocks, 1, 1), *(THREADS, 1, 1), 0)
    found, passed = [], ctypes.c_float()
    with _events(call) as (start, end):
        for _ in range(launches + 1):
            call("cuEventRecord", start, None)
            call("cuLaunchKernel", function, *sizes, None, arguments, None)
            call("cuEventRecord", end, None)
            call("cuEventSynchronize", end)
            call("cuEventElapsedTime", ctypes.byref(passed), start, end)
            found.append(max(passed.value * 1e-3, 1e-9))
    return found[1:]


@dataclass(frozen=True)
class LayerTime:
    """A layer that multiplies.

    Attributes:
        layer: its name.
        kernel: the kernel table's row that it got.
        weights: type and shape of its second operand.
        output: of its result.
        macs: multiply-accumulates of all samples.
        seconds: median over runs.
    """

    layer: str
    kernel: str
    weights: str
    output: str
    macs: int
    seconds: float


def multiplying_layers(folder: Path, x: np.ndarray, runs: int) -> list[LayerTime]:
    """Times of convolutions and products of matrices, from the library's own profile.

    Args:
        folder: the artifact.
        x: a batch; a shape profile has to be for it.
        runs: of which the median counts.
    """
    with dlcc.load(folder, device=0) as model:
        taken: dict[str, list[int]] = {}
        for number in range(runs + 1):
            times: dict[str, int] = {}
            for step in model.profile(x):
                times[step.layer] = times.get(step.layer, 0) + step.nanoseconds
            if number:  # the first run warms
                for layer, nanoseconds in times.items():
                    taken.setdefault(layer, []).append(nanoseconds)
        rows = _report_rows(folder, model, x.shape)
    found = []
    for row in rows:
        name = str(row["layer"])
        if row["op"] not in PRODUCTS or name not in taken or not row["macs"]:
            continue
        seconds = statistics.median(taken[name]) * 1e-9
        weights, output = (text.partition("!")[0] for text in (row["inputs"][1], row["outputs"][0]))
        found.append(LayerTime(name, row["kernel"], weights, output, int(row["macs"]), seconds))
    return found


def _report_rows(folder: Path, model: Model, shape: tuple[int, ...]) -> list[Mapping[str, Any]]:
    """The report's layers of the variant and shape profile that run ``shape``."""
    report = json.loads((folder / "report.json").read_text("utf-8"))
    shapes = [profile.inputs[0].shape for profile in model.shape_profiles]
    number = shapes.index(shape)
    report = report["more_shapes"][number - 1] if number else report
    for better in report.get("better", ()):
        if better["variant"] == model.variant:
            report = better
    rows: list[Mapping[str, Any]] = report["layers"]
    return rows
