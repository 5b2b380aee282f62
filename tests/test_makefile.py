"""The set-up commands tell a new user in words what is missing on the machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def interpreter(tmp_path: Path, old: bool) -> Path:
    """A python that is too old, or has no venv."""
    program = tmp_path / "python"
    check = 1 if old else 0
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f"  -c) exit {check};;\n"
        "  --version) echo Python 3.10.13;;\n"
        '  -m) mkdir -p "$3"; echo ensurepip is not available; exit 1;;\n'
        "esac\n"
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("target", ["demo", "test"])
def test_old_python(tmp_path: Path, target: str) -> None:
    done = make(target, f"VENV={tmp_path}/venv", f"PYTHON={interpreter(tmp_path, old=True)}")
    assert done.returncode != 0
    assert "dlcc needs Python 3.11 or newer" in done.stderr
    assert "is Python 3.10.13" in done.stderr


def test_missing_python(tmp_path: Path) -> None:
    done = make("demo", f"VENV={tmp_path}/venv", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "no 'no-such-python' on the path" in done.stderr


def test_python_without_venv(tmp_path: Path) -> None:
    done = make("demo", f"VENV={tmp_path}/venv", f"PYTHON={interpreter(tmp_path, old=False)}")
    assert done.returncode != 0
    assert "python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_help() -> None:
    done = make()
    assert done.returncode == 0
    for target in ("make demo", "make test"):
        assert target in done.stdout
    assert "#" not in done.stdout
