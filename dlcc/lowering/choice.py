"""Kernel choice: the row of a target's table that serves a layer in the shortest predicted time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import Node
from dlcc.ir.text import type_text
from dlcc.lowering.kernel import KernelPlan
from dlcc.lowering.target import KernelRow, Target


@dataclass
class Choice:
    """The kernel chosen for a layer, and what became of the others.

    Attributes:
        seconds: predicted, or measured where ``tuned``.
        rejected: row or candidate to the reason it was not taken.
        tuned: name of the candidate, where a measurement decided.
    """

    node: Node
    row: KernelRow
    plan: KernelPlan
    seconds: float
    rejected: dict[str, str] = field(default_factory=dict)
    tuned: str = ""


def choose(node: Node, target: Target) -> Choice:
    """The cheapest row that serves ``node``; the one that stores less, of nearly equal ones.

    Raises:
        DlccError: no row of the target's table serves it; every row's reason is given.
    """
    costs, reasons = _costs(node, target)
    if not costs:
        raise _unserved(node, target, reasons)
    within = target.packed_within
    seconds, row = min(costs.values(), key=lambda e: e[0] / (within if e[1].encodings else 1))
    # that a row for any op has nothing for this one is no news
    general = {other.name for other in target.rows if "*" in other.ops}
    reasons = {name: why for name, why in reasons.items() if name not in general}
    for name, (other, _) in costs.items():
        if name != row.name:
            why = f"predicted {other * 1e6:.1f} us against {seconds * 1e6:.1f} us"
            reasons[name] = why + ("" if other >= seconds else ", with the weights decoded")
    return Choice(node, row, row.plan(node), seconds, reasons)


def predicted_seconds(node: Node, target: Target) -> float:
    """Seconds on one thread that the cheapest row predicts for a node.

    Raises:
        DlccError: no row of the target's table serves it.
    """
    costs, reasons = _costs(node, target)
    if not costs:
        raise _unserved(node, target, reasons)
    return min(seconds for seconds, _ in costs.values())


def _costs(node: Node, target: Target) -> tuple[dict[str, tuple[float, KernelRow]], dict[str, str]]:
    """Predicted seconds of the rows that serve ``node``, and why the others do not."""
    reasons: dict[str, str] = {}
    costs: dict[str, tuple[float, KernelRow]] = {}
    for row in target.rows_for(node):
        refusal = row.refuses(node)
        if refusal:
            reasons[row.name] = refusal
        else:
            costs[row.name] = (row.cost(node), row)
    return costs, reasons


def _unserved(node: Node, target: Target, reasons: dict[str, str]) -> DlccError:
    types = ", ".join("-" if v is None else type_text(v.type) for v in node.inputs)
    return DlccError(
        ExitCode.UNSUPPORTED,
        f"no kernel of target {target.name} serves {node.op}({types})",
        where=node.loc,
        why="; ".join(f"{name}: {why}" for name, why in reasons.items()) or "no row has this op",
        fix="keep this layer in float with --passes 'quantize{exclude=...}', or use --bits 32",
    )


Chooser = Callable[[Node, Target], Choice]
"""Picks the kernel of a layer."""
