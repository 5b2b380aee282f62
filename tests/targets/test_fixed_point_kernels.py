"""Networks in fixed point, from the float graph to the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dlcc
from dlcc.artifact import write_artifact
from dlcc.driver import build_object
from dlcc.lowering.lower import lower
from targets import get_target
from tests.passes.conftest import Net
from tests.passes.test_fixed_point import network, quantise, samples
from tests.targets.running import isa_params


@pytest.mark.parametrize("isa", isa_params("sse4", "avx2", "avx512vnni", "amx"))
@pytest.mark.parametrize("per", ["channel", "tensor", "network"])
def test_a_library_computes_the_shifts(isa, per: str, tmp_path: Path) -> None:
    graph = network(Net())
    quantise(graph, f"fixed-point={per} rounding=nearest", samples(4))
    scales = {
        np.log2(s) for v in graph.values() if not v.type.is_dense for s in v.type.affine.scales
    }
    assert all(float(s).is_integer() for s in scales)
    program = lower(graph, get_target(f"cpu:{isa.name}"), build_object, threads=2)
    write_artifact(program, tmp_path / "net")
    with dlcc.load(tmp_path / "net", threads=2) as model:
        for case in samples(3, seed=5):
            np.testing.assert_array_equal(model(case["x"]), dlcc.execute(graph, case)["y0"])
