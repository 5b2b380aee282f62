"""--verify-numerics: the library's results against the reference's, before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.errors import DlccError, ExitCode
from dlcc.ir import F32, Graph, TensorType
from dlcc.ops.base import build
from dlcc.verification import Verification


def _graph(factor: float = 2.0) -> Graph:
    graph = Graph("scaled")
    x = graph.add_input("x", TensorType((1, 6), F32))
    c = graph.add_constant(np.full((1, 6), factor, np.float32))
    graph.set_outputs([build(graph, "mul", [x, c]).output], ["y"])
    return graph


def test_a_right_library_passes_on_the_given_and_on_seeded_samples(tmp_path: Path) -> None:
    given = [{"x": np.ones((1, 6), np.float32)}]
    result = dlcc.compile(
        _graph(), tmp_path / "a", bits=32, verify_numerics=3, calibration=lambda: given
    )
    assert result.optimised.imported is not None
    assert (tmp_path / "a" / "manifest.json").exists()


def test_a_wrong_library_is_an_error_and_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(self: Verification, folder: Path) -> None:
        feeds, variants = self.feeds, self.variants
        honest(Verification(_graph(2.5), feeds, variants, None), folder)

    honest = Verification.check
    monkeypatch.setattr(Verification, "check", other)
    with pytest.raises(DlccError, match="disagrees with the reference") as caught:
        dlcc.compile(_graph(), tmp_path / "a", bits=32, verify_numerics=1)
    assert caught.value.code == ExitCode.VERIFICATION
    assert "output 'y', sample 0" in caught.value.where
    assert "allowed is 0.0001 of it" in caught.value.why
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_run_here_is_told(tmp_path: Path) -> None:
    result = dlcc.compile(_graph(), tmp_path / "a", bits=32, target="arm:neon", verify_numerics=1)
    notes = [r.message for r in result.optimised.remarks if r.pass_name == "verify-numerics"]
    assert notes == ["the library was not run: this machine runs no variant of its kernels"]
