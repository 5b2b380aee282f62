"""What became of a network in its passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dlcc.analysis.certificates import Assignment
from dlcc.data import Batches
from dlcc.ir import Graph
from passes.base import Remark
from passes.manager import PassRecord
from passes.recipe import Recipe


@dataclass(frozen=True)
class Optimised:
    """A graph after its passes.

    Attributes:
        graph: the network, of one shape profile.
        pipeline: the passes, as text.
        remarks: of import and passes.
        passes: what each pass did.
        recipe: where one told the passes.
        assigned: name of a layer's result -> the accumulator for which a pass chose its widths.
        calibration: the data as the caller now gives it, where there is some for these shapes.
        imported: the graph before its passes, where these are exact and results are verified.
    """

    graph: Graph
    pipeline: str
    remarks: tuple[Remark, ...]
    passes: tuple[PassRecord, ...]
    recipe: Recipe | None = None
    assigned: Mapping[str, Assignment] = field(default_factory=dict)
    calibration: Batches | None = field(default=None, repr=False)
    imported: Graph | None = field(default=None, repr=False)

    def noted(self, what: str, *messages: str) -> Optimised:
        """With notes on ``what``."""
        notes = tuple(Remark(what, "", "note", message) for message in messages)
        return replace(self, remarks=(*self.remarks, *notes))

    def report(self) -> dict[str, object]:
        """What report.json tells of the passes."""
        passes = [
            {
                "pass": p.text,
                "modified": p.modified,
                "statistics": p.statistics,
                "max_abs_errors": {name: e.max_abs for name, e in (p.errors or {}).items()},
            }
            for p in self.passes
        ]
        remarks = [
            {"pass": r.pass_name, "layer": r.loc, "kind": r.kind, "message": r.message}
            for r in self.remarks
        ]
        return {"pipeline": self.pipeline, "passes": passes, "remarks": remarks}


__all__ = ["Optimised"]
