"""NETWORK.int8ds.onnx: ONNX Runtime's quantised model as DeepSparse 1.8 can read it."""

from __future__ import annotations

from pathlib import Path

import onnx

from benchmarks.peers.prepare import run

LATEST_IR = 8  # of the onnx release that DeepSparse 1.8 is bound to


def make(folder: Path, network: str) -> None:
    """Drop unused operator sets and lower the IR version; the graph stays as it is."""
    model = onnx.load(folder / f"{network}.int8.onnx")
    for opset in [o for o in model.opset_import if o.domain]:
        model.opset_import.remove(opset)
    model.ir_version = min(model.ir_version, LATEST_IR)
    onnx.save(model, folder / f"{network}.int8ds.onnx")


if __name__ == "__main__":
    run(make)
