"""`shards:PATH`: a folder of tar files in WebDataset's layout, whose training images are a stream that is never whole.

A sample is a picture and its class in members of one name, `0001.png` and `0001.cls`; other members are passed over.
Files are called `train-*.tar`, `val-*.tar` and `test-*.tar`; where there is no val or test, a fifth of the training
shards is held out for each, by `split_seed`. Nothing in a tar file is unpacked to disk, and no pickle is read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from recipes.data import cache, paths, pictures, splits
from recipes.data.stored import Pile
from recipes.data.types import PART_NAMES, TEST, TRAIN, VAL, Arrays, DataError, Labels, Source

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from recipes.config import DatasetConfig

VERSION = 1  # changed when the same shards give another index
MAX_MEMBER_BYTES = 1 << 28
HELD_OUT = 0.2
CLASS_SUFFIX = ".cls"
SHOWN = 60  # characters of a name in a message


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One of a shard's samples: its number there, the picture's name, its bytes, and its class as it is written."""

    number: int
    name: str
    content: bytes
    label: str


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What reading training shards needs: files, and the labels of those samples of each that count."""

    files: tuple[Path, ...]
    labels: tuple[dict[int, int], ...] = field(repr=False)
    image_size: int
    shape: tuple[int, int, int]

    def read(self, index: int) -> Iterator[tuple[int, NDArray[np.uint8], int]]:
        """Number, picture `(C, H, W)` and label of each sample of a shard.

        Raises:
            DataError: it is not what it was when the index was made.
        """
        labels, count = self.labels[index], 0
        for sample in samples(self.files[index]):
            if sample.number not in labels:
                continue
            picture = pictures.decoded(sample.content, self.image_size)
            if isinstance(picture, str) or picture.shape[1:] != self.shape[1:] or len(picture) > self.shape[0]:
                reason = picture if isinstance(picture, str) else f"it has the shape {picture.shape}"
                raise DataError(f"{_shown(self.files[index], sample.name)} is no longer what it was: {reason}")
            yield sample.number, np.broadcast_to(picture, self.shape), labels[sample.number]
            count += 1
        if count < len(labels):
            raise DataError(f"{self.files[index]} is no longer what it was: {len(labels) - count} samples are missing")


@dataclass(frozen=True, kw_only=True)
class Sharded:
    """A data set of shards: the stream of its training images, val and test as arrays, and what is known of all."""

    stream: Stream
    train_labels: NDArray[np.int64]
    levels: list[list[int]]
    rest: Arrays
    indices: tuple[NDArray[np.int64], ...]
    data_fingerprint: str


def prepared(config: DatasetConfig, folder: str) -> Sharded:
    """The shards of a folder, by an index that is made once, and their val and test images, kept in the cache.

    Raises:
        DataError: they are not what they must be; one line says what.
    """
    files, parts = _parts(Path(folder), config.split_seed)
    key = paths.key_of(files, VERSION, pictures.VERSION)
    path = cache.path_of(config)
    index = cache.noted(path.with_suffix(".index.json"), key, lambda: _index(files, config))
    whole = _labels(index, parts)
    indices = splits.split(whole, config.split_seed)
    labels = _numbered(index)
    shape = (index["channels"], *index["size"])
    in_train = [number for number, part in enumerate(parts) if part == TRAIN]
    chosen = [number for number, part in enumerate(parts) if part != TRAIN]
    stream, rest = (_stream(files, labels, each, config.image_size, shape) for each in (in_train, chosen))
    about = Labels(
        labels=np.array([label for shard in rest.labels for label in shard.values()], np.int64),
        class_names=whole.class_names,
        parts=np.repeat(np.array([parts[number] for number in chosen], np.int8), [len(s) for s in rest.labels]),
    )
    source = Source(key=f"{key} {chosen}", read=functools.partial(_read_whole, rest, about, index["warning"]))
    return Sharded(
        stream=stream,
        train_labels=whole.labels[indices[0]].astype(np.int64),
        levels=_levels(index, in_train),
        rest=cache.prepared(source, path.with_name(f"{path.stem}-rest-{config.split_seed}.npz")),
        indices=indices,
        data_fingerprint=_fingerprint(index, files, config),
    )


def _parts(root: Path, seed: int) -> tuple[list[Path], list[int]]:
    """The shards, sorted by name, and the split of each."""
    paths.check_folder(root)
    found = [Path(entry.path) for entry in paths.entries(root) if entry.name.endswith(".tar") and entry.is_file()]
    names = [file.name.partition("-")[0] for file in found]
    files = [file for file, name in zip(found, names, strict=True) if name in PART_NAMES]
    parts = [PART_NAMES[name] for name in names if name in PART_NAMES]
    in_train = [number for number, part in enumerate(parts) if part == TRAIN]
    if not in_train:
        raise DataError(f"{root} has no train-*.tar; val-*.tar and test-*.tar may be beside them")
    mixed = np.random.RandomState(seed).permutation(in_train).tolist()
    count = max(1, round(HELD_OUT * len(in_train)))
    for part in (VAL, TEST):
        if part not in parts:
            held, mixed = mixed[:count], mixed[count:]
            for number in held:
                parts[number] = part
    if not mixed:
        raise DataError(
            f"{root} has {len(in_train)} train-*.tar, too few to hold some out; add val-*.tar and test-*.tar"
        )
    return files, parts


# -- the index


def _index(files: list[Path], config: DatasetConfig) -> dict[str, Any]:
    """What one pass over all shards says, in plain JSON values."""
    wanted = _limited(files, config.limit)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shards = list(pool.map(functools.partial(_measure, size=config.image_size), files, wanted))
    bad = [reason for shard in shards for reason in shard["bad"]]
    total = sum(len(shard["classes"]) for shard in shards) + len(bad)
    told = f"data {config.data!r}: {len(bad)} of {total} images cannot be read, the first is {bad[0]}" if bad else ""
    if bad and config.on_bad_image == "fail":
        raise DataError(f"{told}; on_bad_image=skip leaves them out")
    described = [described for shard in shards for described in shard["sizes"]]
    if not described:
        raise DataError(f"data {config.data!r}: there is no image")
    other = next((each for each in described if each[0] != described[0][0]), None)
    if other:
        raise DataError(f"{described[0][1]}, {other[1]}; give image_size= to bring all to one size")
    return {
        "shards": [{name: shard[name] for name in ("sha256", "classes", "grey", "colour")} for shard in shards],
        "size": described[0][0],
        "channels": 3 if any(any(shard["colour"][0]) for shard in shards) else 1,
        "warning": f"{told}; they are left out" if told else "",
    }


def _limited(files: list[Path], limit: int) -> list[frozenset[int] | None]:
    """Which samples of each shard are wanted; None: all."""
    if not limit:
        return [None] * len(files)
    found = [[sample.label for sample in samples(file, contents=False)] for file in files]
    shards = np.repeat(np.arange(len(files)), [len(labels) for labels in found])
    numbers = np.concatenate([np.arange(len(labels)) for labels in found])
    names, labels = np.unique([label for part in found for label in part], return_inverse=True)
    parts = np.array([PART_NAMES[file.name.partition("-")[0]] for file in files], np.int8)[shards]
    chosen = splits.limited(Labels(labels=labels, class_names=tuple(names.tolist()), parts=parts), limit)
    return [frozenset(numbers[chosen][shards[chosen] == shard].tolist()) for shard in range(len(files))]


def _measure(file: Path, wanted: frozenset[int] | None, size: int) -> dict[str, Any]:
    """A shard's hash, and the class of each good sample, with the levels of all pixels of grey and of colour ones."""
    classes: dict[str, str] = {}
    bad, sizes = [], dict[str, tuple[list[int], str]]()
    grey, colour = np.zeros((1, 256), np.int64), np.zeros((3, 256), np.int64)
    digest = hashlib.sha256()
    for sample in samples(file, digest):
        if wanted is not None and sample.number not in wanted:
            continue
        picture = pictures.decoded(sample.content, size)
        if isinstance(picture, str):
            bad.append(f"{_shown(file, sample.name)}: {picture}")
            continue
        height, width = picture.shape[1:]
        described = f"{_shown(file, sample.name)} has {width} x {height} pixels"
        sizes.setdefault(f"{height} {width}", ([height, width], described))
        counts = grey if len(picture) == 1 else colour
        counts += [np.bincount(plane.ravel(), minlength=256) for plane in picture]
        classes[str(sample.number)] = sample.label
    return {
        "sha256": digest.hexdigest(),
        "classes": classes,
        "bad": bad,
        "sizes": list(sizes.values()),
        "grey": grey.tolist(),
        "colour": colour.tolist(),
    }


def _class_names(index: dict[str, Any]) -> list[str]:
    found = {label for shard in index["shards"] for label in shard["classes"].values()}
    return sorted(found, key=int if all(label.isdecimal() for label in found) else None)


def _numbered(index: dict[str, Any]) -> list[dict[int, int]]:
    """The labels of each shard's samples, by their numbers."""
    numbers = {name: number for number, name in enumerate(_class_names(index))}
    return [{int(n): numbers[label] for n, label in shard["classes"].items()} for shard in index["shards"]]


def _labels(index: dict[str, Any], parts: list[int]) -> Labels:
    shards = _numbered(index)
    return Labels(
        labels=np.array([label for shard in shards for label in shard.values()], np.int64),
        class_names=tuple(_class_names(index)),
        parts=np.repeat(np.array(parts, np.int8), [len(shard) for shard in shards]),
    )


def _levels(index: dict[str, Any], in_train: list[int]) -> list[list[int]]:
    """How many pixels of each channel of the training images have each level; grey ones count for every channel."""
    shards = [index["shards"][number] for number in in_train]
    grey, colour = (np.sum([np.array(shard[name]) for shard in shards], axis=0) for name in ("grey", "colour"))
    found: list[list[int]] = (grey if index["channels"] == 1 else grey + colour).tolist()
    return found


def _fingerprint(index: dict[str, Any], files: list[Path], config: DatasetConfig) -> str:
    shards = [(file.name, shard["sha256"]) for file, shard in zip(files, index["shards"], strict=True)]
    parts = [VERSION, pictures.VERSION, config.image_size, config.limit, config.on_bad_image, shards]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _stream(
    files: list[Path], labels: list[dict[int, int]], chosen: list[int], size: int, shape: tuple[int, int, int]
) -> Stream:
    return Stream(
        files=tuple(files[number] for number in chosen),
        labels=tuple(labels[number] for number in chosen),
        image_size=size,
        shape=shape,
    )


def _read_whole(stream: Stream, about: Labels, warning: str) -> Arrays:
    pile = Pile(cache.cache_folder())
    for index in range(len(stream.files)):
        for _, picture, _ in stream.read(index):
            pile.add(picture)
    return Arrays(images=pile.array(), about=about, warning=warning)


# -- one shard


def samples(file: Path, digest: Any = None, *, contents: bool = True) -> Iterator[Sample]:
    """The samples of a shard in order; `digest` is told of all its bytes. Without `contents`, pictures stay empty.

    Raises:
        DataError: it is no tar file, has a member that leads elsewhere, or a sample without its class.
    """
    try:
        with file.open("rb") as raw:
            reader: Any = _Hashing(raw, digest)
            with tarfile.open(fileobj=reader, mode="r|") as archive:
                yield from _grouped(file, archive, contents)
            while digest is not None and reader.read(1 << 20):  # what lies behind the archive's end
                pass
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read as a tar file: {error}") from error


class _Hashing:
    """A file that tells a digest what was read of it."""

    def __init__(self, raw: IO[bytes], digest: Any) -> None:
        self._raw, self._digest = raw, digest

    def read(self, size: int) -> bytes:
        """Up to so many bytes."""
        found = self._raw.read(size)
        if self._digest is not None:
            self._digest.update(found)
        return found


def _grouped(file: Path, archive: tarfile.TarFile, contents: bool) -> Iterator[Sample]:
    """Members of one name after another are a sample, if there is a picture among them."""
    key, found, number = "", dict[str, tuple[str, bytes]](), 0
    for member in archive:
        _check(file, member)
        if not member.isfile():
            continue
        path = PurePosixPath(member.name)
        stem, _, suffix = path.name.partition(".")
        own = str(path.parent / stem)
        if own != key:
            if sample := _sample(file, key, found, number):
                yield sample
                number += 1
            key, found = own, {}
        kind = "picture" if f".{suffix.lower()}" in pictures.SUFFIXES else f".{suffix.lower()}"
        if kind == CLASS_SUFFIX or kind == "picture":
            wanted = contents or kind == CLASS_SUFFIX
            stored = archive.extractfile(member)
            found[kind] = (member.name, stored.read() if stored and wanted else b"")
    if sample := _sample(file, key, found, number):
        yield sample


def _check(file: Path, member: tarfile.TarInfo) -> None:
    """See that a member is what it says, and lies where it says."""
    path, shown = PurePosixPath(member.name), _shown(file, member.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{shown} leads out of the archive")
    if not (member.isfile() or member.isdir()):
        raise DataError(f"{shown} is a link or a device; only files are read")
    if member.size > MAX_MEMBER_BYTES:
        raise DataError(f"{shown} has {member.size:,} bytes, more than {MAX_MEMBER_BYTES:,}")


def _sample(file: Path, key: str, found: dict[str, tuple[str, bytes]], number: int) -> Sample | None:
    if "picture" not in found:
        return None
    name, content = found["picture"]
    label = found.get(CLASS_SUFFIX, ("", b""))[1].decode(errors="replace").strip()
    if not label:
        raise DataError(
            f"{_shown(file, name)} has no class: {PurePosixPath(key).name}{CLASS_SUFFIX} is missing or empty"
        )
    if not label.isprintable() or len(label) > SHOWN:
        raise DataError(f"{_shown(file, name)} has a class that is no name: {label[:SHOWN]!r}")
    return Sample(number=number, name=name, content=content, label=label)


def _shown(file: Path, name: str) -> str:
    return f"{file}: {name[:SHOWN]!r}"


def in_pieces(count: int, num_pieces: int) -> Sequence[int]:
    """Sizes of so many nearly equal pieces, the larger ones first, as `torch.tensor_split` cuts."""
    return [count // num_pieces + (number < count % num_pieces) for number in range(num_pieces)]
