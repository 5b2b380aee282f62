"""An artifact of dlcc: the C function of its library, called with bound pointers by ctypes."""

from __future__ import annotations

import ctypes
import json
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.peers.engines import Job, Opened, sample_of


def open_engine(job: Job) -> Opened:
    """Open the artifact folder ``job.model``; networks of one input and one output.

    Raises:
        RuntimeError: the library refuses, with its message.
    """
    folder = Path(job.model).resolve()
    manifest = json.loads((folder / "manifest.json").read_text())
    symbol = manifest["symbol"]
    library = ctypes.CDLL(str(folder / f"lib{symbol}.so"))
    error = library[f"{symbol}_error"]
    error.restype = ctypes.c_char_p

    instance = ctypes.c_void_p()
    weights = str(folder / f"{symbol}.weights").encode()
    if library[f"{symbol}_create"](weights, job.threads, ctypes.byref(instance)) != 0:
        raise RuntimeError(error().decode())
    x = sample_of(job)
    end = manifest["outputs"][0]
    y = np.zeros(end["shape"], end["dtype"])
    arrays = ((ctypes.c_void_p * 1)(x.ctypes.data), (ctypes.c_void_p * 1)(y.ctypes.data))
    sources, results = (ctypes.cast(array, ctypes.c_void_p) for array in arrays)
    # Ready pointers and no declared types to convert them by: half the cost of a ctypes call.
    call = partial(library[f"{symbol}_run"], instance, sources, results)

    def output() -> np.ndarray:
        if call() != 0:
            raise RuntimeError(error().decode())
        return y.copy()

    version = str(manifest["compilers"]["dlcc"]).removeprefix("dlcc ")
    return Opened(version, call, output, kept=(library, arrays, x, y))
