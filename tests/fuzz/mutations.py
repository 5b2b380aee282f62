"""Mutations of valid input: bytes, fields of a protobuf, text, values of a JSON document."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import onnx
from google.protobuf.message import Message

INTEGERS = (0, 1, -1, 2, 3, 4, 7, 16, 127, 255, 65536, 2**31 - 1, -(2**31))
WIDE = (2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-45, 3e38, float("inf"), -float("inf"), float("nan"))
TEXTS = ("", "a", "../x", "/dev/zero", "\0", "x" * 300, "ﬁ", "%s%n", "auto_pad", "axis", "\ud800")

_TYPES = ("data_type", "elem_type", "to", "dtype")


def mutated_bytes(rng: Random, contents: bytes) -> bytes:
    """One to four bytes changed, cut out, inserted, repeated, or the end cut off."""
    data = bytearray(contents)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(data) + 1)
        length = rng.randrange(1, 9)
        kind = rng.random()
        if kind < 0.45 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind < 0.7:
            data[place : place + length] = rng.randbytes(length)
        elif kind < 0.82:
            del data[place : place + length]
        elif kind < 0.96:
            data[place:place] = data[place : place + length]
        else:
            del data[place:]
    return bytes(data)


def mutated_text(rng: Random, text: str) -> str:
    """One or two words of ``text`` replaced, mostly by some of their kind, repeated or gone."""
    parts = list(_words(text))
    for _ in range(rng.choice((1, 1, 2))):
        place, kind = rng.randrange(len(parts)), rng.random()
        while parts[place].isspace():
            place = rng.randrange(len(parts))
        if kind < 0.75:
            parts[place] = _word_like(rng, parts[place], _words(text))
        elif kind < 0.85:
            parts[place] = str(rng.choice((*INTEGERS, *WIDE, *FLOATS, *TEXTS)))
        elif kind < 0.92:
            parts[place : place + rng.randrange(1, 4)] = [" "]
        else:
            parts[place:place] = parts[place : place + rng.randrange(1, 9)]
    return "".join(parts)


def _word_like(rng: Random, word: str, words: Sequence[str]) -> str:
    if word.isdecimal():
        return str(rng.choice((*INTEGERS, *WIDE, int(word) + 1, int(word) - 1)))
    like = [w for w in words if w.isidentifier() == word.isidentifier() and not w.isspace()]
    return rng.choice(like)


@cache
def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+|\s+|[^\w\s]", text))


# -- protobuf --------------------------------------------------------------------------------------

Path = tuple[tuple[str, int], ...]
"""Fields from the root down, with places in repeated ones (-1: it is no list)."""


@dataclass
class Pool:
    """Messages of all seeds by type, which mutants get parts from; at most ``most`` of each."""

    most: int = 4000
    messages: dict[str, list[Message]] = field(default_factory=dict)

    def add(self, message: Message) -> None:
        """Keep ``message`` and what is in it."""
        for _, inner in paths(message):
            found = self.messages.setdefault(inner.DESCRIPTOR.full_name, [])
            if len(found) < self.most:
                found.append(inner)


@dataclass(frozen=True)
class Seed:
    """A model to mutate: ``by_type`` has the places of its messages, ``names`` its words."""

    model: onnx.ModelProto
    contents: bytes
    by_type: dict[str, list[Path]]
    names: list[str]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Seed:
        """The seed that ``model`` is."""
        by_type: dict[str, list[Path]] = {}
        names = []
        for place, message in paths(model):
            by_type.setdefault(message.DESCRIPTOR.full_name, []).append(place)
            if isinstance(message, onnx.NodeProto):
                names += [*message.input, *message.output, message.op_type]
            elif isinstance(message, onnx.AttributeProto | onnx.TensorProto):
                names.append(message.name)
        return cls(model, model.SerializeToString(), by_type, names)


def paths(message: Message, place: Path = ()) -> Iterator[tuple[Path, Message]]:
    """``message`` and all messages in it with their places."""
    yield place, message
    for at, value in message.ListFields():
        if at.type == at.TYPE_MESSAGE:
            if at.is_repeated:
                for index, inner in enumerate(value):
                    yield from paths(inner, (*place, (at.name, index)))
            else:
                yield from paths(value, (*place, (at.name, -1)))


def mutated_model(rng: Random, seed: Seed, pool: Pool) -> onnx.ModelProto:
    """One to three fields of the model, its nodes, tensors, types changed."""
    twin = onnx.ModelProto()
    twin.CopyFrom(seed.model)
    kinds = list(seed.by_type.values())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        message = _reached(twin, rng.choice(rng.choice(kinds)))
        if message is not None:
            _change(rng, message, seed, pool)
    return twin


def _reached(message: Any, place: Path) -> Message | None:
    """The message at ``place``; None where an earlier change has taken it away."""
    for name, index in place:
        message = getattr(message, name)
        if index >= 0:
            if index >= len(message):
                return None
            message = message[index]
    return message  # type: ignore[no-any-return]


def _change(rng: Random, message: Message, seed: Seed, pool: Pool) -> None:
    present = [f for f, _ in message.ListFields()]
    fields = present if present and rng.random() < 0.8 else message.DESCRIPTOR.fields
    at = fields[rng.randrange(len(fields))]
    if at.type == at.TYPE_MESSAGE:
        _change_message(rng, message, at, pool)
        return
    if not at.is_repeated:
        _set(message, at.name, _scalar(rng, at, getattr(message, at.name), seed))
        return
    values = list(getattr(message, at.name))
    place, kind = rng.randrange(len(values) + 1), rng.randrange(5)
    if kind == 0 or place == len(values):
        values.insert(place, _scalar(rng, at, values[0] if values else None, seed))
    elif kind == 1:
        del values[place]
    elif kind <= 3:
        values[place] = _scalar(rng, at, values[place], seed)
    else:
        values.append(values[place])
    message.ClearField(at.name)
    for value in values:
        try:
            getattr(message, at.name).append(value)
        except (ValueError, TypeError):
            continue  # beyond the field's range


def _set(message: Message, name: str, value: Any) -> None:
    try:
        setattr(message, name, value)
    except (ValueError, TypeError):
        message.ClearField(name)


def _change_message(rng: Random, message: Message, at: Any, pool: Pool) -> None:
    like = pool.messages.get(at.message_type.full_name)
    donor = rng.choice(like) if like else None
    if not at.is_repeated:
        message.ClearField(at.name)
        if donor is not None and rng.random() < 0.6:
            getattr(message, at.name).CopyFrom(donor)
        return
    rows, kind = getattr(message, at.name), rng.randrange(5)
    place = rng.randrange(len(rows)) if len(rows) else 0
    if kind == 0 and len(rows):
        del rows[place]
    elif kind == 1 and len(rows) > 1:
        twins = [copy.deepcopy(r) for r in rows]
        rng.shuffle(twins)
        del rows[:]
        rows.extend(twins)
    elif kind == 2 and donor is not None:
        rows.add().CopyFrom(donor)
    elif kind == 3 and donor is not None and isinstance(donor, onnx.AttributeProto):
        name = rows[place].name if len(rows) else donor.name
        rows.add().CopyFrom(donor)
        rows[-1].name = name
    elif donor is not None and len(rows):
        rows[place].CopyFrom(donor)


def _scalar(rng: Random, at: Any, old: Any, seed: Seed) -> Any:
    if at.type in (at.TYPE_FLOAT, at.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    if at.type == at.TYPE_STRING:
        return rng.choice(TEXTS) if rng.random() < 0.2 or not seed.names else rng.choice(seed.names)
    if at.type == at.TYPE_BYTES:
        if not old or rng.random() < 0.2:
            return rng.randbytes(rng.randrange(9))
        return mutated_bytes(rng, old)
    if at.type == at.TYPE_ENUM or at.name in _TYPES:
        return rng.randrange(26)
    if rng.random() < 0.4:
        return int(old or 0) + rng.randrange(-2, 3)
    return rng.choice(INTEGERS if rng.random() < 0.85 else WIDE)


# -- JSON ------------------------------------------------------------------------------------------

_VALUES: Sequence[Any] = (
    None, True, [], {}, [1], {"a": 1}, [[]], *INTEGERS, *WIDE, *TEXTS[:-1], *FLOATS,
)  # fmt: skip


def mutated_json(rng: Random, document: Any) -> Any:
    """A copy of ``document`` in which a value or two are others, are gone, repeated or moved."""
    twin = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(twin))
        if not places:
            break
        holder, key = rng.choice(places)
        kind, old = rng.random(), holder[key]
        if kind < 0.15:
            del holder[key]
        elif kind < 0.3 and isinstance(old, list) and old:
            old[rng.randrange(len(old)) : rng.randrange(len(old)) + 1] = [rng.choice(old)] * 2
        elif kind < 0.4:
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other[place])
        elif isinstance(old, int) and rng.random() < 0.5:
            holder[key] = old + rng.randrange(-3, 4)
        else:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))
    return twin


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, inner in pairs:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)
