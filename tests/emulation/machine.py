"""ARM Linux machines emulated by Debian's qemu-user, on which tests run kernels and networks.

Needs the packages qemu-user, libc6-arm64-cross and libc6-armhf-cross; without them these tests are
skipped.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from dlcc.artifact import Artifact

HERE = Path(__file__).parent
RUNTIME = HERE.parents[1] / "dlcc" / "runtime" / "c"

Placed = tuple[np.ndarray, int, int]
"""An array, bytes that may be read after it, and its alignment."""

Call = tuple[str, Sequence[int], int, int]
"""Function, numbers of its arrays, first work item and end."""


@dataclass(frozen=True)
class Machine:
    """One emulated machine.

    ``cpu`` is qemu's name of it; ``zig`` are the flags of the C compiler.
    """

    cpu: str
    qemu: str
    zig: tuple[str, ...]
    sysroot: str

    @property
    def absent(self) -> str:
        """What is not installed; "" if the machine can be had."""
        if shutil.which(self.qemu) is None:
            return f"no {self.qemu}"
        return "" if Path(self.sysroot).is_dir() else f"no {self.sysroot}"

    @property
    def missing(self) -> pytest.MarkDecorator:
        """Skips a test where the machine cannot be had."""
        return pytest.mark.skipif(bool(self.absent), reason=self.absent or "present")

    def run(self, program: Path, *arguments: str | Path, data: bytes = b"") -> bytes:
        """Runs a program; its messages are the assertion text. Returns its standard output."""
        done = self.start(program, *arguments, data=data)
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
        return done.stdout

    def start(
        self, program: Path, *arguments: str | Path, data: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a program, whatever its exit status."""
        command = [self.qemu, "-L", self.sysroot, "-cpu", self.cpu, str(program)]
        return subprocess.run(
            [*command, *map(str, arguments)], input=data, capture_output=True, timeout=300
        )

    def compile(self, *arguments: str | Path) -> None:
        """Runs the C compiler for this machine."""
        command = [sys.executable, "-m", "ziglang", "cc", *self.zig, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def _aarch64(cpu: str) -> Machine:
    target = ("-target", "aarch64-linux-gnu.2.17")
    return Machine(cpu, "qemu-aarch64", target, "/usr/aarch64-linux-gnu")


CORTEX_A72 = _aarch64("cortex-a72")
"""ARMv8.0."""
CORTEX_A76 = _aarch64("cortex-a76")
"""ARMv8.2 with dot products."""
NEWEST = _aarch64("max")
"""All that qemu knows: i8mm, SVE2 in vectors of 512 bits, ..."""
SVE256 = _aarch64("max,sve256=on")
"""The same with vectors of 256 bits."""
SVE128 = _aarch64("max,sve128=on")
"""The same with vectors of 128 bits."""
ARMV7 = Machine(
    "cortex-a15",
    "qemu-arm",
    ("-target", "arm-linux-gnueabihf.2.17", "-mcpu=cortex_a9"),
    "/usr/arm-linux-gnueabihf",
)


@cache
def _program(machine: Machine, source: str) -> Path:
    """A test program, compiled once for each kind of machine."""
    plain = Machine("", machine.qemu, machine.zig, machine.sysroot)
    if machine != plain:
        return _program(plain, source)
    folder = Path(tempfile.mkdtemp(prefix="dlcc-emulation-"))
    header = (RUNTIME / "api.h.in").read_text("utf-8")
    for word in ("name", "NAME"):
        header = header.replace(f"@{word}@", "net" if word == "name" else "NET")
    interface = header[header.index("#ifndef") :].splitlines()
    (folder / "net.h").write_text("\n".join(line for line in interface if "@" not in line) + "\n")
    output = folder / source.removesuffix(".c")
    flags = ("-std=gnu11", "-O1", "-Wall", "-I", folder)
    machine.compile(*flags, HERE / source, "-o", output, "-ldl")
    return output


class Kernels:
    """Object code of kernels, on a machine."""

    def __init__(self, code: bytes, machine: Machine, folder: Path) -> None:
        self.machine, self.path = machine, folder / "kernels.so"
        (folder / "kernels.o").write_bytes(code)
        machine.compile("-shared", "-o", self.path, folder / "kernels.o")

    def run(
        self, arrays: Sequence[Placed], calls: Iterable[Call], results: Sequence[int]
    ) -> list[bytes]:
        """Places the arrays in memory, makes the calls, returns what arrays ``results`` hold."""
        parts = [struct.pack("<I", len(arrays))]
        for array, slack, align in arrays:
            parts += [struct.pack("<III", array.nbytes, slack, align), array.tobytes()]
        listed = list(calls)
        parts.append(struct.pack("<I", len(listed)))
        for name, which, begin, end in listed:
            parts.append(struct.pack("<I", len(name)) + name.encode())
            parts.append(struct.pack(f"<{len(which) + 1}I", len(which), *which))
            parts.append(struct.pack("<ii", begin, end))
        parts.append(struct.pack(f"<{len(results) + 1}I", len(results), *results))
        program = _program(self.machine, "kernels.c")
        made = self.machine.run(program, self.path, data=b"".join(parts))
        ends = list(accumulate(arrays[result][0].nbytes for result in results))
        return [made[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def run_network(
    folder: Path, machine: Machine, samples: Iterable[Sequence[np.ndarray]], threads: int = 1
) -> bytes:
    """Runs the library of an artifact; returns the outputs of all samples, one after the other."""
    done = start_network(folder, machine, samples, threads)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done.stdout


def start_network(
    folder: Path,
    machine: Machine,
    samples: Iterable[Sequence[np.ndarray]],
    threads: int = 1,
    variant: str | None = None,
    vector: int | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """The same, whatever comes of it; standard error names the variant that ran.

    ``vector``: bytes that vectors of SVE are cut to once there is an instance of ``variant``.
    """
    (library,) = [*folder.glob("lib*.so"), *folder.glob("lib*.dylib")]
    symbol = library.stem.removeprefix("lib")
    data = b"".join(np.ascontiguousarray(x).tobytes() for sample in samples for x in sample)
    source = "macos_network.c" if library.suffix == ".dylib" else "network.c"
    program = _program(machine, source)
    weights = Artifact.open(folder).path(".weights") or ""
    options = [str(threads), *(str(x) for x in (variant, vector) if x is not None)]
    return machine.start(program, library, symbol, weights, *options, data=data)
