"""Trains the network of the demo and writes digits.onnx beside this file.

The ONNX file is part of the project, so this is only needed to make it again:

    pip install torch scikit-learn onnx
    python examples/digits/train.py

A small residual network with the parts that compression has to deal with: batch norms, a residual
sum, a depthwise layer, a global average and a classifier.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import torch
from data import split
from torch import nn

OPSET = 17


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm, and a ReLU unless ``act`` is False."""

    def __init__(
        self, channels: int, outputs: int, kernel: int = 3, *, groups: int = 1, act: bool = True
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        super().__init__(*layers, *([nn.ReLU()] if act else []))


class Digits(nn.Module):
    """float32[N, 1, 8, 8] in 0 to 1 -> logits float32[N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 32)
        self.block = nn.Sequential(ConvNorm(32, 32), ConvNorm(32, 32, act=False))
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.depthwise = ConvNorm(32, 32, groups=32)
        self.pointwise = ConvNorm(32, 64, 1)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images."""
        x = self.stem(images)
        x = self.pool(self.relu(self.block(x) + x))
        x = self.pointwise(self.depthwise(x))
        return self.classifier(torch.flatten(self.average(x), 1))


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Every image moved by -1, 0 or 1 pixel along both axes, zeros moving in."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    down, right = torch.randint(0, 3, (2, len(images)))
    rows = down[:, None, None] + torch.arange(8)[None, :, None]
    columns = right[:, None, None] + torch.arange(8)[None, None, :]
    return padded[torch.arange(len(images))[:, None, None], 0, rows, columns][:, None]


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> Digits:
    """Adam with a one-cycle learning rate on shifted images; the same network at every run."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Digits()
    batches = -(-len(images) // 64)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 5e-3, epochs=epochs, steps_per_epoch=batches
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(64):
            loss = loss_of(model(shifted(images[chosen])), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(f"epoch {epoch + 1}/{epochs}  loss {total / len(images):.4f}", flush=True)
    return model.eval()


def export(model: Digits, path: Path) -> None:
    """Write the network with its batch norms as they are: folding them is the compiler's work."""
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 8, 8),),
        str(path),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        opset_version=OPSET,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        dynamo=False,
    )
    proto = onnx.load(path)
    proto.graph.name = "digits"
    proto.doc_string = "Handwritten digits 8x8; trained by examples/digits/train.py of dlcc"
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def main() -> None:
    """Train, report the accuracy on held-out images, export."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Train the network of the demo.")
    parser.add_argument("-o", "--output", type=Path, default=here / "digits.onnx")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    images, labels, test_images, test_labels = map(torch.from_numpy, split())
    model = train(images, labels, options.epochs)
    with torch.no_grad():
        right = (model(test_images).argmax(1) == test_labels).sum().item()
    print(f"held-out accuracy: {right} of {len(test_labels)} ({right / len(test_labels):.2%})")
    export(model, options.output)
    print(f"wrote {options.output} ({options.output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
