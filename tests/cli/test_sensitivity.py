"""The verb sensitivity: table, JSON, plot, mistakes."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcc.errors import ExitCode


def test_table_and_json(dlcc: Any, cnn: Path, labelled: Path, samples: Path) -> None:
    done = dlcc("sensitivity", cnn, "--data", labelled, "--sparsities", "0.5,0.9", "-q")
    assert done.code == 0, done.err
    head, *rows, note = done.out.splitlines()
    assert head.split()[:2] == ["layer", "weights"]
    assert "50 % zero" in head
    assert all("%)" in row for row in rows)
    assert note == "error of the outputs over their norm (accuracy)"
    told = dlcc("sensitivity", cnn, "--data", samples, "--only", "conv1", "--json", "-q").json()
    [layer] = told["layers"]
    assert layer["layer"] == "conv1"
    points = layer["points"]
    assert [round(p["sparsity"], 1) for p in points] == [0.5, 0.7, 0.8, 0.9]
    assert all(p["accuracy"] is None for p in points)
    assert all(p["error"] > 0 for p in points)


def test_saliency_and_pattern(dlcc: Any, cnn: Path, samples: Path) -> None:
    options = ("--data", samples, "--only", "conv2", "--json", "-q", "--sparsities", "0.5")
    plain = dlcc("sensitivity", cnn, *options).json()["layers"][0]["points"][0]
    other = ("--pattern", "block4x4", "--saliency", "obd", "--target", "cpu:avx2")
    blocks = dlcc("sensitivity", cnn, *options, *other).json()["layers"][0]["points"][0]
    assert plain["sparsity"] == pytest.approx(blocks["sparsity"], abs=0.06)
    assert plain["error"] != blocks["error"]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_plot(dlcc: Any, cnn: Path, labelled: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"curves{suffix}"
    done = dlcc("sensitivity", cnn, "--data", labelled, "--plot", path, "-q")
    assert done.code == 0, done.err
    assert f"wrote {path}" in done.out
    if suffix == ".svg":
        text = path.read_text()
        assert "<svg" in text
        assert "dc:date" not in text
    else:
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (("--sparsities", "half"), "not a list of numbers", ExitCode.USAGE),
        (("--sparsities", "0.5,0.5"), "each must be above the one before", ExitCode.USAGE),
        (("--pattern", "stripes"), "pattern=stripes is not valid", ExitCode.USAGE),
        (("--saliency", "luck"), "saliency=luck is not valid", ExitCode.USAGE),
        (("--only", "nothing"), "no layer matches", ExitCode.USAGE),
        (("--plot", "curves.txt"), "must be an .svg, .png or .pdf", ExitCode.USAGE),
        (("--output", "z"), "no output 'z'", ExitCode.USAGE),
    ],
)
def test_mistakes(
    dlcc: Any, cnn: Path, labelled: Path, options: tuple[str, ...], words: str, code: ExitCode
) -> None:
    done = dlcc("sensitivity", cnn, "--data", labelled, "-q", *options)
    assert done.code == code
    assert words in done.err


def test_labels_that_do_not_fit(dlcc: Any, cnn: Path, labelled: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(labelled))
    arrays["labels"] = arrays["labels"].astype(np.float32)
    np.savez(tmp_path / "bad.npz", allow_pickle=False, **arrays)
    done = dlcc("sensitivity", cnn, "--data", tmp_path / "bad.npz", "-q")
    assert done.code == ExitCode.DATA


def test_without_matplotlib(
    dlcc: Any, cnn: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    done = dlcc("sensitivity", cnn, "--data", samples, "--plot", tmp_path / "x.svg", "-q")
    assert done.code == ExitCode.USAGE
    assert "pip install 'dlcc[plot]'" in done.err
