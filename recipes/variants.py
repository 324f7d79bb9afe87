"""Other forms of an exported model: half precision, 8-bit weights, and PyTorch's own `torch.export`.

What they cost is measured, not promised: `accuracy` and `latency` work on any of the files.
"""

from __future__ import annotations

import io
import logging
import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recipes.export import ExportError, Session, deployable, example_of, inputs_of
from recipes.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from onnx import ModelProto
    from torch import nn

    from recipes.data import ImageInfo

    Run = Callable[[NDArray[Any]], NDArray[np.float32]]

BATCH_SIZE = 256
NUM_WARM_UPS, NUM_RUNS = 5, 30


def write_half(source: Path, target: Path) -> None:
    """The ONNX file `source` with weights and sums in fp16; its inputs and outputs stay as they are.

    Raises:
        ExportError: the graph can't be converted.
    """
    write_whole(target, half(source))


def half(source: Path) -> bytes:
    """What `write_half` writes."""
    from onnxruntime.transformers.float16 import convert_float_to_float16  # type: ignore[import-untyped]

    return _converted(source, lambda model: convert_float_to_float16(model, keep_io_types=True))


def write_quantised(source: Path, target: Path) -> None:
    """The ONNX file `source` with weights in int8, and activations quantised as they come (dynamically).

    Raises:
        ExportError: the graph can't be converted.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    def convert(model: ModelProto) -> ModelProto:
        import onnx

        del model.graph.value_info[:]  # shapes of one batch, which the converter's own shape inference trips over
        folder = target.parent / f".{target.name}.quantising"
        folder.mkdir()
        try:
            logging.disable(logging.WARNING)  # it advises, through the root logger, on each tensor that stays
            quantize_dynamic(model, folder / "model.onnx", weight_type=QuantType.QInt8)
            return onnx.load(folder / "model.onnx")
        finally:
            logging.disable(logging.NOTSET)
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    write_whole(target, _converted(source, convert))


def _converted(source: Path, convert: Callable[[Any], Any]) -> bytes:
    import onnx

    model = onnx.load(source, load_external_data=False)
    names = {entry.key: entry.value for entry in model.metadata_props}
    try:
        made: ModelProto = convert(model)
    except Exception as error:  # whatever a converter does not know
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{source.name} can't be converted: {reason}") from error
    onnx.helper.set_model_props(made, names)  # and not what the converter notes for itself
    return bytes(made.SerializeToString())


def write_program(model: nn.Module, info: ImageInfo, path: Path) -> None:
    """The model as a `torch.export` program (.pt2) of the same inputs and outputs as the ONNX file; batch, H, W free.

    Raises:
        ExportError: torch can't export the model.
    """
    example, free = example_of(info)
    try:
        program = torch.export.export(deployable(model, info), (example,), dynamic_shapes=(free,))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    except Exception as error:  # its errors have no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"torch can't export the model: {reason}") from error
    write_whole(path, buffer.getvalue())


def opened(path: Path) -> Run:
    """What answers pictures `(B, H, W, C)` uint8, or rows, with logits or values `(B, K)`: an .onnx or .pt2 of ours.

    A .pt2 file is for those who made it: it is not opened from anyone else.

    Raises:
        ExportError: it is not such a file.
    """
    if path.suffix == ".onnx":
        session = Session(path)
        return lambda pictures: session(pictures)[0]
    module = torch.export.load(path).module()

    def run(pictures: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = module(torch.from_numpy(pictures))[0].numpy()
        return logits

    return run


def answers_of(run: Run, images: torch.Tensor) -> NDArray[np.float32]:
    """Logits or values `(N, K)` of a split's images `(N, C, H, W)` uint8 or rows."""
    pictures = inputs_of(images)
    starts = range(0, len(pictures), BATCH_SIZE)
    return np.concatenate([run(pictures[start : start + BATCH_SIZE]) for start in starts])


def latency_milliseconds(run: Run, images: torch.Tensor, batch_size: int) -> float:
    """Median time of a batch, in milliseconds."""
    pictures = inputs_of(images[:batch_size])
    times = []
    for _ in range(NUM_WARM_UPS + NUM_RUNS):
        started = time.perf_counter()
        run(pictures)
        times.append(time.perf_counter() - started)
    return statistics.median(times[NUM_WARM_UPS:]) * 1000
