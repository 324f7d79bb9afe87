"""A model in training: what changes from step to step, and one pass over the images after another.

Nothing in a training step waits for the device: batches are made there, losses are summed there, and the sums are
fetched once an epoch.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from recipes import loading, losses, optim, tasks
from recipes.augment import Batches
from recipes.config import OBJECTIVES
from recipes.device import allow_tf32, random_states, set_random_states
from recipes.flops import size
from recipes.ranks import ALONE, Ranks
from recipes.recompute import recompute
from recipes.speed import LATENCY, latency_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from recipes.config import TrainConfig
    from recipes.data import Dataset, Loaded
    from recipes.loading import BatchT
    from recipes.profiling import Profiler

# Validation keeps nothing for a backward pass, so that several times as many images fit.
VAL_BATCH_FACTOR = 4


class DivergedError(RuntimeError):
    """The loss of an epoch is not finite."""


class Training:
    """A model in training: everything that changes from step to step."""

    def __init__(
        self, config: TrainConfig, model: nn.Module, dataset: Dataset, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        """Raises: ValueError: batches or the validation split have fewer images than there are ranks."""
        self._config = config
        self._device = device
        self._num_train, self._num_val = len(dataset.train.labels), len(dataset.val.labels)
        self._steps_per_epoch = math.ceil(self._num_train / config.fit.batch_size)
        self._ranks = ranks
        ranks.check(min(self._num_train // self._steps_per_epoch, self._num_val))
        ranks.synchronise_norms(model, device)
        # oneDNN and cuDNN convolve fastest where the channels of a pixel lie together.
        convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
        layout = torch.channels_last if convolves and device.type in ("cpu", "cuda") else torch.contiguous_format
        self._model = model.to(device).to(memory_format=layout)
        self._wrapped = ranks.wrap(self._model)
        self._optimizer = optim.build(config.optim, model)
        self._average = optim.WeightAverage(model, config.optim.ema) if config.optim.ema else None
        # After the average has its copy, which is only evaluated.
        if config.fit.activation_checkpointing:
            recompute(self._model)
        if config.fit.compile:
            self._model.compile()
        precision = config.fit.precision if device.type == "cuda" else "fp32"
        if device.type == "cuda":
            allow_tf32(precision == "tf32")
        self._autocast_type = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self._scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
        shuffle_seed, augment_seed = np.random.SeedSequence(config.fit.seed).generate_state(2).tolist()
        self._shuffle = torch.Generator().manual_seed(shuffle_seed)
        self._augment = torch.Generator(device).manual_seed(augment_seed)
        self._feed, dataset = loading.feed(dataset, config, device)
        loaded_on = None if isinstance(self._feed, loading.Resident) else device
        self._train_batches = Batches(
            dataset.train,
            dataset.info,
            memory_format=layout,
            augment=config.augment,
            generator=self._augment,
            loaded_on=loaded_on,
        )
        self._val_batches = Batches(dataset.val, dataset.info, memory_format=layout, loaded_on=loaded_on)
        self._loss = losses.Loss(config.optim, dataset.train.labels.to(device), dataset.info)
        self.objective = OBJECTIVES[dataset.info.task]
        self._judge = tasks.judge(dataset.info, dataset.val.labels.to(device))
        self._chances = None  # of each image to be drawn; None draws each once
        if config.optim.balance == "sampler":
            dataset.train.check_random_access("balance=sampler")
            labels = dataset.train.labels
            self._chances = losses.class_weights(labels, dataset.info.num_classes)[labels].cpu()
        self.profiler: Profiler | None = None
        self.gradients: dict[str, Tensor] | None = None  # of each epoch's last step; None keeps none
        self._step = 0

    def epoch(self, history: list[dict[str, Any]]) -> dict[str, float]:
        """One pass over the training images and one over the validation images, after those of `history`.

        Raises:
            DivergedError: a loss is not finite.
        """
        begin_epoch = getattr(self._model, "begin_epoch", None)
        if begin_epoch is not None:
            begin_epoch(len(history) + 1)
        self._ranks.reseed(self._config.fit.seed, len(history) + 1, self._augment)
        started = time.perf_counter()
        train_loss, lr = self._train([earlier["metrics"]["val_loss"] for earlier in history])
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)  # once an epoch: the clock is read when the steps are done
        train_seconds = max(time.perf_counter() - started, 1e-9)
        all_sums = torch.cat([train_loss.view(1), self._evaluate()])
        train_sum, *sums = self._ranks.sum(all_sums).tolist()
        metrics = {
            "train_loss": train_sum / self._num_train,
            **self._judge.metrics(sums, self._num_val),
            "lr": lr,
            "images_per_second": self._num_train / train_seconds,
            "step_seconds": train_seconds / self._steps_per_epoch,
        }
        for name in ("train_loss", "val_loss"):
            if not math.isfinite(metrics[name]):
                raise DivergedError(f"{name} is {metrics[name]} after {self._step} steps")
        return metrics

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        return self._model

    def size(self) -> dict[str, float]:
        """`num_parameters`, and `flops` of one image; what is the same in each epoch is told once."""
        return size(self._model, self.example())

    @torch.inference_mode()
    def latency(self) -> dict[str, float]:
        """`latency_ms` of one image, as validation computes it."""
        image = self.example()
        self._model.eval()
        return {LATENCY: latency_ms(lambda: self._forward(self._model, image), self._device)}

    def example(self) -> Tensor:
        """A batch of one validation image, as the model takes it."""
        return self._val_batches(self._feed.first())[0]

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """The images and targets that the next epoch begins with; it will still begin with them."""
        states = self._shuffle.get_state(), self._augment.get_state()
        _, parts = next(iter(self._feed.train(self._order(), self._steps_per_epoch, self._own)))
        batch = self._train_batches(parts[0])
        self._shuffle.set_state(states[0])
        self._augment.set_state(states[1])
        return batch

    @torch.inference_mode()
    def answers(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Logits `(N, K)` on the validation images, in order, with these weights in place of the model's own."""
        self._model.load_state_dict(weights)
        self._model.eval()
        batches = self._feed.val(torch.arange(self._num_val), self._config.fit.batch_size * VAL_BATCH_FACTOR)
        return torch.cat([self._forward(self._model, self._val_batches(batch)[0]) for batch in batches])

    def _train(self, val_losses: list[float]) -> tuple[Tensor, float]:
        """The sum of the losses of this rank, on the device, and the last learning rate."""
        self._model.train()
        total = torch.zeros((), device=self._device)
        num_drops = optim.num_plateau_drops(self._config.optim, val_losses)
        # Equal parts: a short last batch would be a noisy step, and one image has no variance for a batch norm.
        for num_images, parts in self._feed.train(self._order(), self._steps_per_epoch, self._own):
            lr = optim.learning_rate(
                self._config.optim,
                step=self._step,
                steps_per_epoch=self._steps_per_epoch,
                num_epochs=self._config.fit.epochs,
                num_drops=num_drops,
            )
            optim.set_learning_rate(self._optimizer, lr)
            total += self._train_step(parts, num_images) * num_images
        self._ranks.align(self._model)
        if self._average is not None:
            self._ranks.align(self._average.model)
        return total, lr

    def _order(self) -> Tensor:
        """The rows of an epoch, each once, or drawn so that classes are about equally frequent; a stream's seed."""
        if isinstance(self._feed, loading.Streamed):
            return torch.randint(loading.MAX_SEED, (1,), generator=self._shuffle)
        if self._chances is None:
            return torch.randperm(self._num_train, generator=self._shuffle)
        return torch.multinomial(self._chances, self._num_train, replacement=True, generator=self._shuffle)

    def _own(self, batch: BatchT) -> list[BatchT]:
        """The parts that a batch is computed in, of each what is this rank's."""
        num_parts = min(self._config.fit.accumulate, len(batch) // self._ranks.count)
        return [self._ranks.share(part) for part in batch.tensor_split(num_parts)]

    def _train_step(self, parts: Sequence[Tensor | Loaded], num_images: int) -> Tensor:
        """One step on a batch of so many images, of which a rank has its parts; their part of its mean loss."""
        config, optimizer, scaler = self._config.optim, self._optimizer, self._scaler
        terms = [self._backward(part, num_images, is_last=part is parts[-1]) for part in parts]
        loss = terms[0] if len(terms) == 1 else torch.stack(terms).sum()
        if config.clip_norm or config.clip_value:
            scaler.unscale_(optimizer)  # type: ignore[arg-type]
        if config.clip_value:
            nn.utils.clip_grad_value_(self._model.parameters(), config.clip_value)
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self._model.parameters(), config.clip_norm)
        scaler.step(optimizer)  # type: ignore[arg-type]
        scaler.update()
        if self.gradients is not None and (self._step + 1) % self._steps_per_epoch == 0:
            found = ((name, weight.grad) for name, weight in self._model.named_parameters())
            self.gradients = {name: gradient for name, gradient in found if gradient is not None}
        optimizer.zero_grad()
        if self._average is not None:
            self._average.update(self._step)
        self._step += 1
        if self.profiler is not None:
            self.profiler.step()
        return loss

    def _backward(self, part: Tensor | Loaded, num_images: int, *, is_last: bool) -> Tensor:
        """Add the gradients of a part of a batch of so many images; its part of the batch's mean loss.

        In the last part of a batch gradients are averaged over the ranks.
        """
        images, targets = self._train_batches(part)
        with self._ranks.accumulating(self._wrapped, is_last=is_last):
            loss = self._loss(self._forward(self._wrapped, images), targets)
            if len(part) < num_images:
                loss = loss * (len(part) / num_images)
            self._scaler.scale(self._ranks.scale(loss)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.inference_mode()
    def _evaluate(self) -> Tensor:
        """What this rank's validation images say, in sums on the device."""
        model = self._model if self._average is None else self._average.model
        model.eval()
        sums = []
        rows = self._ranks.share(torch.arange(self._num_val))
        for batch in self._feed.val(rows, self._config.fit.batch_size * VAL_BATCH_FACTOR):
            images, targets = self._val_batches(batch)
            sums.append(self._judge.sums(self._forward(model, images), targets))
        return torch.stack(sums).sum(0)

    def _forward(self, model: nn.Module, images: Tensor) -> Tensor:
        if self._autocast_type is None:
            return cast("Tensor", model(images))
        with torch.autocast(self._device.type, self._autocast_type):
            return cast("Tensor", model(images)).float()

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        average = {} if self._average is None else {"average": dict(self._average.model.state_dict())}
        return {
            "model": dict(self._model.state_dict()),
            **average,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": self._step,
            "shuffle": self._shuffle.get_state(),
            "augment": self._augment.get_state(),
            "random": random_states(self._device),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._model.load_state_dict(state["model"])
        if self._average is not None:
            self._average.model.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self._step = state["step"]
        self._shuffle.set_state(state["shuffle"])
        self._augment.set_state(state["augment"])
        set_random_states(state["random"], self._device)
