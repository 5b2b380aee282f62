"""Random valid models: a seed makes a model and what to feed it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from dlcc.ir.encodings import Array
from tests.fuzz import composites, control, elementwise, layers, movement, signals, types
from tests.fuzz.sketch import DRAWS, Sketch, Term, Unfit

__all__ = ["Sample", "random_model"]
_FAMILIES = (
    elementwise,
    layers,
    movement,
    composites,
    control,
    types,
    signals,
)  # importing them registers their draws


@dataclass(frozen=True)
class Sample:
    """A model with its inputs; ``errors`` are by output how far it may differ."""

    seed: int
    model: onnx.ModelProto
    feeds: dict[str, Array]
    errors: dict[str, float]

    @property
    def key(self) -> str:
        return f"g{self.seed}"


def random_model(seed: int, nodes: int = 0, *, small: bool = False) -> Sample:
    """The model of ``seed``, of 3 to 25 nodes, or of the first ``nodes`` of them.

    ``small``: of 2 or 3 nodes, or what one draw makes.
    """
    sketch = Sketch(seed)
    rng = np.random.default_rng(seed + 2**40)
    wanted = int(rng.integers(3, 9) if rng.random() < 0.8 else rng.integers(9, 26))
    wanted = int(rng.integers(2, 4)) if small else wanted
    while len(sketch.nodes) < wanted:
        before = _state(sketch)
        try:
            DRAWS[int(sketch.rng.integers(len(DRAWS)))](sketch)
        except Unfit:
            _restore(sketch, before)
        if nodes and len(sketch.nodes) >= nodes:
            break
    model = sketch.model()
    errors = {t.name: t.error for t in sketch.terms}
    used = {v.name for v in model.graph.input}
    feeds = {n: a for n, a in sketch.feeds.items() if n in used}
    return Sample(seed, model, feeds, errors)


def _state(s: Sketch) -> tuple[int, list[Term], int, set[str]]:
    return len(s.nodes), list(s.terms), len(s.inputs), set(s.used)


def _restore(s: Sketch, state: tuple[int, list[Term], int, set[str]]) -> None:
    """As before a draw that failed half-way."""
    nodes, s.terms, inputs, s.used = state
    del s.nodes[nodes:]
    del s.inputs[inputs:]
