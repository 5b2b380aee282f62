"""Programs for GPUs, run without one: a driver of our own, and kernels compiled for the CPU.

The driver is ``driver.c``, a ``libcuda.so.1`` with the functions that the runtime calls. Kernels
are the very CUDA C++ that the cubins are made of, compiled as C++ with the headers here; the driver
finds them by the SHA-256 of the cubin. So everything but NVIDIA's compiler and hardware is run:
addresses, launches, graphs, the order of work, barriers and the arithmetic of the source.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from unittest.mock import patch

import pytest

from dlcc import codegen
from dlcc.cuda.cubin import read_cubin
from dlcc.cuda.driver import compute_capability

HERE = Path(__file__).parent
_COMMON = ("-O1", "-g0", "-fPIC", "-shared", "-fvisibility=hidden", "-target", "x86_64-linux-gnu")
_DYNAMIC = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];")


def unable() -> str:
    """Why programs cannot be run here; "" if they can."""
    return "" if platform.machine() == "x86_64" else "the emulator's threads are x86-64 code"


@cache
def folder() -> Path:
    """Where this process keeps the driver and its modules."""
    made = Path(mkdtemp(prefix="dlcc-cuda-"))
    atexit.register(rmtree, made, ignore_errors=True)
    return made


def _zig(*arguments: object) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", *_COMMON, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@cache
def driver_path() -> Path:
    """The driver, compiled."""
    if unable():
        pytest.skip(unable())
    path = folder() / "libcuda.so.1"
    sources = [HERE / f"{name}.c" for name in ("driver", "memory", "streams", "graphs", "modules")]
    flags = (
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-function",
        "-Wl,-soname,libcuda.so.1",
        "-ldl",
    )
    _zig(*flags, *sources, "-o", path)
    return path


def _declared(prelude: str) -> str:
    """The prelude with declarations in place of the functions that have instructions in them."""
    made, at = [], 0
    for match in re.finditer(r"\bDLCC \w", prelude):
        start = end = prelude.index("{", match.start())
        depth = 1
        while depth:
            end += 1
            depth += {"{": 1, "}": -1}.get(prelude[end], 0)
        if re.search(r"\basm\b", prelude[start:end]):
            made += [prelude[at:start].rstrip(), ";"]
            at = end + 1
    return "".join([*made, prelude[at:]])


def add_module(cubin: bytes, source: str) -> Path:
    """Compiles the kernels of a cubin for the CPU, from the CUDA C++ that it was made of.

    Returns the library that holds them.
    """
    name = hashlib.sha256(cubin).hexdigest()
    library = folder() / f"{name}.so"
    if library.exists():
        return library
    prelude = files("dlcc.cuda").joinpath("prelude.cuh").read_text("utf-8")
    kernels = _DYNAMIC.sub(r"\1 *const \2 = (\1 *)emulator::shared;", source.removeprefix(prelude))
    cubin_facts = read_cubin(cubin)
    parts = [f"#define __CUDA_ARCH__ {cubin_facts.architecture.number * 10}"]
    if cubin_facts.architecture.exact:
        parts.append(f"#define __CUDA_ARCH_FEAT_SM{cubin_facts.architecture.number}_ALL")
    parts += ['#include "threads.h"', '#include "intrinsics.h"', _declared(prelude)]
    parts += ['#include "instructions.h"', kernels]
    parts += [
        f"DLCC_EMULATE({k.name}, {k.registers}, {k.shared_bytes}, {k.max_threads})"
        for k in cubin_facts.kernels.values()
    ]
    text = folder() / f"{name}.cc"
    text.write_text("\n".join([*parts, ""]), "utf-8")
    flags = ("-x", "c++", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-ffp-contract=off")
    flags += ("-fsanitize=alignment", "-fsanitize-trap=alignment")
    made = folder() / f"{name}.tmp"
    _zig(*flags, "-nostdinc++", "-w", "-I", HERE, text, "-o", made)
    return made.rename(library)


@contextmanager
def compiled_for_cpu() -> Iterator[None]:
    """Every cubin that dlcc makes meanwhile can be run by the emulator."""
    compile_cubin = codegen.compile_cubin

    def record(source: str, architecture: str) -> bytes:
        cubin = compile_cubin(source, architecture)
        add_module(cubin, source)
        return cubin

    with patch.object(codegen, "compile_cubin", record):
        yield


class Emulator:
    """The emulated driver, loaded into this process, where libraries then find it."""

    def __init__(self) -> None:
        os.environ["DLCC_CUDA_EMULATION"] = str(folder())
        self.library = ctypes.CDLL(str(driver_path()), mode=ctypes.RTLD_GLOBAL)
        self.library.emulator_calls.restype = ctypes.c_uint64
        self.library.emulator_allocations.restype = ctypes.c_uint64
        self.library.emulator_last_fault.restype = ctypes.c_char_p
        self.library.emulator_fail.argtypes = (ctypes.c_char_p, ctypes.c_uint64, ctypes.c_int)
        self.show("8.0")

    def calls(self, function: str) -> int:
        """Calls of a function of the driver so far."""
        return int(self.library.emulator_calls(function.encode()))

    def fail(self, function: str, code: int, after: int = 0) -> None:
        """Makes the next call but ``after`` of a function return ``code``."""
        self.library.emulator_fail(function.encode(), after, code)

    @property
    def allocations(self) -> int:
        """Allocations of device memory."""
        return int(self.library.emulator_allocations())

    @property
    def last_fault(self) -> str:
        """What the last error of the driver was about."""
        return str(self.library.emulator_last_fault().decode())

    @contextmanager
    def devices(self, capabilities: str) -> Iterator[None]:
        """Other devices meanwhile."""
        before = os.environ["DLCC_CUDA_EMULATION_DEVICES"]
        self.show(capabilities)
        try:
            yield
        finally:
            self.show(before)

    def show(self, capabilities: str) -> None:
        """Has other devices from now on."""
        os.environ["DLCC_CUDA_EMULATION_DEVICES"] = capabilities
        self.library.emulator_configure()
        compute_capability.cache_clear()

    @contextmanager
    def reversed(self) -> Iterator[None]:
        """Threads of a block run from the last to the first meanwhile."""
        self.library.emulator_reverse(1)
        yield
        self.library.emulator_reverse(0)


@cache
def emulator() -> Emulator:
    """The emulated driver of this process; a test that calls this is skipped where there is none,
    and where the process has loaded a real one."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        if "libcuda.so" in maps.read():
            pytest.skip("this process has loaded a real driver")
    return Emulator()


def show_devices(capabilities: str) -> None:
    """Has the emulated driver show other devices, where this process has loaded it."""
    if emulator.cache_info().currsize:
        emulator().show(capabilities)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of another process that is to find the emulated driver."""
    return {
        "LD_LIBRARY_PATH": str(driver_path().parent),
        "DLCC_CUDA_EMULATION": str(folder()),
        **(extra or {}),
    }
