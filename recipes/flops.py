"""How large a model is: its parameters, and the floating-point operations of one image's way through it."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what PyTorch's own formulas say of each operation, as its `FlopCounterMode` does.

    That one has a process import the compiler at its first operation, which takes longer than training a small model.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # and with it triton, which takes an eighth of a second

        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self._formulas = flop_registry

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do the operation and count it."""
        result = func(*args, **(kwargs or {}))
        if formula := self._formulas.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the compiler is imported, to be told that it shall not compile the method above


def size(model: nn.Module, image: Tensor) -> dict[str, float]:
    """`num_parameters`, and `flops` of one forward pass in evaluation of a batch like `image` (1, ...).

    A multiplication and an addition are two; convolutions, matrix products and attention count, all else is far less.
    The model stays as it is, and nothing waits for its device. A model that can't be copied or does not take one image
    has no `flops`.
    """
    found: dict[str, float] = {"num_parameters": sum(parameter.numel() for parameter in model.parameters())}
    try:
        with torch.no_grad(), _Counter() as counter:
            _sharing_weights(model).eval()(image)
    except Exception as error:  # whatever a user's model does here, its training goes on
        log.warning("the model's floating-point operations are not counted: %s: %s", type(error).__name__, error)
    else:
        found["flops"] = counter.flops
    return found


def _sharing_weights(model: nn.Module) -> nn.Module:
    """A copy of the model in all but its parameters, so that what it keeps besides does not change."""
    # What `deepcopy` finds under an object's id it takes for its copy.
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
