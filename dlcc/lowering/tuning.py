"""Measured kernel choice: the candidates of a layer, and the database of what they took.

A row of the kernel table serves a layer in its own way (variant ``""``) and perhaps in others that
it names (:meth:`KernelRow.variants`). ``dlcc tune`` measures them inside the network they belong to
and keeps the seconds in a database; a compilation that is given the database takes the fastest
instead of the one with the best prediction. Layers are known by what decides their speed, so one
network's measurements serve another's equal layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Affine, Node, Value
from dlcc.lowering.choice import Choice, choose, predicted_seconds
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow, Target
from dlcc.wholefile import write_whole

FORMAT = "dlcc tuning database"
VERSION = 1

PREDICTED_LIMIT = 4.0
"""Candidates predicted to take this many times the best prediction are not measured."""


@dataclass(frozen=True)
class Candidate:
    """One way to compute a layer. ``variant`` "": the row's own choice."""

    row: KernelRow
    variant: str
    predicted: float

    @property
    def name(self) -> str:
        """The text that the database keeps."""
        return f"{self.row.name} {self.variant}".rstrip()

    def plan(self, node: Node) -> KernelPlan:
        """The kernels of ``node`` in this way."""
        if self.variant:
            return self.row.plan_variant(node, self.variant)
        return self.row.plan(node)


def layer_key(node: Node) -> str:
    """What decides a layer's speed: op, integer attributes, shapes, layouts and stored types.

    Scales, zero points and bounds are left out: they are constants of one and the same code.
    """
    attrs = {
        name: value
        for name, value in sorted(node.attrs.items())
        if not isinstance(value, float) and name != "loc"
    }
    inputs = ", ".join("-" if v is None else _operand(v) for v in node.inputs)
    outputs = ", ".join(_operand(v) for v in node.outputs)
    rest = " ".join(f"{name}={_plain(value)}" for name, value in attrs.items())
    return f"{node.op}({inputs}) -> {outputs} {{{rest}}}"


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(_plain(v) for v in value) + "]"
    return str(value)


def _operand(value: Value) -> str:
    kind = value.type
    plain = kind.is_dense or isinstance(kind.encoding, Affine)
    encoding = "" if plain else f"!{type(kind.encoding).__name__.lower()}"
    shape = ",".join(map(str, kind.shape))
    layout = f"@{kind.layout}" if kind.layout else ""
    const = "const " if value.is_constant else ""
    return f"{const}{kind.storage}[{shape}]{layout}{encoding}"


def candidates(node: Node, target: Target, limit: int) -> list[Candidate]:
    """The ways to compute ``node``: first the predicted best, then up to ``limit - 1`` others.

    The others come in rounds, each row's best before any row's second best.

    Raises:
        DlccError: no row of the target's table serves it.
    """
    best = predicted_seconds(node, target)
    rows = [row for row in target.rows_for(node) if not row.refuses(node)]
    rows.sort(key=lambda row: row.cost(node))
    lists = [
        [Candidate(row, variant, row.cost(node)) for variant in ("", *row.variants(node))]
        for row in rows
        if row.cost(node) <= PREDICTED_LIMIT * best
    ]
    found: list[Candidate] = []
    for rank in range(max(map(len, lists))):
        found += [ways[rank] for ways in lists if rank < len(ways)]
    return found[:limit]


@dataclass
class Chosen:
    """Chooses for a network again what was chosen before.

    Attributes:
        names: of the candidates (:attr:`Candidate.name`), layer by layer.
    """

    names: list[str]

    @staticmethod
    def of(layers: Sequence[Mapping[str, Any]]) -> Chosen:
        """The choices of a report of :func:`dlcc.lowering.lower.lower`."""
        return Chosen([str(row.get("tuned") or row["kernel"]) for row in layers])

    def __call__(self, node: Node, target: Target) -> Choice:
        """The choice of the next layer.

        Raises:
            DlccError: VERIFICATION, if this version of dlcc has no such kernel for it.
        """
        name = self.names.pop(0) if self.names else "nothing"
        row_name, _, variant = name.partition(" ")
        row = next((r for r in target.rows_for(node) if r.name == row_name), None)
        if row is None or (variant and variant not in row.variants(node)):
            raise DlccError(
                ExitCode.VERIFICATION,
                "a kernel cannot be chosen again",
                where=node.loc,
                why=f"target {target.name} has no {name} for it in this version of dlcc",
                fix="compile the model again",
            )
        return Choice(node, row, Candidate(row, variant, 0.0).plan(node), 0.0)


@dataclass
class TuningDatabase:
    """Seconds per candidate, by target and layer.

    ``entries``: (target name, :func:`layer_key`) to a record with ``cpu``, ``threads`` and
    ``seconds`` (candidate name to seconds).
    """

    entries: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> TuningDatabase:
        """Read a database file.

        Raises:
            DlccError: DATA if it is missing, unreadable or something else.
        """
        try:
            data = json.loads(path.read_text("utf-8"))
            return cls._checked(data)
        except OSError as error:
            why = error.strerror or str(error)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            why = f"it is no tuning database of version {VERSION}: {error}"
        raise DlccError(
            ExitCode.DATA,
            "cannot read the tuning database",
            where=str(path),
            why=why,
            fix="make one by `dlcc tune`",
        )

    @classmethod
    def _checked(cls, data: Any) -> TuningDatabase:
        if data["format"] != FORMAT or data["version"] != VERSION:
            raise ValueError(f"format {data['format']!r}, version {data['version']!r}")
        entries = {}
        for entry in data["layers"]:
            seconds = {str(k): float(v) for k, v in entry["seconds"].items()}
            if not seconds or not all(0 < v < float("inf") for v in seconds.values()):
                raise ValueError(f"the times of layer {entry['layer']!r} are not positive numbers")
            record = {"cpu": str(entry["cpu"]), "threads": int(entry["threads"])}
            entries[str(entry["target"]), str(entry["layer"])] = record | {"seconds": seconds}
        return cls(entries)

    def text(self) -> str:
        """The database as JSON; :meth:`load` reads it."""
        layers = [
            {"target": target, "layer": layer, **record}
            for (target, layer), record in sorted(self.entries.items())
        ]
        data = {"format": FORMAT, "version": VERSION, "layers": layers}
        return json.dumps(data, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write the database, beside the place and then renamed.

        Raises:
            DlccError: OUTPUT if that cannot be done.
        """
        try:
            write_whole({path: self.text().encode()})
        except OSError as error:
            raise DlccError(
                ExitCode.OUTPUT,
                "cannot write the tuning database",
                where=str(path),
                why=error.strerror or str(error),
                fix="choose another place",
            ) from None

    def add(
        self, target: str, layer: str, seconds: Mapping[str, float], cpu: str, threads: int
    ) -> None:
        """Keep what the candidates of a layer took, instead of what was known of it before."""
        record = {"cpu": cpu, "threads": threads, "seconds": dict(seconds)}
        self.entries[target, layer] = record

    def choose(self, node: Node, target: Target) -> Choice:
        """The fastest measured candidate of ``node``; the predicted one where none was measured.

        A candidate that this version of dlcc no longer has is passed over, and the choice's report
        says so.
        """
        predicted = choose(node, target)
        record = self.entries.get((target.name, layer_key(node)))
        if record is None:
            return predicted
        seconds: dict[str, float] = record["seconds"]
        known = {c.name: c for c in candidates(node, target, 1 << 30)}
        gone = sorted(set(seconds) - set(known))
        notes = dict.fromkeys(gone, "measured, but not in this version of dlcc")
        measured = {name: s for name, s in seconds.items() if name in known}
        if not measured:
            predicted.rejected.update(notes)
            return predicted
        name = min(measured, key=lambda n: (measured[n], n))
        best = known[name]
        others = {
            n: f"measured {s * 1e6:.1f} us against {measured[name] * 1e6:.1f} us"
            for n, s in measured.items()
            if n != name
        }
        rejected = {n: why for n, why in predicted.rejected.items() if n != best.row.name}
        reasons = rejected | others | notes
        return Choice(node, best.row, best.plan(node), measured[name], reasons, tuned=name)
