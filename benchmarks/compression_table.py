"""Rows, results and the table of :mod:`benchmarks.compression`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

FLOAT, INT8 = "", "quantize{bits=8}"
"""Pipelines of the dense networks that all others are compared with."""


@dataclass(frozen=True)
class Model:
    """A network of the table.

    Attributes:
        name: in the table.
        file: its stem in the data's manifest.
        calibration: samples to calibrate on, at most.
        images: of the evaluation split, the first so many.
    """

    name: str
    file: str
    calibration: int
    images: int


@dataclass(frozen=True)
class Row:
    """A network and the passes that it goes through after the exact ones."""

    model: Model
    pipeline: str

    @property
    def key(self) -> str:
        """What results are kept by."""
        return f"{self.model.name}: {self.pipeline}"

    @property
    def folder(self) -> str:
        """Name of its artifact."""
        words = "".join(c if c.isalnum() else "-" for c in self.pipeline)[:40].strip("-")
        digest = sha256(self.pipeline.encode()).hexdigest()[:6]
        return f"{self.model.name}-{words}-{digest}" if words else f"{self.model.name}-fp32"

    @property
    def dense(self) -> bool:
        """Whether others are compared with it."""
        return self.pipeline in (FLOAT, INT8)


def read_rows(path: Path) -> list[Row]:
    """The rows that a TOML file declares, each network's dense ones first.

    A table per network has its ``file``, ``calibration``, ``images`` and a list ``pipelines``.

    Raises:
        ValueError: a key is missing or unknown, or a row stands there twice.
    """
    out: list[Row] = []
    for name, table in tomllib.loads(path.read_text()).items():
        wanted = {"file": str, "calibration": int, "images": int, "pipelines": list}
        if set(table) != set(wanted):
            odd = ", ".join(sorted(set(table) ^ set(wanted)))
            raise ValueError(f"{path}: [{name}] must have {', '.join(wanted)}; look at {odd}")
        for key, kind in wanted.items():
            if not isinstance(table[key], kind):
                raise ValueError(f"{path}: {key} of [{name}] is no {kind.__name__}")
        model = Model(name, table["file"], table["calibration"], table["images"])
        out += [Row(model, text) for text in (FLOAT, INT8, *table["pipelines"])]
    twice = sorted({row.key for row in out if out.count(row) > 1})
    if twice:
        raise ValueError(f"{path}: {', '.join(map(repr, twice))} stand there twice")
    return out


def select(rows: Iterable[Row], only: str) -> list[Row]:
    """Rows whose key matches a pattern (as of a shell), and the dense rows of their networks."""
    rows = list(rows)
    named = [r for r in rows if fnmatchcase(r.key, only)]
    models = {r.model for r in named}
    return [r for r in rows if r in named or (r.dense and r.model in models)]


@dataclass
class Result:
    """What is known of a row. Times are None before it was timed.

    Attributes:
        images: that it was evaluated on.
        calibration: samples that it was calibrated on.
        fingerprint: of the artifact.
        top1: share of right answers.
        agreement: share of answers equal to those of the float network.
        bytes: of library and weights.
        packed_bytes: of both where the weights are packed for size.
        macs: multiply-accumulates with weights that are not pruned away.
        dense_macs: of the network as it came.
        predicted: seconds that the target's cost model expects.
        compile_seconds: of passes, kernels and linking.
        kernels: layers by the kernel that computes them.
        statistics: of the lossy passes, by name.
        seconds: of an inference, 20th percentile, by one thread.
        over_float: seconds of the dense float network over its own, in the same rounds.
        over_int8: the same of the dense int8 network.
        timed: fingerprints of the artifacts that took part in the timing.
    """

    images: int
    calibration: int
    fingerprint: str
    top1: float
    agreement: float
    bytes: int
    packed_bytes: int
    macs: int
    dense_macs: int
    predicted: float
    compile_seconds: float
    kernels: dict[str, int]
    statistics: dict[str, dict[str, float]]
    seconds: float | None = None
    over_float: float | None = None
    over_int8: float | None = None
    timed: tuple[str, ...] = ()


class Results:
    """Results by the keys of rows, in a JSON file that is written after each."""

    def __init__(self, path: Path, machine: Mapping[str, Any]) -> None:
        """Go on with what the file holds.

        Raises:
            ValueError: the file holds something else.
        """
        self.path = path
        self.machine = dict(machine)
        self.found: dict[str, Result] = {}
        if path.exists():
            try:
                data = json.loads(path.read_text())
                for key, entry in data["rows"].items():
                    self.found[key] = Result(**{**entry, "timed": tuple(entry["timed"])})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is no file of results: {error}") from None
            self.machine = data["machine"]

    def built(self, row: Row, images: int, fingerprint: str) -> Result | None:
        """The result of a row, unless it is of another artifact or of other samples."""
        found = self.found.get(row.key)
        same = (images, row.model.calibration, fingerprint)
        if found is None or (found.images, found.calibration, found.fingerprint) != same:
            return None
        return found

    def put(self, row: Row, result: Result) -> None:
        """Keep a result, and write all."""
        self.found[row.key] = result
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = {
            "machine": self.machine,
            "rows": {key: asdict(found) for key, found in self.found.items()},
        }
        scratch = self.path.with_suffix(".part")
        scratch.write_text(json.dumps(data, indent=1) + "\n")
        scratch.replace(self.path)


HEADS = (
    "network",
    "passes",
    "top-1 %",
    "kB",
    "packed",
    "MACs",
    "us",
    "x fp32",
    "x int8",
)


def markdown(rows: Iterable[Row], results: Results) -> str:
    """The table of all rows that have a result."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---|---|" + "---:|" * (len(HEADS) - 2)]
    model = ""
    for row in rows:
        found = results.found.get(row.key)
        if found is not None:
            name = "" if row.model.name == model else row.model.name
            model = row.model.name
            lines.append("| " + " | ".join([name, *_cells(row, found)]) + " |")
    return "\n".join(lines)


def _cells(row: Row, found: Result) -> list[str]:
    passes = f"`{row.pipeline}`" if row.pipeline else "none (fp32)"
    macs = f"{100 * found.macs / found.dense_macs:.0f} %"
    times = ["", "", ""]
    if found.seconds is not None:
        times[0] = f"{1e6 * found.seconds:.4g}"
        times[1:] = ("" if x is None else f"{x:.2f}" for x in (found.over_float, found.over_int8))
    sizes = [f"{size / 1000:.0f}" for size in (found.bytes, found.packed_bytes)]
    return [passes, f"{100 * found.top1:.1f}", *sizes, macs, *times]


__all__ = [
    "FLOAT",
    "HEADS",
    "INT8",
    "Model",
    "Result",
    "Results",
    "Row",
    "markdown",
    "read_rows",
    "select",
]
