"""--recipe of compile, opt, sensitivity and tune; inspect --recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dlcc.errors import ExitCode

RECIPE = """
[quantize]
[[layers]]
match = "conv1"
prune = { sparsity = 0.5 }
quantize = { weights = 4 }
[[layers]]
match = "fc"
quantize = false
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)
    return path


def test_compile_and_inspect(dlcc: Any, cnn: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = dlcc("compile", cnn, "--recipe", recipe, "--shape", "N=1", "-o", out, "-q", "--json")
    assert done.code == 0, done.err
    end = "prune{sparsity=0.5 only=[conv1]},quantize{exclude=[fc] weights=[conv1:4]}"
    assert done.json()["pipeline"].endswith(end)
    assert dlcc("inspect", out, "--recipe").out.strip() == RECIPE.strip()
    told = dlcc("inspect", out, "--recipe", "--json").json()
    assert told["recipe"] == RECIPE
    assert told["pipeline"].endswith(end)


def test_opt(dlcc: Any, cnn: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.dlir"
    done = dlcc("opt", cnn, "--recipe", recipe, "--shape", "N=1", "-o", out, "-q")
    assert done.code == 0, done.err
    assert "sparse" in out.read_text()


def test_sensitivity(dlcc: Any, cnn: Path, samples: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[[layers]]\nmatch = "conv2"\nternarize = true\n')
    options = ("--data", samples, "--sparsities", "0.5", "--json", "-q")
    plain = dlcc("sensitivity", cnn, *options).json()["layers"]
    after = dlcc("sensitivity", cnn, "--recipe", path, *options).json()["layers"]
    assert [layer["layer"] for layer in plain] == [layer["layer"] for layer in after]
    assert plain != after


def test_mistakes(dlcc: Any, cnn: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rest = ("--shape", "N=1", "-o", out, "-q")
    both = dlcc("compile", cnn, "--recipe", recipe, "--passes", "quantize", *rest)
    assert both.code == ExitCode.USAGE
    assert "a recipe and passes are given" in both.err
    missing = dlcc("compile", cnn, "--recipe", tmp_path / "none.toml", *rest)
    assert missing.code == ExitCode.INPUT_FILE
    recipe.write_text('[[layers]]\nmatch = "conf1"\nprune = { sparsity = 0.5 }\n')
    typo = dlcc("compile", cnn, "--recipe", recipe, *rest)
    assert typo.code == ExitCode.USAGE
    assert f"{recipe}, line 1, entry 1 of layers (match = conf1)" in typo.err
    assert "did you mean 'conv1'" in typo.err
    assert not out.exists()
    neither = dlcc("opt", cnn, "-o", tmp_path / "x.dlir")
    assert neither.code == ExitCode.USAGE
    assert "--recipe FILE.toml" in neither.err


def test_inspect_without_one(dlcc: Any, cnn: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert dlcc("compile", cnn, "--bits", "32", "--shape", "N=1", "-o", out, "-q").code == 0
    done = dlcc("inspect", out, "--recipe")
    assert done.code == ExitCode.USAGE
    assert "not compiled by a recipe" in done.err
    assert dlcc("inspect", cnn, "--recipe").code == ExitCode.USAGE
