"""The folder that is carried to a machine with a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.catalogue import MODULES
from benchmarks.peers.catalogue import Contender
from benchmarks.peers.setup import Cache

FORMAT: Final = "dlcc-gpu-bench-1"
FACTS: Final = "bundle.json"


class NoBundle(Exception):
    """A folder that :mod:`benchmarks.gpu.prepare` has not made; its text is the reason."""


@dataclass(frozen=True)
class Bundle(Cache):
    """Artifacts ``NETWORK-BITS`` and samples, and models for peers, in the folder ``models``."""

    def missing(self, contender: Contender, network: str) -> str | None:
        """Why a peer cannot run a network: it, or its model, is not there."""
        module = MODULES[contender.engine]
        if find_spec(module) is None:
            return f"{module} is not installed"
        model = self.model(contender.product, network)
        if contender.product and not model.exists():
            return f"{model.name} was not prepared"
        return None

    def model(self, pattern: str, network: str) -> Path:
        """A model; torch builds its own by the network's name."""
        return self.models / (pattern or "{}").format(network)

    def peak(self, architecture: str) -> Path:
        """The cubin that measures what an architecture can do."""
        return self.root / f"peak-{architecture}.cubin"

    def read(self) -> dict[str, Any]:
        """What was prepared: "networks", "batches", "bits", "architectures".

        Raises:
            NoBundle: it is no such folder.
        """
        path = self.root / FACTS
        try:
            facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise NoBundle(f"{self.root} was not prepared: {error}") from None
        if facts.get("format") != FORMAT:
            raise NoBundle(f"{path} is not a file of this version")
        return facts

    def write(
        self,
        networks: Sequence[str],
        batches: Sequence[int],
        bits: Sequence[int],
        architectures: Sequence[str],
    ) -> None:
        """Tells what was prepared."""
        facts = {
            "format": FORMAT,
            "networks": list(networks),
            "batches": list(batches),
            "bits": list(bits),
            "architectures": list(architectures),
        }
        (self.root / FACTS).write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
