"""Random calls with good and bad arguments, under gcc's sanitizers. ``DLCC_FUZZ_CALLS``: the
number of the slow run for each sanitizer, kind of weights and thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.runtime import border

CALLS = int(os.environ.get("DLCC_FUZZ_CALLS", "200000"))


def _called(folder: Path, sanitizer: str, kind: str, rounds: int, threads: int) -> None:
    try:
        taken, refused = border.call(border.build(folder, sanitizer, kind), 1, rounds, threads)
    except border.Missing as why:
        pytest.skip(str(why))
    assert taken > rounds * threads / 10
    assert refused > rounds * threads / 10


def test_random_calls(tmp_path: Path) -> None:
    _called(tmp_path, "address,undefined", "mapped", 3000, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", border.KINDS)
@pytest.mark.parametrize("sanitizer", border.SANITIZERS)
def test_many_random_calls(sanitizer: str, kind: str, tmp_path: Path) -> None:
    _called(tmp_path, sanitizer, kind, CALLS, 4)
