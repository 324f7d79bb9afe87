from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from recipes import optim
from recipes.config import OptimConfig


def rates(config: OptimConfig, *, steps_per_epoch: int = 10, num_epochs: int = 4) -> list[float]:
    steps = range(steps_per_epoch * num_epochs)
    return [
        optim.learning_rate(config, step=step, steps_per_epoch=steps_per_epoch, num_epochs=num_epochs) for step in steps
    ]


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    return model.to(memory_format=torch.channels_last)


def test_cosine_rises_a_step_at_a_time_and_falls_to_zero():
    values = rates(OptimConfig(lr=0.5, warmup_epochs=1.0))
    assert values[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert values[10] == 0.5
    assert values[25] == pytest.approx(0.25)
    assert values[39] == pytest.approx(0.25 * (1 + math.cos(math.pi * 29 / 30)))
    assert all(later < earlier for earlier, later in itertools.pairwise(values[10:]))


def test_constant_stays_at_the_peak_after_the_warm_up():
    values = rates(OptimConfig(lr=0.5, warmup_epochs=0.5, schedule="constant"))
    assert values[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert values[5:] == [0.5] * 35


def test_no_warm_up_begins_at_the_peak():
    assert rates(OptimConfig(lr=0.5, warmup_epochs=0.0))[0] == 0.5


def test_warm_up_longer_than_the_training_only_rises():
    values = rates(OptimConfig(lr=0.5, warmup_epochs=9.0))
    assert values == pytest.approx([0.5 * step / 40 for step in range(1, 41)])


def test_norms_and_biases_have_no_decay_and_frozen_weights_no_step():
    model = small_model()
    model[0].weight.requires_grad = False
    decayed, spared = optim.parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(model[4].weight)]
    assert {id(p) for p in spared["params"]} == {id(p) for p in (model[1].weight, model[1].bias, model[4].bias)}


def test_decay_shrinks_weights_alone():
    model = small_model()
    before = copy.deepcopy(model)
    optimizer = optim.build(OptimConfig(optimizer="sgd", lr=0.1, weight_decay=0.5, momentum=0.0), model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model[0].weight, before[0].weight * 0.95)
    assert torch.equal(model[1].weight, before[1].weight)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_are_those_of_plain_torch(name):
    config = OptimConfig(optimizer=name, lr=0.01, weight_decay=0.1)
    ours, theirs = small_model(), small_model().to(memory_format=torch.contiguous_format)
    plain = {
        "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, foreach=False),
        "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, foreach=False),
    }
    pairs = [
        (ours, optim.build(config, ours)),
        (theirs, plain[name](optim.parameter_groups(theirs, config.weight_decay))),
    ]
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 5
    for _ in range(5):
        for model, optimizer in pairs:
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    for (key, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=key)


def test_learning_rate_reaches_every_group():
    optimizer = optim.build(OptimConfig(), small_model())
    optim.set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


TRAIN_A_LITTLE = """
import sys
from pathlib import Path
from recipes import cnn
from recipes.config import make
from recipes.loop import Attempt
slow = ("torchvision", "torchmetrics", "sklearn", "timm", "torch._dynamo")
print([name for name in slow if name in sys.modules])
config = make(cnn.Config, {"epochs": 2, "width": 4, "batch_size": 256, "clip_norm": 1.0})
for epoch in cnn.train(config, Attempt(folder=Path(sys.argv[1]))):
    epoch.saved.result()
again = Attempt(folder=Path(sys.argv[1]) / "again", resume_from=Path(sys.argv[1]))
list(cnn.train(make(cnn.Config, {"epochs": 3, "width": 4, "batch_size": 256, "optimizer": "adamw"}), again))
print([name for name in slow if name in sys.modules])
"""


def test_training_imports_nothing_slow(run_python, tmp_path):
    assert run_python(TRAIN_A_LITTLE, tmp_path).splitlines() == ["[]", "[]"]
