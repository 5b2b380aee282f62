"""Labels in a calibration file, for passes that measure accuracies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dlcc.errors import ExitCode

PASSES = (
    "canonicalize,fold-batch-norm,fuse-epilogues,"
    "search-bitwidths{loss=1 measure=accuracy samples=8 tries=8 least=7}"
)


def test_labels_of_the_calibration_file(
    dlcc: Any, cnn: Path, labelled: Path, samples: Path, tmp_path: Path
) -> None:
    rest = ("--passes", PASSES, "--shape", "N=1", "-o", tmp_path / "x.dlir", "-q", "--json")
    done = dlcc("opt", cnn, "--calib", labelled, *rest)
    assert done.code == 0, done.err
    statistics = done.json()["passes"][-1]["statistics"]
    assert statistics["measure"] == "accuracy"
    assert statistics["mean_bits"] == 7.0
    without = dlcc("opt", cnn, "--calib", samples, *rest)
    assert without.code == ExitCode.USAGE
    arrays = dict(np.load(labelled))
    arrays["labels"] = arrays["labels"].astype(np.float32)
    np.savez(tmp_path / "bad.npz", allow_pickle=False, **arrays)
    assert dlcc("opt", cnn, "--calib", tmp_path / "bad.npz", *rest).code == ExitCode.DATA


def test_labels_that_nobody_asks_for(dlcc: Any, cnn: Path, labelled: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(labelled))
    arrays["labels"] = np.zeros((3, 3), np.float32)
    np.savez(tmp_path / "odd.npz", allow_pickle=False, **arrays)
    rest = ("--calib", tmp_path / "odd.npz", "--shape", "N=1", "-o", tmp_path / "x.dlir", "-q")
    assert dlcc("opt", cnn, "--passes", "quantize", *rest).code == 0
