"""LSTM, GRU and RNN against their references, all of one target in one library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlcc
from dlcc.analysis.execute import execute
from dlcc.artifact import write_artifact
from dlcc.driver import build_object
from dlcc.ir import DENSE, Affine, Graph, TensorType
from dlcc.ir.dtypes import I32
from dlcc.ir.encodings import Encoding
from dlcc.lowering.lower import lower
from dlcc.ops import OPS, build
from dlcc.ops.recurrent import ACTIVATIONS, Recurrent, weight_codes
from targets.cpu import levels

DEFAULTS = {"steps": 5, "batch": 3, "units": 6, "given": "recurrent h0"}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # parts of vectors, several vectors a block, several and left over sequences
    *(
        (op, {"units": units, "batch": batch}, {"reverse": reverse})
        for op in ("lstm", "gru", "rnn")
        for units, batch, reverse in ((6, 3, False), (40, 1, True), (16, 9, False), (64, 2, True))
    ),
    # weights that no cache holds, for several groups of sequences and some that are left
    ("lstm", {"units": 368, "batch": 27, "steps": 2}, {}),
    *(
        (op, {"given": "recurrent h0 lengths", "reverse": reverse}, {"reverse": reverse})
        for op in ("lstm", "gru", "rnn")
        for reverse in (False, True)
    ),
    *((op, {"given": "recurrent", "known": False}, {}) for op in ("lstm", "gru", "rnn")),
    ("lstm", {"given": "recurrent h0 c0 peephole lengths"}, {"clip": 0.4}),
    ("lstm", {"given": "recurrent c0 peephole", "known": False}, {"input_forget": True}),
    ("lstm", {"steps": 1, "given": "h0 c0 products"}, {}),
    ("rnn", {"steps": 1, "given": ""}, {}),
    ("gru", {"steps": 1, "given": ""}, {}),
    ("gru", {"given": "recurrent bias h0"}, {"reset_after": True}),
    ("gru", {"given": "recurrent h0", "units": 20}, {"reset_after": True, "reverse": True}),
    ("gru", {"given": "h0 products", "steps": 1, "units": 20}, {"reset_after": True}),
    *(
        ("rnn", {}, {"activations": (name,), "alpha": (a or 0.0,), "beta": (b or 0.0,)})
        for name, (a, b) in ACTIVATIONS.items()
    ),
    # weights of 8 bits, whose results are the reference's bytes
    *(
        (op, {"units": units, "batch": batch, "bits": bits}, {"reverse": batch == 1})
        for op, units, batch, bits in (
            ("lstm", 64, 9, 8), ("lstm", 37, 1, 4), ("gru", 6, 3, 8), ("gru", 64, 9, 8),
            ("rnn", 37, 1, 8),
        )
    ),
    ("lstm", {"given": "recurrent h0 c0 peephole lengths", "bits": 8}, {"clip": 0.4}),
    ("gru", {"given": "recurrent bias lengths", "bits": 8}, {"reset_after": True}),
    (
        "lstm",
        {"given": "recurrent", "bits": 8},
        {"activations": ("hard_sigmoid", "tanh", "tanh"), "alpha": (0.2, 0.0, 0.0),
         "beta": (0.5, 0.0, 0.0), "input_forget": True},
    ),
]  # fmt: skip


def add_layer(graph: Graph, number: int) -> list[Any]:
    """Case ``number`` as a node; its results."""
    op, more, attrs = CASES[number]
    has: dict[str, Any] = {**DEFAULTS, "known": True, **more}
    rng = np.random.default_rng(number)
    cell = OPS[op]
    assert isinstance(cell, Recurrent)
    shape = (has["steps"], has["batch"], cell.gates * has["units"])
    values = [graph.add_input(f"x{number}", TensorType(shape))]
    probe = Graph("shapes")
    node = probe.add_node(op, [probe.add_input("x", TensorType(shape))], [])
    for name, wanted in cell.expected(node).items():
        if name not in [o.rstrip("?") for o in cell.operands]:
            continue
        if name not in has["given"].split():
            values.append(None)
        elif name == "lengths":
            values.append(graph.add_input(f"n{number}", TensorType(wanted, I32)))
        elif name in ("h0", "c0", "products") or not has["known"]:
            values.append(graph.add_input(f"{name}_{number}", TensorType(wanted)))
        else:
            weight = rng.normal(size=wanted) / np.sqrt(has["units"])  # large ones make chaos
            encoding: Encoding = DENSE
            if name == "recurrent" and "bits" in has:
                scales = np.abs(weight).max(axis=1) / ((1 << (has["bits"] - 1)) - 1)
                encoding = Affine.symmetric(has["bits"], scales, 0)
            values.append(graph.add_constant(weight.astype(np.float32), encoding=encoding))
    return build(graph, op, values, attrs, loc=f"c{number}", outputs=1 + cell.states).outputs


def feed(graph: Graph) -> dict[str, np.ndarray]:
    """Random numbers; lengths from below 0 to above the number of steps."""
    rng = np.random.default_rng(7)
    return {
        v.name: np.array([3, -1, 8], np.int32)
        if v.type.dtype == I32
        else rng.uniform(-0.5, 0.5, size=v.type.shape).astype(np.float32)
        for v in graph.inputs
    }


def exact_names(graph: Graph) -> set[str]:
    """Outputs of layers with coded weights: the same bytes everywhere."""
    coded = [v for n in graph.nodes if weight_codes(n) is not None for v in n.outputs]
    return {graph.output_names[graph.outputs.index(v)] for v in coded}


def every_case() -> Graph:
    graph = Graph("recurrent")
    outputs = [v for number in range(len(CASES)) for v in add_layer(graph, number)]
    graph.set_outputs(outputs)
    return graph


def check(target: str, folder: Path, threads: tuple[int, ...] = (1, 3)) -> None:
    graph = every_case()
    program = lower(graph, dlcc.targets.get_target(target), build_object, threads=3)
    write_artifact(program, folder)
    inputs = feed(graph)
    wanted = execute(graph, inputs)
    exact = exact_names(graph)
    assert exact
    for count in threads:
        with dlcc.load(folder, threads=count) as network:
            got = network.run(inputs)
        for name, want in wanted.items():
            if name in exact:
                np.testing.assert_array_equal(got[name], want, err_msg=name)
            scale = max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(got[name], want, rtol=0, atol=3e-6 * scale, err_msg=name)


def test_on_this_machine(tmp_path: Path) -> None:
    check(f"cpu:{levels.detect().name}", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("level", ["sse4", "avx2"])
def test_other_levels(level: str, tmp_path: Path) -> None:
    check(f"cpu:{level}", tmp_path / "out", (1,))
