"""An artifact of dlcc: the C function of its library, called with bound device pointers."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.peers.engines import Job, Opened, sample_of
from dlcc.artifact.manifest import Artifact
from dlcc.cuda.driver import driver
from dlcc.runtime.device import DeviceArray


def open_engine(job: Job) -> Opened:
    """Open the artifact folder ``job.model``; networks of one input and one output.

    Raises:
        RuntimeError: the library refuses, with its message; there is no shape profile for the
            batch.
    """
    artifact = Artifact.open(Path(job.model))
    x = sample_of(job)
    shapes = [profile.inputs[0].shape for profile in artifact.shape_profiles]
    if x.shape not in shapes:
        raise RuntimeError(f"no shape profile is for {x.shape}")
    profile, symbol = shapes.index(x.shape), artifact.symbol
    library = ctypes.CDLL(str(artifact.path(".so")))
    error = library[f"{symbol}_error"]
    error.restype = ctypes.c_char_p
    instance = ctypes.c_void_p()
    weights = str(artifact.path(".weights")).encode()
    end = artifact.shape_profiles[profile].outputs[0]
    made = library[f"{symbol}_create_on"](
        weights, 0, profile, None, None, ctypes.c_size_t(0), ctypes.byref(instance)
    )
    if made != 0:
        raise RuntimeError(error().decode())
    context = ExitStack()
    context.enter_context(driver().on(0))  # for as long as the process lives
    stream = ctypes.c_void_p()
    driver()("cuStreamCreate", ctypes.byref(stream), 1)
    given = DeviceArray.copy_of(x)
    result = DeviceArray(np.dtype(end.dtype), end.shape, 0)
    tensors = (given, result)
    places = [(ctypes.c_void_p * 1)(t.address) for t in tensors]
    # Ready pointers and no declared types to convert them by: half the cost of a ctypes call.
    sources, results = (ctypes.cast(place, ctypes.c_void_p) for place in places)
    call = partial(library[f"{symbol}_run_device"], instance, sources, results, stream)
    finish = partial(driver(), "cuStreamSynchronize", stream)

    def output() -> np.ndarray:
        if call() != 0:
            raise RuntimeError(error().decode())
        finish()
        return result.numpy()

    version = str(artifact.manifest["compilers"]["dlcc"]).removeprefix("dlcc ")
    return Opened(version, call, output, (library, context, tensors, places), finish)
