"""Peak resident memory of a small C program that opens an artifact and runs it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from dlcc.artifact.toolchain import Toolchain

ALLOWANCE_KB = 3000
"""Over weights and arena: code, libc, stacks, inputs and outputs."""
RUNS = 5
_SECONDS = 120.0
_SOURCE = Path(__file__).with_name("peak.c")


class PeakProgram:
    """The C program, compiled into ``folder``."""

    def __init__(self, folder: Path) -> None:
        tools = Toolchain("x86_64-unknown-linux-gnu", folder)
        self._program = folder / "peak"
        tools.link_program([str(_SOURCE)], self._program.name, ["-ldl"])

    def measure(self, artifact: Path, threads: int) -> dict[str, Any]:
        """What a process that runs the artifact keeps in memory at most.

        Mapped weights count as far as they were touched, the pages of the library and of libc too:
        all that the process could be charged for.

        Returns:
            "peak_kb", "weights_kb", "arena_kb", "border_kb" (inputs and outputs), or "failed".
        """
        manifest = json.loads((artifact / "manifest.json").read_text())
        symbol = manifest["symbol"]
        library, weights = artifact / f"lib{symbol}.so", artifact / f"{symbol}.weights"
        command = [str(self._program), str(library.resolve()), symbol, str(weights), str(threads)]
        done = subprocess.run(
            [*command, str(RUNS)], capture_output=True, text=True, timeout=_SECONDS
        )
        if done.returncode != 0:
            return {"failed": done.stderr.strip() or f"it ended with code {done.returncode}"}
        border = sum(t["bytes"] for t in manifest["inputs"] + manifest["outputs"])
        return {
            "peak_kb": int(done.stdout),
            "weights_kb": weights.stat().st_size / 1024,
            "arena_kb": manifest["arena_bytes"] / 1024,
            "border_kb": border / 1024,
        }


def peak_program() -> tuple[tempfile.TemporaryDirectory[str], PeakProgram]:
    """The program and the folder that lives as long as it is needed."""
    folder = tempfile.TemporaryDirectory(prefix="dlcc-peak-")
    return folder, PeakProgram(Path(folder.name))
