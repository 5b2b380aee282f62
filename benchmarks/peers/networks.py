"""The thirteen networks of the comparison, with seeded random weights.

Architectures follow their papers: LeNet-5 (LeCun et al. 1998), the MLPerf Tiny four (Banbury et al.
2021: ResNet-8, MobileNetV1 0.25, DS-CNN, an autoencoder), SqueezeNet 1.1 (Iandola et al. 2016),
MobileNetV2 (Sandler et al. 2018), EfficientNet-Lite0, ResNet-18 and -50 (He et al. 2015), AlexNet
(Krizhevsky 2014), VGG-16 (Simonyan and Zisserman 2014) and a MiniLM-L6 encoder (Wang et al. 2020).
Speed does not depend on the values of weights, but the errors of int8 do: weights are drawn by He's
rule, and batch norms get the statistics of random batches, so that activations keep their scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

Shape = tuple[int, ...]


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution with the padding that keeps the size, batch norm, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


def classifier(features: int, classes: int) -> list[nn.Module]:
    """Global average pooling and a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def lenet5() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


class SmallResidual(nn.Module):
    """Two 3x3 convolutions; a strided block projects its shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a = conv_norm(inputs, outputs, 3, stride)
        self.b = conv_norm(outputs, outputs, activation=None)
        self.d = nn.Conv2d(inputs, outputs, 1, stride) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return fn.relu(self.b(self.a(x)) + self.d(x))


def resnet8() -> nn.Module:
    blocks = [SmallResidual(16, 16, 1), SmallResidual(16, 32, 2), SmallResidual(32, 64, 2)]
    return nn.Sequential(conv_norm(3, 16), *blocks, *classifier(64, 10))


def mobilenet_v1_quarter() -> nn.Module:
    blocks = [(32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    blocks += [(256, 512, 2), *[(512, 512, 1)] * 5, (512, 1024, 2), (1024, 1024, 1)]
    layers = [conv_norm(3, 8, 3, 2)]
    for wide_in, wide_out, stride in blocks:
        inputs, outputs = wide_in // 4, wide_out // 4
        layers += [conv_norm(inputs, inputs, 3, stride, inputs), conv_norm(inputs, outputs, 1)]
    return nn.Sequential(*layers, *classifier(256, 2))


def dscnn() -> nn.Module:
    stem = nn.Conv2d(1, 64, (10, 4), 2, (4, 1), bias=False)
    layers: list[nn.Module] = [stem, nn.BatchNorm2d(64), nn.ReLU()]
    for _ in range(4):
        layers += [conv_norm(64, 64, groups=64), conv_norm(64, 64, 1)]
    return nn.Sequential(*layers, *classifier(64, 12))


def autoencoder() -> nn.Module:
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640))


class Fire(nn.Module):
    """1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.q = nn.Conv2d(inputs, squeeze, 1)
        self.a = nn.Conv2d(squeeze, expand, 1)
        self.b = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = fn.relu(self.q(x))
        return torch.cat([fn.relu(self.a(x)), fn.relu(self.b(x))], 1)


def squeezenet11() -> nn.Module:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64)),
        *(pool(), Fire(128, 32, 128), Fire(256, 32, 128), pool()),
        *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
        *(nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise, 1x1 projection; a shortcut where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, expand: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = inputs * expand
        relu6 = nn.ReLU6
        wide = [] if expand == 1 else [conv_norm(inputs, hidden, 1, activation=relu6)]
        depthwise = conv_norm(hidden, hidden, kernel, stride, hidden, relu6)
        self.f = nn.Sequential(*wide, depthwise, conv_norm(hidden, outputs, 1, activation=None))
        self.r = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x) if self.r else self.f(x)


Stages = list[tuple[int, int, int, int, int]]
"""(expansion, channels, blocks, stride of the first, kernel)."""

MOBILENET_V2: Stages = [
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3)),
    *((6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)),
]
EFFICIENTNET_LITE0: Stages = [
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
    *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
]


def inverted_residuals(stages: Stages) -> nn.Module:
    layers: list[nn.Module] = [conv_norm(3, 32, 3, 2, activation=nn.ReLU6)]
    inputs = 32
    for expand, channels, blocks, stride, kernel in stages:
        for block in range(blocks):
            step = stride if block == 0 else 1
            layers.append(InvertedResidual(inputs, channels, expand, step, kernel))
            inputs = channels
    head = conv_norm(inputs, 1280, 1, activation=nn.ReLU6)
    return nn.Sequential(*layers, head, *classifier(1280, 1000))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return conv_norm(inputs, outputs, 1, stride, activation=None)


class Basic(nn.Module):
    """The block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a = conv_norm(inputs, outputs, 3, stride)
        self.b = conv_norm(outputs, outputs, activation=None)
        self.d = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        return fn.relu(self.b(self.a(x)) + self.d(x))


class Bottleneck(nn.Module):
    """The block of ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.a = conv_norm(inputs, width, 1)
        self.b = conv_norm(width, width, 3, stride)
        self.c = conv_norm(width, 4 * width, 1, activation=None)
        self.d = shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return fn.relu(self.c(self.b(self.a(x))) + self.d(x))


def resnet(block: type[Basic] | type[Bottleneck], counts: list[int]) -> nn.Module:
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, count, stride in zip([64, 128, 256, 512], counts, [1, 2, 2, 2], strict=True):
        for index in range(count):
            layers.append(block(inputs, width, stride if index == 0 else 1))
            inputs = width if block is Basic else 4 * width
    return nn.Sequential(*layers, *classifier(inputs, 1000))


def dense_head(features: int) -> list[nn.Module]:
    hidden = [nn.Linear(features, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return [nn.Flatten(), *hidden, nn.Linear(4096, 1000)]


def alexnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *dense_head(9216),
    )


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    inputs = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *dense_head(25088))


class EncoderLayer(nn.Module):
    """Post-norm transformer encoder layer: self-attention and a GELU feed-forward network."""

    def __init__(self, width: int = 384, heads: int = 12, hidden: int = 1536) -> None:
        super().__init__()
        self.h = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.f1, self.f2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape

        def split(t: Tensor) -> Tensor:
            return t.reshape(batch, tokens, self.h, width // self.h).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        scores = torch.softmax(q @ k.transpose(-1, -2) * (1 / math.sqrt(width // self.h)), -1)
        mixed = (scores @ v).transpose(1, 2).reshape(batch, tokens, width)
        x = self.n1(x + self.o(mixed))
        return self.n2(x + self.f2(fn.gelu(self.f1(x))))


class MiniLM(nn.Module):
    """Six encoder layers on embeddings; the table of 30 000 rows computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.n = nn.LayerNorm(384)
        self.l = nn.Sequential(*[EncoderLayer() for _ in range(6)])

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.n(x))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "lenet5": (lenet5, (1, 28, 28)),
    "resnet8": (resnet8, (3, 32, 32)),
    "mbv1_025": (mobilenet_v1_quarter, (3, 96, 96)),
    "dscnn": (dscnn, (1, 49, 10)),
    "ad_ae": (autoencoder, (640,)),
    "squeezenet11": (squeezenet11, (3, 224, 224)),
    "mbv2": (lambda: inverted_residuals(MOBILENET_V2), (3, 224, 224)),
    "efflite0": (lambda: inverted_residuals(EFFICIENTNET_LITE0), (3, 224, 224)),
    "resnet18": (lambda: resnet(Basic, [2, 2, 2, 2]), (3, 224, 224)),
    "resnet50": (lambda: resnet(Bottleneck, [3, 4, 6, 3]), (3, 224, 224)),
    "alexnet": (alexnet, (3, 224, 224)),
    "vgg16": (vgg16, (3, 224, 224)),
    "minilm6": (MiniLM, (128, 384)),
}
"""Name -> (constructor, shape of a sample without the batch axis)."""


def seed_of(name: str) -> int:
    """A seed for each name."""
    return sum(ord(char) * (place + 1) for place, char in enumerate(name))


def samples(shape: Shape, count: int, seed: int) -> Tensor:
    """Seeded samples [count, *shape]; images are smooth with a little fine noise."""
    generator = torch.Generator().manual_seed(1000 + seed)
    if len(shape) != 3:
        return torch.randn(count, *shape, generator=generator)
    channels, height, width = shape
    coarse_shape = (count, channels, max(2, height // 8), max(2, width // 8))
    coarse = torch.randn(*coarse_shape, generator=generator)
    fine = torch.randn(count, *shape, generator=generator)
    return fn.interpolate(coarse, size=(height, width), mode="bilinear") + 0.3 * fine


def build(name: str) -> tuple[nn.Module, Shape]:
    """The network with its seeded weights, in inference mode, and the shape of a sample."""
    construct, shape = NETWORKS[name]
    torch.manual_seed(seed_of(name))
    module = construct()
    norms = False
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and name != "minilm6":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.05)
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            layer.momentum = None
            norms = True
    if norms:
        module.train()
        with torch.no_grad():
            for batch in range(4):
                module(samples(shape, 16, batch))
    return module.eval(), shape
