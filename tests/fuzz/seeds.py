"""What is mutated: small models of every op, the text of graphs, a few artifacts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import dlcc
from dlcc.artifact.manifest import NAME
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from dlcc.ir.encodings import Array
from dlcc.ir.text import print_graph
from tests.frontends import contrib_cases
from tests.frontends.models import model, tensor
from tests.fuzz.graphs import random_model
from tests.fuzz.mutations import Pool, Seed
from tests.onnx_backend.cases import node_cases

MOST_BYTES = 8192
"""Of a model: what is larger holds data, and mutations of that are of no interest."""


@dataclass(frozen=True)
class Corpus:
    """What the mutations start from.

    Attributes:
        models: ONNX models.
        pool: their parts by type.
        texts: graphs in their text form with the arrays that belong to them.
        good: artifacts, each in a folder of its own; as compiled.
        bad: the same in other folders, for the mutations.
    """

    models: Sequence[Seed]
    pool: Pool
    texts: Sequence[tuple[str, dict[str, Array]]]
    good: Sequence[Path]
    bad: Sequence[Path]
    manifests: dict[Path, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def files(self) -> dict[Path, dict[str, bytes]]:
        """Contents of the good artifacts' files by folder and name."""
        return {f: {p.name: p.read_bytes() for p in f.iterdir()} for f in self.good}

    def manifest(self, folder: Path) -> dict[str, Any]:
        """The manifest of a good artifact."""
        if folder not in self.manifests:
            self.manifests[folder] = json.loads(self.files[folder][NAME])
        return self.manifests[folder]


def corpus(folder: Path, *, wide: bool, drawn: int = 400) -> Corpus:
    """The corpus, its artifacts below ``folder``.

    Args:
        folder: exists; best in memory.
        wide: with the standard's 1,900 models of single nodes, those of com.microsoft, and a packed
            and an embedded artifact; takes about ten seconds more.
        drawn: random models of few nodes.
    """
    models = [random_model(seed, 1 + seed % 5).model for seed in range(drawn)]
    models += list(special())
    if wide:
        models += [case.model for case in node_cases().values()]
        models += [case.model() for case in contrib_cases.CASES.values()]
    seeds = [Seed.of(m) for m in models if m.ByteSize() <= MOST_BYTES]
    pool = Pool()
    for seed in seeds:
        pool.add(seed.model)
    good = artifacts(folder, wide)
    bad = [Path(shutil.copytree(g, g.with_name(f"{g.name}-bad"))) for g in good]
    return Corpus(seeds, pool, _texts(models[:: 8 if wide else 20]), good, bad)


def _texts(models: Sequence[onnx.ModelProto]) -> list[tuple[str, dict[str, Array]]]:
    found = []
    for source in models:
        sidecar: dict[str, Array] = {}
        try:
            text = print_graph(import_onnx(source), sidecar)
        except DlccError:
            continue
        if len(text) < MOST_BYTES:
            found.append((text, sidecar))
    return found


def artifacts(folder: Path, wide: bool) -> list[Path]:
    """Small artifacts: weights in a file and two inputs; wide: packed, and with all forms too."""
    made = [make_artifact(folder / "plain")]
    if wide:
        made.append(make_artifact(folder / "packed", pack="size", target="cpu:sse4+avx2"))
        made.append(make_artifact(folder / "forms", embed=True, emit=("so", "a", "o")))
    return made


def make_artifact(folder: Path, **options: Any) -> Path:
    """A small artifact to mutate: weights in a file, two inputs, two outputs, several steps."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Softmax", ["h"], ["s"], axis=1),
        helper.make_node("Add", ["s", "b"], ["y"]),
        helper.make_node("CumSum", ["y", "axis"], ["c"]),
        helper.make_node("ArgMax", ["c"], ["z"], axis=1),
    ]
    constants = {"w": np.arange(48, dtype=np.float32).reshape(4, 12), "axis": np.array(1)}
    given = [tensor("x", (1, 4)), tensor("b", (1, 12))]
    results = [tensor("c", (1, 12)), tensor("z", (1, 1), TensorProto.INT64)]
    source = model(nodes, given, results, constants)
    dlcc.compile(import_onnx(source), folder, bits=32, sample="none", **options)
    return folder


def special() -> list[onnx.ModelProto]:
    """What neither the random graphs nor the standard's cases have."""
    return [_bodies(), _function(), _quantised(), _sparse(), _external(), _recurrent()]


def _bodies() -> onnx.ModelProto:
    """If, Loop and Scan."""
    node, info = helper.make_node, tensor
    yes = helper.make_graph([node("Abs", ["x"], ["p"])], "yes", [], [info("p", None)])
    no = helper.make_graph([node("Neg", ["x"], ["q"])], "no", [], [info("q", None)])
    kept = info("k", (), TensorProto.BOOL)
    loop = helper.make_graph(
        [node("Add", ["s", "x"], ["t"]), node("Identity", ["k"], ["l"])],
        "loop",
        [info("i", (), TensorProto.INT64), kept, info("s", (2, 3))],
        [info("l", (), TensorProto.BOOL), info("t", (2, 3))],
    )
    scan = helper.make_graph(
        [node("Add", ["a", "b"], ["c"]), node("Identity", ["c"], ["d"])],
        "scan",
        [info("a", (3,)), info("b", (3,))],
        [info("c", (3,)), info("d", (3,))],
    )
    nodes = [
        node("If", ["flag"], ["f"], then_branch=yes, else_branch=no),
        node("Loop", ["trips", "go", "f"], ["g"], body=loop),
        node("Scan", ["zero", "g"], ["last", "all"], body=scan, num_scan_inputs=1),
    ]
    constants = {
        "trips": np.array(3), "go": np.array(True), "zero": np.zeros(3, np.float32),
    }  # fmt: skip
    given = [tensor("x", (2, 3)), tensor("flag", (), TensorProto.BOOL)]
    return model(nodes, given, ["last", "all"], constants)


def _function() -> onnx.ModelProto:
    """A function of the model's own with an attribute that is passed on."""
    inner = helper.make_node("LeakyRelu", ["u"], ["v"])
    inner.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    function = helper.make_function(
        "own", "Bent", ["u"], ["v"], [inner], [helper.make_opsetid("", 17)], ["slope"]
    )
    nodes = [helper.make_node("Bent", ["x"], ["y"], domain="own", slope=0.5)]
    own = helper.make_opsetid("own", 1)
    return model(nodes, [tensor("x", ("N", 4))], ["y"], imports=[own], functions=[function])


def _quantised() -> onnx.ModelProto:
    """A layer between quantised tensors, as exporters write it."""
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        node("Conv", ["xd", "wd"], ["c"], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("QuantizeLinear", ["r", "s", "z"], ["yq"]),
        node("DequantizeLinear", ["yq", "s", "z"], ["y"]),
    ]
    constants = {
        "s": np.array(0.05, np.float32), "z": np.array(128, np.uint8),
        "w": np.arange(54, dtype=np.int8).reshape(3, 2, 3, 3),
        "ws": np.array([0.1, 0.2, 0.3], np.float32), "wz": np.zeros(3, np.int8),
    }  # fmt: skip
    return model(nodes, [tensor("x", (1, 2, 5, 5))], ["y"], constants)


def _sparse() -> onnx.ModelProto:
    """A sparse initialiser."""
    made = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("x", (1, 4))], ["y"])
    sparse = made.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1, 6], np.int64), "i"))
    sparse.dims.extend((4, 4))
    return made


def _external() -> onnx.ModelProto:
    """Data in a file that is not there."""
    made = model([helper.make_node("MatMul", ["x", "w"], ["y"])], [tensor("x", (1, 4))], ["y"])
    weight = made.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=(4, 4))
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "0", "length": "64"}.items():
        weight.external_data.add(key=key, value=value)
    return made


def _recurrent() -> onnx.ModelProto:
    """An LSTM with most of its optional operands."""
    shapes = {"w": (1, 8, 3), "r": (1, 8, 2), "b": (1, 16)}
    constants = {n: np.full(s, 0.1, np.float32) for n, s in shapes.items()}
    node = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y", "h", "c"], hidden_size=2)
    return model([node], [tensor("x", (2, 1, 3))], ["y", "h", "c"], constants)


__all__ = ["Corpus", "corpus", "make_artifact"]
