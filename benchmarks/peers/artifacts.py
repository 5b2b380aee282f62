"""dlcc's own models: every network compiled by the code of this working copy."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers.catalogue import SOURCE
from benchmarks.peers.setup import REPOSITORY, Cache

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8}
TARGET = {False: "cpu", True: "cpu:avx512vnni"}
"""What to compile for, without and with AMX hidden."""
CALIBRATION_SAMPLES = 16  # as the peers get
COMPILE_SECONDS = 900.0


class NoArtifact(Exception):
    """A network that cannot be compiled; its text is the reason."""


@dataclass(frozen=True)
class Artifacts:
    """Compiles on demand, and again where dlcc's source has changed.

    Attributes:
        cache: the folder of everything.
        given: a folder with ready artifacts ``NETWORK-BITS`` to take instead, or None.
        threads: most threads that a run may use.
        source: pattern of the model that is compiled.
        target: what it is compiled for, where that is not a question of AMX.
        options: further ones of the command, without spaces.
    """

    cache: Cache
    given: Path | None = None
    threads: int = 2
    source: str = SOURCE
    target: str = ""
    options: tuple[str, ...] = ()

    def folder(self, network: str, precision: str, hide_amx: bool = False) -> Path:
        """Where the artifact lies."""
        if self.given is not None:
            return self.given / f"{network}-{BITS[precision]}"
        suffix = "-avx512vnni" if hide_amx else ""
        suffix += f"-{self.target.replace(':', '-')}" if self.target else ""
        return self.cache.models / f"{network}.dlcc{BITS[precision]}{suffix}"

    def ready(self, network: str, precision: str, hide_amx: bool = False) -> Path:
        """The artifact, compiled if need be.

        Raises:
            NoArtifact: it is not among the given ones, not set up, or cannot be compiled.
        """
        folder = self.folder(network, precision, hide_amx)
        if self.given is not None:
            if not (folder / "manifest.json").exists():
                raise NoArtifact(f"there is no {folder.name} among the given artifacts")
            if hide_amx and _needs_amx(folder):
                raise NoArtifact(f"the given {folder.name} needs AMX")
            return folder
        stamp = folder.with_name(folder.name + ".source")
        state = " ".join((source_hash(), str(self.threads), *self.options))
        if (folder / "manifest.json").exists() and stamp.exists() and stamp.read_text() == state:
            return folder
        needed = (self.cache.model(self.source, network), self.cache.samples(network))
        if not all(path.exists() for path in needed):
            raise NoArtifact("the network is not set up in this cache folder")
        stamp.unlink(missing_ok=True)
        self._compile(network, precision, hide_amx, folder)
        stamp.write_text(state)
        return folder

    def _compile(self, network: str, precision: str, hide_amx: bool, folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="dlcc-bench-") as work:
            command = [sys.executable, "-m", "dlcc", "compile"]
            command += [str(self.cache.model(self.source, network)), "-o", str(folder), "--quiet"]
            command += ["--bits", str(BITS[precision]), "--threads", str(self.threads)]
            command += ["--target", self.target or TARGET[hide_amx], *self.options]
            if precision == "int8":
                calibration = Path(work) / "calibration.npz"
                with np.load(self.cache.samples(network)) as arrays:
                    np.savez(calibration, x=arrays["calib"][:CALIBRATION_SAMPLES])
                command += ["--calib", str(calibration)]
            try:
                done = subprocess.run(
                    command,
                    cwd=REPOSITORY,
                    capture_output=True,
                    text=True,
                    stdin=subprocess.DEVNULL,
                    timeout=COMPILE_SECONDS,
                )
            except subprocess.TimeoutExpired:
                raise NoArtifact(f"compiling took more than {COMPILE_SECONDS:.0f} s") from None
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
            raise NoArtifact(f"compiling failed: {' '.join(line.strip() for line in lines[-3:])}")


def _needs_amx(folder: Path) -> bool:
    features = json.loads((folder / "manifest.json").read_text())["features"]
    return any(feature.startswith("amx") for feature in features)


@functools.cache
def source_hash() -> str:
    """Changes with everything that decides what dlcc compiles to."""
    digest = hashlib.sha256()
    for package in ("dlcc", "passes", "targets"):
        for path in sorted((REPOSITORY / package).rglob("*")):
            if path.suffix in (".py", ".c", ".h", ".in", ".S"):
                digest.update(str(path.relative_to(REPOSITORY)).encode() + b"\0")
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
