"""A board with ``dlcc-server``: what it says of itself, and the networks opened there."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dlcc.artifact.manifest import Artifact
from dlcc.errors import DlccError, ExitCode
from dlcc.remote.protocol import Answer, Ask, Connection
from dlcc.runtime.loader import shared_library

_OPENED: Final = struct.Struct("<QQQQIIII")
_ROUNDS: Final = struct.Struct("<QII")
_LIBRARY, _WEIGHTS = 0, 1
_MOST_RUNS = 1 << 20

ARM_CORES: Final = {
    "0x41:0xc07": "Cortex-A7",
    "0x41:0xc09": "Cortex-A9",
    "0x41:0xc0f": "Cortex-A15",
    "0x41:0xd03": "Cortex-A53",
    "0x41:0xd04": "Cortex-A35",
    "0x41:0xd05": "Cortex-A55",
    "0x41:0xd07": "Cortex-A57",
    "0x41:0xd08": "Cortex-A72",
    "0x41:0xd09": "Cortex-A73",
    "0x41:0xd0a": "Cortex-A75",
    "0x41:0xd0b": "Cortex-A76",
    "0x41:0xd0c": "Neoverse-N1",
    "0x41:0xd0d": "Cortex-A77",
    "0x41:0xd40": "Neoverse-V1",
    "0x41:0xd41": "Cortex-A78",
    "0x41:0xd44": "Cortex-X1",
    "0x41:0xd46": "Cortex-A510",
    "0x41:0xd47": "Cortex-A710",
    "0x41:0xd48": "Cortex-X2",
    "0x41:0xd49": "Neoverse-N2",
    "0x41:0xd4d": "Cortex-A715",
    "0x41:0xd4e": "Cortex-X3",
    "0x41:0xd4f": "Neoverse-V2",
}
"""Implementer and part in /proc/cpuinfo -> core (MIDR_EL1, as in Linux's arm64/cputype.h)."""


class Board:
    """A connection to a board; everything opened on it ends with it.

    Args:
        place: ``host:port`` of the server.
        token: what it was started with.

    Attributes:
        facts: what the board says of itself (docs/benchmarking.md lists the keys).

    Raises:
        DlccError: USAGE for a bad place; REMOTE if the server cannot be reached or refuses.
    """

    def __init__(self, place: str, token: str) -> None:
        self.place = place
        self._connection = Connection(place, token)
        try:
            self.facts: dict[str, Any] = json.loads(self._connection.board)
            self._connection.wait_up_to(float(self.facts["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            self._connection.close()
            raise DlccError(
                ExitCode.REMOTE,
                "what the board says of itself cannot be read",
                where=place,
                why=f"{type(error).__name__}: {error}",
                fix="build the server again with this dlcc",
            ) from None

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    @property
    def cpu(self) -> str:
        """The CPU by name: what the system calls it, or its cores."""
        name = str(self.facts.get("cpu", ""))
        cores = list(dict.fromkeys(self.facts.get("cores", ())))
        return " + ".join(ARM_CORES.get(core, core) for core in cores) or name or "unknown CPU"

    @property
    def features(self) -> list[str]:
        """CPU features, under the names that a library asks for."""
        return [str(name) for name in self.facts.get("features", ())]

    def describe(self) -> str:
        """Machine, number of CPUs, system and clock in one line."""
        facts = self.facts
        parts = [str(facts["machine"])] if facts.get("machine") else []
        parts += [f"{facts.get('cpus')} CPUs", str(facts["architecture"]), str(facts["system"])]
        if facts.get("most_kilohertz"):
            most = float(facts["most_kilohertz"]) / 1e3
            now = float(facts.get("kilohertz", "0")) / 1e3
            parts.append(f"{now:.0f} of {most:.0f} MHz")
        if facts.get("governor"):
            parts.append(f"governor {facts['governor']}")
        return ", ".join(parts)

    def open(self, artifact: Artifact, threads: int = 0) -> RemoteModel:
        """Sends a network and opens it in a process of its own.

        Args:
            artifact: what ``dlcc compile`` made, with a shared library.
            threads: as for ``<name>_create`` of the library.

        Raises:
            DlccError: ARTIFACT if it is damaged or for another machine, TARGET if the board's CPU
                lacks a feature, USAGE for a bad number of threads, REMOTE if the board fails.
        """
        artifact.verify()
        library = shared_library(artifact)
        self._check_machine(artifact)
        weights = artifact.path(".weights")
        files = [(_LIBRARY, library), *([(_WEIGHTS, weights)] if weights else [])]
        self._check_room([path for _, path in files])
        for file, path in files:
            self._connection.store(file, path)
        answer = self._connection.ask(
            Ask.OPEN, threads & 0xFFFFFFFF, artifact.symbol.encode(), wanted=Answer.OPENED
        )
        model = RemoteModel(self._connection, artifact, *answer)
        if model.fingerprint != int(artifact.manifest["fingerprint"], 16):
            raise self._wrong(artifact, "the library is not the manifest's", "", "compile it again")
        return model

    def missing(self, triple: str, features: Collection[str]) -> list[str]:
        """What code for ``triple`` with these CPU features needs and the board lacks."""
        if not triple.startswith(str(self.facts["architecture"])):
            return [triple.split("-")[0]]
        if "linux" not in triple.split("-"):
            return [triple.split("-")[-1]]
        return [name for name in features if name not in self.features]

    def _check_machine(self, artifact: Artifact) -> None:
        triple = str(artifact.manifest["triple"])
        if self.missing(triple, ()):
            architecture = self.facts["architecture"]
            raise self._wrong(
                artifact,
                "the library is for another machine",
                f"it is for {triple}, the board at {self.place} is {architecture}",
                "compile the model for the board's target",
            )

    def _check_room(self, paths: Sequence[Path]) -> None:
        needed = sum(path.stat().st_size for path in paths) / 1e6
        most = float(self.facts.get("megabytes", 0))
        if needed > most:
            raise DlccError(
                ExitCode.REMOTE,
                "the network is too large for the board",
                where=self.place,
                why=f"its files have {needed:.1f} MB, the server takes {most:.0f} MB",
                fix="start dlcc-server with a larger --megabytes",
            )

    def _wrong(self, artifact: Artifact, what: str, why: str, fix: str) -> DlccError:
        return DlccError(ExitCode.ARTIFACT, what, where=str(artifact.folder), why=why, fix=fix)


class RemoteModel:
    """A network that is open on a board.

    Attributes:
        threads: threads of a run.
        steps: kernel calls of a run.
        variant: name of the variant of the kernels that runs.
        load_seconds: what opening it took on the board.
    """

    def __init__(
        self, connection: Connection, artifact: Artifact, handle: int, opened: bytes
    ) -> None:
        self._connection = connection
        self._handle = handle
        self.artifact = artifact
        load, self.fingerprint, self._input_bytes, _, *rest = _OPENED.unpack(opened)
        self.threads, self.steps, number, _ = rest
        self.load_seconds = load * 1e-9
        self.variant = list(artifact.variants)[min(number, len(artifact.variants) - 1)]

    def set_inputs(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Sends the inputs of the next runs, in the order, dtypes and shapes of the network's."""
        body = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        self._connection.ask(Ask.INPUTS, self._handle, body, wanted=Answer.DONE)

    def outputs(self) -> bytes:
        """Runs once and returns all outputs, one after another."""
        return self._connection.ask(Ask.OUTPUTS, self._handle, wanted=Answer.OUTPUTS)[1]

    def times(
        self, least_seconds: float, least_runs: int, most_runs: int = _MOST_RUNS
    ) -> list[int]:
        """Nanoseconds of each run, after one that does not count, until both least are reached."""
        found = self._measure(Ask.TIMES, Answer.TIMES, least_seconds, least_runs, most_runs)
        times: list[int] = found.tolist()
        return times

    def profile(
        self, least_seconds: float, least_runs: int, most_runs: int = _MOST_RUNS
    ) -> list[list[int]]:
        """As :meth:`times`, the nanoseconds of each step of each run."""
        found = self._measure(Ask.PROFILE, Answer.PROFILE, least_seconds, least_runs, most_runs)
        rows: list[list[int]] = found.reshape(-1, max(self.steps, 1)).tolist()
        return rows

    def _measure(
        self, ask: Ask, wanted: Answer, least_seconds: float, least_runs: int, most_runs: int
    ) -> NDArray[np.uint64]:
        body = _ROUNDS.pack(round(least_seconds * 1e9), least_runs, most_runs)
        answer = self._connection.ask(ask, self._handle, body, wanted=wanted)[1]
        return np.frombuffer(answer, "<u8")

    def close(self) -> None:
        """Ends the network's process; may be called again, and when the board is gone."""
        if self._connection.lost:
            return
        self._connection.ask(Ask.CLOSE, self._handle, wanted=Answer.DONE)


__all__ = ["Board", "RemoteModel"]
