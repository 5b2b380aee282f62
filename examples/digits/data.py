"""The handwritten digits that scikit-learn carries along, split once and for all.

1797 images of 8x8 pixels, 0 to 16 each (Alpaydin and Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, 1998).

    python examples/digits/data.py

writes calib.npz (200 of the training images) and test.npz (the held-out images with labels), as
``dlcc compile --calib`` and ``dlcc eval --data`` take them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

Array = np.ndarray[Any, Any]

HELD_OUT = 597
CALIBRATION = 200
SEED = 0


def split() -> tuple[Array, Array, Array, Array]:
    """Training images and labels, held-out images and labels.

    The split depends on nothing but this file. Images are float32[count, 1, 8, 8] in 0 to 1, labels
    int64[count] in 0 to 9. No held-out image is seen in training or calibration.
    """
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    images = (digits.images[order, None] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int64)
    return images[:-HELD_OUT], labels[:-HELD_OUT], images[-HELD_OUT:], labels[-HELD_OUT:]


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description="Write calib.npz and test.npz.")
    parser.add_argument("-o", "--output", type=Path, default=Path(), help="the folder for them")
    folder = parser.parse_args().output
    images, _, test_images, test_labels = split()
    np.savez(folder / "calib.npz", image=images[:CALIBRATION])
    np.savez(folder / "test.npz", image=test_images, labels=test_labels)


if __name__ == "__main__":
    main()
