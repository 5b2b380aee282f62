"""Passes that change how weights are stored and leave the activations alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dlcc.ir import F32, Affine, Encoding, Graph, Sparse
from dlcc.ir.encodings import Parts
from passes.base import Pass, PassContext, PassResult, option
from passes.compression.layers import WeightLayer, weight_layers


@dataclass(frozen=True)
class Stored:
    """What a new encoding did to a layer's weight.

    Attributes:
        encoding: in words.
        elements: of the weight.
        bytes_before: in the weights file.
        bytes_after: in the weights file.
        error: norm of the weight's change over the norm of the weight.
    """

    encoding: str
    elements: int
    bytes_before: int
    bytes_after: int
    error: float

    def __str__(self) -> str:
        bits = 8 * self.bytes_after / max(1, self.elements)
        return (
            f"{self.encoding}, {self.bytes_before} -> {self.bytes_after} bytes "
            f"({bits:.2f} bits per weight), weight error {self.error:.3g}"
        )


@dataclass(frozen=True)
class Form:
    """How a weight can be stored.

    Attributes:
        encoding: of all its elements.
        parts: what is stored.
        words: the encoding in a few words.
    """

    encoding: Encoding
    parts: Parts
    words: str

    @property
    def bytes(self) -> int:
        """Exact bytes in the weights file."""
        return self.encoding.stored_bytes(self.parts)


Improve = Callable[[Form], Form]
"""Chooses codes anew, with data."""

Act = Callable[[WeightLayer, Improve | None], Form | None]
"""Encodes a layer. Returns what it would be without data, or None where the layer stays."""


def smaller_form(form: Form, pattern: str, shape: tuple[int, ...]) -> Form:
    """Of a pruned weight: ``form``, or its elements at the places of ``pattern`` if that is less.

    Args:
        form: of all elements, zeros included.
        pattern: of a sparse encoding.
        shape: of the weight.
    """
    sparse = Sparse(pattern, form.encoding)
    parts = sparse.encode(form.encoding.decode(form.parts, shape))
    found = Form(sparse, parts, f"{form.words} at the places of {pattern}")
    return found if found.bytes < form.bytes else form


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Base of the passes that give weights another encoding, layer by layer."""

    lossy: ClassVar[bool] = True

    only: tuple[str, ...] = option((), "layers to change, by name; * and ? match; none for all")
    exclude: tuple[str, ...] = option((), "layers to leave alone, by name; * and ? match")

    @abstractmethod
    def form(self, layer: WeightLayer, context: PassContext) -> Form:
        """How the weight of a layer is to be stored.

        Raises:
            ValueError: the encoding does not suit the weight, and why.
        """

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Encode in place.

        Raises:
            DlccError: a name pattern matches no layer.
        """
        result = PassResult()

        def refuse(loc: str, why: str) -> None:
            result.remarks.append(self.remark("refused", loc, why))

        layers = weight_layers(graph, self.only, self.exclude, refuse)
        done: list[Stored] = []

        def act(layer: WeightLayer, improve: Improve | None) -> Form | None:
            try:
                form, report = self._store(graph, layer, context, improve)
            except ValueError as error:
                refuse(layer.loc, str(error))
                return None
            done.append(report)
            result.remarks.append(self.remark("applied", layer.loc, str(report)))
            return form

        self.walk(graph, layers, context, act, result)
        result.modified = bool(done)
        result.statistics.update(_totals(done))
        return result

    def walk(
        self,
        graph: Graph,
        layers: Sequence[WeightLayer],
        context: PassContext,
        act: Act,
        result: PassResult,
    ) -> None:
        """Call ``act`` with every layer.

        Args:
            graph: the network.
            layers: in execution order.
            context: of the pipeline.
            act: encodes a layer.
            result: gets further remarks and statistics.
        """
        for number, layer in enumerate(layers):
            act(layer, None)
            context.advance((number + 1) / len(layers))

    def _store(
        self, graph: Graph, layer: WeightLayer, context: PassContext, improve: Improve | None
    ) -> tuple[Form, Stored]:
        _check(layer)
        before, encoding = layer.stored_bytes, layer.weight.type.encoding
        first = self.form(layer, context)
        form = first if improve is None else improve(first)
        if isinstance(encoding, Sparse):
            form = smaller_form(form, encoding.pattern, layer.values.shape)
        if form.bytes >= before:
            raise ValueError(f"{form.words} would take {form.bytes} bytes, it has {before}")
        layer.store(graph, form.parts, form.encoding)
        change = layer.weight.decoded() - layer.values
        error = float(np.linalg.norm(change) / np.linalg.norm(layer.values))
        return first, Stored(form.words, layer.values.size, before, form.bytes, error)


def is_pruned_layer(layer: WeightLayer) -> bool:
    """Whether the zeros of a layer's weight are to stay zeros."""
    return isinstance(layer.weight.type.encoding, Sparse)


def _check(layer: WeightLayer) -> None:
    """Refuse weights that kernels could not read together with the layer's input."""
    if layer.weight.type.dtype != F32:
        raise ValueError(f"its weight is {layer.weight.type.dtype}, not float32")
    if any(isinstance(n.input(0).type.encoding, Affine) for n in layer.nodes):
        raise ValueError("it works on integer codes; encode its weight before quantize")


def _totals(reports: Sequence[Stored]) -> dict[str, int | float]:
    return {
        "layers": len(reports),
        "weights": sum(r.elements for r in reports),
        "bytes_before": sum(r.bytes_before for r in reports),
        "bytes_after": sum(r.bytes_after for r in reports),
        "worst_weight_error": round(max((r.error for r in reports), default=0.0), 6),
    }


__all__ = ["Act", "Form", "Improve", "Stored", "WeightOnly", "is_pruned_layer", "smaller_form"]
