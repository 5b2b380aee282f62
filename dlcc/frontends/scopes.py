"""What the names of an ONNX graph stand for while it is imported.

Sequences and optionals exist only here: as lists of values of known length, which the ops on them
take apart again (:mod:`dlcc.frontends.sequences`). The IR has tensors and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

from dlcc.ir import Value


class Failed:
    """Stands for a value whose producer could not be imported."""


FAILED = Failed()


class Empty:
    """An optional that holds nothing. One that holds something is what it holds."""


EMPTY = Empty()


@dataclass(frozen=True)
class ValueList:
    """A sequence: values of any shapes, as many as are known at import."""

    items: tuple[Value, ...]


Binding = Value | ValueList | Empty | Failed | None
"""What a name stands for; None is an optional input that a function's caller left out."""


@dataclass
class Scope:
    """Names of one graph or function body."""

    values: dict[str, Binding] = field(default_factory=dict)
    tensors: dict[str, onnx.TensorProto | onnx.SparseTensorProto] = field(default_factory=dict)
    parent: Scope | None = None

    def names(self) -> set[str]:
        """Every name that is visible here."""
        own = {*self.values, *self.tensors}
        return own | self.parent.names() if self.parent else own

    def owner(self, name: str) -> Scope | None:
        """The innermost scope that knows ``name``."""
        if name in self.values or name in self.tensors:
            return self
        return self.parent.owner(name) if self.parent else None

    def declare(self, graph: onnx.GraphProto) -> None:
        """Add the initialisers of ``graph``."""
        for tensor in graph.initializer:
            self.tensors[tensor.name] = tensor
        for sparse in graph.sparse_initializer:
            self.tensors[sparse.values.name] = sparse


__all__ = ["EMPTY", "FAILED", "Binding", "Empty", "Failed", "Scope", "ValueList"]
