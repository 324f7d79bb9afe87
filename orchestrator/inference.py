"""A model at work: an ONNX file through onnxruntime on uint8 pictures, which Pillow decodes from PNG and JPEG files.

Resizing and normalising are in the graph, so all that a model is given are pixels.
"""

from __future__ import annotations

import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from PIL import Image

from orchestrator.errors import UsageError
from recipes.data.csv_file import read_columns
from recipes.data.pictures import flattened
from recipes.data.rows import encoded
from recipes.data.targets import BETWEEN_LABELS
from recipes.data.types import DataError, columns_from_json, task_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

FORMATS = ("PNG", "JPEG")
SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 50_000_000  # a picture of 150 MB once decoded; larger ones are taken for decompression bombs
BATCH_SIZE = 64
# Where onnxruntime looks for weights that a model keeps in other files; by itself it looks in the working directory.
FOLDER_OF_OTHER_FILES = "session.model_external_initializers_file_folder_path"
MODES = {1: "L", 3: "RGB"}  # number of channels -> Pillow's mode


def providers() -> list[str]:
    """What onnxruntime could compute on here."""
    return list(onnxruntime.get_available_providers())


class TooManyPixelsError(UsageError):
    """A picture has more pixels than are read."""


class Model:
    """An ONNX model as `recipes.export` writes it: pictures `(B, H, W, C)` uint8, or rows of a table, to answers."""

    def __init__(self, path: Path, *, half: bool = False, threads: int = 0) -> None:
        """Load the file at `path` on the CPU, to compute in fp32, or in fp16 with `half`.

        `threads` share the work of one call, and rest between calls; 0 leaves both to onnxruntime, which keeps a thread
        a core busy waiting.

        Raises:
            UsageError: the file is missing, not ONNX, truncated, in several parts, or not such a model.
        """
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(FOLDER_OF_OTHER_FILES, os.devnull)
        if threads:
            options.intra_op_num_threads = threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            data, providers = _halved(path) if half else path.read_bytes(), ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(data, options, providers)
            about = self._session.get_modelmeta().custom_metadata_map
            self.class_names = tuple(json.loads(about["class_names"]))
            self.task = task_from(about["task"])
            self.columns = columns_from_json(json.loads(about.get("columns", "[]")))
            (inputs,) = self._session.get_inputs()
            self.input_name = inputs.name
            self._output_names = [output.name for output in self._session.get_outputs()]
            self.num_channels = int(inputs.shape[-1])
        except Exception as error:  # the exceptions of onnxruntime have no other base
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(f"{path} is not an ONNX model of ours: {reason}") from error

    def answers(self, inputs: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits or values `(N, K)` of pictures `(N, H, W, C)` uint8 or of rows `(N, F)` float32.

        Raises:
            UsageError: another type, or another number of channels or columns.
        """
        return self._run(["values" if self.task == "regression" else "logits"], inputs)[0]

    def outputs(self, inputs: NDArray[np.uint8] | NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """All that the graph gives `(N, K)`, by name, of inputs as of `answers`.

        Raises:
            UsageError: as of `answers`.
        """
        return dict(zip(self._output_names, self._run(self._output_names, inputs), strict=True))

    def predict(
        self, paths: Sequence[Path], on_bad: Callable[[UsageError], None] | None = None
    ) -> Iterator[dict[str, Any]]:
        """What the model says of each image file, in order (see `kinds`); files told to `on_bad` are left out.

        Raises:
            UsageError: a file is not an image that can be read, and there is no `on_bad`; the message names it.
        """
        for batch in self._decoded(paths):
            good: list[tuple[Path, NDArray[np.uint8]]] = []
            for path, picture in batch:
                try:
                    good.append((path, picture.result()))
                except UsageError as error:
                    if on_bad is None:
                        raise
                    on_bad(error)
            rows = self._answered([picture for _, picture in good])
            for (path, _), row in zip(good, rows, strict=True):
                yield {"path": str(path), **self.told(row)}

    def predict_rows(self, tables: Sequence[Path]) -> Iterator[dict[str, Any]]:
        """What the model says of each row of CSV files that have its columns; `row` counts from 1.

        Raises:
            UsageError: a file is no such table.
        """
        for path in tables:
            try:
                rows = encoded(self.columns, read_columns(path))
            except DataError as error:
                raise UsageError(f"{path}: {error}") from error
            for number, row in enumerate(self._run([self.output_name], rows)[0], 1):
                yield {"path": str(path), "row": number, **self.told(row)}

    @property
    def kinds(self) -> dict[str, type]:
        """What `predict` or `predict_rows` says, by name, and of which type each is."""
        first: dict[str, type] = {"path": str, "row": int} if self.columns else {"path": str}
        match self.task:
            case "classification":
                return {**first, "class": str, "probability": float}
            case "multilabel":
                return {**first, "labels": str, **{f"probability_{name}": float for name in self.class_names}}
            case "regression":
                return {**first, **dict.fromkeys(self.class_names, float)}

    @property
    def output_name(self) -> str:
        """The output that `told` reads."""
        return "values" if self.task == "regression" else "probabilities"

    @property
    def expected(self) -> str:
        """The inputs that the model takes, in words."""
        kind, dtype, axes = ("rows", "float32", "N") if self.columns else ("pictures", "uint8", "N, H, W")
        return f"{kind} {dtype} ({axes}, {self.num_channels})"

    def told(self, answer: NDArray[np.float32]) -> dict[str, Any]:
        """What a row `(K,)` of `output_name` says, by the names of `kinds`."""
        each = dict(zip(self.class_names, answer.tolist(), strict=True))
        match self.task:
            case "classification":
                best = self.class_names[int(answer.argmax())]
                return {"class": best, "probability": each[best]}
            case "multilabel":
                given = BETWEEN_LABELS.join(name for name, probability in each.items() if probability > 0.5)
                return {"labels": given, **{f"probability_{name}": value for name, value in each.items()}}
            case "regression":
                return each

    def _decoded(self, paths: Sequence[Path]) -> Iterator[list[tuple[Path, Future[NDArray[np.uint8]]]]]:
        """Batches of files and their pictures; the next is decoded by threads while one is worked on."""
        pool = ThreadPoolExecutor(thread_name_prefix="decode")
        upcoming: list[tuple[Path, Future[NDArray[np.uint8]]]] = []
        try:
            for start in range(0, len(paths), BATCH_SIZE):
                batch = paths[start : start + BATCH_SIZE]
                ready, upcoming = upcoming, [(path, pool.submit(decode, path, self.num_channels)) for path in batch]
                if ready:
                    yield ready
            yield upcoming
        finally:
            pool.shutdown(cancel_futures=True)

    def _answered(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Probabilities or values `(N, K)` of pictures `(H, W, C)`, each of its own size; those of one go together."""
        found = np.empty((len(pictures), len(self.class_names)), np.float32)
        for shape in {picture.shape for picture in pictures}:
            rows = [row for row, picture in enumerate(pictures) if picture.shape == shape]
            found[rows] = self._run([self.output_name], np.stack([pictures[row] for row in rows]))[0]
        return found

    def _run(
        self, outputs: Sequence[str], inputs: NDArray[np.uint8] | NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        dtype, num_axes = ("float32", 2) if self.columns else ("uint8", 4)
        if inputs.dtype != dtype or inputs.ndim != num_axes or inputs.shape[-1] != self.num_channels:
            raise UsageError(f"the model takes {self.expected}; found {inputs.dtype} {inputs.shape}")
        if len(inputs) <= BATCH_SIZE:
            return list(self._session.run(outputs, {self.input_name: inputs}))
        parts = [inputs[start : start + BATCH_SIZE] for start in range(0, len(inputs), BATCH_SIZE)]
        found = [self._session.run(outputs, {self.input_name: part}) for part in parts]
        return [np.concatenate(each) for each in zip(*found, strict=True)]


def _halved(path: Path) -> bytes:
    from recipes.variants import half  # torch, which nothing else here needs

    return half(path)


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The files among `paths`, and those below its folders that are called like images, sorted in each.

    Raises:
        UsageError: a folder has none.
    """
    found: list[Path] = []
    for path in paths:
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise UsageError(f"{path} has no files that are called {', '.join(SUFFIXES)}")
        found += files
    return found


def decode(path: Path, num_channels: int) -> NDArray[np.uint8]:
    """The picture in a PNG or JPEG file: see `decode_from`.

    Raises:
        UsageError: missing, or as of `decode_from`.
    """
    if not path.is_file():  # a pipe or a device would block, or never end
        raise UsageError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        file = path.open("rb")
    except PermissionError as error:
        raise UsageError(f"{path} may not be read") from error
    with file:
        return decode_from(file, str(path), num_channels)


def decode_from(file: BinaryIO, name: str, num_channels: int, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """A picture in PNG or JPEG, upright, as `(H, W, C)` uint8; transparent parts are white, as in training.

    Raises:
        TooManyPixelsError: more than `max_pixels`.
        UsageError: empty, truncated, or of another kind; the message begins with `name`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower, and an error
            image = Image.open(file, formats=FORMATS)
        with image:
            if image.width * image.height > max_pixels:  # by the header, before anything is unpacked
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            picture = flattened(image).convert(MODES[num_channels])
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"{name} is too large, at most {max_pixels:,} pixels are read: {error}") from error
    except Exception as error:  # on broken files Pillow raises nearly everything: OSError, SyntaxError, struct.error
        found = f"found {file.seek(0, os.SEEK_END):,} bytes of something else"
        raise UsageError(f"{name} is not a whole {' or '.join(FORMATS)} image; {found}") from error
    return np.asarray(picture).reshape(picture.height, picture.width, num_channels)
