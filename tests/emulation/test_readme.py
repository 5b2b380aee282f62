"""The way to a network on emulated ARM that the README shows."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.emulation.machine import CORTEX_A72

ROOT = Path(__file__).parents[2]


def commands() -> list[str]:
    """The commands after the installation."""
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = (b for b in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "qemu-" in b)
    first, *others = block.splitlines()
    assert first == "pip install ."
    return others


@CORTEX_A72.missing
def test_four_commands(tmp_path):
    shutil.copytree(ROOT / "examples" / "digits", tmp_path / "examples" / "digits")
    names = {"dlcc": [sys.executable, "-m", "dlcc"], "python": [sys.executable]}
    done = None
    for line in commands():
        first, *rest = shlex.split(line)
        command = [*names.get(first, [first]), *rest]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    assert done is not None
    assert done.stdout.rstrip().endswith("ok")
