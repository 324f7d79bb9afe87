"""Real photographs to make data sets of: scikit-learn's sample pictures, cut into tiles, a class each."""

from __future__ import annotations

from pathlib import Path

import sklearn
from PIL import Image

SIDE = 48
CLASSES = ("china", "flower")


def tiles(name: str, count: int) -> list[Image.Image]:
    """Tiles of one picture that do not overlap, spread over all of it."""
    image = Image.open(Path(sklearn.__file__).parent / "datasets" / "images" / f"{name}.jpg")
    corners = [(x, y) for y in range(0, image.height - SIDE + 1, SIDE) for x in range(0, image.width - SIDE + 1, SIDE)]
    chosen = corners[:: len(corners) // count][:count]
    return [image.crop((x, y, x + SIDE, y + SIDE)) for x, y in chosen]


def write(folder: Path, count: int) -> Path:
    """A folder a class, with `count` PNG files in each."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number, tile in enumerate(tiles(name, count)):
            tile.save(folder / name / f"{number:02}.png")
    return folder
