"""What the layers of a network share: the weights' content, and the functions of kernels."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from dlcc.ir.encodings import Array
from dlcc.lowering.kernel import KernelStep
from dlcc.lowering.target import Target
from dlcc.program import FilterTransform, WeightEntry


class Weights:
    """The weights blob: constants packed for their kernels, equal ones stored once."""

    def __init__(self, target: Target) -> None:
        self._alignment, self._slack = target.alignment, target.slack
        self.blob = bytearray()
        self.entries: list[WeightEntry] = []
        self.transforms: dict[int, FilterTransform] = {}
        self._offsets: dict[bytes, int] = {}

    def add(self, array: Array, layer: str, name: str, encoding: str) -> int:
        """Store what a layer's kernel reads; its offset in the blob."""
        raw = np.ascontiguousarray(array).tobytes()
        digest = hashlib.sha256(raw).digest()
        if digest not in self._offsets:
            self.blob += b"\0" * (-len(self.blob) % self._alignment)
            self._offsets[digest] = len(self.blob)
            width = array.itemsize if array.itemsize in (1, 2, 4) else 1
            entry = WeightEntry(layer, name, len(self.blob), len(raw), encoding, width)
            self.entries.append(entry)
            # vector loads may run past the end of the last row
            self.blob += raw + b"\0" * self._slack
        return self._offsets[digest]


class Functions:
    """Kernel functions by what determines their code: identical layers share one.

    ``prefix`` keeps those of one variant apart from another's.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.code: dict[str, Any] = {}

    def add(self, step: KernelStep) -> str:
        """The name of a step's function."""
        name = self.prefix + step.name_key
        if name not in self.code:
            self.code[name] = step.build()
        return name


__all__ = ["Functions", "Weights"]
