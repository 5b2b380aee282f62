"""Sequences and optionals at the border of a model: as the tensors that they consist of.

A compiled network takes and gives tensors. Input ``x`` that is a sequence becomes the inputs
``x[0]``, ``x[1]``, ...; how many there are is fixed at compile time, as shapes are. An optional
input is what it holds, or nothing where it is bound to None. Outputs come apart in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from dlcc.errors import DlccError, ExitCode
from dlcc.frontends.scopes import EMPTY, Binding, Empty, ValueList
from dlcc.ir import Value

MOST = 10_000
"""Elements that a sequence at the border may have."""


class Lists:
    """Which inputs are sequences or empty optionals.

    Args:
        inputs: the model's inputs.
        shapes: sizes by name; that of a sequence is the number of its elements.
        known: contents by name; None stands for nothing.

    Attributes:
        tensors: all inputs that are tensors, elements of sequences included.
        keys: names in ``shapes`` and ``known`` that say all there is to say of an input.

    Raises:
        DlccError: MODEL, where the number of elements is not known; USAGE, where it is none.
    """

    def __init__(
        self,
        inputs: Iterable[onnx.ValueInfoProto],
        shapes: Mapping[str, int | tuple[int, ...]],
        known: Mapping[str, Any],
    ) -> None:
        self.tensors: list[onnx.ValueInfoProto] = []
        self.keys: set[str] = set()
        self._elements: dict[str, tuple[str, ...] | None] = {}
        for proto in inputs:
            held = _held(proto.type)
            listed = held.HasField("sequence_type")
            if proto.name in known and known[proto.name] is None:
                if not listed and held is proto.type:
                    raise _no_list(proto.name)
                self.keys.add(proto.name)
                self._elements[proto.name] = () if held is proto.type else None
            elif listed:
                if proto.name in known:
                    raise _no_numbers(proto.name)
                self.keys.add(proto.name)
                names = _numbered(proto.name, _count(proto.name, shapes))
                self._elements[proto.name] = names
                element = held.sequence_type.elem_type
                self.tensors += [onnx.ValueInfoProto(name=n, type=element) for n in names]
            else:
                self.tensors.append(onnx.ValueInfoProto(name=proto.name, type=held))

    def bindings(self, made: Mapping[str, Value]) -> dict[str, Binding]:
        """What the inputs stand for, from the values of all tensors."""
        inside = {n for names in self._elements.values() for n in names or ()}
        found: dict[str, Binding] = {n: v for n, v in made.items() if n not in inside}
        for name, names in self._elements.items():
            items = None if names is None else tuple(made[n] for n in names)
            found[name] = EMPTY if items is None else ValueList(items)
        return found


def outputs_of(proto: onnx.ValueInfoProto, result: Binding) -> dict[str, tuple[Any, Value]]:
    """The tensors of an output, by name, each with its declaration.

    Raises:
        DlccError: UNSUPPORTED, where the output holds nothing.
    """
    held = _held(proto.type)
    if isinstance(result, ValueList):
        element = held.sequence_type.elem_type if held.HasField("sequence_type") else held
        names = _numbered(proto.name, len(result.items))
        return {
            name: (onnx.ValueInfoProto(name=name, type=element), value)
            for name, value in zip(names, result.items, strict=True)
        }
    if isinstance(result, Value):
        return {proto.name: (onnx.ValueInfoProto(name=proto.name, type=held), result)}
    raise DlccError(
        ExitCode.UNSUPPORTED,
        f"output {proto.name!r} is not a tensor",
        where=proto.name,
        why="it is an optional that holds nothing" if isinstance(result, Empty) else "",
        fix="export the model with tensor outputs only",
    )


def sequence_of(name: str) -> str:
    """The sequence that ``name`` would be an element of; "" for other names."""
    found = re.fullmatch(r"(.+)\[\d+\]", name, re.DOTALL)
    return found[1] if found else ""


def _held(kind: onnx.TypeProto) -> onnx.TypeProto:
    """What an optional holds; other types are themselves."""
    while kind.HasField("optional_type"):
        kind = kind.optional_type.elem_type
    return kind


def _numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}[{k}]" for k in range(count))


def _count(name: str, shapes: Mapping[str, int | tuple[int, ...]]) -> int:
    """How many elements a sequence has."""
    count = shapes.get(name)
    if count is None:
        named = [k for k in range(MOST) if f"{name}[{k}]" in shapes]
        if not named:
            raise DlccError(
                ExitCode.MODEL,
                f"the number of elements of the sequence {name!r} is not known",
                where=name,
                why="shapes are fixed at compile time, and so are the tensors of a sequence",
                fix=f"give it: --shape {name}=2, and shapes that the model does not say: "
                f"--shape '{name}[0]=3x4'",
            )
        count = named[-1] + 1
    if not isinstance(count, int) or not 0 <= count <= MOST:
        raise DlccError(
            ExitCode.USAGE,
            f"--shape {name}: a number of elements from 0 to {MOST} is wanted",
            why=f"{name!r} is a sequence, and given {count}",
            fix=f"give for example --shape {name}=2",
        )
    return count


def _no_numbers(name: str) -> DlccError:
    return DlccError(
        ExitCode.USAGE,
        f"--constant {name}: {name!r} is a sequence",
        why="numbers can be given to its elements, or it has none",
        fix=f"bind '{name}[0]', or give --constant {name}=none",
    )


def _no_list(name: str) -> DlccError:
    return DlccError(
        ExitCode.USAGE,
        f"--constant {name}=none: {name!r} is a tensor, which always holds something",
        fix="bind optionals and sequences to none, tensors to numbers",
    )


__all__ = ["MOST", "Lists", "outputs_of", "sequence_of"]
