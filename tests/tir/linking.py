"""Links object code into a shared library and calls its kernels on numpy arrays."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np


class Library:
    """A loaded library of kernels; ``call`` runs one over a range of work items."""

    def __init__(self, code: bytes, folder: Path) -> None:
        path = folder / "kernels.o"
        path.write_bytes(code)
        shared = folder / "kernels.so"
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.17"]
        subprocess.run([*command, "-shared", "-o", str(shared), str(path)], check=True)
        self.handle = ctypes.CDLL(str(shared))

    def call(self, name: str, arrays: list[np.ndarray], begin: int, end: int) -> None:
        """``name(arrays..., begin, end)``; every array must be C contiguous."""
        assert all(array.flags.c_contiguous for array in arrays)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        status = self.handle[name](*pointers, ctypes.c_int32(begin), ctypes.c_int32(end))
        assert status == 0
