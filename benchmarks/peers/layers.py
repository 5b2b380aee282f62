"""How much of the machine's limit dlcc's networks use, and where the rest is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.tables import markdown
from dlcc.inspection import Layer, inspect_artifact
from dlcc.limits.measure import limits_for

WORST = 3
"""Layers to name for each network."""


@dataclass(frozen=True)
class Profile:
    """The layers of one network, with times and limits.

    Attributes:
        network: its name.
        precision: "int8", "fp32" or "bf16".
        threads: threads that it ran on.
        layers: in execution order.
    """

    network: str
    precision: str
    threads: int
    layers: tuple[Layer, ...]

    @property
    def seconds(self) -> float:
        """Sum of the layers' times."""
        return sum(layer.seconds or 0.0 for layer in self.layers)

    @property
    def limit(self) -> float:
        """Sum of what they need at least."""
        return sum(layer.limit_seconds or 0.0 for layer in self.layers)

    def worst(self) -> list[Layer]:
        """The layers that lose most time over their limit."""
        return sorted(self.layers, key=loss)[: -WORST - 1 : -1]


def loss(layer: Layer) -> float:
    """Seconds over the limit."""
    return (layer.seconds or 0.0) - (layer.limit_seconds or 0.0)


def profile(network: str, precision: str, threads: int, artifact: Path) -> Profile:
    """Profile an artifact."""
    report = inspect_artifact(artifact, profile=True, threads=threads, limits=limits_for)
    used = int(report.facts["profiled_threads"])
    return Profile(network, precision, used, tuple(report.layers))


def profile_table(profiles: Iterable[Profile]) -> str:
    """One row for each network, in Markdown."""
    columns = ("network", "precision", ">threads", ">layers, ms", ">limit, ms", ">of limit")
    rows = [
        (
            p.network,
            p.precision,
            str(p.threads),
            f"{1e3 * p.seconds:.4g}",
            f"{1e3 * p.limit:.4g}",
            f"{100 * p.limit / p.seconds:.1f} %",
            "; ".join(_lost(layer) for layer in p.worst()),
        )
        for p in profiles
    ]
    return markdown((*columns, "most time over the limit: layer, us of us, kernel"), rows)


def _lost(layer: Layer) -> str:
    whole = 1e6 * (layer.seconds or 0.0)
    return f"{layer.layer} {1e6 * loss(layer):.3g} of {whole:.3g} {layer.kernel}"
