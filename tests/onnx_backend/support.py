"""docs/support.md: which ONNX operators are read, which of ONNX's cases are refused, and why.

    python -m tests.onnx_backend.support     writes the page

A test compares the page with what this module would write.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx

from dlcc.errors import DlccError
from dlcc.frontends.registry import IMPORTERS
from tests.onnx_backend.cases import Case, node_cases
from tests.onnx_backend.runtime import record

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "support.md"

_NODE = re.compile(r"\S+: (\w+) \([\w.]+ opset \d+\): (.*)")

_HEAD = """# ONNX support

Written by `python -m tests.onnx_backend.support` from the importers and from the node cases of
onnx {version} (`onnx.backend.test`); a test fails when it is stale. A case that is read is
imported, and `pytest tests/onnx_backend` finds that the numpy reference gives the outputs that the
standard's data says; with `-m slow` all of them are compiled and run as well.

{read} of {total} cases are read. Models may use opsets 1 to {newest}; "from" below
is 7 for what opsets 1 to 6 have as well.

## Results whose size depends on the data

All shapes of a compiled network are fixed. What NonMaxSuppression, NonZero, Compress and Unique
give has the largest size that it can have; the first places along its axis are the results, and the
rest is -1 (0 in types without a sign). An output `boxes` of such a size comes with another one,
`boxes.count`: a single int64, how many places hold results. Ops that treat the places alike (Gather
by them, elementwise ops, Concat along another axis, ...) pass the count on, and Shape gives it; an
op that would mix results with what fills them up, such as a sum over the axis, is refused. The
same holds for the scan outputs of a Loop that ends by a condition, or a trip count, of the run
time; the model must bound its trips, as by Min of the trip count with a constant. What a Loop only
carries from trip to trip needs no bound ([architecture.md](architecture.md#ops)).

## Sequences and optionals

Inside a model they are taken apart at compile time. At its border an input `x` that is a sequence
is the tensors `x[0]`, `x[1]`, ...: `--shape x=2` says how many there are, and `--shape 'x[0]=3x4'`
what shape one has where the model does not. An optional is what it holds, or, with
`--constant x=none`, nothing (a sequence: without elements). Outputs have the same names.

## Operators

"From" is the oldest opset for which the operator has an importer of its own; operators without one
are read through the function that the standard defines them by. "Cases" counts those of ONNX that
are read.

| operator | domain | from | cases |
|---|---|---|---|
"""

_REFUSED = """
## Refused cases

Each is refused with a message that names the node and the reason. The last column but one counts
those that ONNX Runtime {runtime} passes, {passed} in all; `python -m tests.onnx_backend.runtime`
records which they are.

| operator | cases | ONNX Runtime | reason |
|---|---|---|---|
"""


def _refusal(case: Case) -> DlccError | None:
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.imported()
    except DlccError as error:
        return error
    return None


def _reasons(error: DlccError) -> Iterable[tuple[str, str]]:
    """Operator ("" if it is not about one) and reason, without names of the model."""
    found = [_NODE.fullmatch(line.strip()) for line in error.why.splitlines()]
    nodes = {(m[1], m[2]) for m in found if m}
    if nodes:
        return nodes
    what = error.what if error.what.startswith(("'", "input", "ONNX")) else error.why
    if "shape of input" in what:
        what = error.why
    return {("", re.sub(r"(input )?'\w+'", "an input or output", what))}


def _operators(read: Counter[str], total: Counter[str]) -> Iterable[str]:
    own = {(op, domain): versions[0][0] for (domain, op), versions in IMPORTERS.items()}
    expanded = {(op, "") for op in read if onnx.defs.has(op) and (op, "") not in own}
    for op, domain in sorted({*own, *expanded}):
        since = str(max(own[op, domain], 7)) if (op, domain) in own else "by its function"
        cases = f"{read[op]} of {total[op]}" if total[op] and not domain else "-"
        yield f"| {op} | {domain or 'ai.onnx'} | {since} | {cases} |"


def page() -> str:
    """The text of docs/support.md.

    A case belongs to the operator in its model if there is one, else to all of them.
    """
    read: Counter[str] = Counter()
    total: Counter[str] = Counter()
    refused: dict[tuple[str, str], list[str]] = defaultdict(list)
    count = 0
    for case in node_cases().values():
        total.update(case.op_types)
        error = _refusal(case)
        if error is None:
            count += 1
            read.update(case.op_types)
            continue
        for op, reason in _reasons(error):
            refused[op or "/".join(case.op_types), reason].append(case.name)
    head = _HEAD.format(
        version=onnx.__version__, read=count, total=len(node_cases()),
        newest=onnx.defs.onnx_opset_version(),
    )  # fmt: skip
    taken = record()
    missed = set(taken["not_passed"])
    passed = {key: sum(n not in missed for n in names) for key, names in refused.items()}
    rows = [
        f"| {op} | {len(names)} | {passed[op, why]} | {why} |"
        for (op, why), names in sorted(refused.items())
    ]
    why = _REFUSED.format(runtime=taken["onnxruntime"], passed=sum(passed.values()))
    return head + "\n".join([*_operators(read, total), ""]) + why + "\n".join([*rows, ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
