"""What runs on a board, in the forms that running and timing on this machine have."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from dlcc import __version__
from dlcc.artifact.check import dtype_of, tensor_bytes
from dlcc.artifact.manifest import Artifact
from dlcc.bench_worker import LEAST_RUNS, WARM_RUNS, WARM_SECONDS, precision_of
from dlcc.errors import DlccError, ExitCode
from dlcc.executable import Feed, ProfiledNetwork, random_feed
from dlcc.ir.encodings import Array
from dlcc.remote.board import Board


class RemoteNetwork(ProfiledNetwork):
    """An artifact, run by its own library on a board.

    Args:
        board: where.
        path: the artifact's folder.
        threads: 1 up to what it was compiled for; 0: as many of these as the board has CPUs.
    """

    kind = "artifact"

    def __init__(self, board: Board, path: Path, threads: int = 0) -> None:
        artifact = Artifact.open(path)
        self.model = board.open(artifact, threads)
        super().__init__(path, artifact.inputs, artifact.outputs)

    @property
    def threads(self) -> int:
        """See :attr:`ProfiledNetwork.threads`."""
        return int(self.model.threads)

    @property
    def variant(self) -> str:
        """See :attr:`ProfiledNetwork.variant`."""
        return str(self.model.variant)

    def run(self, feed: Mapping[str, Array]) -> Feed:
        """See :meth:`Executable.run`."""
        self._send(feed)
        body = self.model.outputs()
        results: Feed = {}
        offset = 0
        for info in self.outputs:
            flat = np.frombuffer(body, dtype_of(info), info.elements, offset)
            results[info.name] = flat.reshape(info.shape).copy()
            offset += tensor_bytes(info)
        return results

    def profile(
        self, feed: Mapping[str, Array], *, least_seconds: float, least_runs: int, most_runs: int
    ) -> list[list[int]]:
        """See :meth:`ProfiledNetwork.profile`."""
        self._send(feed)
        return self.model.profile(least_seconds, least_runs, most_runs)

    def _send(self, feed: Mapping[str, Array]) -> None:
        for info in self.inputs:
            array = feed[info.name]
            if array.dtype != dtype_of(info) or array.shape != info.shape:
                raise DlccError(
                    ExitCode.DATA,
                    f"input {info.name!r} does not fit",
                    where=str(self.path),
                    why=f"it is {array.dtype}{list(array.shape)}, "
                    f"the network takes {info.dtype}{list(info.shape)}",
                    fix="convert and reshape the array",
                )
        self.model.set_inputs([feed[info.name] for info in self.inputs])

    def close(self) -> None:
        """Ends the network's process on the board."""
        self.model.close()


class RemoteWorker:
    """An artifact on a board as one engine of :func:`dlcc.bench.bench`."""

    def __init__(self, board: Board, path: Path, threads: int) -> None:
        artifact = Artifact.open(path)
        most = int(artifact.manifest["threads"])
        self._network = RemoteNetwork(board, path, min(threads, most))
        self._model = self._network.model
        self._path = path

    def __enter__(self) -> Self:
        return self

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers as :mod:`dlcc.bench_worker` does."""
        if "slot_seconds" in request:
            times = self._model.times(float(request["slot_seconds"]), LEAST_RUNS)
            return {"seconds": 1e-9 * statistics.median(times)}
        self._model.set_inputs(list(random_feed(self._network.inputs).values()))
        self._model.times(WARM_SECONDS, WARM_RUNS)
        return {
            "version": __version__,
            "load_seconds": self._model.load_seconds,
            "threads": self._model.threads,
            "precision": precision_of(self._path),
        }

    def __exit__(self, *_: object) -> None:
        """Nothing: the network ends with the connection, which may be broken already."""
