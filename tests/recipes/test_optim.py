from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

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


def rates_of_torch(scheduler, *, steps_per_epoch, num_epochs, losses=None):
    """The rates that a scheduler of torch's gives, a step each; one that goes by epochs steps after each of them."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = scheduler(optimizer)
    values = []
    for epoch in range(num_epochs):
        for _ in range(steps_per_epoch):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if isinstance(schedule, BY_STEPS):
                schedule.step()
        if losses is not None:
            schedule.step(losses[epoch])
        elif not isinstance(schedule, BY_STEPS):
            schedule.step()
    return values


BY_STEPS = (lr_scheduler.OneCycleLR, lr_scheduler.CosineAnnealingLR, lr_scheduler.LinearLR)


@pytest.mark.parametrize(
    ("fields", "scheduler"),
    [
        ({"schedule": "step", "step_epochs": 3}, lambda o: lr_scheduler.StepLR(o, 3, 0.1)),
        ({"schedule": "step", "step_epochs": 1, "gamma": 0.5}, lambda o: lr_scheduler.StepLR(o, 1, 0.5)),
        ({"schedule": "multistep"}, lambda o: lr_scheduler.MultiStepLR(o, [4, 6], 0.1)),
        ({"schedule": "multistep", "milestones": 0.25}, lambda o: lr_scheduler.MultiStepLR(o, [2], 0.1)),
        ({"schedule": "cosine", "final_lr": 0.1}, lambda o: lr_scheduler.CosineAnnealingLR(o, 80, 0.05)),
        ({"schedule": "linear", "final_lr": 0.2}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, 80)),
        ({"schedule": "constant"}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
    ],
)
def test_schedule_is_that_of_torch(fields, scheduler):
    config = OptimConfig(lr=0.5, warmup_epochs=0.0, **fields)
    assert rates(config, num_epochs=8) == pytest.approx(rates_of_torch(scheduler, steps_per_epoch=10, num_epochs=8))


def test_exponential_falls_by_the_same_factor_each_step():
    values = rates(OptimConfig(lr=0.5, warmup_epochs=0.0, schedule="exponential", final_lr=0.01))
    assert values[0] == 0.5
    factors = [later / earlier for earlier, later in itertools.pairwise(values)]
    assert factors == pytest.approx([0.01 ** (1 / 40)] * 39)


def test_cycle_rises_and_falls_like_that_of_torch():
    def scheduler(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=1001, cycle_momentum=False)

    ours = rates(OptimConfig(lr=0.5, warmup_epochs=0.0, schedule="onecycle"), steps_per_epoch=100, num_epochs=10)
    theirs = rates_of_torch(scheduler, steps_per_epoch=100, num_epochs=10)
    assert ours[0] == theirs[0] == pytest.approx(0.02)
    assert max(ours) == pytest.approx(0.5)
    assert ours == pytest.approx(theirs, abs=0.003)  # its peak is one step off


def test_warm_up_rises_to_where_the_schedule_begins():
    values = rates(OptimConfig(lr=0.5, warmup_epochs=1.0, schedule="onecycle"))
    assert values[:10] == pytest.approx([0.002 * step for step in range(1, 11)])
    assert values[10] == pytest.approx(0.02)


@pytest.mark.parametrize(
    "losses",
    [[1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5, 0.6, 0.6, 0.6, 0.6], [1.0] * 12, [1 / n for n in range(1, 13)]],
)
def test_plateau_drops_when_that_of_torch_does(losses):
    config = OptimConfig(lr=0.5, warmup_epochs=0.0, schedule="plateau", plateau_epochs=2, gamma=0.5)
    ours = [
        optim.learning_rate(
            config,
            step=epoch,
            steps_per_epoch=1,
            num_epochs=12,
            num_drops=optim.num_plateau_drops(config, losses[:epoch]),
        )
        for epoch in range(12)
    ]
    theirs = rates_of_torch(
        lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=2),
        steps_per_epoch=1,
        num_epochs=12,
        losses=losses,
    )
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "exponential"},
        {"milestones": "0.5,0.75"},
        {"milestones": ""},
        {"milestones": "0.5 1.5"},
        {"schedule": "polynomial"},
    ],
)
def test_schedule_that_is_impossible_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        OptimConfig(**fields)


def test_norms_and_biases_have_no_decay_and_frozen_weights_no_step():
    model = small_model()
    model[0].weight.requires_grad = False
    decayed, spared = optim.parameter_groups(model.parameters(), 0.1)
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


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop"])
def test_steps_are_those_of_plain_torch(name):
    config = OptimConfig(optimizer=name, lr=0.01, weight_decay=0.1)
    ours, theirs = small_model(), small_model().to(memory_format=torch.contiguous_format)
    plain = {
        "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, foreach=False),
        "adam": lambda groups: torch.optim.Adam(groups, lr=0.01, foreach=False),
        "sgd": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, foreach=False),
        "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.9, foreach=False),
    }
    pairs = [
        (ours, optim.build(config, ours)),
        (theirs, plain[name](optim.parameter_groups(theirs.parameters(), config.weight_decay))),
    ]
    for model, optimizer in pairs:
        take_steps(model, optimizer)
    for (key, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=key)


def take_steps(model, optimizer, count=5):
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(count):
        nn.functional.cross_entropy(model(images), torch.arange(16) % 5).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_muon_takes_the_matrices_and_adamw_the_rest():
    config = OptimConfig(optimizer="muon", lr=0.01, weight_decay=0.1)
    ours, theirs = small_model(), small_model()
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    others = [p for p in theirs.parameters() if p.ndim != 2]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(optim.parameter_groups(others, 0.1), lr=0.01)

    class Both:
        def step(self):
            muon.step()
            adamw.step()

        def zero_grad(self):
            muon.zero_grad()
            adamw.zero_grad()

    take_steps(ours, optim.build(config, ours))
    take_steps(theirs, Both())
    for (key, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=key)


def test_average_follows_the_weights_slowly_and_ends_where_they_stay():
    model = small_model()
    average = optim.WeightAverage(model, 0.9)
    start = model[4].weight.detach().clone()
    with torch.no_grad():
        model[4].weight += 1.0
        model[1].running_mean += 1.0
        model[1].num_batches_tracked += 7
    average.update(step=0)
    torch.testing.assert_close(average.model[4].weight, start + 0.9)  # the first decay is 1 / 10
    torch.testing.assert_close(average.model[1].running_mean, torch.full((8,), 0.9))
    assert average.model[1].num_batches_tracked == 7
    average.update(step=10**6)
    torch.testing.assert_close(average.model[4].weight, start + 0.91)  # and the last 0.9


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_learning_rate_reaches_every_group(name):
    optimizer = optim.build(OptimConfig(optimizer=name), small_model())
    optim.set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125] * len(optimizer.param_groups)
    assert len(optimizer.param_groups) > 1


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
for optimizer in ("adam", "sgd", "rmsprop", "muon"):
    more = {"epochs": 1, "width": 4, "batch_size": 256, "optimizer": optimizer, "ema": 0.9, "clip_value": 1.0}
    list(cnn.train(make(cnn.Config, more)))
print([name for name in slow if name in sys.modules])
"""


@pytest.mark.slow
def test_training_imports_nothing_slow(run_python, tmp_path):
    assert run_python(TRAIN_A_LITTLE, tmp_path).splitlines() == ["[]", "[]"]
