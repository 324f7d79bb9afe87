"""Picture files to arrays: upright, eight bits, grey or RGB, of one size."""

from __future__ import annotations

import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from recipes.data.cache import cache_folder
from recipes.data.splits import divisible, limited
from recipes.data.stored import Pile
from recipes.data.types import Arrays, DataError, Labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from recipes.config import DatasetConfig

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"})
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
# Changed when the same files give other arrays, or more about them: those in a cache are then made again.
VERSION = 2
AT_ONCE = 32  # pictures decoded before they are taken: large ones have 36 MB each
GREY_MODES = ("1", "L", "LA", "La", "I")
MAX_DEEP = 2**16 - 1


class _BadPictureError(ValueError):
    """What is wrong with one file."""


def read(files: Sequence[Path], about: Labels, config: DatasetConfig, root: Path) -> Arrays:
    """Decode files, at most `limit`: grey if all of them are, else RGB; squashed to `image_size`, as exports do.

    Raises:
        DataError: some can't be read and `on_bad_image` is fail, or they are of several sizes and stay so,
            or a split or a class is left without images.
    """
    chosen = limited(about, config.limit)
    about = replace(about, files=np.array([_shown(file, root) for file in files], dtype=str))
    files, about = [files[index] for index in chosen], about.take(chosen)
    pile, sizes, reasons = Pile(cache_folder()), _Sizes(root), dict[int, str]()
    for index, picture in enumerate(_decode_all(files, config.image_size)):
        if isinstance(picture, str):
            reasons[index] = picture
        elif sizes.fits(files[index], picture):
            pile.add(picture)
    bad = [(files[index], reason) for index, reason in reasons.items()]
    told = _told(config.data, bad, len(files), root) if bad else ""
    if bad and config.on_bad_image == "fail":
        raise DataError(f"{told}; on_bad_image=skip leaves them out")
    kept = np.array([index for index in range(len(files)) if index not in reasons], np.int64)
    if not len(kept):
        raise DataError(f"data {config.data!r}: there is no image")
    sizes.check()
    warning = f"{told}; they are left out" if told else ""
    return divisible(Arrays(images=pile.array(), about=about.take(kept), warning=warning), config)


def fitted(read_all: Callable[[], Arrays], config: DatasetConfig) -> Arrays:
    """Images that come as arrays, cut down to `limit` and resized to `image_size`.

    Raises:
        DataError: a split or a class is left without images.
    """
    whole = read_all()
    chosen, size = limited(whole.about, config.limit), config.image_size
    images = whole.images[chosen]
    if size and images.shape[2:] != (size, size):
        images = np.stack([_resized(image, size) for image in images])
    return divisible(Arrays(images=images, about=whole.about.take(chosen)), config)


def flattened(image: Image.Image) -> Image.Image:
    """In Pillow's mode L or RGB: upright, what is transparent on white, 16-bit grey scaled (Pillow would clip it)."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _to_eight_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    mode = "L" if image.mode in GREY_MODES else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    levels = np.asarray(image)
    if levels.min(initial=0) < 0 or levels.max(initial=0) > MAX_DEEP:  # mode I has 32 bits; files use 16 of them
        raise ValueError("its pixels have more than 16 bits")
    return Image.fromarray((levels >> 8).astype(np.uint8))


def _decode_all(files: Sequence[Path], size: int) -> Iterator[NDArray[np.uint8] | str]:
    """The picture `(C, H, W)` of each file, or what is wrong with it; Pillow decodes without Python's lock."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of bombs, which we refuse ourselves, and of harmless oddities in files
        for start in range(0, len(files), AT_ONCE):  # all of them would lie in memory until the first are taken
            yield from pool.map(lambda file: _decoded(file, size), files[start : start + AT_ONCE])


def decoded(content: bytes, size: int) -> NDArray[np.uint8] | str:
    """A picture `(C, H, W)` from a file's bytes, or what is wrong with it; to be called from one thread or many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _decoded(content, size)


def _decoded(file: Path | bytes, size: int) -> NDArray[np.uint8] | str:
    try:
        return _decode(file, size)
    except _BadPictureError as error:
        return str(error)
    except MemoryError:  # which says nothing about the picture
        raise
    except PermissionError:
        return "it may not be read"
    except UnidentifiedImageError:
        return f"it is none of {', '.join(FORMATS)}"
    except Exception as error:  # on broken files Pillow raises nearly everything: OSError, SyntaxError, struct.error
        return str(error).splitlines()[0] if str(error) else type(error).__name__


def _decode(file: Path | bytes, size: int) -> NDArray[np.uint8]:
    if isinstance(file, bytes):
        if not file:
            raise _BadPictureError("it is empty")
        return _unpack(io.BytesIO(file), size)
    if not file.is_file():  # a pipe or a device would block, or never end
        raise _BadPictureError("it is not a file" if file.exists() else "it does not exist")
    if not file.stat().st_size:
        raise _BadPictureError("it is empty")
    return _unpack(file, size)


def _unpack(file: Path | io.BytesIO, size: int) -> NDArray[np.uint8]:
    with Image.open(file, formats=FORMATS) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:  # by the header, before anything is unpacked
            raise _BadPictureError(f"its {image.width} x {image.height} pixels are more than {limit:,}")
        flat = flattened(image)
    pixels = np.asarray(flat)
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return _resized(channels_first, size) if size else channels_first


def _resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A picture `(C, H, W)` squashed to `(C, size, size)`, antialiased."""
    planes = [Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR) for plane in image]
    return np.stack([np.asarray(plane) for plane in planes])


class _Sizes:
    """Whether pictures are all of the size of the first."""

    def __init__(self, root: Path) -> None:
        self._root, self._first, self._other = root, "", ""
        self._size: tuple[int, ...] = ()

    def fits(self, file: Path, picture: NDArray[np.uint8]) -> bool:
        """Whether a picture `(C, H, W)` does; the first that does not is remembered."""
        height, width = picture.shape[1:]
        described = f"{_shown(file, self._root)} has {width} x {height}"
        self._size = self._size or (height, width)
        self._first = self._first or described
        if (height, width) == self._size:
            return True
        self._other = self._other or described
        return False

    def check(self) -> None:
        """Do nothing if all did.

        Raises:
            DataError: one did not.
        """
        if self._other:
            raise DataError(f"{self._first} pixels, {self._other}; give image_size= to bring all to one size")


def _told(name: str, bad: Sequence[tuple[Path, object]], count: int, root: Path) -> str:
    (first, reason), *_ = bad
    shown = _shown(first, root)
    return f"data {name!r}: {len(bad)} of {count} images cannot be read, the first is {shown}: {reason}"


def _shown(file: Path, root: Path) -> str:
    return str(file.relative_to(root) if file.is_relative_to(root) else file)
