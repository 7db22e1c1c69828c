"""The Lance table under an index: its schema, its lock, rows in and out.

INDEX/items.lance  one Lance data set; what the index knows of its model is in the schema's metadata
INDEX/.lock        held while somebody writes; the system releases it when the writer dies
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.errors import UsageError, import_extra
from plait.search.sources import Entry
from plait.search.where import COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "items"
FORMAT = 1
LOCK_SECONDS = 5.0

_KEPT = "free some and run the same command again: what is committed is kept"
_REMEDIES = {
    "no space": _KEPT,
    "file too large": _KEPT,
    "quota": _KEPT,
    "permission denied": "check its owner and permissions",
    "read-only": "copy the index to a place that can be written",
}


def table_exists(path: Path) -> bool:
    """Whether the directory `path` holds a table (its first commit is there)."""
    return (path / f"{TABLE}.lance" / "_versions").is_dir()


def create_table(path: Path, description: dict[str, Any], dim: int) -> Any:
    """An empty table in the directory `path`. Raises ValueError when there is one already."""
    if table_exists(path):
        raise ValueError(f"expected no index at {path}, got one; open it, or choose another path")
    lancedb = import_extra("lancedb")
    import pyarrow as pa

    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("path", pa.string()),
            pa.field("caption", pa.string()),
            pa.field("label", pa.string()),
            pa.field("checksum", pa.string(), nullable=False),
            pa.field("meta", pa.json_()),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ],
        metadata={"plait": json.dumps(description | {"format": FORMAT, "dim": dim})},
    )
    path.mkdir(parents=True, exist_ok=True)
    with one_line():
        return lancedb.connect(path).create_table(TABLE, schema=schema)


def open_table(path: Path) -> tuple[Any, dict[str, Any]]:
    """The table in `path` and its description. Raises ValueError when there is none or it is from another version."""
    lancedb = import_extra("lancedb")
    if not table_exists(path):
        raise ValueError(f"expected an index, got {path}: none there; create it with plait index create")
    with one_line():
        # an interval of zero: a reader always sees what the last writer committed
        table = lancedb.connect(path, read_consistency_interval=timedelta(0)).open_table(TABLE)
        description = json.loads((table.schema.metadata or {}).get(b"plait", b"{}"))
    if description.get("format") != FORMAT:
        raise ValueError(
            f"expected an index of format {FORMAT}, got {description.get('format')} at {path}; build it anew"
        )
    return table, description


def to_arrow(entries: Sequence[Entry], vectors: np.ndarray) -> pa.Table:
    """Rows of the table: entries beside their vectors (len(entries), dim)."""
    import pyarrow as pa

    columns = {name: pa.array([getattr(entry, name) for entry in entries], pa.string()) for name in COLUMNS}
    columns["meta"] = pa.array([json.dumps(entry.meta) for entry in entries], pa.json_())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    return pa.table(columns)  # meta keeps its type: under the table's own schema it would be stored as plain bytes


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Hold the index for writing. Raises ValueError when another process writes for longer than a few seconds."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(path / ".lock", timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise ValueError(
            f"expected to write to {path}, got an index that another process is writing; wait for it"
        ) from error


@contextmanager
def one_line(where: str | None = None) -> Generator[None]:
    """Turn Lance's long errors into one line: UsageError for a wrong filter `where`, OSError for a disk that fails."""
    try:
        yield
    except ValueError as error:
        if where is None:
            raise
        reason = _first(error).removeprefix("Invalid input, ").rstrip(".")
        raise UsageError(f"expected a filter such as \"label = 'dog'\", got another: {reason}; correct it") from error
    except (RuntimeError, OSError) as error:
        reason = _first(error)
        remedy = next((told for sign, told in _REMEDIES.items() if sign in reason.lower()), "check the disk")
        raise OSError(f"expected an index that can be read and written, got {reason}; {remedy}") from error


def _first(error: Exception) -> str:
    return str(error).split(", /")[0].splitlines()[0][:300] if str(error) else type(error).__name__
