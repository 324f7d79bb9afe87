"""What a promoted model says of many image files, and the table that it is written to."""

from __future__ import annotations

import csv
import glob
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UsageError
from orchestrator.models import resolve_model
from recipes.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from orchestrator.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model says, a row an image or a row of a table; `kinds` are the columns and their types."""

    kinds: Mapping[str, type]
    rows: list[dict[str, Any]]


def predict(
    settings: Settings,
    uri: str,
    paths: Sequence[Path],
    *,
    half: bool = False,
    on_bad: Callable[[UsageError], None] | None = None,
    follow: Callable[[Iterable[dict[str, Any]], int], Iterable[dict[str, Any]]] = lambda found, _: found,
) -> Predictions:
    """What a promoted model says of image files and of those in folders, or of the rows of CSV files.

    `paths` may be patterns, as of `matching`. Each has its `path`, and as the task is `class` and `probability`,
    `labels`, or numbers by name. `on_bad` is told of files that are no images, which are then left out; `follow` may
    count along; `half` computes in fp16.

    Raises:
        UsageError: as of `resolve_model` or `matching`, a folder without images, a file that is none and no `on_bad`,
            or no table.
        UnavailableError: MLflow cannot be reached.
    """
    from orchestrator.inference import Model, image_files

    paths = matching(paths)
    model = Model(resolve_model(settings, uri), half=half)
    if model.columns:
        return Predictions(kinds=model.kinds, rows=list(model.predict_rows(paths)))
    files = image_files(paths)
    return Predictions(kinds=model.kinds, rows=list(follow(model.predict(files, on_bad), len(files))))


def matching(paths: Iterable[Path]) -> list[Path]:
    """These paths, and in place of a pattern (`*`, `**`, `?`, `[…]`) that no file is called what matches it, sorted.

    Raises:
        UsageError: nothing matches one.
    """
    found: list[Path] = []
    for path in paths:
        if path.exists() or not set(str(path)) & set("*?["):
            found.append(path)
        elif matches := sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute ones)
            found += map(Path, matches)
        else:
            raise UsageError(f"nothing matches {path}")
    return found


def check_output(path: Path) -> None:
    """See that a table can be written there, before the work is done.

    Raises:
        UsageError: another kind of file, one that is there already, or no folder.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"{path}: a table is written as {', '.join(WRITERS)}, found {path.suffix!r}")
    if path.exists():
        raise UsageError(f"{path} is there already")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder")


def write(found: Predictions, path: Path) -> None:
    """Write predictions as a table, whole or not at all."""
    write_whole(path, WRITERS[path.suffix](found))


def _csv(found: Predictions) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found.kinds))
    writer.writeheader()
    writer.writerows(found.rows)
    return text.getvalue().encode()


def _parquet(found: Predictions) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    types = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    schema = pa.schema([(name, types[kind]) for name, kind in found.kinds.items()])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(found.rows, schema), sink)
    return sink.getvalue()


def _json(found: Predictions) -> bytes:
    return json.dumps(found.rows, indent=2, ensure_ascii=False, allow_nan=False).encode()


WRITERS = {".csv": _csv, ".json": _json, ".parquet": _parquet}
