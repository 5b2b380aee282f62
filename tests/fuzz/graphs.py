"""Random valid models: a seed makes a model and what to feed it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from dlcc.ir.encodings import Array
from tests.fuzz import elementwise, layers, movement
from tests.fuzz.sketch import DRAWS, Sketch, Unfit

__all__ = ["Sample", "random_model"]
_FAMILIES = (elementwise, layers, movement)  # importing them registers their draws


@dataclass(frozen=True)
class Sample:
    """A model with its inputs; ``exact`` names the outputs that every engine computes alike."""

    seed: int
    model: onnx.ModelProto
    feeds: dict[str, Array]
    exact: frozenset[str]

    @property
    def key(self) -> str:
        return f"g{self.seed}"


def random_model(seed: int, nodes: int = 0) -> Sample:
    """The model of ``seed``, of 3 to 8 nodes, or of the first ``nodes`` of them."""
    sketch = Sketch(seed)
    wanted = int(np.random.default_rng(seed + 2**40).integers(3, 9))
    while len(sketch.nodes) < wanted:
        before = _state(sketch)
        try:
            DRAWS[int(sketch.rng.integers(len(DRAWS)))](sketch)
        except Unfit:
            _restore(sketch, before)
        if nodes and len(sketch.nodes) >= nodes:
            break
    model = sketch.model()
    exact = frozenset(t.name for t in sketch.terms if t.exact)
    used = {v.name for v in model.graph.input}
    feeds = {n: a for n, a in sketch.feeds.items() if n in used}
    return Sample(seed, model, feeds, exact)


def _state(s: Sketch) -> tuple[int, int, int]:
    return len(s.nodes), len(s.terms), len(s.inputs)


def _restore(s: Sketch, state: tuple[int, int, int]) -> None:
    """As before a draw that failed half-way."""
    nodes, _, inputs = state
    del s.nodes[nodes:]
    known = {t.name for t in s.inputs[:inputs]} | {o for n in s.nodes for o in n.output}
    s.terms = [t for t in s.terms if t.name in known]
    del s.inputs[inputs:]
    s.used = {name for n in s.nodes for name in n.input}
