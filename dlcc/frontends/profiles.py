"""Several sizes of a model's symbolic dimensions, and the shape profiles that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any, Final

from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.onnx_lists import sequence_of
from dlcc.ir import Graph
from dlcc.ir.graph import Constant

if TYPE_CHECKING:
    import onnx

MOST: Final = 32
"""Shape profiles of a network; each costs the time of a compilation, and code."""

Binding = dict[str, int | tuple[int, ...]]
"""Sizes of symbolic dimensions by name, and whole shapes by input name."""


def profiles_of(
    graph: onnx.GraphProto, shapes: Mapping[str, Any], most: int = MOST
) -> list[Binding]:
    """What ``shapes`` stand for: every combination of the sizes given, the last one fastest.

    Args:
        graph: of the model, whose names tell sizes of a dimension from the shape of an input.
        shapes: by the name of a dimension its size, or several; by the name of an input its shape,
            or several.
        most: of the profiles.

    Raises:
        DlccError: USAGE, there are more, or a size is given twice.
    """
    known = {t.name for t in graph.initializer}
    inputs = {v.name for v in graph.input if v.name not in known}
    choices = {
        key: _choices(given, key in inputs or sequence_of(key) in inputs)
        for key, given in shapes.items()
    }
    for key, sizes in choices.items():
        if len(set(sizes)) != len(sizes):
            raise DlccError(
                ExitCode.USAGE,
                f"--shape {key} names a size twice",
                why=f"given {list(sizes)}",
                fix="name each size once",
            )
    count = prod(map(len, choices.values()))
    if count > most:
        raise _too_many({k: len(v) for k, v in choices.items() if len(v) > 1}, count, most)
    return [dict(zip(choices, sizes, strict=True)) for sizes in product(*choices.values())]


def _choices(given: Any, is_input: bool) -> list[int | tuple[int, ...]]:
    """The sizes or shapes that ``given`` may stand for."""
    if not isinstance(given, Sequence):
        return [given]
    if any(isinstance(size, Sequence) for size in given):
        return [tuple(size) if isinstance(size, Sequence) else size for size in given]
    return [tuple(given)] if is_input or not given else list(given)


def _too_many(several: Mapping[str, int], count: int, most: int) -> DlccError:
    sizes = " times ".join(f"{number} of {key!r}" for key, number in several.items())
    if most == 1:
        return DlccError(
            ExitCode.USAGE,
            f"--shape stands for {count} shape profiles, where one is wanted",
            why=f"there are {sizes}; libraries for an operating system can hold several profiles, "
            "which `dlcc compile` makes, and nothing else can",
            fix="give each dimension one size",
        )
    return DlccError(
        ExitCode.USAGE,
        f"--shape stands for {count} shape profiles",
        why=f"there are {sizes}, and an artifact holds every combination, {most} at most",
        fix="give fewer sizes, or compile to several artifacts",
    )


def share_constants(graphs: Sequence[Graph]) -> None:
    """Let constants of equal contents have them in common, in memory too."""
    known: dict[str, Constant] = {}
    for graph in graphs:
        for value in graph.constants():
            assert value.constant is not None
            value.constant = known.setdefault(value.constant.digest, value.constant)


def check_distinct(graphs: Sequence[Graph]) -> None:
    """Whether the inputs tell the profiles apart.

    Raises:
        DlccError: USAGE, two have the same ones, or another number of axes.
    """
    shapes = [tuple(v.type.shape for v in graph.inputs) for graph in graphs]
    if len({tuple(map(len, given)) for given in shapes}) > 1:
        raise DlccError(
            ExitCode.USAGE,
            "the shape profiles have inputs of different numbers of axes",
            where="--shape",
            why=f"their shapes are {'; '.join(map(str, shapes))}",
            fix="compile them to artifacts of their own",
        )
    if len(set(shapes)) < len(shapes):
        raise DlccError(
            ExitCode.USAGE,
            "two shape profiles have the same inputs",
            where="--shape",
            why=f"their shapes are {'; '.join(map(str, shapes))}",
            fix="name only sizes that an input depends on",
        )


__all__ = ["MOST", "Binding", "check_distinct", "profiles_of", "share_constants"]
