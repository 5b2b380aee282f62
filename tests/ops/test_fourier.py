"""DFT and STFT by matrices and by stages, and the tables they are made of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import dlcc.ops.fourier as fourier
from dlcc.analysis.execute import execute
from dlcc.errors import DlccError
from dlcc.frontends.onnx import import_onnx
from dlcc.ir import Graph
from dlcc.ir.encodings import Array


def _graph(op: str, x: Array, constants: dict[str, Array], **attrs: int) -> Graph:
    inputs = ["x", *(k if a.size else "" for k, a in constants.items())]
    node = helper.make_node(op, inputs, ["y"], **attrs)
    tensors = [onnx.numpy_helper.from_array(a, k) for k, a in constants.items() if a.size]
    given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    proto = helper.make_graph([node], "g", [given], [result], tensors)
    return import_onnx(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)]))


def _run(op: str, x: Array, constants: dict[str, Array], **attrs: int) -> Array:
    return next(iter(execute(_graph(op, x, constants, **attrs), {"x": x}).values()))


def _number(value: int) -> Array:
    return np.asarray(value, np.int64)


@pytest.mark.parametrize("limit", [1 << 21, 1])
@pytest.mark.parametrize(
    ("length", "given", "width", "inverse", "onesided"),
    [
        (60, 60, 1, 0, 1),
        (60, 45, 2, 1, 0),
        (24, 30, 1, 0, 0),
        (48, 25, 2, 1, 1),
        (35, 18, 2, 1, 1),
        (48, 11, 2, 1, 1),
        (7, 7, 2, 0, 0),
    ],
)
def test_dft(
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    length: int,
    given: int,
    width: int,
    inverse: int,
    onesided: int,
) -> None:
    """With a limit of 1 entry every length is taken apart into primes."""
    monkeypatch.setattr(fourier, "_MATRIX", limit)
    x = np.random.default_rng(0).standard_normal((2, given, width)).astype(np.float32)
    z = x[..., 0] + (1j * x[..., 1] if width == 2 else 0)
    if inverse and onesided:
        want = np.fft.irfft(z, n=length, axis=1)[..., None]
    else:
        full = (np.fft.ifft if inverse else np.fft.fft)(z, n=length, axis=1)
        want = np.stack([full.real, full.imag], -1)[:, : length // 2 + 1 if onesided else None]
    got = _run("DFT", x, {"n": _number(length)}, inverse=inverse, onesided=onesided)
    np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("limit", [1 << 21, 1])
@pytest.mark.parametrize("onesided", [0, 1])
def test_stft(monkeypatch: pytest.MonkeyPatch, limit: int, onesided: int) -> None:
    monkeypatch.setattr(fourier, "_MATRIX", limit)
    rng = np.random.default_rng(1)
    x, window = (rng.standard_normal(s).astype(np.float32) for s in ((2, 50, 1), 12))
    got = _run("STFT", x, {"step": _number(5), "window": window}, onesided=onesided)
    frames = np.stack([x[:, k : k + 12, 0] * window for k in range(0, 39, 5)], 1)
    full = np.fft.fft(frames)[..., : 7 if onesided else 12]
    np.testing.assert_allclose(got, np.stack([full.real, full.imag], -1), atol=1e-5)


def test_what_cannot_be_transformed() -> None:
    x = np.zeros((1, 8, 1), np.float32)
    with pytest.raises(DlccError, match="windows of 9 by steps of 1"):
        _graph("STFT", x, {"step": _number(1), "window": np.ones(9, np.float32)})
    values = {"step": _number(1), "window": np.ones(3, np.float32), "length": _number(4)}
    with pytest.raises(DlccError, match="a window of 3 numbers for a length of 4"):
        _graph("STFT", x, values)
    with pytest.raises(DlccError, match="a transform of 0 points"):
        _graph("DFT", x, {"n": _number(0)})
    with pytest.raises(DlccError, match="along axis 2"):
        _graph("DFT", x, {"n": np.zeros(0, np.int64), "axis": _number(2)})
    with pytest.raises(DlccError, match="100003 points, a number of few factors"):
        _graph("DFT", np.zeros((1, 100003, 1), np.float32), {})
