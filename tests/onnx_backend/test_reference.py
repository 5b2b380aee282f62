"""ONNX's own test cases of single nodes, against the importer and the references."""

from __future__ import annotations

import re
import warnings
from collections import Counter

import numpy as np
import onnx

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.registry import IMPORTERS, importer_for
from tests.onnx_backend.cases import DIFFERENT, Case, node_cases

EXPECTED = {
    r"has element type string": "not a type of the border",
    r"a conversion to FLOAT8E8M0": "the type of scales that a training framework makes",
    r"holds strings|attribute \S+ of kind": "not numbers",
    r"is not a tensor|an input is a sequence": "sequences and optionals",
    r"function body needs": "the body is refused for a reason that stands here too",
    r"training.mode": "inference only",
    r"output \d \('\w+'\) is used": "by-products: Mean, Var, a mask",
    r"results are random": "no numbers to agree with",
    r"must be known at compile time": "its shape depends on the data, even as a second input",
    r"elements do not fit shape": "the shape's first entry is a run-time size",
}
"""Refusals of ops that have an importer, and why they are right."""


def _differs(case: Case) -> str:
    """Why the reference's outputs are not what the case says; "" if they are."""
    graph, feeds = case.imported()
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return case.difference(execute(graph, feeds))


def _has_importers(model: onnx.ModelProto) -> bool:
    versions = {o.domain: o.version for o in model.opset_import}
    return all(
        importer_for(n.domain, n.op_type, versions.get(n.domain, 1)) for n in model.graph.node
    )


def test_every_case_agrees_or_is_refused_for_a_known_reason() -> None:
    wrong: list[str] = []
    count: Counter[str] = Counter()
    for case in node_cases().values():
        try:
            why = _differs(case)
        except DlccError as error:
            count["refused"] += 1
            known = any(re.search(p, str(error)) for p in EXPECTED)
            known = known or not _has_importers(case.model)
            if not known or error.code not in (ExitCode.UNSUPPORTED, ExitCode.MODEL):
                wrong.append(f"{case.name}: {error}")
            continue
        count["agrees"] += 1
        if why and case.name not in DIFFERENT:
            wrong.append(f"{case.name}: {why}")
    assert not wrong, "\n".join(wrong)
    assert count["agrees"] > 1720, count


def test_importers_are_for_ops_that_onnx_has() -> None:
    """A misspelt op type would never be met."""
    for (domain, op_type), versions in IMPORTERS.items():
        if domain == "" and op_type != "SimplifiedLayerNormalization":
            assert onnx.defs.has(op_type), op_type
            assert versions[0][0] <= onnx.defs.onnx_opset_version()
