"""What a machine can do at most, and how near to that a layer comes.

A layer has to do its multiply-accumulates and to touch its weights, inputs and outputs once; it
cannot take less time than the slower of both would at the measured peaks (the roofline model:
Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
architectures", CACM 2009). The peaks are measured, not looked up: :mod:`dlcc.limits.measure`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

NEEDS: dict[str, tuple[str, ...]] = {
    "fp32.sse4": (),
    "fp32.avx2": ("avx2", "fma"),
    "fp32.avx512": ("avx512f",),
    "bf16.avx512": ("avx512_bf16",),
    "bf16.amx": ("amx_bf16",),
    "int8.sse4": (),
    "int8.avx2": ("avx2",),
    "int8.avxvnni": ("avx_vnni",),
    "int8.avx512": ("avx512bw",),
    "int8.avx512vnni": ("avx512_vnni",),
    "int8.amx": ("amx_int8",),
}
"""Arithmetic loops of limits.c, and the CPU features (names of /proc/cpuinfo) they need."""

_KINDS = {"int8": ("int8",), "bf16": ("bf16", "fp32"), "fp32": ("fp32",)}


@dataclass(frozen=True)
class Work:
    """What a layer cannot avoid.

    Attributes:
        kind: what it multiplies: "int8", "bf16" or "fp32".
        macs: multiply-accumulates by the layer's definition.
        weight_bytes: bytes of its constants.
        activation_bytes: bytes of its inputs and outputs.
    """

    kind: str
    macs: int
    weight_bytes: int
    activation_bytes: int

    @property
    def bytes(self) -> int:
        """All bytes it touches."""
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True)
class Limits:
    """Measured peaks of all threads together.

    Attributes:
        cpu: model name of the CPU.
        threads: threads that ran at once, each on a CPU of its own.
        macs: loop of :data:`NEEDS` -> multiply-accumulates per second.
        reads: size of the data in bytes, all threads together -> bytes read per second.
    """

    cpu: str
    threads: int
    macs: Mapping[str, float]
    reads: Mapping[int, float]

    def mac_rate(self, kind: str, features: Collection[str]) -> float:
        """Peak multiply-accumulates per second of code that may use ``features``."""
        usable = [
            rate
            for loop, rate in self.macs.items()
            if loop.split(".")[0] in _KINDS[kind] and set(NEEDS[loop]) <= set(features)
        ]
        return max(usable)

    def read_rate(self, footprint: int) -> float:
        """Peak bytes per second from data of ``footprint`` bytes that are read again and again."""
        sizes = sorted(self.reads)
        return self.reads[next((s for s in sizes if s >= footprint), sizes[-1])]

    def least_seconds(self, work: Work, features: Collection[str], all_weights: int) -> float:
        """The time that a layer needs at least.

        Weights come from where the whole network's weights fit, since all of them pass between two
        uses; activations from where the layer's own fit, as they were written just before.

        Args:
            work: the layer's.
            features: CPU features that the artifact uses.
            all_weights: bytes of the whole network's weights.
        """
        compute = work.macs / self.mac_rate(work.kind, features)
        weights = work.weight_bytes / self.read_rate(all_weights)
        activations = work.activation_bytes / self.read_rate(work.activation_bytes)
        return max(compute, weights + activations)

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        reads = {str(size): rate for size, rate in self.reads.items()}
        return {"cpu": self.cpu, "threads": self.threads, "macs": dict(self.macs), "reads": reads}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Limits:
        """What :meth:`to_json` made."""
        reads = {int(size): float(rate) for size, rate in data["reads"].items()}
        return Limits(str(data["cpu"]), int(data["threads"]), dict(data["macs"]), reads)


__all__ = ["NEEDS", "Limits", "Work"]
