"""Bodies of requests to arrays, and answers to JSON.

A tensor comes in MLflow's scoring form, `{"inputs": [[…]]}` or `{"inputs": {"images": [[…]]}}`, and is answered in it:
https://mlflow.org/docs/latest/genai/serving/. Pictures come as files, or as `{"images": ["…base64…"]}`.
"""

from __future__ import annotations

import base64
import binascii
import io
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from orchestrator.errors import OrchError, UsageError
from orchestrator.inference import TooManyPixelsError, decode_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from orchestrator.inference import Model
    from orchestrator.serving.batching import Answer
    from orchestrator.serving.options import Options

FORMS = '{"inputs": [[…]]}, {"inputs": {"NAME": [[…]]}} or {"images": ["…base64…"]}'


class RequestError(OrchError):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_json(body: bytes, model: Model, options: Options) -> NDArray[Any] | list[NDArray[np.uint8]]:
    """A tensor `(N, …)`, or pictures `(H, W, C)`.

    Raises:
        RequestError: no JSON, another form of it, a tensor that the model does not take, or too much.
    """
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(400, f"the body is no JSON: {error}") from error
    if isinstance(found, dict) and found.keys() == {"inputs"}:
        return _tensor(_input(found["inputs"], model), model, options)
    if isinstance(found, dict) and found.keys() == {"images"} and isinstance(found["images"], list):
        return read_pictures([_decoded(number, text) for number, text in enumerate(found["images"])], model, options)
    keys = ", ".join(map(repr, found)) if isinstance(found, dict) else type(found).__name__
    raise RequestError(400, f"expected {FORMS}; found {keys:.200}")


def read_pictures(files: Sequence[bytes], model: Model, options: Options) -> list[NDArray[np.uint8]]:
    """The pictures `(H, W, C)` in the bytes of PNG or JPEG files.

    Raises:
        RequestError: one is none, there is none or too many, they have too many pixels, or the model takes rows.
    """
    if model.columns:
        raise RequestError(422, f"expected {model.expected}; found pictures")
    if not files:
        raise RequestError(400, "there is no picture in the request")
    _check_count(len(files), options)
    pictures: list[NDArray[np.uint8]] = []
    left = options.max_pixels
    for number, data in enumerate(files):
        name = f"picture {number}" if len(files) > 1 else "the picture"
        try:
            picture = decode_from(io.BytesIO(data), name, model.num_channels, max_pixels=left)
        except TooManyPixelsError as error:
            raise RequestError(413, str(error)) from error
        except UsageError as error:
            raise RequestError(400, str(error)) from error
        left -= picture.shape[0] * picture.shape[1]
        pictures.append(picture)
    return pictures


def of_tensor(answer: Answer) -> bytes:
    """An answer as MLflow gives it, and whose it is."""
    return orjson.dumps({"predictions": answer.outputs, **_whose(answer)}, option=orjson.OPT_SERIALIZE_NUMPY)


def of_pictures(answers: Sequence[Answer]) -> bytes:
    """An answer for each picture, as `orch predict` says it, with all probabilities of a class."""
    told = []
    for answer in answers:
        model = answer.by.model
        row = answer.outputs[model.output_name][0]
        each = {"probabilities": dict(zip(model.class_names, row.tolist(), strict=True))}
        told.append({**model.told(row), **(each if model.task == "classification" else {})})
    return orjson.dumps({"predictions": told, **_whose(answers[0])})


def dumped(value: Any) -> bytes:
    """Any other JSON."""
    return orjson.dumps(value)


def _whose(answer: Answer) -> dict[str, str]:
    return {"model": answer.by.name, "version": answer.by.version}


def _input(found: Any, model: Model) -> Any:
    """The nested list in what stands for `inputs`."""
    if not isinstance(found, dict):
        return found
    if found.keys() != {model.input_name}:
        raise RequestError(422, f"expected the input {model.input_name!r}; found {', '.join(map(repr, found)):.200}")
    return found[model.input_name]


def _tensor(nested: Any, model: Model, options: Options) -> NDArray[Any]:
    """Numbers in nested lists as an array that the model takes.

    NumPy would read nested lists as well, and words: a long one among a million short ones is an array of terabytes.
    """
    num_axes = 2 if model.columns else 4
    shape: list[int] = []
    flat = [nested]
    while flat and type(flat[0]) is list and len(shape) <= num_axes:
        try:
            (length,) = set(map(len, flat))
        except (TypeError, ValueError) as error:  # a number among the lists; several lengths
            raise RequestError(422, f"expected {model.expected}; found lists of different lengths") from error
        shape.append(length)
        flat = list(chain.from_iterable(flat))  # of a text or a mapping that is as long there come texts
    kinds = {kind.__name__ for kind in set(map(type, flat))}
    wanted = {"int", "float", "NoneType"} if model.columns else {"int"}
    if len(shape) != num_axes or not flat or shape[-1] != model.num_channels or not kinds <= wanted:
        found = f"{' and '.join(sorted(kinds))} ({', '.join(map(str, shape))})".strip()
        raise RequestError(422, f"expected {model.expected}; found {found}")
    _check_count(shape[0], options)
    if model.columns:
        return np.array(flat, np.float32).reshape(shape)  # a null is NaN, which stands for what is missing
    if shape[0] * shape[1] * shape[2] > options.max_pixels:
        raise RequestError(413, f"at most {options.max_pixels:,} pixels are read; found {tuple(shape)}")
    try:
        return np.frombuffer(bytes(flat), np.uint8).reshape(shape)
    except ValueError as error:
        raise RequestError(422, f"expected {model.expected}; found {min(flat)} to {max(flat)}") from error


def _decoded(number: int, text: Any) -> bytes:
    """The bytes of a base64 text, which may be a `data:` URL."""
    try:
        return base64.b64decode(text.rpartition(",")[2], validate=True)
    except (AttributeError, ValueError, binascii.Error) as error:
        raise RequestError(400, f"picture {number} of images is no base64: {error}") from error


def _check_count(count: int, options: Options) -> None:
    if count > options.max_batch:
        raise RequestError(413, f"at most {options.max_batch} pictures or rows are taken at once; found {count}")
