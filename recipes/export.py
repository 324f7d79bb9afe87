"""A trained model as one ONNX file that takes decoded images, and the proof that it answers as PyTorch does.

The file takes `images` (B, H, W, C) uint8 with B, H and W free, resizes and normalises them itself, and gives `logits`
and `probabilities` (B, K) float32. Of a model on a table it takes `rows` (B, F) float32, numbers as they are, NaN for
what is missing and the numbers of categories; of a regression it gives `values` (B, K) in the targets' own units. Its
metadata hold the `task`, `class_names` (of classes, labels or numbers) and a table's `columns` as JSON, beside what the
caller adds.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from recipes.files import write_whole
from recipes.tasks import answers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from google.protobuf.message import Message  # type: ignore[import-untyped]
    from numpy.typing import NDArray
    from onnx import ModelProto, TensorProto

    from recipes.data import ImageInfo

    Images = Sequence[NDArray[Any]] | NDArray[Any]  # pictures (H, W, C) or rows (F,), one after another

OUTPUTS = ("logits", "probabilities")
VALUES = ("values",)
PARITY_BATCH_SIZES = (1, 3, 17)
# Protobuf can't write more; what is left of 2 GiB is for the graph.
MAX_BYTES = 2**31 - 2**24


class ExportError(ValueError):
    """A model that can't be one ONNX file, or a file that is not one."""


class Deployed(nn.Module):
    """A model between what makes its inputs of images or rows and what makes answers of its outputs: see `outputs`."""

    mean: Tensor
    scale: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, model: nn.Module, info: ImageInfo) -> None:
        super().__init__()
        self.model = model
        self._info = info
        self.register_buffer("mean", torch.tensor(info.mean).view(-1, 1, 1) * 255)
        self.register_buffer("scale", 1 / (torch.tensor(info.std).view(-1, 1, 1) * 255))
        self.register_buffer("target_mean", torch.tensor(info.target_mean))
        self.register_buffer("target_std", torch.tensor(info.target_std))

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Images (B, H, W, C) uint8, or rows (B, F), to logits and probabilities, or to values (B, K)."""
        found: Tensor = self.model(inputs if self._info.columns else self._normalised(inputs))
        if self._info.task == "regression":
            return (found * self.target_std + self.target_mean,)
        return found, answers(found, self._info)

    def _normalised(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).float()
        x = interpolate(x, (self._info.height, self._info.width), mode="bilinear", antialias=True)
        return (x - self.mean) * self.scale


def outputs_of(info: ImageInfo) -> tuple[str, ...]:
    """The names of what a deployed model gives."""
    return VALUES if info.task == "regression" else OUTPUTS


def inputs_of(images: Tensor) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Images (N, C, H, W) of a split as a deployed model takes them, (N, H, W, C); rows (N, F) as they are."""
    array = images.cpu().numpy()
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array


def export_onnx(model: nn.Module, info: ImageInfo, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the model, which stays as it is, to `path`: one whole file or none.

    Raises:
        ExportError: torch can't export the model, or it is too large for one file.
        OSError: the file can't be written.
    """
    import onnx

    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > MAX_BYTES:
        raise ExportError(f"the model's {size:,} bytes are more than the {MAX_BYTES:,} of one ONNX file")
    exported = _exported(deployable(model, info), info)
    _drop_notes(exported)
    onnx.helper.set_model_props(exported, {**metadata, **_described(info)})
    write_whole(path, exported.SerializeToString())


def _described(info: ImageInfo) -> dict[str, str]:
    """What must be known of a model to use it, as an ONNX file's metadata have it."""
    columns = [{"name": column.name, "categories": column.categories} for column in info.columns]
    return {
        "task": info.task,
        "class_names": json.dumps(info.class_names),
        **({"columns": json.dumps(columns)} if columns else {}),
    }


def warm_up() -> None:
    """Export something small, so that the next export in this process, or in one forked from it, takes a fifth."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # torch's exporter uses it

    from recipes.data import ImageInfo

    tqdm.monitor_interval = 0  # no thread to watch progress bars that nobody sees: forks need a process with one
    names = ("no", "yes")
    info = ImageInfo(channels=1, height=4, width=4, num_classes=len(names), class_names=names, mean=(0.5,), std=(0.5,))
    _exported(deployable(nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), info), info)


def parity(model: nn.Module, info: ImageInfo, path: Path, images: Images) -> float:
    """The largest difference of an output of the file from PyTorch's, on several batches and sizes of these images.

    `images` are decoded files, each (H, W, C), or rows (F,); NaN if an output is. Values of a regression differ by
    shares of their spread.

    Raises:
        ExportError: `path` is not one whole ONNX file, or does not take every batch and size.
    """
    session = Session(path)
    deployed = deployable(model, info)
    scale = np.array(info.target_std or 1.0, np.float32)
    differences: list[np.float32] = []
    for batch in _batches_of_rows(images) if info.columns else _batches(images, _sizes(images, info)):
        with torch.inference_mode():
            expected = deployed(torch.from_numpy(batch))
        for mine, theirs in zip(session(batch), expected, strict=True):
            differences.append((np.abs(mine - theirs.numpy()) / scale).max())
    return float(np.max(differences))


def check_one_file(path: Path) -> None:
    """Do nothing if `path` is an ONNX file with all of its tensors inside; nothing that it names is opened.

    Raises:
        ExportError: it is missing, broken, or keeps tensors in other files.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model: ModelProto = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise ExportError(f"{path} is not an ONNX file: {error}") from error
    if not model.graph.output:
        raise ExportError(f"{path} is not an ONNX file: it has no outputs")
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ExportError(f"{path} keeps {tensor.name!r} in another file; only single files are read")


def deployable(model: nn.Module, info: ImageInfo) -> Deployed:
    """A copy of the model behind its resizing and normalisation, to run on the CPU."""
    return Deployed(copy.deepcopy(model).cpu(), info).eval().requires_grad_(False)


def example_of(info: ImageInfo) -> tuple[Tensor, dict[int, Any]]:
    """An input (B, H, W, C) to trace a model with, and which of its axes are free."""
    if info.columns:
        return torch.zeros(2, len(info.columns)), {0: torch.export.Dim("batch")}
    # Neither one image nor the model's own size: torch takes a 1, or two equal sizes, for fixed.
    example = torch.zeros(2, info.height + 3, info.width + 5, info.channels, dtype=torch.uint8)
    return example, {axis: torch.export.Dim(name) for axis, name in enumerate(("batch", "height", "width"))}


def _exported(deployed: Deployed, info: ImageInfo) -> ModelProto:
    example, free = example_of(info)
    _keep_translations()
    try:
        program = torch.onnx.export(
            deployed,
            (example,),
            input_names=["rows" if info.columns else "images"],
            output_names=list(outputs_of(info)),
            dynamic_shapes=(free,),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        # The error itself is a page of advice; its cause says what is wrong with the model.
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ExportError(f"torch can't export the model: {reason}") from error
    assert program is not None
    return program.model_proto


@functools.cache
def _keep_translations() -> None:
    """Let the exporter make its table of operators once a process; it parses 500 functions for each export anew.

    That is two fifths of an export's time. The table is private to torch: where it is not found all is as it was.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]


def _drop_notes(model: ModelProto) -> None:
    """Take out what the exporter notes on each node of the code that it came from: a third of a small file."""
    for noted in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        noted.ClearField("metadata_props")


class Session:
    """An ONNX file on the CPU: pictures (B, H, W, C) uint8, or rows (B, F) float32, to all that it gives."""

    def __init__(self, path: Path) -> None:
        """Load the file.

        Raises:
            ExportError: it is not one whole ONNX file.
        """
        import onnxruntime  # type: ignore[import-untyped]

        check_one_file(path)
        try:
            self._session: onnxruntime.InferenceSession = onnxruntime.InferenceSession(
                path, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise ExportError(f"onnxruntime can't load {path}: {error}") from error

    def __call__(self, pictures: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Logits and probabilities, or values, (B, K).

        Raises:
            ExportError: the model does not take them.
        """
        try:
            return list(self._session.run(None, {self._session.get_inputs()[0].name: pictures}))
        except Exception as error:
            raise ExportError(f"the exported model fails on images {pictures.shape}: {error}") from error


def _sizes(images: Images, info: ImageInfo) -> list[tuple[int, ...]]:
    """The first image's own size, the model's, and one that is neither."""
    return sorted({images[0].shape[:2], (info.height, info.width), (2 * info.height + 1, 3 * info.width)})


def _batches_of_rows(rows: Images) -> Iterator[NDArray[np.float32]]:
    for batch_size in PARITY_BATCH_SIZES:
        yield np.stack([rows[i % len(rows)] for i in range(batch_size)])


def _batches(images: Images, sizes: Sequence[tuple[int, ...]]) -> Iterator[NDArray[np.uint8]]:
    """Batches (B, H, W, C) of these sizes, of the images' own pixels."""
    for height, width in sizes:
        for batch_size in PARITY_BATCH_SIZES:
            yield np.stack([_resampled(images[i % len(images)], height, width) for i in range(batch_size)])


def _resampled(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The image (H, W, C) at another size, by its nearest pixels."""
    rows = np.arange(height) * image.shape[0] // height
    columns = np.arange(width) * image.shape[1] // width
    return np.asarray(image[rows[:, None], columns])


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor of a model, in subgraphs, attributes and functions too."""
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if field.is_repeated else (value,):
                yield from _tensors(part)
