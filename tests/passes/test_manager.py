from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from dlcc.errors import DlccError, ExitCode
from dlcc.ir import F32, Affine, Graph, TensorType
from dlcc.ir.text import load
from dlcc.ops import build
from passes import (
    OutputError,
    Pass,
    PassContext,
    PassManager,
    PassResult,
    Progress,
    option,
    registered_passes,
)
from passes import base as registry
from passes.manager import run_real


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply every dense constant by a factor, which is wrong."""

    name: ClassVar[str] = "test-scale"
    factor: float = option(1.5, "the factor")
    honest: bool = option(True, "say that the graph changed")

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        for value in list(graph.constants()):
            graph.replace_all_uses(
                value, graph.add_constant(value.decoded() * np.float32(self.factor))
            )
        context.advance(0.5, "half way")
        return PassResult(self.honest, {"scaled": 1}, [self.remark("applied", "here", "scaled")])


@dataclass(frozen=True)
class Coarsen(Scale):
    """The same, but said to be lossy."""

    name: ClassVar[str] = "test-coarsen"
    lossy: ClassVar[bool] = True


@dataclass(frozen=True)
class Break(Pass):
    """Give a value a type that its op does not have."""

    name: ClassVar[str] = "test-break"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        graph.nodes[0].output.type = TensorType((77,), F32)
        return PassResult(True)


@dataclass(frozen=True)
class Crash(Pass):
    """Raise."""

    name: ClassVar[str] = "test-crash"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        context.batches(self)
        raise ZeroDivisionError


_MINE = (Scale, Coarsen, Break, Crash)
for _cls in _MINE:
    del registry._REGISTRY[_cls.name]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in _MINE:
        monkeypatch.setitem(registry._REGISTRY, cls.name, cls)


@pytest.fixture
def graph(net: Any) -> Graph:
    result: Graph = net.done(net.op("relu", net.linear(net.input(2, 3), 4, loc="fc")))
    return result


def test_records_say_what_happened(graph: Graph) -> None:
    result = PassManager("canonicalize,test-scale{factor=2},eliminate-dead-code").run(graph)
    assert [r.name for r in result.records] == ["canonicalize", "test-scale", "eliminate-dead-code"]
    assert [r.modified for r in result.records] == [True, True, False]
    middle = result.records[1]
    assert middle.text == "test-scale{factor=2}"
    assert middle.statistics == {"scaled": 1}
    assert middle.seconds >= 0
    assert middle.nodes_before == middle.nodes_after == 2
    assert middle.errors is None
    assert "test-scale: applied: here: scaled" in [str(r) for r in result.remarks]
    assert middle.to_json()["remarks"][0]["kind"] == "applied"


def test_exact_passes_are_held_to_it(graph: Graph) -> None:
    with pytest.raises(DlccError) as caught:
        PassManager("test-scale", verify_numerics=2).run(graph)
    assert caught.value.code is ExitCode.VERIFICATION
    assert "output 'y0'" in str(caught.value)


def test_lossy_passes_report_their_error(graph: Graph) -> None:
    manager = PassManager("test-coarsen{factor=1.01},canonicalize", verify_numerics=3)
    records = manager.run(graph).records
    assert records[0].errors is not None
    error = records[0].errors["y0"]
    assert error.relative == pytest.approx(0.01, rel=1e-3)
    assert error.sqnr_db == pytest.approx(40, abs=0.1)
    assert records[1].errors is not None
    assert records[1].errors["y0"].max_abs == 0


def test_given_samples_are_used(graph: Graph) -> None:
    zeros = {"x": np.zeros((2, 3), np.float32)}
    context = PassContext(verify_inputs=(zeros,))
    manager = PassManager("test-coarsen", verify_numerics=1)
    errors = manager.run(graph, context).records[0].errors
    bias = np.maximum(graph.nodes[0].input(2).decoded(), 0)
    assert errors is not None
    assert errors["y0"].max_abs == pytest.approx(float(bias.max()) / 3, rel=1e-5)


def test_a_broken_graph_is_found(graph: Graph) -> None:
    with pytest.raises(DlccError) as caught:
        PassManager("test-break").run(graph)
    assert caught.value.code is ExitCode.INTERNAL
    assert "'test-break' broke the graph" in str(caught.value)
    assert "fc" in caught.value.where


def test_a_false_promise_is_found(graph: Graph) -> None:
    with pytest.raises(DlccError, match="says that it did not"):
        PassManager("test-scale{honest=false}").run(graph)


def test_printing_around_passes(graph: Graph) -> None:
    stream = io.StringIO()
    manager = PassManager(
        "canonicalize,eliminate-dead-code",
        print_before={"canonicalize"},
        print_after="all",
        stream=stream,
    )
    manager.run(graph)
    text = stream.getvalue()
    heads = [line for line in text.splitlines() if line.startswith("//")]
    assert heads == [
        "// IR before canonicalize",
        "// IR after canonicalize",
        "// IR after eliminate-dead-code",
    ]
    assert text.count("relu(") == 1
    assert text.count("clip(") == 2


def test_printing_around_an_absent_pass_is_a_mistake(graph: Graph) -> None:
    with pytest.raises(DlccError, match="did you mean 'canonicalize'"):
        PassManager("canonicalize", print_after={"canonicalise"}).run(graph)


def test_dumps_can_be_loaded(graph: Graph, tmp_path: Path) -> None:
    PassManager("canonicalize,eliminate-dead-code", dump_dir=tmp_path / "ir").run(graph)
    names = sorted(p.name for p in (tmp_path / "ir").glob("*.dlir"))
    assert names == ["00-input.dlir", "01-canonicalize.dlir"]
    assert str(load(tmp_path / "ir" / "01-canonicalize.dlir")) == str(graph)


def test_progress_and_callbacks(graph: Graph) -> None:
    seen: list[Progress] = []
    done: list[str] = []
    manager = PassManager(
        "test-coarsen,canonicalize", after_each=lambda record: done.append(record.name)
    )
    manager.run(graph, PassContext(progress=seen.append))
    assert done == ["test-coarsen", "canonicalize"]
    assert [(p.pass_name, p.index, p.fraction) for p in seen] == [
        ("test-coarsen", 0, 0.0),
        ("test-coarsen", 0, 0.5),
        ("test-coarsen", 0, 1.0),
        ("canonicalize", 1, 0.0),
        ("canonicalize", 1, 1.0),
    ]
    assert {p.count for p in seen} == {2}


def test_missing_calibration_data_is_a_usage_error(graph: Graph) -> None:
    with pytest.raises(DlccError, match="needs calibration data") as caught:
        PassManager("test-crash").run(graph)
    assert caught.value.code is ExitCode.USAGE


def test_crashes_name_the_pass(graph: Graph) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        PassManager("test-crash").run(graph, PassContext(calibration=lambda: iter(())))
    assert caught.value.__notes__ == ["in pass test-crash"]


def test_random_choices_depend_on_seed_and_purpose_alone() -> None:
    draw = [PassContext(seed=s).rng(p).integers(1 << 30) for s in (1, 1, 2) for p in ("a", "b")]
    assert draw[:2] == draw[2:4]
    assert len(set(draw)) == 4


def test_quantised_inputs_and_outputs_are_compared_as_real_numbers(net: Any) -> None:
    encoding = Affine.per_tensor(8, False, 0.5, 10)
    x = net.graph.add_input("x", TensorType((2, 2), F32, encoding))
    y = build(net.graph, "reshape", [x], {"shape": (4,)}, types=[x.type.with_(shape=(4,))]).output
    graph = net.done(y)
    real = np.float32([[0.5, 1.0], [-1.0, 3.6]])
    np.testing.assert_array_equal(run_real(graph, {"x": real})["y0"], [0.5, 1.0, -1.0, 3.5])


def test_output_error() -> None:
    inf, nan = np.float32(np.inf), np.float32(np.nan)
    same = OutputError.between([np.float32([1, inf, nan])], [np.float32([1, inf, nan])])
    assert same == OutputError(0.0, 0.0, float("inf"))
    worse = OutputError.between([np.float32([1, 2])], [np.float32([1, inf])])
    assert worse.max_abs == float("inf")
    lost = OutputError.between([np.float32([1, 2])], [np.float32([1, nan])])
    assert lost.relative == float("inf")
    zero = OutputError.between([np.float32([0.0])], [np.float32([1.0])])
    assert zero.sqnr_db == -float("inf")


def test_every_registered_pass_describes_itself() -> None:
    from passes import describe

    for cls in registered_passes().values():
        facts = describe(cls)
        assert facts["summary"].endswith("."), cls
        if not cls.name.startswith("test-"):
            assert "::" in facts["description"], f"{cls} shows no IR before and after"
        assert all(o["help"] for o in facts["options"]), cls


def test_a_plugin_that_cannot_be_loaded_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    import passes

    point = importlib.metadata.EntryPoint("bad", "no_such_module_zz", passes.PLUGIN_GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    passes.load_plugins.cache_clear()
    with pytest.raises(DlccError, match="plugin 'bad' cannot be loaded"):
        passes.load_plugins()
    passes.load_plugins.cache_clear()


def test_pass_classes_are_attributes_of_the_package() -> None:
    import passes

    assert passes.FoldBatchNorm().name == "fold-batch-norm"
    assert "FoldBatchNorm" in dir(passes)
    with pytest.raises(AttributeError):
        passes.NoSuchPass  # noqa: B018
