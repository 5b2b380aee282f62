"""One hostile file: what it holds, what lies beside it, and what may come of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.frontends.models import model, tensor

I64 = TensorProto.INT64


@dataclass(frozen=True)
class Case:
    """A file that is to be refused in words, or compiled right.

    Attributes:
        name: family and disease, as in ``sizes/tile-terabytes``.
        contents: the model file.
        suffix: ``.onnx`` or ``.dlir``.
        beside: other files of its folder by name.
        links: symbolic links of its folder by name.
        pipes: named pipes of its folder, that nobody writes to.
        holes: files of zeros by name, with their sizes in bytes; they take no room on the disk.
        compiles: True or False where only one is right; None where either is.
        slow: takes more than a moment, or must have a process of its own.
    """

    name: str
    contents: bytes
    suffix: str = ".onnx"
    beside: Mapping[str, bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    pipes: tuple[str, ...] = ()
    holes: Mapping[str, int] = field(default_factory=dict)
    compiles: bool | None = None
    slow: bool = False

    def write(self, folder: Path) -> Path:
        """Write the file and what belongs to it into ``folder``; its path."""
        folder.mkdir(parents=True)
        for name, contents in self.beside.items():
            (folder / name).write_bytes(contents)
        for name, target in self.links.items():
            (folder / name).symlink_to(target)
        for name in self.pipes:
            os.mkfifo(folder / name)
        for name, size in self.holes.items():
            with (folder / name).open("wb") as file:
                file.truncate(size)
        path = folder / f"model{self.suffix}"
        if not path.is_symlink() and not path.exists():
            path.write_bytes(self.contents)
        return path


def case(name: str, source: onnx.ModelProto, **more: Any) -> Case:
    """A case of a model in memory."""
    return Case(name, source.SerializeToString(), **more)


def one_node(
    name: str,
    op: str,
    shapes: Sequence[Sequence[int | str | None]] = ((1, 4),),
    constants: Mapping[str, np.ndarray] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: int = 1,
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    **attrs: Any,
) -> onnx.ModelProto:
    """A model of one node: inputs x0, x1, ... of ``shapes``, then the constants in order."""
    given = [tensor(f"x{i}", shape, kind) for i, shape in enumerate(shapes)]
    operands = inputs or [v.name for v in given] + list(constants or {})
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, operands, results, name=name, **attrs)
    return model([node], given, results, constants, opset=opset)


def chain(length: int, op: str = "Relu", first: str = "x", last: str = "y") -> list[onnx.NodeProto]:
    """``length`` nodes, each on the result of the one before."""
    names = [first, *(f"v{i}" for i in range(length - 1)), last]
    return [
        helper.make_node(op, [a], [b], name=f"n{i}") for i, (a, b) in enumerate(pairwise(names))
    ]
