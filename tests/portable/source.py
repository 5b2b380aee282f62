"""Compiles generated C and calls it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dlcc.artifact import Artifact
from dlcc.artifact.portable import PREAMBLE, needed_functions
from dlcc.program import KernelSource

STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
ZIG = (sys.executable, "-m", "ziglang", "cc", "-O1")
GCC = shutil.which("gcc")


def shared(
    source: Path, *, compiler: tuple[str, ...] = ZIG, flags: tuple[str, ...] = STRICT
) -> Path:
    """``source`` as a shared library; any warning is a failure."""
    library = source.with_suffix(".so")
    command = [*compiler, *flags, "-shared", "-fPIC", str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library


def kernels(sources: Mapping[str, KernelSource], folder: Path) -> ctypes.CDLL:
    """Kernels under their own names, as functions of their pointers."""
    parts = ["#include <stdint.h>", PREAMBLE]
    parts += needed_functions(source.body for source in sources.values())
    for name, source in sources.items():
        parameters = ", ".join(source.parameters)
        parts += [f"void {name}({parameters});", f"void {name}({parameters}) {{\n{source.body}\n}}"]
    path = folder / "kernels.c"
    path.write_text("\n".join(parts))
    return ctypes.CDLL(str(shared(path)))


class Network:
    """The C of an artifact, compiled and loaded."""

    def __init__(
        self,
        artifact: Artifact,
        compiler: tuple[str, ...] = ZIG,
        flags: tuple[str, ...] = STRICT,
    ) -> None:
        self.artifact = artifact
        source = artifact.folder / f"{artifact.symbol}.c"
        self.library = ctypes.CDLL(str(shared(source, compiler=compiler, flags=flags)))
        self._arena = np.zeros(artifact.manifest["arena_bytes"] + 16, np.uint8)

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One run; the arena holds what the last one left there."""
        inputs = [np.ascontiguousarray(feed[info.name]) for info in self.artifact.inputs]
        outputs = [np.zeros(info.shape, info.dtype) for info in self.artifact.outputs]
        pointers = [
            (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
            for arrays in (inputs, outputs)
        ]
        start = self._arena.ctypes.data
        arena = ctypes.c_void_p(start + -start % 8)
        assert self.library[f"{self.artifact.symbol}_run"](arena, *pointers) == 0
        return {i.name: a for i, a in zip(self.artifact.outputs, outputs, strict=True)}
