"""What the processes of one trial compute together: each its share of every batch, sums and norms over all of it.

A process alone is `ALONE`, for which everything here is as if it were not there. All ranks draw the order of an epoch
from the same checkpointed generator and take their part of each batch of it, so no `DistributedSampler` is needed;
that one would also repeat images until all shares are equal, and so train on other batches than one process does.

DistributedDataParallel takes the mean of the ranks' gradients. A rank's loss is its images' share of the mean loss of
the batch, times the number of ranks, so that this mean is the gradient of one process also where shares differ by an
image. With `balance=loss` a weighted mean is taken over each share, as it is over the parts of `accumulate`.

So two processes reach the losses of one within 1e-5, where nothing is drawn at random. An exception is AdamW on an MLP
with batch norms: it takes rounding for a gradient where there is none, and after 3 epochs on 400 digits `val_loss` is
5e-5 off; the same norm by another formula in one process is 2e-4 off, and two processes with SGD are 2e-7 off.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from recipes.device import seed_all

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recipes.loading import BatchT

PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes that train one trial, and which of them this is."""

    number: int = 0
    count: int = 1

    def check(self, num_images: int) -> None:
        """Raises: ValueError: the smallest batch has so few images that some rank gets none."""
        if num_images < self.count:
            raise ValueError(f"devices={self.count} cannot share a batch of {num_images} image(s)")

    def share(self, batch: BatchT) -> BatchT:
        """The part of a batch that is this rank's."""
        return batch if self.count == 1 else batch.tensor_split(self.count)[self.number]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def synchronise_norms(self, model: nn.Module, device: torch.device) -> None:
        """Make batch norms take mean and variance over all ranks' images; names of weights stay.

        Subclasses of torch's norms, such as timm's, do more than normalise and are left as they are.
        """
        if self.count == 1:
            return
        for module in model.modules():
            if type(module) in PLAIN_NORMS:
                # In place, so that whatever else holds the norm holds this one.
                module.__class__ = nn.SyncBatchNorm if device.type == "cuda" else GlooBatchNorm
                module.process_group = None  # type: ignore[assignment]  # that is, all ranks

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as a training step calls it: gradients are averaged over the ranks. Its weights stay `model`'s."""
        if self.count == 1:
            return model
        # Buffers are made equal once an epoch, see `align`. A model with `begin_epoch` may freeze some of its weights.
        return nn.parallel.DistributedDataParallel(
            model, forward_sync_buffers=False, find_unused_parameters=hasattr(model, "begin_epoch")
        )

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to go back from, so that the mean of all ranks' gradients is that of the sum of their losses."""
        return loss if self.count == 1 else loss * self.count

    def accumulating(self, wrapped: nn.Module, *, is_last: bool) -> AbstractContextManager[Any]:
        """Within it gradients are added up on each rank, and averaged over the ranks in the last part of a batch."""
        if self.count == 1 or is_last:
            return nullcontext()
        return cast("nn.parallel.DistributedDataParallel", wrapped).no_sync()

    def align(self, model: nn.Module) -> None:
        """Give all ranks the buffers of the first, whose checkpoints hold them; synchronised norms agree already."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def reseed(self, seed: int, epoch: int, augment: torch.Generator) -> None:
        """Before an epoch: draws of augmentation and dropout are others on each rank, and known from seed and epoch.

        So a checkpoint of the first rank is enough to go on with the same bits on all of them.
        """
        if self.count > 1:
            augment_seed, other = np.random.SeedSequence([seed, self.number, epoch]).generate_state(2).tolist()
            augment.manual_seed(augment_seed)
            seed_all(other)

    def agree(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What the first rank has: plain Python and CPU tensors, such as a checkpoint."""
        if self.count == 1:
            return dict(values)
        buffer = io.BytesIO()
        torch.save(dict(values), buffer)
        data = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        length = torch.tensor([len(data)])
        dist.broadcast(length, 0)
        if self.number:
            data = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0)
        return dict(torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True))


ALONE = Ranks()


def current(num_devices: int) -> Ranks:
    """The ranks of a trial on so many devices."""
    if num_devices == 1:
        return ALONE
    return Ranks(number=dist.get_rank(), count=dist.get_world_size())


class GlooBatchNorm(_BatchNorm):
    """Batch normalisation over the images of all ranks, on the CPU, where torch's `SyncBatchNorm` raises.

    Shapes: x `(B, C, ...)`, R ranks.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, ...)` to the same."""
        if not self.training:
            return super().forward(x)
        channels, axes = x.shape[1], [0, *range(2, x.ndim)]
        count = x.new_tensor([x.numel() / channels])
        rows = [x.new_zeros(2 * channels + 1) for _ in range(dist.get_world_size())]
        rows[dist.get_rank()] = torch.cat([x.mean(axes), x.var(axes, correction=0), count])
        # A sum in which each row comes from one rank: one exchange each way, and no difference of large squares.
        table: Tensor = _Sum.apply(torch.stack(rows))
        means, variances, counts = table[:, :channels], table[:, channels:-1], table[:, -1:]
        shares = counts / counts.sum()
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        self._follow(mean.detach(), variance.detach(), counts.sum())
        scale = (variance + self.eps).rsqrt() * (1.0 if self.weight is None else self.weight)
        shape = (1, channels, *[1] * (x.ndim - 2))
        x = (x - mean.view(shape)) * scale.view(shape)
        return x if self.bias is None else x + self.bias.view(shape)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Bring the running statistics nearer, as torch does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance * (count / (count - 1)), rate)


class _Sum(torch.autograd.Function):
    """A sum over all ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total
