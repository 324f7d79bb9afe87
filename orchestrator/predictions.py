"""What a promoted model says of many image files, and the table that it is written to."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UsageError
from orchestrator.models import resolve_model
from recipes.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from orchestrator.inference import Prediction
    from orchestrator.settings import Settings

COLUMNS = ("path", "class", "probability")


def predict(
    settings: Settings,
    uri: str,
    paths: Sequence[Path],
    *,
    on_bad: Callable[[UsageError], None] | None = None,
    follow: Callable[[Iterable[Prediction], int], Iterable[Prediction]] = lambda found, _: found,
) -> list[dict[str, Any]]:
    """`path`, `class` and `probability` of image files and of those in folders, by a promoted model.

    `on_bad` is told of files that are no images, which are then left out; `follow` may count along.

    Raises:
        UsageError: as of `resolve_model`, a folder without images, or a file that is none and no `on_bad`.
        UnavailableError: MLflow cannot be reached.
    """
    from orchestrator.inference import Model, image_files

    files = image_files(paths)
    model = Model(resolve_model(settings, uri))
    return [prediction.to_json() for prediction in follow(model.classify(files, on_bad), len(files))]


def check_output(path: Path) -> None:
    """See that a table can be written there, before the work is done.

    Raises:
        UsageError: another kind of file, one that is there already, or no folder.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"{path}: a table is written as {' or '.join(WRITERS)}, found {path.suffix!r}")
    if path.exists():
        raise UsageError(f"{path} is there already")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no folder")


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write rows as a table, whole or not at all."""
    write_whole(path, WRITERS[path.suffix](rows))


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    schema = pa.schema([("path", pa.string()), ("class", pa.string()), ("probability", pa.float64())])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), sink)
    return sink.getvalue()


WRITERS = {".csv": _csv, ".parquet": _parquet}
