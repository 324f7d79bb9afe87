"""What pretrained weights are worth where there are few photographs: `recipe=transfer` with them and without.

Fifteen pictures of scikit-image and scikit-learn, a class each, are cut into tiles that do not overlap: ten a class to
train on, five to validate and at most thirty to test on. EfficientNet-Lite0 is trained frozen (a head on its features),
fine-tuned, and from weights drawn anew; each on the same tiles from the same seed, five seeds. The epoch with the best
`val_accuracy` is the one that is tested.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import skimage
import sklearn
import torch
from PIL import Image
from scipy.stats import t as student

from recipes import data, load, metrics, transfer
from recipes.config import dataset_of, make
from recipes.loop import Attempt
from recipes.model_file import restore_model

FROM_SKIMAGE = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)
FROM_SKLEARN = ("china.jpg", "flower.jpg")
SIDE = 48
COUNTS = {"train": 10, "val": 5, "test": 30}
SEEDS = range(5)
CONFIDENCE = 0.95

LEARNT = {"crop": 4, "flip": 0.5, "batch_size": 30, "label_smoothing": 0.1, "features": "last", "freeze": False}
WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"epochs": 60, "batch_size": 30, "features": "all", "label_smoothing": 0.1},
    "fine-tuned": {**LEARNT, "epochs": 30, "lr": 3e-3},
    "from scratch": {**LEARNT, "epochs": 60, "lr": 3e-3, "pretrained": False},
}


def pictures() -> dict[str, Path]:
    """Class name -> its picture."""
    skimage_folder = Path(skimage.__file__).parent / "data"
    sklearn_folder = Path(sklearn.__file__).parent / "datasets" / "images"
    files = [*(skimage_folder / name for name in FROM_SKIMAGE), *(sklearn_folder / name for name in FROM_SKLEARN)]
    return {file.stem: file for file in files}


def write_tiles(folder: Path, seed: int) -> None:
    """Tiles of each picture below `train`, `val` and `test`, shared out by the seed."""
    random = np.random.RandomState(seed)
    for name, file in pictures().items():
        image = Image.open(file).convert("RGB")
        corners = [
            (x, y) for y in range(0, image.height - SIDE + 1, SIDE) for x in range(0, image.width - SIDE + 1, SIDE)
        ]
        order = iter(random.permutation(len(corners)))
        for part, count in COUNTS.items():
            (folder / part / name).mkdir(parents=True)
            for _, index in zip(range(count), order, strict=False):
                x, y = corners[index]
                image.crop((x, y, x + SIDE, y + SIDE)).save(folder / part / name / f"{index}.png")


def test_accuracy(way: str, photographs: Path, seed: int, folder: Path) -> tuple[float, float]:
    """Test accuracy of the best epoch, and the seconds of the training."""
    started = time.perf_counter()
    config = make(transfer.Config, {**WAYS[way], "data": f"folder:{photographs}", "seed": seed})
    for _ in transfer.train(config, Attempt(folder=folder)):
        pass
    seconds = time.perf_counter() - started
    model, info, _ = restore_model(load("transfer"), folder / "best.safetensors")
    test = data.load(dataset_of({"data": f"folder:{photographs}"})).test
    return metrics.summary(metrics.outputs_of(model, test, info), test.labels, info)["accuracy"], seconds


def interval(values: list[float]) -> str:
    """Mean, and its confidence interval by Student's t."""
    half = student.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return f"{mean:.3f} ({mean - half:.3f} to {mean + half:.3f})"


def main() -> None:
    """Train each way on each seed's tiles, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    num_cores = machine.use_cores(1)  # threads that wait for each other lose most where others want the cores
    torch.set_num_threads(num_cores)
    print(machine.hardware(num_cores))
    print(machine.versions("torch", "timm", "scikit-image", "scikit-learn"), flush=True)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            write_tiles(Path(folder) / "photographs", seed)
            for way in WAYS:
                result = test_accuracy(way, Path(folder) / "photographs", seed, Path(folder) / way)
                found[way].append(result)
                print(f"seed {seed}  {way:<14} {result[0]:.3f}  {result[1]:6.1f} s", flush=True)
    print(f"\ntest accuracy, mean and {CONFIDENCE:.0%} interval over {len(SEEDS)} seeds")
    for way, results in found.items():
        print(f"{way:<14} {interval([accuracy for accuracy, _ in results])}")
    for way in ("frozen", "fine-tuned"):
        pairs = zip(found[way], found["from scratch"], strict=True)
        print(f"{way} less from scratch: {interval([better[0] - worse[0] for better, worse in pairs])}")


if __name__ == "__main__":
    main()
