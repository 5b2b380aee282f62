"""Tables of 256 bytes on every ISA at hand, against numpy's indexing."""

from __future__ import annotations

import numpy as np
import pytest

from dlcc.lowering.kernel import KernelPlan, KernelStep
from targets.cpu.kernels.lookup import lookup_function, table_constant
from tests.targets.running import Runner, isa_params

SIZES = (1, 15, 63, 64, 65, 127, 1000, 5000)
ITEM = 1024


def plan_of(elements: int, table: np.ndarray, isa) -> KernelPlan:
    name = f"table_{elements}"
    step = KernelStep(
        name,
        lambda: lookup_function(name, elements, ITEM, isa),
        (("in", 0), ("const", "table"), ("out", 0)),
        -(-elements // ITEM),
    )
    return KernelPlan((step,), {"table": table_constant(table, isa)})


@pytest.mark.parametrize("isa", isa_params())
def test_against_numpy(isa):
    rng = np.random.default_rng(3)
    table = rng.integers(0, 256, 256, dtype=np.uint8)
    plans = {n: plan_of(n, table, isa) for n in SIZES}
    runner = Runner(list(plans.values()), isa)
    for elements, plan in plans.items():
        x = rng.integers(0, 256, elements, dtype=np.uint8)
        if elements >= 256:
            x[-256:] = np.arange(256)  # every code
        for cuts in (1, 3):
            got = runner.run(plan, [x], np.zeros(elements, np.uint8), cuts, slack=0)
            np.testing.assert_array_equal(got, table[x])
