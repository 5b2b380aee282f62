"""Files that are no models, or damaged ones; and external data that lies where it should not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.frontends.models import model, tensor
from tests.hostile.case import Case, case

_WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)


def small() -> onnx.ModelProto:
    """A valid model of two layers, which the damage is done to."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("Relu", ["h"], ["y"], name="act"),
    ]
    return model(nodes, [tensor("x", (1, 4))], ["y"], {"w": _WEIGHT})


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _nested(depth: int) -> bytes:
    """Attributes that hold graphs of nodes with attributes, ``depth`` of them in each other."""
    inner = b""
    for _ in range(depth):  # GraphProto.node = 1, NodeProto.attribute = 5, AttributeProto.g = 6
        inner = b"\x32" + _varint(len(inner)) + inner
        inner = b"\x2a" + _varint(len(inner)) + inner
        inner = b"\x0a" + _varint(len(inner)) + inner
    graph = b"\x3a" + _varint(len(inner)) + inner
    return b"\x08\x08" + graph + b"\x42\x02\x10\x11"


def broken(rng: np.random.Generator) -> Iterator[Case]:
    """Bytes that are not what they should be."""
    whole = small().SerializeToString()
    yield Case("files/empty", b"", compiles=False)
    yield Case("files/zeros", bytes(4096), compiles=False)
    yield Case("files/text", b"I am a model, believe me.\n" * 50, compiles=False)
    yield Case("files/no-dlir", whole, suffix=".dlir", compiles=False)
    yield Case("files/endless-varint", b"\xff" * 64, compiles=False)
    yield Case("files/length-of-gigabytes", b"\x3a\xff\xff\xff\xff\x07" + whole, compiles=False)
    yield Case("files/groups-nested", b"\x0b" * 20_000, compiles=False)
    yield Case("files/graphs-nested-90", _nested(20))
    yield Case("files/graphs-nested-5000", _nested(5000), compiles=False)
    yield Case("files/twice", whole + whole)
    for suffix in (".onnx", ".dlir"):
        name = f"model{suffix}"
        special: dict[str, dict[str, Any]] = {
            "pipe": {"pipes": (name,)}, "device": {"links": {name: "/dev/zero"}},
            "terabytes": {"holes": {name: 1 << 40}}, "loop": {"links": {name: name}},
            "folder": {"links": {name: "."}}, "nowhere": {"links": {name: "absent"}},
        }  # fmt: skip
        for kind, more in special.items():
            yield Case(f"files/{kind}{suffix}", b"", suffix=suffix, **more, compiles=False)
    for cut in sorted(rng.choice(len(whole), 12, replace=False)):
        yield Case(f"files/cut-{cut}", whole[:cut], compiles=False)
    for index in range(24):
        damaged = bytearray(whole)
        for place in rng.choice(len(whole), 1 + index % 4, replace=False):
            damaged[place] = rng.integers(256)
        yield Case(f"files/bytes-{index}", bytes(damaged))


def _external(fields: Mapping[str, str], dims: tuple[int, ...] = (4, 4)) -> onnx.ModelProto:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in fields.items():
        weight.external_data.add(key=key, value=value)
    made = small()
    del made.graph.initializer[:]
    made.graph.initializer.append(weight)
    return made


def outside(_rng: np.random.Generator) -> Iterator[Case]:
    """External data that is not below the model's folder, or not as long as it says."""
    data = {"w.bin": _WEIGHT.tobytes()}
    yield case("external/valid", _external({"location": "w.bin"}), beside=data, compiles=True)
    places = {
        "absolute": "/etc/passwd",
        "parent": "../w.bin",
        "inner-parent": "a/../../w.bin",
        "device": "/dev/zero",
        "nothing": "",
        "folder": ".",
        "nul": "w.bin\0/etc/passwd",
        "newline": "w\n.bin",
        "long": "w" * 10_000,
        "url": "file:///etc/passwd",
        "home": "~/w.bin",
        "process": "/proc/self/environ",
    }
    for name, place in places.items():
        yield case(f"external/{name}", _external({"location": place}), beside=data, compiles=False)
    links = {
        "link-out": "/etc/hostname",
        "link-device": "/dev/zero",
        "link-up": "../..",
        "link-loop": "w.bin",
        "link-nowhere": "absent",
    }
    for name, target in links.items():
        link = {"w.bin": target}
        yield case(f"external/{name}", _external({"location": "w.bin"}), links=link, compiles=False)
    ranges = {
        "offset-beyond": {"offset": "1000"},
        "offset-negative": {"offset": "-4"},
        "offset-huge": {"offset": str(1 << 62)},
        "offset-past-int64": {"offset": str(1 << 80)},
        "offset-words": {"offset": "four"},
        "length-beyond": {"length": "65"},
        "length-short": {"length": "60"},
        "length-negative": {"length": "-64"},
        "length-zero": {"length": "0"},
        "length-huge": {"length": str(1 << 62)},
        "length-wraps": {"offset": "8", "length": str((1 << 64) - 8)},
        "length-words": {"length": "all of it"},
    }
    for name, fields in ranges.items():
        whole = _external({"location": "w.bin", **fields})
        fits = None if name in ("length-negative", "length-zero") else False
        yield case(f"external/{name}", whole, beside=data, compiles=fits)
    plain = _external({"location": "w.bin"})
    yield case("external/pipe", plain, pipes=("w.bin",), compiles=False)
    yield case("external/terabytes", plain, holes={"w.bin": 1 << 40}, compiles=False)
    inside = _external({"location": "w.bin", "offset": str(1 << 39), "length": "64"})
    yield case("external/offset-in-terabytes", inside, holes={"w.bin": 1 << 40}, compiles=True)
    into = _external({"location": "down/w.bin"})
    yield case("external/folder-link-out", into, links={"down": "/dev"}, compiles=False)
    yield case("external/through-file", into, beside={"down": b""}, compiles=False)
    huge = _external({"location": "w.bin"}, (1 << 31, 1 << 31))
    yield case("external/dims-huge", huge, beside=data, compiles=False)


def tensors(_rng: np.random.Generator) -> Iterator[Case]:
    """Initialisers whose contents do not fit what they say of themselves."""
    shapes = {
        "too-many": (5, 4),
        "too-few": (4, 3),
        "negative": (-4, 4),
        "negative-pair": (-4, -4),
        "huge": (1 << 62, 4),
        "wraps-to-fit": (1 << 62, 4, 4, 4),
        "zero": (0, 4),
        "rank-70": (1,) * 68 + (4, 4),
    }
    for name, dims in shapes.items():
        made = small()
        del made.graph.initializer[0].dims[:]
        made.graph.initializer[0].dims.extend(dims)
        yield case(f"tensors/dims-{name}", made, compiles=False)
    for kind in (0, 2, 8, 14, 17, 20, 23, 99, -1):
        made = small()
        made.graph.initializer[0].data_type = kind
        yield case(f"tensors/type-{kind}", made, compiles=False)
    yield from _fields()
    yield from _sparse()


def _fields() -> Iterator[Case]:
    """Contents in the wrong field, in two, in none."""
    made = small()
    weight = made.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.int64_data.extend(range(16))
    yield case("tensors/wrong-field", made, compiles=False)
    weight.ClearField("int64_data")
    yield case("tensors/no-contents", made, compiles=False)
    weight.float_data.extend(range(15))
    yield case("tensors/one-missing", made, compiles=False)
    made = small()
    made.graph.initializer[0].segment.begin = 5
    yield case("tensors/segment", made)
    made = small()
    made.graph.initializer[0].string_data.append(b"w" * 16)
    made.graph.initializer[0].data_type = TensorProto.STRING
    yield case("tensors/strings", made, compiles=False)
    for name, value in (("nan", np.nan), ("inf", np.inf), ("largest", 3.4e38)):
        made = small()
        weights = np.array(_WEIGHT)
        weights[1, 2] = value
        made.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
        yield case(f"tensors/{name}", made, compiles=name == "largest")


def _sparse() -> Iterator[Case]:
    """Sparse initialisers whose places lie outside, or do not fit."""
    places = {
        "beyond": ([3, 16], (4, 4)),
        "negative": ([-1, 3], (4, 4)),
        "huge": ([1 << 62, 3], (4, 4)),
        "count": ([1, 2, 3], (4, 4)),
        "dims-huge": ([1, 2], (1 << 40, 1 << 20)),
        "dims-negative": ([1, 2], (-4, 4)),
        "pairs-beyond": ([[0, 9], [1, 1]], (4, 4)),
        "triples": ([[0, 0, 1], [1, 1, 1]], (4, 4)),
    }
    for name, (indices, dims) in places.items():
        made = small()
        del made.graph.initializer[:]
        sparse = made.graph.sparse_initializer.add()
        sparse.values.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32), "w"))
        sparse.indices.CopyFrom(numpy_helper.from_array(np.array(indices, np.int64), "p"))
        sparse.dims.extend(dims)
        yield case(f"tensors/sparse-{name}", made, compiles=False)
