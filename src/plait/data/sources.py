"""One door to every kind of data set on disk: path -> a sequence of samples.

manifest.jsonl | directory of tar shards | parquet | a directory saved by `datasets` -> open_samples -> Sequence[Sample]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from plait.data.manifest import NAMES, Skipped, read_manifest
from plait.data.shards import Shards, is_shards
from plait.data.tables import is_saved_data_set, read_parquet, read_saved
from plait.types import Sample


def open_samples(
    path: str | Path, on_bad: Literal["raise", "skip"] = "raise", skipped: Skipped | None = None
) -> Sequence[Sample]:
    """The samples of a data set, whatever it is stored as; media are read when they are decoded.

    Rows of a manifest are all checked here (`on_bad`, `skipped` as in `read_manifest`); of shards and tables each when
    it is asked for. Raises ValueError where the path holds no data set, or a shard is missing.
    """
    place = Path(path)
    if place.is_dir() and not any((place / name).is_file() for name in NAMES):
        if is_shards(place):
            return Shards(place)
        if is_saved_data_set(place):
            return read_saved(place)
        if next(place.rglob("*.parquet"), None) is not None:
            return read_parquet(place)
        raise ValueError(
            f"expected a manifest file or a directory with manifest.jsonl, tar shards, parquet or a saved set, got "
            f"{place} with none of them; plait data from-folder makes a manifest of a folder of media"
        )
    if place.suffix == ".parquet" and place.is_file():
        return read_parquet(place)
    return read_manifest(place, on_bad, skipped)
