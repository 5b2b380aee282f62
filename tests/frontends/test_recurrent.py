"""LSTM, GRU and RNN as ONNX has them: against ONNX Runtime, and torch's modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dlcc
from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from tests.frontends.models import model, ops, runtime, tensor

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, WIDTH, UNITS = 5, 3, 4, 6
DIRECTIONS = ("forward", "reverse", "bidirectional")


def recurrent(
    kind: str,
    without: str = "",
    given: tuple[str, ...] = (),
    steps: int = STEPS,
    lengths: list[int] | None = None,
    **attrs: Any,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one node, and inputs.

    ``without``: operands (of B h c P) that are left out; ``given``: those that are inputs besides
    x, h and c.
    """
    rng = np.random.default_rng(len(kind) + steps)
    both, gates = 1 + (attrs.get("direction") == "bidirectional"), GATES[kind]
    shapes = {
        "x": (steps, BATCH, WIDTH),
        "W": (both, gates * UNITS, WIDTH),
        "R": (both, gates * UNITS, UNITS),
        "B": (both, 2 * gates * UNITS),
        "L": (BATCH,),
        "h": (both, BATCH, UNITS),
        **({"c": (both, BATCH, UNITS), "P": (both, 3 * UNITS)} if kind == "LSTM" else {}),
    }
    arrays = {k: (rng.normal(size=s) / 2).astype(np.float32) for k, s in shapes.items()}
    arrays["L"] = np.array(lengths or [steps] * BATCH, np.int32)
    absent = without + ("" if lengths else "L")
    names = ["" if name in absent else name for name in shapes]
    fed = [n for n in names if n in ("x", "h", "c", *given)]
    kinds = {"L": TensorProto.INT32}
    inputs = [tensor(n, shapes[n], kinds.get(n, TensorProto.FLOAT)) for n in fed]
    outputs = ["Y", "Yh", *(["Yc"] if kind == "LSTM" else [])]
    node = helper.make_node(kind, names, outputs, name="rec", hidden_size=UNITS, **attrs)
    constants = {n: arrays[n] for n in names if n and n not in fed}
    return model([node], inputs, outputs, constants, opset=14), {n: arrays[n] for n in fed}


def assert_agrees(made: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> Any:
    graph = import_onnx(made)
    got = execute(graph, inputs).values()
    for ours, theirs in zip(got, runtime(made, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6)
    return graph


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", GATES)
def test_agrees_with_onnx_runtime(kind: str, direction: str) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"without": "BhcP"},
        {"lengths": [3, 0, 5]},
        {"lengths": [1, 5, 2], "given": ("L",)},
        {"steps": 1},
        {"clip": 0.3},
        {"given": ("W", "R", "B", "P")},
    ]
    if kind == "LSTM":
        variants += [{"without": "P", "input_forget": 1}, {"without": "P", "steps": 1}]
    if kind == "GRU":
        more: dict[str, Any] = {"linear_before_reset": 1}
        variants += [more, {**more, "steps": 1}, {**more, "without": "Bh"}]
        variants += [{**more, "steps": 1, "without": "B"}, {**more, "steps": 1, "without": "h"}]
    for variant in variants:
        assert_agrees(*recurrent(kind, direction=direction, **variant))


@pytest.mark.parametrize(
    ("kind", "attrs"),
    [
        ("LSTM", {"activations": ["HardSigmoid", "Softsign", "Relu"]}),
        ("GRU", {"activations": ["HardSigmoid", "ScaledTanh"], "activation_alpha": [0.3, 0.7],
                 "activation_beta": [0.4, 0.9]}),
        ("RNN", {"activations": ["LeakyRelu", "Elu"], "direction": "bidirectional",
                 "activation_alpha": [0.2, 0.6]}),
        ("RNN", {"activations": ["Tanh", "Affine"], "direction": "bidirectional",
                 "activation_alpha": [0.5], "activation_beta": [0.1]}),
        ("RNN", {"activations": ["Softplus", "Sigmoid"], "direction": "bidirectional"}),
    ],
)  # fmt: skip
def test_activations(kind: str, attrs: dict[str, Any]) -> None:
    """Parameters are dealt to those activations that have them, in order."""
    assert_agrees(*recurrent(kind, **attrs))


def test_weights_are_those_of_linear_layers() -> None:
    """All steps' projection is one; of a single step, the product of the state too."""
    graph = import_onnx(recurrent("LSTM", "P")[0])
    assert ops(graph).count("linear") == 1
    assert ops(graph).count("lstm") == 1
    graph = import_onnx(recurrent("LSTM", "P", steps=1)[0])
    assert ops(graph).count("linear") == 2
    (cell,) = (n for n in graph.nodes if n.op == "lstm")
    assert cell.optional_input(1) is None


def test_all_weights_of_a_single_step_can_be_of_8_bits(tmp_path: Path) -> None:
    made, inputs = recurrent("LSTM", "P", steps=1)
    result = dlcc.compile(
        import_onnx(made), tmp_path / "out", bits=8, calibration=lambda: iter([inputs] * 4)
    )
    layers = [n for n in result.optimised.graph.nodes if n.op == "linear"]
    assert len(layers) == 2
    for node in layers:
        assert node.input(1).type.affine.bits == 8
        assert node.input(0).type.affine.bits == 8
        assert node.output.type.is_dense
    with dlcc.load(tmp_path / "out") as network:
        got = network.run(inputs)
    for ours, theirs in zip(got.values(), runtime(made, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02)


def test_initial_states_of_zeros_are_none() -> None:
    made, _ = recurrent("GRU", "h")
    zeros = np.zeros((1, BATCH, UNITS), np.float32)
    made.graph.node[0].input.extend([""] * (6 - len(made.graph.node[0].input)))
    made.graph.node[0].input[5] = "zero"
    made.graph.initializer.append(onnx.numpy_helper.from_array(zeros, "zero"))
    (cell,) = (n for n in import_onnx(made).nodes if n.op == "gru")
    assert cell.optional_input(3) is None


@pytest.mark.parametrize(
    ("attrs", "why"),
    [
        ({"activations": ["Tanh", "Gelu"]}, "activation 'Gelu'"),
        ({"activations": ["Tanh"]}, "1 activations instead of 2"),
        ({"direction": "sideways"}, "direction 'sideways'"),
    ],
)
def test_refusals(attrs: dict[str, Any], why: str) -> None:
    with pytest.raises(DlccError, match=why):
        import_onnx(recurrent("GRU", **attrs)[0])


def modules() -> list[tuple[Any, tuple[Any, ...]]]:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn
    x, short = torch.randn(7, 2, 5), torch.randn(2, 7, 5)
    return [
        (nn.LSTM(5, 8, num_layers=2), (x,)),
        (nn.LSTM(5, 8, bidirectional=True, batch_first=True), (short,)),
        (nn.GRU(5, 8, batch_first=True), (short,)),
        (nn.RNN(5, 8, nonlinearity="relu", bidirectional=True), (x,)),
        (nn.LSTMCell(5, 8), (x[0],)),
        (nn.GRUCell(5, 8), (x[0],)),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_torch_modules(number: int, tmp_path: Path) -> None:
    import torch

    module, inputs = modules()[number]
    module.eval()
    with torch.no_grad():
        wanted = module(*inputs)
    flat: list[np.ndarray] = []
    for part in wanted if isinstance(wanted, tuple) else (wanted,):
        flat += [t.numpy() for t in (part if isinstance(part, tuple) else (part,))]
    graph = dlcc.from_torch(module, inputs)
    dlcc.compile(graph, tmp_path / "out", bits=32)
    with dlcc.load(tmp_path / "out") as network:
        got = list(network.run({"x0": inputs[0].numpy()}).values())
    assert len(got) == len(flat)
    for ours, theirs in zip(got, flat, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)
