"""Inputs that look like what the networks were trained on: seeded text, scenes, speech, bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dlcc.ir import TensorType
from dlcc.ir.encodings import Array

Maker = Callable[[TensorType, np.random.Generator], Array]
"""Makes the contents of an input of a type."""

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def _words(rng: np.random.Generator, count: int) -> str:
    sizes = rng.integers(2, 9, count)
    return " ".join("".join(rng.choice(list(_LETTERS), size)) for size in sizes)


def text(type_: TensorType, rng: np.random.Generator) -> Array:
    """Lines of dark letters on light noisy paper: [1, C, H, W], -1 to 1."""
    _, channels, height, width = type_.shape
    size = min(28, height * 2 // 3)
    page = Image.new("L", (width, height), int(rng.integers(200, 250)))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    for top in range((height - size) // 8, height - size, size * 2):
        line = _words(rng, 2 + width // (4 * size))
        draw.text((size // 3, top), line, fill=int(rng.integers(0, 60)), font=font)
    pixels = np.asarray(page, np.float32) / 127.5 - 1 + rng.normal(0, 0.02, (height, width))
    return np.ascontiguousarray(np.broadcast_to(pixels, (1, channels, height, width)), np.float32)


def scene(type_: TensorType, rng: np.random.Generator) -> Array:
    """Coloured ellipses on a gradient, with noise: [1, 3, H, W], 0 to 1."""
    _, _, height, width = type_.shape
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        a, b = rng.uniform(0.03, 0.25, 2) * (width, height)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        draw.ellipse((x - a, y - b, x + a, y + b), fill=colour)
    pixels = np.asarray(image, np.float32) / 255 + rng.normal(0, 0.02, (height, width, 3))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None].clip(0, 1), np.float32)


def scene_of_bytes(type_: TensorType, rng: np.random.Generator) -> Array:
    """The same, 0 to 255."""
    return scene(type_, rng) * np.float32(255)


def voice(type_: TensorType, rng: np.random.Generator) -> Array:
    """Harmonics of a gliding tone of about 150 Hz at 16 kHz, and noise; any shape, -0.5 to 0.5."""
    count = type_.elements
    seconds = np.arange(count) / 16000
    pitch = rng.uniform(90, 250) * (1 + 0.1 * np.sin(2 * np.pi * 3 * seconds))
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    parts = (np.sin(k * phase) * rng.uniform(0.2, 1) / k for k in range(1, 20))
    sound = 0.1 * rng.uniform(0.2, 1.5) * sum(parts, start=np.zeros(count))
    return (sound + rng.normal(0, 0.005, count)).astype(np.float32).reshape(type_.shape)


def state(type_: TensorType, rng: np.random.Generator) -> Array:
    """A recurrent layer's state after some steps: within -0.5 and 0.5."""
    return rng.uniform(-0.5, 0.5, type_.shape).astype(np.float32)


def document(type_: TensorType, rng: np.random.Generator) -> Array:
    """The bytes of a text, as integers of the type."""
    count = type_.elements
    found = np.frombuffer(_words(rng, count // 2).encode()[:count], np.uint8)
    return found.astype(type_.dtype.numpy).reshape(type_.shape)
