"""Writes scikit-learn's handwritten digits (1,797 grey images of 8x8 pixels) as PNG files, one folder a digit.

    python examples/make_digits.py [FOLDER]

FOLDER is `digits` beside this script unless it is given. `examples/digits.yaml` trains on it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def main() -> None:
    """Writes the files; what is there already is written anew."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "digits"
    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / str(digit)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)).save(place / f"{number:04}.png")
    print(f"{len(digits.images)} images in {folder}")


if __name__ == "__main__":
    main()
