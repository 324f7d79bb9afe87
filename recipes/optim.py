"""Optimisers, parameter groups, learning rates, and the average of the weights."""

from __future__ import annotations

import copy
import inspect
import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from recipes.config import OptimConfig

# A cycle rises for this share of the steps, from and to these shares of the peak (Smith and Topin 2017,
# arXiv 1708.07120; the values of torch's OneCycleLR).
CYCLE_RISE, CYCLE_START, CYCLE_END = 0.3, 1 / 25, 1 / 25e4
PLATEAU_THRESHOLD = 1e-4  # a loss is lower if it is by this share, as in torch's ReduceLROnPlateau


# -- optimisers


def build(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer | Several:
    """The optimiser over all parameters that ask for a gradient.

    A model may have `lr_shares`, the beginning of parameters' names -> their share of the learning rate.
    """
    if config.optimizer == "muon":
        return _muon(config, model)
    groups = [
        {**group, "lr_share": share}
        for share, parameters in _by_share(model).items()
        for group in parameter_groups(parameters, config.weight_decay)
    ]
    betas = (config.beta1, config.beta2)
    optimizer: torch.optim.Optimizer
    match config.optimizer:  # in one fused kernel a group, where there is one
        case "adamw":
            optimizer = _AdamW(groups, lr=config.lr, betas=betas, fused=True)
        case "adam":
            optimizer = _Adam(groups, lr=config.lr, betas=betas, fused=True)
        case "sgd":
            nesterov = config.nesterov and config.momentum > 0
            optimizer = _SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)
        case "rmsprop":
            optimizer = _RMSprop(groups, lr=config.lr, momentum=config.momentum)
    return optimizer


def _muon(config: OptimConfig, model: nn.Module) -> Several:
    """Muon on matrices, AdamW on all else, with one learning rate for both (Liu et al. 2025, arXiv 2502.16982)."""
    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for share, parameters in _by_share(model).items():
        two = [parameter for parameter in parameters if parameter.ndim == 2]
        matrices += [{"params": two, "lr_share": share}] if two else []
        rest = parameter_groups([parameter for parameter in parameters if parameter.ndim != 2], config.weight_decay)
        others += [{**group, "lr_share": share} for group in rest]
    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(
            _Muon(
                matrices,
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                nesterov=config.nesterov,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if others:
        found.append(_AdamW(others, lr=config.lr, betas=(config.beta1, config.beta2), fused=True))
    return Several(found)


class Several:
    """Optimisers of different parameters as one."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all of them."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """One step of each."""
        for optimizer in self._optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The states of all of them."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        for optimizer, own in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)


def _by_share(model: nn.Module) -> dict[float, list[nn.Parameter]]:
    """Share of the learning rate -> the parameters that ask for a gradient and learn with it."""
    shares: Mapping[str, float] = getattr(model, "lr_shares", {})
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            share = next((share for prefix, share in shares.items() if name.startswith(prefix)), 1.0)
            found.setdefault(share, []).append(parameter)
    return found


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Those that ask for a gradient: weights with decay; norms and biases, which have one dimension, without."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _without_compiler_hooks(base: type[torch.optim.Optimizer]) -> type[Any]:
    """`base` with its methods unwrapped from their guards for `torch.compile`.

    A guard imports `torch._dynamo` at its first call, which costs a second in every process that trains; nothing here
    compiles an optimiser step. A method that has no guard is taken as it is.
    """
    plain = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(base, name)) for name in plain}
    return type(base.__name__, (base,), {**methods, "step": torch.no_grad()(inspect.unwrap(base.step))})


_AdamW = _without_compiler_hooks(torch.optim.AdamW)
_Adam = _without_compiler_hooks(torch.optim.Adam)
_SGD = _without_compiler_hooks(torch.optim.SGD)
_RMSprop = _without_compiler_hooks(torch.optim.RMSprop)
_Muon = _without_compiler_hooks(torch.optim.Muon)


# -- learning rates


def learning_rate(
    config: OptimConfig, *, step: int, steps_per_epoch: int, num_epochs: int, num_drops: int = 0
) -> float:
    """The learning rate of a step counted from 0: a linear rise to where the schedule begins, then the schedule.

    Of a plateau, `num_drops` says how often it has dropped.
    """
    num_steps = steps_per_epoch * num_epochs
    num_warmup = min(round(config.warmup_epochs * steps_per_epoch), num_steps)
    if step < num_warmup:
        begin = CYCLE_START if config.schedule == "onecycle" else 1.0
        return config.lr * begin * (step + 1) / num_warmup
    progress = (step - num_warmup) / (num_steps - num_warmup)
    match config.schedule:
        case "step" | "multistep":
            num_drops = _num_drops(config, step // steps_per_epoch, num_epochs)
            share = config.gamma**num_drops
        case "plateau":
            share = config.gamma**num_drops
        case _:
            share = _smooth_share(config, progress)
    return config.lr * share


def _smooth_share(config: OptimConfig, progress: float) -> float:
    """The share of the peak at a `progress` from 0 to 1 through what follows the warm-up."""
    match config.schedule:
        case "cosine":
            return _cosine(1.0, config.final_lr, progress)
        case "linear":
            return 1.0 - (1.0 - config.final_lr) * progress
        case "exponential":
            return math.pow(config.final_lr, progress)
        case "onecycle" if progress < CYCLE_RISE:
            return _cosine(CYCLE_START, 1.0, progress / CYCLE_RISE)
        case "onecycle":
            return _cosine(1.0, CYCLE_END, (progress - CYCLE_RISE) / (1.0 - CYCLE_RISE))
    return 1.0  # constant


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _num_drops(config: OptimConfig, epoch: int, num_epochs: int) -> int:
    """How often `step` or `multistep` has dropped by an epoch counted from 0."""
    if config.schedule == "step":
        return epoch // config.step_epochs
    return sum(epoch >= round(float(share) * num_epochs) for share in config.milestones.split())


def num_plateau_drops(config: OptimConfig, losses: Sequence[float]) -> int:
    """How often `plateau` has dropped after epochs of these losses; a training that goes on finds the same number."""
    best, num_bad, num_drops = math.inf, 0, 0
    for loss in losses:
        is_lower = loss < best * (1 - PLATEAU_THRESHOLD)
        best, num_bad = (loss, 0) if is_lower else (best, num_bad + 1)
        if num_bad > config.plateau_epochs:
            num_drops, num_bad = num_drops + 1, 0
    return num_drops


def set_learning_rate(optimizer: torch.optim.Optimizer | Several, value: float) -> None:
    """The learning rate of the next step, for each group its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_share"]


# -- the average of the weights


class WeightAverage:
    """A copy of a model whose weights and running statistics follow it slowly.

    At step t the decay is at most (1 + t) / (10 + t), so that the untrained weights are soon forgotten.
    (Tarvainen and Valpola 2017, arXiv 1703.01780; the ramp is TensorFlow's.)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averaged, self._followed = [pair[0] for pair in floats], [pair[1] for pair in floats]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]  # of a norm's batches

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the model after its step, counted from 0."""
        torch._foreach_lerp_(self._averaged, self._followed, 1 - min(self._decay, (1 + step) / (10 + step)))
        for own, followed in self._counts:
            own.copy_(followed)


def _tensors(model: nn.Module) -> list[Tensor]:
    """All that changes in training, in place."""
    return [*model.parameters(), *model.buffers()]
