"""Models for the engines, each made by ``python -m benchmarks.peers.prepare.X FOLDER NETWORK``.

Every module runs in the environment of its engine, reads ``NETWORK.onnx`` and ``NETWORK.npz``
(arrays ``x`` and ``y``, a sample and its fp32 output, and ``calib``, calibration samples along the
first axis) in ``FOLDER``, and writes its model beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def run(make: Callable[[Path, str], None]) -> None:
    """Run one preparation by the command line; a failure ends with its reason as last line."""
    folder, network = sys.argv[1:]
    try:
        make(Path(folder), network)
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        sys.exit(f"{type(error).__name__}: {text[0][:300]}")
