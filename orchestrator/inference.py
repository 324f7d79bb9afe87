"""A model at work: an ONNX file through onnxruntime on uint8 pictures, which Pillow decodes from PNG and JPEG files.

Resizing and normalising are in the graph, so all that a model is given are pixels.
"""

from __future__ import annotations

import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from PIL import Image

from orchestrator.errors import UsageError
from recipes.data.pictures import flattened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

FORMATS = ("PNG", "JPEG")
SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 50_000_000  # a picture of 150 MB once decoded; larger ones are taken for decompression bombs
BATCH_SIZE = 64
# Where onnxruntime looks for weights that a model keeps in other files; by itself it looks in the working directory.
FOLDER_OF_OTHER_FILES = "session.model_external_initializers_file_folder_path"
MODES = {1: "L", 3: "RGB"}  # number of channels -> Pillow's mode


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The class that a model gives a file, and its probability."""

    path: str
    class_name: str
    probability: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; the key of the class is `class`."""
        return {"path": self.path, "class": self.class_name, "probability": self.probability}


class Model:
    """An ONNX model as `recipes.export` writes it: pictures `(B, H, W, C)` uint8 in, values for K classes out."""

    def __init__(self, path: Path) -> None:
        """Load the file at `path` on the CPU.

        Raises:
            UsageError: the file is missing, not ONNX, truncated, in several parts, or not such a model.
        """
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(FOLDER_OF_OTHER_FILES, os.devnull)
        try:
            data, providers = path.read_bytes(), ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(data, options, providers)
            self.class_names = tuple(json.loads(self._session.get_modelmeta().custom_metadata_map["class_names"]))
            (images,) = self._session.get_inputs()
            self.num_channels = int(images.shape[-1])
        except Exception as error:  # the exceptions of onnxruntime have no other base
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(f"{path} is not an ONNX model of ours: {reason}") from error

    def logits(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits `(N, K)` of pictures `(N, H, W, C)` uint8.

        Raises:
            UsageError: another type, or another number of channels.
        """
        return self._run("logits", pictures)

    def classify(
        self, paths: Sequence[Path], on_bad: Callable[[UsageError], None] | None = None
    ) -> Iterator[Prediction]:
        """The most probable class of each image file, in order; files that are told to `on_bad` are left out.

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
            rows = self._probabilities([picture for _, picture in good])
            for (path, _), row in zip(good, rows, strict=True):
                best = int(row.argmax())
                yield Prediction(path=str(path), class_name=self.class_names[best], probability=float(row[best]))

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

    def _probabilities(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Probabilities `(N, K)` of pictures `(H, W, C)`, each of its own size; those of one size go together."""
        found = np.empty((len(pictures), len(self.class_names)), np.float32)
        for shape in {picture.shape for picture in pictures}:
            rows = [row for row, picture in enumerate(pictures) if picture.shape == shape]
            found[rows] = self._run("probabilities", np.stack([pictures[row] for row in rows]))
        return found

    def _run(self, output: str, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != self.num_channels:
            wanted = f"uint8 (N, H, W, {self.num_channels})"
            raise UsageError(f"the model takes pictures {wanted}; found {pictures.dtype} {pictures.shape}")
        parts = [pictures[start : start + BATCH_SIZE] for start in range(0, len(pictures), BATCH_SIZE)]
        return np.concatenate([self._session.run([output], {"images": part})[0] for part in parts])


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
    """The picture in a PNG or JPEG file, upright, as `(H, W, C)` uint8; transparent parts are white, as in training.

    Raises:
        UsageError: missing, empty, truncated, of another kind, or of more than `MAX_PIXELS`.
    """
    if not path.is_file():  # a pipe or a device would block, or never end
        raise UsageError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our limit is lower, and an error
            image = Image.open(path, formats=FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:  # by the header, before anything is unpacked
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            picture = flattened(image).convert(MODES[num_channels])
    except PermissionError as error:
        raise UsageError(f"{path} may not be read") from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"{path} is too large, at most {MAX_PIXELS:,} pixels are read: {error}") from error
    except Exception as error:  # on broken files Pillow raises nearly everything: OSError, SyntaxError, struct.error
        found = f"found {path.stat().st_size:,} bytes of something else"
        raise UsageError(f"{path} is not a whole {' or '.join(FORMATS)} image; {found}") from error
    return np.asarray(picture).reshape(picture.height, picture.width, num_channels)
