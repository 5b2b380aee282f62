"""Mutations of valid input: bytes, fields of a protobuf, values of a JSON document."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message

INTEGERS = (0, 1, -1, 2, 3, 7, 16, 127, 255, 65536, 2**31 - 1, -(2**31))
WIDE = (2**31, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3e38, float("inf"), -float("inf"), float("nan"))
TEXTS = ("", "a", "../x", "/dev/zero", "\0", "x" * 300, "ﬁ", "%s%n", "auto_pad", "axis")


def mutated_bytes(rng: np.random.Generator, contents: bytes) -> bytes:
    """One to four bytes changed, cut out, inserted, repeated, or the end cut off."""
    data = bytearray(contents)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(len(data) + 1))
        length = int(rng.integers(1, 9))
        kind = rng.integers(5)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[place : place + length] = rng.bytes(length)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif rng.random() < 0.2:
            del data[place:]
    return bytes(data)


def mutated_model(rng: np.random.Generator, model: onnx.ModelProto) -> onnx.ModelProto:
    """One to three fields of the model, its nodes, tensors, types changed."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for _ in range(int(rng.integers(1, 4))):
        messages = list(_messages(twin))
        _change(rng, messages[int(rng.integers(len(messages)))], messages)
    return twin


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _change(rng: np.random.Generator, message: Message, others: list[Message]) -> None:
    fields = message.DESCRIPTOR.fields
    present = [f for f, _ in message.ListFields()]
    pool = present if present and rng.random() < 0.8 else fields
    field = pool[int(rng.integers(len(pool)))]
    if field.type == field.TYPE_MESSAGE:
        _change_message(rng, message, field, others)
        return
    if not field.is_repeated:
        _set(message, field.name, _scalar(rng, field, getattr(message, field.name), others))
        return
    values = list(getattr(message, field.name))
    place, kind = int(rng.integers(len(values) + 1)), rng.integers(4)
    if kind == 0 or place == len(values):
        values.insert(place, _scalar(rng, field, values[0] if values else None, others))
    elif kind == 1:
        del values[place]
    elif kind == 2:
        values[place] = _scalar(rng, field, values[place], others)
    else:
        values.append(values[place])
    message.ClearField(field.name)
    for value in values:
        try:
            getattr(message, field.name).append(value)
        except (ValueError, TypeError):
            continue  # beyond the field's range


def _set(message: Message, name: str, value: Any) -> None:
    try:
        setattr(message, name, value)
    except (ValueError, TypeError):
        message.ClearField(name)


def _change_message(
    rng: np.random.Generator, message: Message, field: Any, others: list[Message]
) -> None:
    like = [m for m in others if m.DESCRIPTOR is field.message_type]
    donor = copy.deepcopy(like[int(rng.integers(len(like)))]) if like else None
    if not field.is_repeated:
        message.ClearField(field.name)
        if donor is not None and rng.random() < 0.6:
            getattr(message, field.name).CopyFrom(donor)
        return
    rows, kind = getattr(message, field.name), rng.integers(4)
    place = int(rng.integers(len(rows))) if len(rows) else 0
    if kind == 0 and len(rows):
        del rows[place]
    elif kind == 1 and len(rows) > 1:
        twins = [copy.deepcopy(r) for r in rows]
        order = rng.permutation(len(twins))
        del rows[:]
        rows.extend(twins[k] for k in order)
    elif kind == 2 and donor is not None:
        rows.add().CopyFrom(donor)
    elif donor is not None and len(rows):
        rows[place].CopyFrom(donor)


def _scalar(rng: np.random.Generator, field: Any, old: Any, others: list[Message]) -> Any:
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return FLOATS[int(rng.integers(len(FLOATS)))]
    if field.type == field.TYPE_STRING:
        return TEXTS[int(rng.integers(len(TEXTS)))] if rng.random() < 0.3 else _name(rng, others)
    if field.type == field.TYPE_BYTES:
        if not old or rng.random() < 0.2:
            return rng.bytes(int(rng.integers(0, 9)))
        return mutated_bytes(rng, old)
    if field.type == field.TYPE_ENUM or field.name in ("data_type", "elem_type"):
        return int(rng.integers(0, 26))
    choices = INTEGERS if rng.random() < 0.8 else WIDE
    value = choices[int(rng.integers(len(choices)))]
    return value if rng.random() < 0.7 else int(old or 0) + int(rng.integers(-2, 3))


def _name(rng: np.random.Generator, others: list[Message]) -> str:
    """A name that stands somewhere in the model: an edge, an op type, an attribute."""
    names = [n for m in others if isinstance(m, onnx.NodeProto) for n in (*m.input, *m.output)]
    names += [m.op_type for m in others if isinstance(m, onnx.NodeProto)]
    names += [m.name for m in others if isinstance(m, onnx.AttributeProto | onnx.TensorProto)]
    return names[int(rng.integers(len(names)))] if names else ""


def mutated_json(rng: np.random.Generator, document: Any) -> Any:
    """A copy of ``document`` in which one value is another, is gone or has changed its type."""
    twin = copy.deepcopy(document)
    places = list(_places(twin))
    holder, key = places[int(rng.integers(len(places)))]
    choices: tuple[Any, ...] = (
        None,
        True,
        [],
        {},
        [1],
        {"a": 1},
        *INTEGERS,
        *WIDE,
        *TEXTS,
        *FLOATS,
    )
    if rng.random() < 0.2:
        del holder[key]
    elif isinstance(holder[key], int) and rng.random() < 0.4:
        holder[key] += int(rng.integers(-3, 4))
    else:
        holder[key] = choices[int(rng.integers(len(choices)))]
    return twin


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, inner in pairs:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)
