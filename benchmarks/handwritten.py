"""What one would write by hand in place of `orch sweep recipe=cnn`: Optuna + DataLoader + MLflow in one process.

The peer of `sweep_throughput.py`. The network, the data's split and the form of a configuration come from `recipes`, so
that both sides train the same thing; all else is as the libraries' own tutorials do it. It writes `mlflow.db`,
`artifacts/`, `optuna.db` and `checkpoints/` into the current directory.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import onnxruntime
import optuna
import torch
from ruamel.yaml import YAML
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from recipes import data
from recipes.cnn import Config, build_model
from recipes.config import flatten, make

if TYPE_CHECKING:
    from recipes.data import ImageInfo, Split

STUDY_FILE = Path(__file__).parent.parent / "studies" / "cnn.yaml"
NAME = "cnn-digits"
NUM_EXPORTS = 3
VAL_BATCH_SIZE = 256
# The rungs of `orch` are at 2 and 4 of 10 epochs, a third goes on; Optuna's are at 2, 6, 18, … with the same share.
PRUNER = optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3)


class Images(Dataset[tuple[torch.Tensor, int]]):
    """A split, each image transformed as it is taken."""

    def __init__(self, split: Split, transform: v2.Transform) -> None:
        self.images, self.labels = split.images, split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def transform(info: ImageInfo, *, crop: int = 0) -> v2.Transform:
    """A random crop from `crop` pixels of padding, then normalisation."""
    cropped = [v2.RandomCrop((info.height, info.width), padding=crop)] if crop else []
    return v2.Compose([*cropped, v2.ToDtype(torch.float32, scale=True), v2.Normalize(info.mean, info.std)])


def suggest(trial: optuna.Trial, name: str, searched: Any) -> Any:
    """Draw one field as the study file says."""
    if isinstance(searched, list):
        return trial.suggest_categorical(name, searched)
    if isinstance(searched["low"], int):
        return trial.suggest_int(name, searched["low"], searched["high"])
    return trial.suggest_float(name, searched["low"], searched["high"], log=searched.get("log", False))


def optimizer_and_schedule(config: Config, model: nn.Module, num_steps: int, num_warmup: int) -> tuple[Any, Any]:
    """AdamW that spares norms and biases; a linear rise, then a cosine to 0, a step at a time."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.optim.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.optim.lr)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_epoch(
    model: nn.Module, loader: DataLoader[Any], loss_function: nn.Module, optimizer: Any, schedule: Any
) -> float:
    """Train one epoch; the mean loss."""
    model.train()
    total = 0.0
    for images, labels in loader:
        loss = loss_function(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item() * len(labels)
    return total / len(loader.dataset)


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader[Any]) -> tuple[float, float]:
    """Mean loss and accuracy."""
    model.eval()
    total, correct = 0.0, 0
    for images, labels in loader:
        logits = model(images)
        total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
    return total / len(loader.dataset), correct / len(loader.dataset)


def train(config: Config, dataset: data.Dataset, trial: optuna.Trial, checkpoint: Path) -> tuple[float, bool]:
    """Train one trial, its metrics logged an epoch, its best weights in `checkpoint`; best accuracy, and if pruned."""
    torch.manual_seed(config.fit.seed)
    info, batch_size = dataset.info, config.fit.batch_size
    train_images = Images(dataset.train, transform(info, crop=config.augment.crop))
    train_loader = DataLoader(train_images, batch_size, shuffle=True)
    val_loader = DataLoader(Images(dataset.val, transform(info)), VAL_BATCH_SIZE)
    model = build_model(config, info)
    num_steps = len(train_loader) * config.fit.epochs
    optimizer, schedule = optimizer_and_schedule(config, model, num_steps, len(train_loader))
    loss_function = nn.CrossEntropyLoss(label_smoothing=config.optim.label_smoothing)
    best = -1.0
    for epoch in range(1, config.fit.epochs + 1):
        lr = schedule.get_last_lr()[0]
        train_loss = train_epoch(model, train_loader, loss_function, optimizer, schedule)
        val_loss, val_accuracy = evaluate(model, val_loader)
        metrics = {"train_loss": train_loss, "val_loss": val_loss, "val_accuracy": val_accuracy, "lr": lr}
        mlflow.log_metrics(metrics, step=epoch)
        if val_accuracy > best:
            best = val_accuracy
            torch.save({"model": model.state_dict(), "config": flatten(config), "epoch": epoch}, checkpoint)
        trial.report(val_accuracy, epoch)
        if epoch < config.fit.epochs and trial.should_prune():
            return best, True
    return best, False


def objective(trial: optuna.Trial, *, fixed: dict[str, Any], space: dict[str, Any], dataset: data.Dataset) -> float:
    """One trial as one MLflow run."""
    values = {name: suggest(trial, name, searched) for name, searched in space.items()}
    config = make(Config, {**fixed, **values})
    checkpoint = checkpoint_file(trial.number)
    with mlflow.start_run(run_name=f"trial {trial.number}", nested=True) as run:
        trial.set_user_attr("run_id", run.info.run_id)
        mlflow.log_params(flatten(config))
        best, pruned = train(config, dataset, trial, checkpoint)
        mlflow.log_metric("best_val_accuracy", best)
        mlflow.set_tag("state", "pruned" if pruned else "complete")
        mlflow.log_artifact(str(checkpoint), "checkpoint")
    if pruned:
        raise optuna.TrialPruned
    return best


def checkpoint_file(number: int) -> Path:
    return Path("checkpoints") / f"trial-{number:04}.pt"


def export(trial: optuna.trial.FrozenTrial, dataset: data.Dataset) -> float:
    """Log a trial's ONNX file to its run; the largest difference of its logits from PyTorch's."""
    saved = torch.load(checkpoint_file(trial.number), weights_only=True)
    model = build_model(make(Config, saved["config"]), dataset.info).eval()
    model.load_state_dict(saved["model"])
    prepare = transform(dataset.info)
    images = torch.stack([prepare(image) for image in dataset.val.images[:64]])
    file = Path("checkpoints") / f"trial-{trial.number:04}" / "model.onnx"
    file.parent.mkdir()
    torch.onnx.export(
        model,
        (images,),
        file,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(images).numpy()
    difference = float(np.abs(session.run(None, {"images": images.numpy()})[0] - expected).max())
    with mlflow.start_run(run_id=trial.user_attrs["run_id"], nested=True):
        mlflow.log_metric("onnx_max_difference", difference)
        mlflow.log_artifact(str(file), "onnx")
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    told = YAML(typ="safe").load(STUDY_FILE)
    fixed = {**told["fixed"], "epochs": arguments.epochs}
    dataset = data.load(make(Config, {}).dataset)
    Path("checkpoints").mkdir()
    mlflow.set_tracking_uri(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    mlflow.create_experiment(NAME, artifact_location=(Path.cwd() / "artifacts").as_uri())
    mlflow.set_experiment(NAME)
    study = optuna.create_study(
        study_name=NAME,
        storage="sqlite:///optuna.db",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=PRUNER,
    )
    with mlflow.start_run(run_name=NAME):
        study.optimize(partial(objective, fixed=fixed, space=told["space"], dataset=dataset), arguments.trials)
        mlflow.log_metric("best_val_accuracy", study.best_value)
        complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
        for trial in sorted(complete, key=lambda trial: -(trial.value or 0.0))[:NUM_EXPORTS]:
            export(trial, dataset)
    print(f"best trial {study.best_trial.number}: val_accuracy {study.best_value:.4f}")


if __name__ == "__main__":
    main()
