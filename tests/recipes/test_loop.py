from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import recipes
from recipes import checkpoint, cnn, data, loop, mlp, model_file, profiling
from recipes.augment import Batches
from recipes.config import make
from recipes.data import Dataset, Split
from recipes.device import choose_device, random_states, set_random_states
from recipes.loop import Attempt
from recipes.model_file import ModelFileError
from recipes.speed import results
from recipes.training import DivergedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from recipes.loop import Epoch


def configured(**values: Any) -> mlp.Config:
    return make(mlp.Config, {"epochs": 4, "batch_size": 16, "warmup_epochs": 0.0, **values})


def linear(_config: mlp.Config, _info: data.ImageInfo) -> nn.Module:
    return nn.Linear(4, 4)


class Scripted(nn.Module):
    """In its n-th evaluation as right and as sure as the script says; training does nothing."""

    def __init__(self, script: list[tuple[int, float]]) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.script, self.evaluations = script, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return x + self.unused
        num_wrong, scale = self.script[self.evaluations]
        self.evaluations += 1
        return torch.cat([x[:num_wrong].roll(1, 1), x[num_wrong:]]) * scale


def scripted(features: Dataset, script: list[tuple[int, float]], **values: Any) -> list[Epoch]:
    config = configured(epochs=len(script), **values)
    return list(loop.fit(config, lambda *_: Scripted(script), recipe="mlp", dataset=features))


def comparable(epochs: list[Epoch]) -> list[tuple[int, dict[str, float], bool]]:
    return [(epoch.number, results(epoch.metrics), epoch.is_best) for epoch in epochs]


def test_metrics_are_those_of_the_validation_split(features):
    (epoch,) = scripted(features, [(8, 2.0)])
    values = features.val.images * 2
    logits = torch.cat([values[:8].roll(1, 1), values[8:]])
    assert epoch.metrics["val_accuracy"] == 0.75
    assert epoch.metrics["val_loss"] == pytest.approx(nn.functional.cross_entropy(logits, features.val.labels).item())
    assert epoch.metrics["train_loss"] == pytest.approx(
        nn.functional.cross_entropy(features.train.images, features.train.labels, label_smoothing=0.1).item()
    )
    assert epoch.metrics["lr"] == pytest.approx(0.5 * 3e-3), "of the second and last step of a cosine"
    assert (epoch.number, epoch.saved) == (1, None)


def test_accuracy_counts_before_loss_and_of_equals_the_first_stays_best(features):
    script = [(8, 1.0), (8, 1.0), (8, 2.0), (4, 9.0), (4, 8.0), (8, 0.5), (4, 9.0)]
    epochs = scripted(features, script)
    losses = [epoch.metrics["val_loss"] for epoch in epochs]
    assert losses[3] > losses[2], "the script is to have a better accuracy at a worse loss"
    assert [epoch.is_best for epoch in epochs] == [True, False, True, True, True, False, False]


def test_patience_counts_epochs_since_the_best(features):
    script = [(8, 1.0), (4, 1.0), (8, 1.0), (8, 1.0), (8, 1.0), (0, 1.0)]
    assert len(scripted(features, script, patience=3)) == 5
    assert len(scripted(features, script, patience=4)) == 6
    assert len(scripted(features, script, patience=0)) == 6


@pytest.mark.parametrize("split", ["train", "val"])
def test_divergence_is_raised_and_has_no_checkpoint(features, tmp_path, split):
    images = getattr(features, split).images.clone()
    images[3, 0] = float("inf")
    broken = replace(features, **{split: Split(images=images, labels=features.train.labels)})
    with pytest.raises(DivergedError, match=rf"{split}_loss is (nan|inf)"):
        list(loop.fit(configured(), linear, Attempt(folder=tmp_path), recipe="mlp", dataset=broken))
    assert list(tmp_path.iterdir()) == []


def test_infinite_loss_is_divergence_too(features):
    with pytest.raises(DivergedError, match="val_loss is inf"):
        scripted(features, [(32, 3e38)])


def test_divergence_after_good_epochs_keeps_their_best(features, tmp_path):
    config = configured(optimizer="sgd", lr=1e19, schedule="constant", warmup_epochs=1e6)
    with pytest.raises(DivergedError):
        list(loop.fit(config, linear, Attempt(folder=tmp_path), recipe="mlp", dataset=features))
    history = checkpoint.read_history(tmp_path)
    assert all(np.isfinite(epoch["metrics"]["train_loss"]) for epoch in history)


def test_closing_midway_leaves_whole_files(features, tmp_path):
    epochs = loop.fit(configured(), linear, Attempt(folder=tmp_path), recipe="mlp", dataset=features)
    first, second = next(epochs), next(epochs)
    epochs.close()
    assert second.saved is not None
    assert second.saved.done()
    assert [epoch["metrics"] for epoch in checkpoint.read_history(tmp_path)] == [first.metrics, second.metrics]
    metadata, _ = model_file.read_model(tmp_path / "best.safetensors")
    assert metadata["epoch"] == 2
    assert not list(tmp_path.glob("*.tmp"))


def test_history_is_not_what_the_receiver_makes_of_it(features, tmp_path):
    for epoch in loop.fit(configured(epochs=2), linear, Attempt(folder=tmp_path), recipe="mlp", dataset=features):
        epoch.metrics.clear()
    assert all("val_loss" in epoch["metrics"] for epoch in checkpoint.read_history(tmp_path))


def test_same_seed_gives_the_same_bits_and_another_does_not():
    def run(seed: int) -> list[tuple[int, dict[str, float], bool]]:
        values = {"epochs": 2, "width": 4, "batch_size": 256, "dropout": 0.3, "crop": 1, "flip": 0.5, "cutout": 2}
        return comparable(list(cnn.train(make(cnn.Config, {**values, "seed": seed}))))

    first = run(0)
    torch.rand(7), np.random.rand(7), random.random()
    assert run(0) == first
    assert run(1) != first


def test_every_image_is_trained_on_once_an_epoch_in_another_order(features):
    seen: list[int] = []

    class Watching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.extend(x[:, 0].tolist())
            return super().forward(x[:, 1:])

    numbered = torch.cat([torch.arange(32.0)[:, None], features.train.images], 1)
    both = Split(images=numbered, labels=features.train.labels)
    dataset = replace(features, train=both, val=both)
    list(loop.fit(configured(epochs=2, batch_size=5), lambda *_: Watching(4, 4), recipe="mlp", dataset=dataset))
    first, second = seen[:32], seen[32:]
    assert sorted(first) == sorted(second) == list(range(32))
    assert first != second != sorted(second)


def test_steps_are_of_equal_size(features):
    sizes: list[int] = []

    class Watching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                sizes.append(len(x))
            return super().forward(x)

    list(loop.fit(configured(epochs=1, batch_size=31), lambda *_: Watching(4, 4), recipe="mlp", dataset=features))
    assert sizes == [16, 16]


@pytest.mark.parametrize("same_folder", [True, False])
def test_stopped_training_goes_on_with_the_same_bits(tmp_path, same_folder):
    config = make(
        cnn.Config, {"epochs": 4, "width": 4, "batch_size": 256, "dropout": 0.3, "flip": 0.5, "warmup_epochs": 2.0}
    )
    straight = list(cnn.train(config, Attempt(folder=tmp_path / "straight")))
    first = tmp_path / "first"
    second = first if same_folder else tmp_path / "second"
    stopped = cnn.train(config, Attempt(folder=first))
    begun = [next(stopped), next(stopped)]
    stopped.close()
    torch.manual_seed(99)
    resumed = list(cnn.train(config, Attempt(folder=second, resume_from=first)))
    assert comparable([*begun, *resumed]) == comparable(straight)
    assert (second / "best.safetensors").read_bytes() == (tmp_path / "straight" / "best.safetensors").read_bytes()


def test_all_random_states_come_back():
    device = torch.device("cpu")

    def draws() -> list[Any]:
        return [torch.rand(2).tolist(), np.random.rand(2).tolist(), np.random.randn(), random.random()]

    np.random.randn()  # half of a pair: the other half is part of the state
    states = random_states(device)
    expected = draws()
    set_random_states(states, device)
    assert draws() == expected


def test_finished_training_has_nothing_to_add_and_still_its_best(features, tmp_path):
    config = configured(epochs=2)
    list(loop.fit(config, linear, Attempt(folder=tmp_path / "1"), recipe="mlp", dataset=features))
    again = Attempt(folder=tmp_path / "2", resume_from=tmp_path / "1")
    assert list(loop.fit(config, linear, again, recipe="mlp", dataset=features)) == []
    metadata, _ = model_file.read_model(tmp_path / "2" / "best.safetensors")
    assert metadata["epoch"] == 2


def test_earlier_attempt_without_a_checkpoint_means_from_the_start(features, tmp_path):
    (tmp_path / "1").mkdir()
    attempt = Attempt(folder=tmp_path / "2", resume_from=tmp_path / "1")
    epochs = loop.fit(configured(epochs=2), linear, attempt, recipe="mlp", dataset=features)
    assert [epoch.number for epoch in epochs] == [1, 2]


def test_flipped_byte_costs_an_epoch_and_not_the_bits(tmp_path, caplog):
    config = make(mlp.Config, {"epochs": 3, "width": 16, "batch_size": 256})
    straight = list(mlp.train(config, Attempt(folder=tmp_path / "1")))
    path = tmp_path / "1" / "epoch-0003.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    resumed = list(mlp.train(config, Attempt(folder=tmp_path / "2", resume_from=tmp_path / "1")))
    assert comparable(resumed) == comparable(straight[2:])
    assert "epoch-0003.pt" in caplog.text


@pytest.fixture
def trained(tmp_path) -> Iterator[tuple[Path, Epoch]]:
    epochs = list(mlp.train(make(mlp.Config, {"epochs": 2, "width": 16}), Attempt(folder=tmp_path)))
    return tmp_path / "best.safetensors", [epoch for epoch in epochs if epoch.is_best][-1]


def test_restored_model_gives_the_metrics_of_its_epoch(trained):
    path, best = trained
    model, info, metadata = model_file.restore_model(recipes.load("mlp"), path)
    dataset = data.load(mlp.Config().dataset)
    assert info == dataset.info
    assert not model.training
    assert (metadata["recipe"], metadata["epoch"], metadata["metrics"]) == ("mlp", best.number, results(best.metrics))
    assert metadata["config"]["width"] == 16
    logits = model((dataset.val.images / 255 - info.mean[0]) / info.std[0])
    accuracy = (logits.argmax(1) == dataset.val.labels).float().mean().item()
    assert accuracy == pytest.approx(best.metrics["val_accuracy"])


def rewritten(path: Path, **changes: Any) -> None:
    """The same model under another header."""
    from safetensors.torch import save_file

    metadata, tensors = model_file.read_model(path)
    save_file(tensors, path, {model_file.METADATA_KEY: json.dumps({**metadata, **changes})})


def test_model_of_another_architecture_names_the_first_difference(trained):
    path, _ = trained
    metadata, _ = model_file.read_model(path)
    rewritten(path, config={"width": 16})  # a field that both recipes have
    with pytest.raises(ModelFileError, match=r"0.weight is missing in the file and \(16, 1, 3, 3\) in the model"):
        model_file.restore_model(recipes.load("cnn"), path)
    rewritten(path, config={**metadata["config"], "width": 32})
    with pytest.raises(ModelFileError, match=r"1.weight is \(16, 64\) in the file and \(32, 64\) in the model"):
        model_file.restore_model(recipes.load("mlp"), path)


@pytest.mark.parametrize("config", [{"nonsense": 1}, {"width": "wide"}, {"lr": -1.0, "depth": 0}])
def test_model_of_another_config_is_refused_in_one_line(trained, config):
    path, _ = trained
    rewritten(path, config=config)
    with pytest.raises(ModelFileError, match=next(iter(config))) as caught:
        model_file.restore_model(recipes.load("mlp"), path)
    assert "\n" not in str(caught.value)


def test_model_of_a_newer_format_is_refused(trained):
    path, _ = trained
    rewritten(path, format_version=2)
    with pytest.raises(ModelFileError, match="format version 1: it says 2"):
        model_file.read_model(path)


@pytest.mark.parametrize("header", [{}, {"format_version": 1}, {"format_version": 1, "info": {}}, [1]])
def test_model_with_half_a_header_is_refused(trained, header):
    from safetensors.torch import save_file

    path, _ = trained
    save_file(model_file.read_model(path)[1], path, {model_file.METADATA_KEY: json.dumps(header)})
    with pytest.raises(ModelFileError, match=str(path)):
        model_file.restore_model(recipes.load("mlp"), path)


def test_what_is_no_model_is_refused_and_never_runs(trained, tmp_path):
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    whole = trained[0].read_bytes()
    torch.save(Hostile(), tmp_path / "pickled")
    safe = {"empty": b"", "text": b"not a model\n" * 9, "truncated": whole[:-5], "beheaded": whole[5:]}
    for name, content in safe.items():
        (tmp_path / name).write_bytes(content)
    for name in [*safe, "pickled", "absent"]:
        with pytest.raises(ModelFileError, match=name):
            model_file.read_model(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "cpu:1", "CUDA"])
def test_device_that_is_not_there_is_one_line_that_says_what_is(name):
    with pytest.raises(ValueError, match=rf"^device '{name}' is not there; this machine has: .*cpu$"):
        next(loop.fit(configured(device=name), linear, recipe="mlp"))


def test_auto_takes_the_best_device():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == expected
    assert choose_device("cpu") == torch.device("cpu")


def test_convolutions_get_channels_last_batches_and_weights():
    layouts: list[bool] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            layouts.append(x.is_contiguous(memory_format=torch.channels_last))
            layouts.append(self.conv.weight.is_contiguous(memory_format=torch.channels_last))
            return self.conv(x).mean((2, 3))

    images = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8)
    split = Split(images=images, labels=torch.arange(16) % 10)
    info = replace(data.load(mlp.Config().dataset).info, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    dataset = Dataset(info=info, train=split, val=split, test=split, data_fingerprint="d", split_fingerprint="s")
    list(loop.fit(configured(epochs=1, device="cpu"), lambda *_: Watching(), recipe="mlp", dataset=dataset))
    assert layouts
    assert all(layouts)


@pytest.mark.parametrize(
    "values",
    [
        {"clip_norm": 1e-3},
        {"clip_value": 1e-3},
        {"label_smoothing": 0.5},
        {"weight_decay": 0.9},
        {"nesterov": False},
        {"loss": "focal"},
        {"balance": "sampler"},
    ],
)
def test_field_of_the_optimiser_changes_the_training(features, values):
    def run(**values: Any) -> list[float]:
        config = configured(optimizer="sgd", **values)
        return [epoch.metrics["train_loss"] for epoch in loop.fit(config, linear, recipe="mlp", dataset=features)]

    assert run(**values) != run()


def test_batch_in_parts_is_the_batch(features):
    """A linear layer has no batch norm, whose statistics would be those of a part."""

    def run(**values: Any) -> list[list[float]]:
        found = loop.fit(configured(clip_norm=0.5, **values), linear, recipe="mlp", dataset=features)
        return [list(results(epoch.metrics).values()) for epoch in found]

    for parts in (2, 5, 999):
        assert run(accumulate=parts) == [pytest.approx(metrics, rel=1e-4) for metrics in run()]


def test_average_of_the_weights_is_what_is_validated_and_kept(tmp_path):
    config = make(mlp.Config, {"epochs": 3, "batch_size": 64, "ema": 0.95, "width": 32})
    *_, last = mlp.train(config, Attempt(folder=tmp_path))
    model, info, _ = model_file.restore_model(recipes.load("mlp"), tmp_path / "best.safetensors")
    val = data.load(config.dataset).val
    prepare = Batches(val, info, memory_format=torch.contiguous_format)
    with torch.inference_mode():
        images, labels = prepare(torch.arange(len(val.labels)))
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
    assert last.is_best
    assert accuracy == pytest.approx(last.metrics["val_accuracy"], abs=1 / len(labels))
    *_, plain = mlp.train(make(mlp.Config, {"epochs": 3, "batch_size": 64, "width": 32}))
    assert plain.metrics["train_loss"] == last.metrics["train_loss"], "training does not know of the average"
    assert plain.metrics["val_loss"] != last.metrics["val_loss"]


def test_profile_leaves_a_trace_and_a_table_and_the_same_bits(tmp_path):
    values = {"epochs": 2, "batch_size": 128, "width": 16}
    plain = list(mlp.train(make(mlp.Config, values), Attempt(folder=tmp_path / "plain")))
    watched = list(mlp.train(make(mlp.Config, {**values, "profile": True}), Attempt(folder=tmp_path / "watched")))
    assert comparable(watched) == comparable(plain)
    events = json.loads((tmp_path / "watched" / "trace.json").read_text())["traceEvents"]
    steps = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
    assert len(steps) == profiling.NUM_STEPS
    table = (tmp_path / "watched" / "operators.txt").read_text()
    assert table.startswith("10 training steps\n")
    assert table.count("aten::") > 10
    assert "Self CPU time total" in table
    assert not (tmp_path / "plain" / "trace.json").exists()


def test_sampler_draws_rare_classes_as_often_as_others(features):
    rare = (torch.arange(len(features.train.labels)) % 8 == 0).long()
    images = torch.nn.functional.one_hot(rare, 4).float()
    seen: list[torch.Tensor] = []

    class Watching(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(x[:, 1])
            return super().forward(x)

    dataset = replace(features, train=Split(images=images, labels=rare))
    config = configured(epochs=50, balance="sampler")
    list(loop.fit(config, lambda *_: Watching(4, 4), recipe="mlp", dataset=dataset))
    assert torch.cat(seen).mean().item() == pytest.approx(0.5, abs=0.1)


def test_plateau_drops_the_rate_when_val_loss_stays(features):
    epochs = scripted(features, [(0, 3.0)] * 6, schedule="plateau", plateau_epochs=1, gamma=0.5, lr=1.0)
    assert [epoch.metrics["lr"] for epoch in epochs] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("optimizer", ["muon", "rmsprop"])
def test_stopped_training_goes_on_with_the_same_bits_whatever_is_on(tmp_path, optimizer):
    values = {"optimizer": optimizer, "ema": 0.9, "accumulate": 3, "balance": "sampler", "loss": "focal"}
    values |= {"schedule": "plateau", "plateau_epochs": 1, "clip_value": 0.1, "dropout": 0.2, "lr": 0.05}
    config = make(mlp.Config, {"epochs": 6, "batch_size": 128, "width": 16, "warmup_epochs": 0.0, **values})
    straight = list(mlp.train(config, Attempt(folder=tmp_path / "straight")))
    stopped = mlp.train(config, Attempt(folder=tmp_path / "first"))
    begun = [next(stopped) for _ in range(3)]
    stopped.close()
    torch.manual_seed(99)
    resumed = list(mlp.train(config, Attempt(folder=tmp_path / "second", resume_from=tmp_path / "first")))
    assert comparable([*begun, *resumed]) == comparable(straight)
    best = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("second", "straight")]
    assert best[0] == best[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_cuda_learns_in_every_precision(precision, tmp_path):
    config = make(cnn.Config, {"epochs": 8, "device": "cuda", "precision": precision, "clip_norm": 1.0})
    epochs = cnn.train(config, Attempt(folder=tmp_path / "1"))
    for _ in range(4):
        next(epochs)
    epochs.close()
    *_, last = cnn.train(config, Attempt(folder=tmp_path / "2", resume_from=tmp_path / "1"))
    assert last.metrics["val_accuracy"] > 0.95
