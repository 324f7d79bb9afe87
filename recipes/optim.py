"""Optimiser, parameter groups, learning rate and loss."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

    from recipes.config import OptimConfig


def build(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over all parameters that ask for a gradient, in one fused kernel a group."""
    groups = parameter_groups(model, config.weight_decay)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        optimizer = _AdamW(groups, lr=config.lr, fused=True)
    else:
        optimizer = _SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    return optimizer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights with decay; norms and biases, which have one dimension, without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(config: OptimConfig, *, step: int, steps_per_epoch: int, num_epochs: int) -> float:
    """The learning rate of a step counted from 0: a linear rise to the peak, then a cosine to 0, or constant."""
    num_steps = steps_per_epoch * num_epochs
    num_warmup = min(round(config.warmup_epochs * steps_per_epoch), num_steps)
    if step < num_warmup:
        return config.lr * (step + 1) / num_warmup
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / (num_steps - num_warmup)))


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The learning rate of the next step, for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = value


def _without_compiler_hooks(base: type[torch.optim.Optimizer]) -> type[Any]:
    """`base` with its methods unwrapped from their guards for `torch.compile`.

    A guard imports `torch._dynamo` at its first call, which costs a second in every process that trains; nothing here
    compiles an optimiser step. A method that has no guard is taken as it is.
    """
    plain = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(base, name)) for name in plain}
    return type(base.__name__, (base,), {**methods, "step": torch.no_grad()(inspect.unwrap(base.step))})


_AdamW = _without_compiler_hooks(torch.optim.AdamW)
_SGD = _without_compiler_hooks(torch.optim.SGD)
