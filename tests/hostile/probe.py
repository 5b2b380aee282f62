"""Compiles one hostile file and says what came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import dlcc.driver
from dlcc.analysis.execute import execute
from dlcc.errors import DlccError, ExitCode
from dlcc.executable import Feed, random_feed
from dlcc.frontends import load_graph
from dlcc.runtime.loader import load
from tests.frontends.models import runtime
from tests.hostile.case import Case

CODES = {
    ExitCode.INPUT_FILE, ExitCode.MODEL, ExitCode.UNSUPPORTED, ExitCode.LIMIT, ExitCode.PASS,
}  # fmt: skip
"""What a refusal of a hostile file may be."""


def imported(case: Case, folder: Path) -> bool:
    """Write the file and read it; whether it is a network.

    Raises:
        AssertionError: the refusal is of the wrong class or says nothing.
    """
    path = case.write(folder)
    try:
        load_graph(path)
    except DlccError as error:
        check_refusal(error)
        return False
    return True


def check_refusal(error: DlccError) -> None:
    """Assert that ``error`` is a message that one can act on."""
    assert error.code in CODES, error
    assert error.what
    assert error.why or error.fix, error


def compiled(case: Case, folder: Path, bits: int = 32) -> bool:
    """Write and compile the file; whether there is an artifact, whose numbers are checked.

    At any width the library is held to the reference of what was compiled, and at 32 bits to that
    of the file and to ONNX Runtime.

    Raises:
        AssertionError: a refusal of the wrong class, traces of one, or wrong numbers.
    """
    path, out = case.write(folder), folder / "out"
    held = sorted(p.name for p in folder.iterdir())
    try:
        dlcc.driver.compile(path, out, bits=bits, threads=1, verify_numerics=1)
    except DlccError as error:
        check_refusal(error)
        assert sorted(p.name for p in folder.iterdir()) == held
        return False
    assert sorted(p.name for p in folder.iterdir()) == sorted([*held, "out"])
    if bits == 32:
        _check_numbers(path, out)
    return True


def _check_numbers(path: Path, out: Path) -> None:
    """The library, the numpy reference and, where it takes the file, ONNX Runtime agree."""
    graph = load_graph(path)
    with load(out, threads=1) as model:
        feed = random_feed(model.inputs)
        results = model.run(feed)
    with np.errstate(all="ignore"):
        expected = execute(graph, feed)
    assert list(results) == list(expected)
    for name, result in results.items():
        _assert_close(result, expected[name])
    if path.suffix == ".onnx":
        for result, other in zip(results.values(), _of_runtime(path, feed), strict=False):
            _assert_close(result, other)


def _of_runtime(path: Path, feed: Feed) -> list[np.ndarray]:
    """Outputs by ONNX Runtime; nothing where it refuses the file or its inputs' names."""
    try:
        return runtime(str(path), feed)
    except Exception as error:  # its classes have no base of their own
        if "onnxruntime" in type(error).__module__ or isinstance(error, (ValueError, TypeError)):
            return []
        raise


def _assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    if ours.dtype.kind in "biu":
        np.testing.assert_array_equal(ours, theirs)
        return
    scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=1e-30)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * scale)


@contextmanager
def place() -> Iterator[Path]:
    """A folder that holds nothing but one more folder, where a case may write; checked after.

    Raises:
        AssertionError: something was written beside the inner folder.
    """
    with tempfile.TemporaryDirectory() as name:
        outer = Path(name)
        yield outer / "inner"
        assert [p.name for p in outer.iterdir()] in ([], ["inner"])
