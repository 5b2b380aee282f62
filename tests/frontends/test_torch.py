"""torch modules import and compute what torch computes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.frontends.torch import from_torch
from tests.frontends.models import ops

torch = pytest.importorskip("torch")


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 5)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x):
        x = torch.nn.functional.gelu(self.norm(self.conv(x)))
        return self.drop(self.head(x.mean((2, 3))))


def test_module_computes_the_same() -> None:
    torch.manual_seed(0)
    module = Block().train()
    x = torch.randn(2, 3, 9, 9)
    graph = from_torch(module, x)
    assert graph.name == "Block"
    assert module.training, "the training flag must be as before"
    assert module.drop.training
    (result,) = execute(graph, {"x": x.numpy()}).values()
    want = module.eval()(x).detach().numpy()
    np.testing.assert_allclose(result, want, rtol=1e-4, atol=1e-5)
    assert "gelu" in ops(graph)


def test_several_inputs_are_named() -> None:
    class Two(torch.nn.Module):
        def forward(self, a, b):
            return a @ b + 1

    a, b = torch.randn(3, 4), torch.randn(4, 2)
    graph = from_torch(Two(), (a, b), name="two", input_names=("left", "right"))
    assert [v.name for v in graph.inputs] == ["left", "right"]
    (result,) = execute(graph, {"left": a.numpy(), "right": b.numpy()}).values()
    np.testing.assert_allclose(result, (a @ b + 1).numpy(), rtol=1e-5)


def test_failing_module_is_named() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("no forward today")

    with pytest.raises(DlccError, match=r"Broken: torch cannot export") as caught:
        from_torch(Broken(), torch.zeros(1))
    assert "RuntimeError: no forward today" in str(caught.value)


def test_only_modules() -> None:
    with pytest.raises(DlccError, match=r"takes a torch\.nn\.Module"):
        from_torch(lambda x: x, torch.zeros(1))


def test_without_torch_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DlccError, match=r"pip install 'dlcc\[torch\]'"):
        from_torch(object(), None)
