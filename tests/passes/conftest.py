"""Builds small graphs, runs passes on them, compares with golden text and with the reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlcc.analysis.verify import verify
from dlcc.ir import F32, DType, Graph, TensorType, Value, print_graph
from dlcc.ops import build
from passes import Pass, PassContext, PassManager, PipelineResult

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden IR texts")


class Net:
    """A graph under construction, with random constants from a fixed seed."""

    def __init__(self, seed: int = 0, dtype: DType = F32) -> None:
        self.graph, self.dtype = Graph("net"), dtype
        self.rng = np.random.default_rng(seed)

    def input(self, *shape: int, name: str = "x", dtype: DType | None = None) -> Value:
        return self.graph.add_input(name, TensorType(shape, dtype or self.dtype))

    def const(self, values: Any, name: str = "c") -> Value:
        array = np.asarray(values)
        if array.dtype == np.float64:
            array = array.astype(self.dtype.numpy)
        return self.graph.add_constant(array, name=name)

    def random(self, *shape: int, name: str = "w", positive: bool = False) -> Value:
        values = self.rng.standard_normal(shape)
        return self.const(np.abs(values) + 0.5 if positive else values, name)

    def op(self, name: str, *inputs: Value | None, loc: str = "", **attrs: Any) -> Value:
        return build(self.graph, name, inputs, attrs, loc=loc or name).output

    def conv(
        self, x: Value, outputs: int, kernel: int = 3, bias: bool = True, **attrs: Any
    ) -> Value:
        channels = x.type.shape[1] // attrs.get("groups", 1)
        weight = self.random(outputs, channels, kernel, kernel)
        operands = [x, weight, self.random(outputs, name="b") if bias else None]
        return self.op("conv2d", *operands, **attrs)

    def linear(self, x: Value, outputs: int, bias: bool = True, **attrs: Any) -> Value:
        weight = self.random(outputs, x.type.shape[-1])
        operands = [x, weight, self.random(outputs, name="b") if bias else None]
        return self.op("linear", *operands, **attrs)

    def norm(self, x: Value, var: Any = None, **attrs: Any) -> Value:
        c = x.type.shape[1]
        spread = self.random(c, name="var", positive=True) if var is None else self.const(var)
        parameters = [self.random(c, name=n) for n in ("scale", "shift", "mean")]
        return self.op("batch_norm", x, *parameters, spread, **attrs)

    def done(self, *outputs: Value) -> Graph:
        self.graph.set_outputs(outputs, [f"y{i}" for i in range(len(outputs))])
        verify(self.graph)
        return self.graph


def _numbered(text: str) -> str:
    """Hashes of constants as #0, #1, ...: what the arrays hold is checked by running the graph."""
    order: dict[str, str] = {}
    return re.sub(r"#[0-9a-f]{24}", lambda m: order.setdefault(m.group(), f"#{len(order)}"), text)


Run = Callable[..., PipelineResult]


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def run() -> Run:
    """Run passes with full checking: outputs may move by 1e-5 of the largest one."""

    def run(
        graph: Graph, passes: str | Sequence[Pass | str], tolerance: float = 1e-5
    ) -> PipelineResult:
        manager = PassManager(passes, verify_numerics=2, tolerance=tolerance)
        return manager.run(graph, PassContext(seed=1))

    return run


@pytest.fixture
def golden(request: pytest.FixtureRequest, run: Run) -> Callable[[Graph, str], PipelineResult]:
    """Compare IR before and after a pipeline, and its remarks, with ``golden/TEST.dlir``."""

    def check(graph: Graph, pipeline: str) -> PipelineResult:
        before = print_graph(graph)
        result = run(graph, pipeline)
        remarks = "".join(f"// {remark}\n" for remark in result.remarks)
        text = _numbered(f"// before\n{before}// after {pipeline}\n{print_graph(graph)}{remarks}")
        path = GOLDEN / f"{request.node.name}.dlir"
        if request.config.getoption("update_golden", default=False):
            GOLDEN.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), "no golden text: run pytest tests/passes --update-golden"
        assert text == path.read_text(encoding="utf-8")
        return result

    return check
