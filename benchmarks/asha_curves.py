"""Learning curves for `asha.py`: the same 81 random digits CNNs, each trained to the end of 27 epochs, once a seed.

A line of JSON a configuration, in a file a seed; what is there already is not trained again. The configurations are
those of `orch sweep recipe=cnn epochs=27 sampler=random seed=0`; a seed changes only weights and the order of images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import recipes
from orchestrator import study
from orchestrator.search import Search
from recipes.config import make

NUM_CONFIGS, MAX_EPOCHS = 81, 27
FOLDER = Path("mlruns/asha")
KEYS = [
    *("recipe=cnn", f"epochs={MAX_EPOCHS}", f"trials={NUM_CONFIGS}", "device=cpu"),
    *("sampler=random", "seed=0", "export=none"),
]
METRICS = ("val_accuracy", "val_loss")


def configurations() -> list[dict[str, Any]]:
    """The flat configurations, as the sweep of `KEYS` draws them."""
    found = study.load(KEYS)
    search = Search(found.space, found.sampler, found.seed)
    return [found.config(search.ask(number)) for number in range(NUM_CONFIGS)]


def read(folder: Path, seed: int) -> list[dict[str, Any]]:
    """The curves of a seed, as far as they were recorded: `val_accuracy` and `val_loss` after each epoch."""
    file = folder / f"seed-{seed}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def record(folder: Path, seed: int) -> None:
    """Train what is missing of a seed."""
    import torch

    torch.set_num_threads(1)
    recipe = recipes.load("cnn")
    folder.mkdir(parents=True, exist_ok=True)
    for number, config in list(enumerate(configurations()))[len(read(folder, seed)) :]:
        epochs = list(recipe.module.train(make(recipe.config_type, {**config, "seed": seed})))
        curves = {name: [epoch.metrics[name] for epoch in epochs] for name in METRICS}
        line = {"trial": number, **curves}
        with (folder / f"seed-{seed}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
