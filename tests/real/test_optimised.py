"""Files that ONNX Runtime's own optimisers and quantisers write, compiled and compared with it.

A small encoder (BERT's layers, exported from torch with seeded weights) and the digits example go
through the graph optimiser, the transformer optimiser, dynamic, static and 4-bit quantisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import dlcc
from dlcc.analysis.execute import execute
from dlcc.frontends.onnx import import_onnx
from tests.frontends.models import runtime

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

DIGITS = Path(__file__).parent.parent.parent / "examples" / "digits" / "digits.onnx"

NEAR = 1e-4
"""The largest difference from ONNX Runtime, relative to the largest number of the output."""

ONE_CODE = 5e-3
"""What one code of 8 bits more or less comes to at the end: activations quantised by their own
range may round the other way where the numbers before differ in the last place."""


class Layer(torch.nn.Module):
    """Attention and a feed-forward part, each with a sum and a layer norm behind it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (torch.nn.Linear(width, width) for _ in range(4))
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
        self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)

    def forward(self, x: Any, mask: Any) -> Any:
        batch, length, width = x.shape

        def split(t: Any) -> Any:
            return t.view(batch, length, self.heads, width // self.heads).permute(0, 2, 1, 3)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / (width // self.heads) ** 0.5 + mask
        mixed = torch.matmul(torch.softmax(scores, -1), v).permute(0, 2, 1, 3)
        x = self.first(x + self.o(mixed.reshape(batch, length, width)))
        return self.second(x + self.down(torch.nn.functional.gelu(self.up(x))))


class Encoder(torch.nn.Module):
    """Two layers over embeddings of words, places and segments."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words, self.places, self.segments = (
            torch.nn.Embedding(n, width) for n in (100, 32, 2)
        )
        self.norm = torch.nn.LayerNorm(width)
        self.layers = torch.nn.ModuleList([Layer(width, 4) for _ in range(2)])
        self.head = torch.nn.Linear(width, 3)

    def forward(self, ids: Any, segments: Any, mask: Any) -> Any:
        places = self.places(torch.arange(ids.shape[1]))
        x = self.norm(self.words(ids) + places + self.segments(segments))
        added = (1.0 - mask[:, None, None, :].float()) * -10000.0
        for layer in self.layers:
            x = layer(x, added)
        return self.head(x[:, 0])


def encoder_feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    mask = np.ones((1, 16), np.int64)
    mask[:, 12:] = 0
    ids, segments = rng.integers(0, 100, (1, 16)), rng.integers(0, 2, (1, 16))
    return {"ids": ids, "segments": segments, "mask": mask}


def digits_feeds(seed: int = 0) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).random((1, 1, 8, 8), np.float32)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder as torch exports it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    feeds = tuple(torch.from_numpy(a) for a in encoder_feeds().values())
    torch.onnx.export(
        Encoder().eval(), feeds, str(path), opset_version=17, dynamo=False,
        input_names=list(encoder_feeds()), output_names=["y"],
    )  # fmt: skip
    return path


def optimised(source: Path, path: Path) -> None:
    """By the graph optimiser, as far as results run on any machine."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def for_transformers(source: Path, path: Path) -> None:
    from onnxruntime.transformers import optimizer

    made = optimizer.optimize_model(
        str(source), model_type="bert", num_heads=4, hidden_size=64, opt_level=0
    )
    made.save_model_to_file(str(path))


def dynamic(kind: str) -> Callable[[Path, Path], None]:
    def quantise(source: Path, path: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(str(source), str(path), weight_type=getattr(QuantType, kind))

    return quantise


def four_bits(symmetric: bool) -> Callable[[Path, Path], None]:
    def quantise(source: Path, path: Path) -> None:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        made = MatMulNBitsQuantizer(
            onnx.load(str(source)), bits=4, block_size=32, is_symmetric=symmetric
        )
        made.process()
        made.model.save_model_to_file(str(path))

    return quantise


def static(form: str, **extra: Any) -> Callable[[Path, Path], None]:
    def quantise(source: Path, path: Path) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

        class Samples(CalibrationDataReader):
            def __init__(self) -> None:
                self.feeds: Iterator[dict[str, np.ndarray]] = iter(map(digits_feeds, range(8)))

            def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
                return next(self.feeds, None)

        quantize_static(
            str(source), str(path), Samples(), quant_format=getattr(QuantFormat, form),
            per_channel=True, **extra,
        )  # fmt: skip

    return quantise


def sixteen_bits(source: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType

    extra = {"activation_type": QuantType.QUInt16, "extra_options": {"UseQDQContribOps": True}}
    static("QDQ", weight_type=QuantType.QInt8, **extra)(source, path)


ENCODERS = {
    "extended": (optimised, {"SkipLayerNormalization", "FusedMatMul", "Gelu"}),
    "transformers": (for_transformers, {"Attention", "SkipLayerNormalization", "BiasGelu"}),
    "dynamic_s8": (dynamic("QInt8"), {"MatMulInteger"}),
    "dynamic_u8": (dynamic("QUInt8"), {"MatMulInteger"}),
    "four_bits": (four_bits(True), {"MatMulNBits"}),
    "four_bits_zeros": (four_bits(False), {"MatMulNBits"}),
}

IMAGES = {
    "extended": (optimised, {"FusedConv"}),
    "dynamic": (dynamic("QUInt8"), {"ConvInteger"}),
    "codes": (static("QOperator"), {"QLinearConv", "QGemm"}),
    "pairs": (static("QDQ"), {"DequantizeLinear"}),
    "pairs_16": (sixteen_bits, {"DequantizeLinear"}),
}


def check(path: Path, feeds: dict[str, np.ndarray], holds: set[str], folder: Path) -> None:
    """Compile ``path``, which holds these operators, and compare it with ONNX Runtime."""
    near = ONE_CODE if "ConvInteger" in holds else NEAR
    shapes = {name: a.shape for name, a in feeds.items()}
    assert holds <= {node.op_type for node in onnx.load(str(path)).graph.node}
    (want,) = runtime(str(path), feeds)
    (reference,) = execute(import_onnx(path, shapes=shapes), feeds).values()
    assert np.abs(reference - want).max() <= NEAR * np.abs(want).max()
    dlcc.compile(path, folder, bits=32, threads=1, shapes=shapes)
    (got,) = dlcc.load(folder).run(feeds).values()
    assert np.abs(got - want).max() <= near * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str, encoder: Path, tmp_path: Path) -> None:
    make, holds = ENCODERS[name]
    path = tmp_path / f"{name}.onnx"
    make(encoder, path)
    check(path, encoder_feeds(), holds, tmp_path / "net")
    if name == "dynamic_s8":
        again = tmp_path / "again.onnx"
        optimised(path, again)
        fused = {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
        check(again, encoder_feeds(), fused, tmp_path / "again")


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, tmp_path: Path) -> None:
    make, holds = IMAGES[name]
    path = tmp_path / f"{name}.onnx"
    make(DIGITS, path)
    check(path, digits_feeds(20), holds, tmp_path / "net")
