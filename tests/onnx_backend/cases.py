"""ONNX's own test cases: models of one node with inputs, and the outputs that they must give."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Graph
from dlcc.ir.encodings import Array

_BOUND_AT_COMPILE_TIME = (
    "must be known at compile time|trip count is known only at run time"
    "|condition of the run time chooses between"
)

DIFFERENT = {
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}
"""Cases whose data takes the output's size before it is rounded down; ONNX Runtime, which skips
them, and torch take the whole size, and so does dlcc."""


@dataclass(frozen=True)
class Case:
    """One case: ``model``, its ``inputs`` in order, the outputs ``wanted``, and how near."""

    name: str
    model: onnx.ModelProto
    inputs: tuple[Any, ...]
    wanted: tuple[Any, ...]
    rtol: float
    atol: float

    @property
    def op_types(self) -> tuple[str, ...]:
        """The op types of the model's nodes, each once."""
        return tuple(dict.fromkeys(n.op_type for n in self.model.graph.node))

    def imported(self) -> tuple[Graph, dict[str, Array]]:
        """The graph and what to feed it.

        A case that takes a shape, an axis or a bound as a run-time input is tried again with its
        small inputs after the first bound, as real models hold them in initialisers.

        Raises:
            DlccError: the model is refused.
        """
        given = dict(zip([v.name for v in self.model.graph.input], self.inputs, strict=True))
        shapes: dict[str, Any] = {n: len(a) for n, a in given.items() if isinstance(a, list)}
        given = {n: a for name, array in given.items() for n, a in _parts(name, array).items()}
        shapes |= {n: a.shape for n, a in given.items() if isinstance(a, np.ndarray)}
        nothing = {n: None for n, a in given.items() if a is None}
        try:
            graph = import_onnx(self.model, shapes=shapes, constants=nothing)
        except DlccError as error:
            if not re.search(_BOUND_AT_COMPILE_TIME, str(error)):
                raise
            constants = _constants({n: a for n, a in given.items() if a is not None})
            graph = import_onnx(self.model, shapes=shapes, constants=nothing | constants)
        return graph, {v.name: given[v.name] for v in graph.inputs}

    def difference(self, results: Mapping[str, Array]) -> str:
        """How ``results`` differ from the case's outputs; "" if they are near enough.

        Of outputs whose size the data decide, the part that holds results is compared; the numbers
        of these follow the outputs.
        """
        names = [v.name for v in self.model.graph.output]
        pairs = zip(names, self.wanted, strict=True)
        wanted = {n: a for name, array in pairs for n, a in _parts(name, array).items()}
        if {n for n in results if not n.endswith(".count")} != set(wanted):
            return f"outputs {list(results)} instead of {list(wanted)}"
        for name, want in wanted.items():
            got = results[name]
            if f"{name}.count" in results:
                axis = next((k for k, n in enumerate(got.shape) if n != want.shape[k]), 0)
                got = np.take(got, np.arange(results[f"{name}.count"]), axis)
            if got.shape != want.shape or got.dtype != want.dtype:
                return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
            # bfloat16 models are computed in float32, which the cases' data is not
            narrow = str(want.dtype) == "bfloat16"
            rtol, atol = (2**-7, 2**-7) if narrow else (self.rtol, self.atol)
            if "DFT" in self.op_types:  # the data's own zeros are float32 sums that did not cancel
                atol = max(atol, 1e-6 * float(np.abs(want).max()))
            a, b = (np.asarray(v, np.float64) for v in (got, want))
            if not np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
                return f"differs by {np.nanmax(np.abs(a - b))}"
        return ""


@cache
def node_cases() -> Mapping[str, Case]:
    """All cases of single nodes that come with data, by name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(load_model_tests(kind="node"))
    return {
        c.name: Case(c.name, c.model, *map(_arrays, c.data_sets[0]), c.rtol, c.atol)
        for c in found
        if c.model is not None and c.data_sets is not None
    }


def _arrays(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in values)


def _parts(name: str, value: Any) -> dict[str, Any]:
    """The tensors of a sequence by their names; a tensor by its own."""
    if not isinstance(value, list):
        return {name: value}
    return {f"{name}[{k}]": element for k, element in enumerate(value)}


def _constants(given: Mapping[str, Any]) -> dict[str, Array]:
    """The inputs that real models hold as initialisers."""
    bound = {}
    for place, (name, array) in enumerate(given.items()):
        small = array.dtype == np.int64 or array.ndim <= 1
        if (place and small) or len(given) == 1 or array.dtype == np.bool_ or not array.ndim:
            bound[name] = array
    return {name: array for name, array in bound.items() if array.size}
