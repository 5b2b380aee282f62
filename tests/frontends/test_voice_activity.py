"""Silero VAD: real voice-activity detectors with LSTM and If, streamed frame by frame.

The models come in the wheel of PyPI's ``silero-vad`` (MIT); the package need not be importable.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import dlcc
from dlcc.frontends.onnx import import_onnx


def _folder() -> Path | None:
    found = importlib.util.find_spec("silero_vad")
    places = found.submodule_search_locations if found is not None else None
    return None if not places else Path(next(iter(places))) / "data"


FOLDER = _folder()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(FOLDER is None, reason="needs the wheel: pip install --no-deps silero-vad"),
]

STATE = {"state": (2, 1, 128)}
MODELS: list[tuple[str, int, dict[str, Any]]] = [
    ("silero_vad.onnx", 576, {"constants": {"sr": 16000}, "shapes": STATE}),
    ("silero_vad.onnx", 288, {"constants": {"sr": 8000}, "shapes": STATE}),
    ("silero_vad_16k_op15.onnx", 576, {"constants": {"sr": 16000}, "shapes": STATE}),
    ("silero_vad_half.onnx", 576, {"shapes": STATE}),
    ("silero_vad_op18_ifless.onnx", 576, {"constants": {"sr": 16000}, "shapes": STATE}),
    ("silero_vad_openvino_16k.onnx", 576, {}),
    ("silero_vad_16k_sequence.onnx", 576, {"shapes": {"sequence_length": 4}}),
]
NEXT = {"state": "stateN", "h": "hn", "c": "cn"}


@pytest.mark.parametrize(("name", "width", "options"), MODELS)
def test_streams_as_onnx_runtime(
    name: str, width: int, options: dict[str, Any], tmp_path: Path
) -> None:
    assert FOLDER is not None
    rows = options.get("shapes", {}).get("sequence_length", 1)
    shapes = {**options.get("shapes", {}), "input": (rows, width)}
    shapes.pop("sequence_length", None)
    graph = import_onnx(FOLDER / name, **{**options, "shapes": shapes})
    dlcc.compile(graph, tmp_path / "out", bits=32, threads=1)
    session = onnxruntime.InferenceSession(str(FOLDER / name))
    names = [t.name for t in session.get_outputs()]
    rate = options.get("constants", {}).get("sr", 16000)
    fixed = {"sr": np.int64(rate)} if any(i.name == "sr" for i in session.get_inputs()) else {}
    fixed = {k: np.asarray(v) for k, v in fixed.items()}
    ours = {v.name: np.zeros(v.type.shape, np.float32) for v in graph.inputs}
    theirs = dict(ours)
    rng = np.random.default_rng(0)
    made: list[dict[str, np.ndarray]] = []
    wanted: list[dict[str, np.ndarray]] = []
    with dlcc.load(tmp_path / "out") as network:
        for step in range(20):  # silence and noise
            frame = (rng.normal(size=(rows, width)) * 0.1 * (step % 5)).astype(np.float32)
            ours["input"] = theirs["input"] = frame
            made.append(network.run(ours))
            given = theirs | fixed
            wanted.append(dict(zip(names, session.run(None, given), strict=True)))
            for state, after in NEXT.items():
                if after in names:
                    ours[state], theirs[state] = made[-1][after], wanted[-1][after]
    for key in names:
        a, b = (np.stack([step[key] for step in run]) for run in (made, wanted))
        assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max(), key
