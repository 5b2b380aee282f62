"""The IR's own text with the same diseases."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from dlcc.frontends.onnx import import_onnx
from dlcc.ir.text import files_of
from tests.hostile.case import Case
from tests.hostile.files import small

_RELU = 'graph "g" {\n  input %x: f32[1,4]\n  %y: f32[1,4] = relu(%x)\n  output "y" %y\n}\n'


def _sidecar(**arrays: np.ndarray) -> dict[str, bytes]:
    held = io.BytesIO()
    np.savez(held, allow_pickle=False, **arrays)
    return {"model.npz": held.getvalue()}


def texts(rng: np.random.Generator) -> Iterator[Case]:
    """Text that is no graph, or a graph that cannot be."""
    side = _sidecar()

    def made(name: str, text: str, compiles: bool | None = False) -> Case:
        return Case(f"text/{name}", text.encode(), ".dlir", beside=side, compiles=compiles)

    yield made("valid", _RELU, True)
    changes = {
        "shape-huge": ("[1,4]", "[4611686018427387904,4]"),
        "shape-terabytes": ("[1,4]", "[1048576,1048576]"),
        "shape-digits": ("[1,4]", f"[{'9' * 5000},4]"),
        "shape-zero": ("[1,4]", "[1,0]"),
        "result-other": ("%y: f32[1,4]", "%y: f32[1,5]"),
        "result-type": ("%y: f32[1,4]", "%y: i8[1,4]"),
        "result-rank": ("%y: f32[1,4]", "%y: f32[4]"),
        "results-two": ("%y: f32[1,4]", "%y: f32[1,4], %z: f32[1,4]"),
        "dtype": ("f32[1,4] = ", "f99[1,4] = "),
        "dtype-wide": ("f32[1,4] = ", "i99999999999[1,4] = "),
        "layout": ("%x: f32[1,4]", "%x: f32[1,4]@nhwc"),
        "unknown-op": ("relu", "frobnicate"),
        "dunder-op": ("relu", "__init__"),
        "no-operands": ("relu(%x)", "relu()"),
        "many-operands": ("relu(%x)", "relu(%x, %x)"),
        "absent-operand": ("relu(%x)", "relu(_)"),
        "undefined": ("relu(%x)", "relu(%z)"),
        "itself": ("relu(%x)", "relu(%y)"),
        "attribute": ("relu(%x)", "relu(%x) {speed=9}"),
        "twice": ("%y: f32[1,4] =", "%x: f32[1,4] ="),
        "no-output": ('  output "y" %y\n', ""),
        "brace": ("}\n", ""),
        "after": ("}\n", "}\nand more"),
        "encoding": ("%x: f32[1,4]", "%x: f32[1,4]!evil<a=1>"),
        "encoding-field": ("%x: f32[1,4]", "%x: f32[1,4]!affine<bits=99>"),
        "encoding-nan": ("%x: f32[1,4]", "%x: f32[1,4]!affine<bits=8, scales=[nan]>"),
        "name-string": ('"y"', '"\\ud800"'),
        "name-control": ('"y"', '"\\u0000"'),
        "quoted": ("%y", '%"a\\x"'),
        "nested": ("relu(%x)", "relu(%x) {a=" + "[" * 20_000 + "]" * 20_000 + "}"),
    }  # fmt: skip
    for name, (old, new) in changes.items():
        free = name in ("name-string", "name-control", "shape-zero")
        yield made(name, _RELU.replace(old, new), None if free else False)
    yield Case("text/not-utf-8", b"\xff\xfe" + _RELU.encode(), ".dlir", beside=side, compiles=False)
    yield from _operators(made)
    yield from _contents(rng)


def _operators(made: object) -> Iterator[Case]:
    """Nodes whose attributes are not what the op takes."""
    wide = f"{1 << 32},{1 << 32}"
    nodes = {
        "reshape-wraps": f"%y: f32[{wide}] = reshape(%x) {{shape=[{wide}]}}",
        "reshape-words": '%y: f32[1,4] = reshape(%x) {shape="all"}',
        "transpose": "%y: f32[4,1] = transpose(%x) {perm=[1,1]}",
        "transpose-none": "%y: f32[4,1] = transpose(%x) {perm=none}",
        "softmax-far": "%y: f32[1,4] = softmax(%x) {axis=99}",
        "softmax-words": '%y: f32[1,4] = softmax(%x) {axis="one"}',
        "concat-nothing": "%y: f32[1,4] = concat() {axis=0}",
        "tile": "%y: f32[1099511627776,4] = tile(%x) {repeats=[1099511627776,1]}",
        "pad": "%y: f32[1,4] = pad(%x) {pads=[0,-9,0,9]}",
        "cast": '%y: f32[1,4] = cast(%x) {to="f99"}',
        "conv": "%y: f32[1,4] = conv2d(%x, %x, _) {strides=[0,0]}",
    }
    for name, line in nodes.items():
        text = _RELU.replace("%y: f32[1,4] = relu(%x)", line)
        yield made(f"node-{name}", text)  # type: ignore[operator]


def _contents(rng: np.random.Generator) -> Iterator[Case]:
    """A valid pair of files, one of which is then damaged."""
    files = files_of(import_onnx(small()))
    text, side = files[".dlir"], files[".npz"]
    yield Case("text/pair", text, ".dlir", beside={"model.npz": side}, compiles=True)
    yield Case("text/alone", text, ".dlir", compiles=False)
    for index, cut in enumerate(sorted(rng.choice(len(side), 4, replace=False))):
        cases = {"model.npz": side[:cut]}
        yield Case(f"text/sidecar-cut-{index}", text, ".dlir", beside=cases, compiles=False)
    for index in range(8):
        damaged = bytearray(side)
        damaged[int(rng.integers(len(side)))] ^= 1 << int(rng.integers(8))
        yield Case(f"text/sidecar-bit-{index}", text, ".dlir", beside={"model.npz": bytes(damaged)})
    with np.load(io.BytesIO(side)) as held:
        arrays = {k: held[k] for k in held.files}
    key = next(iter(arrays))
    for name, array in (
        ("other-values", arrays[key] + 1), ("other-shape", arrays[key].reshape(-1)),
        ("other-type", arrays[key].astype(np.float64)), ("words", np.array(["a", "b"])),
    ):  # fmt: skip
        cases = _sidecar(**{**arrays, key: array})
        yield Case(f"text/sidecar-{name}", text, ".dlir", beside=cases, compiles=False)
    yield from _bombs(text, key)
    pickled = io.BytesIO()
    np.savez(pickled, **{key: np.array([{"a": 1}], object)})
    yield Case("text/sidecar-pickle", text, ".dlir", beside={"model.npz": pickled.getvalue()},
               compiles=False)  # fmt: skip
    for index in range(16):
        lines = bytearray(text)
        lines[int(rng.integers(len(lines)))] = int(rng.integers(32, 127))
        yield Case(f"text/byte-{index}", bytes(lines), ".dlir", beside={"model.npz": side})


def _bombs(text: bytes, key: str) -> Iterator[Case]:
    """Sidecars that are no files, or claim more than they hold, or stand for far more."""

    def made(name: str, **more: Any) -> Case:
        return Case(f"text/sidecar-{name}", text, ".dlir", **more, compiles=False)

    yield made("pipe", pipes=("model.npz",))
    yield made("device", links={"model.npz": "/dev/zero"})
    yield made("terabytes", holes={"model.npz": 1 << 40})
    single = io.BytesIO()
    np.save(single, np.ones(4, np.float32))
    yield made("single-array", beside={"model.npz": single.getvalue()})
    for name, shape, contents in (
        ("claims-terabytes", (1 << 40,), bytes(64)), ("claims-none", (-4,), bytes(16)),
        ("claims-wrap", (1 << 62, 4), bytes(16)), ("claims-less", (2,), bytes(64)),
    ):  # fmt: skip
        member = io.BytesIO()
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        yield made(name, beside={"model.npz": _archive(key, [member.getvalue(), contents])})
    zeros = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": ((3 << 30) - 128,)}
    np.lib.format.write_array_header_1_0(zeros, header)
    yield made("bomb", beside={"model.npz": _bomb(key, zeros.getvalue())})


def _archive(key: str, parts: list[bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{key}.npy", b"".join(parts))
    return held.getvalue()


def _bomb(key: str, header: bytes) -> bytes:
    """A small archive whose directory says that a member has 3 GiB, as its header does."""
    size, small = len(header) + (1 << 10), _archive(key, [header, bytes(1 << 10)])
    claimed = (3 << 30).to_bytes(4, "little")
    return small.replace(size.to_bytes(4, "little"), claimed)
