"""One door to every kind of data set on disk: path -> a sequence of samples.

manifest | tar shards | parquet | directory saved by `datasets` | folder of media -> open_samples -> Sequence[Sample]

`plait data pack`: any data set -> tar shards with an index, and what had to be left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from plait.data.folder import scan
from plait.data.manifest import MEDIA, NAMES, Manifest, Skipped, write_manifest
from plait.data.shards import Shards, is_shards, pack
from plait.data.tables import is_saved_data_set, read_parquet, read_saved
from plait.media.limits import Packed
from plait.terminal import progress_bar
from plait.types import Sample


def open_samples(
    path: str | Path, on_bad: Literal["raise", "skip"] = "raise", skipped: Skipped | None = None
) -> Sequence[Sample]:
    """The samples of a data set, whatever it is stored as, each read when it is asked for; media when they are decoded.

    Rows of a manifest are all checked here (`on_bad`, `skipped` as in `read_manifest`); of shards and tables each when
    it is asked for. Files of a folder are decoded once to see that they can be; `plait data from-folder` keeps what was
    found. Raises ValueError where the path holds no data set, or a shard is missing.
    """
    place = Path(path)
    if place.is_dir() and not any((place / name).is_file() for name in NAMES):
        if is_shards(place):
            return Shards(place)
        if is_saved_data_set(place):
            return read_saved(place)
        if next(place.rglob("*.parquet"), None) is not None:
            return read_parquet(place)
        return _folder(place, on_bad, skipped)
    if place.suffix == ".parquet" and place.is_file():
        return read_parquet(place)
    return Manifest(place, on_bad, skipped)


def _folder(place: Path, on_bad: Literal["raise", "skip"], skipped: Skipped | None) -> Manifest:
    """The media of a folder with their words, as `plait data from-folder` finds them, in a manifest without a name."""
    try:
        found = scan(place)
    except ValueError as error:
        raise ValueError(
            f"expected a manifest file or a directory with manifest.jsonl, tar shards, parquet or a saved set, got "
            f"{place} with none of them, and no folder of media: {error}"
        ) from error
    if skipped is not None:
        skipped.messages += found.left_out
    elif found.left_out:
        lines = "; ".join(found.left_out[:3])
        warnings.warn(f"left out {len(found.left_out)} files of {place}: {lines}", stacklevel=3)
    with TemporaryDirectory() as aside:  # the manifest keeps its file open, so the name may go
        return Manifest(write_manifest(Path(aside) / "manifest.jsonl", found.samples), on_bad)


def pack_data(data: str | Path, out: str | Path, shard_bytes: int, *, skip: bool = False) -> tuple[int, list[str]]:
    """Pack the data set `data` into `out`; the number of rows, and one line for each that was left out.

    skip: leave out rows that are wrong or whose media are missing; otherwise the first is a ValueError.
    """
    skipped = Skipped()
    samples = open_samples(data, "skip" if skip else "raise", skipped)
    rows = pack(_readable(samples, skipped) if skip else _all(samples), out, shard_bytes)
    return rows, skipped.messages


def _all(samples: Sequence[Sample]) -> Iterator[Sample]:
    yield from progress_bar("pack", (samples[i] for i in range(len(samples))), total=len(samples))


def _readable(samples: Sequence[Sample], skipped: Skipped) -> Iterator[Sample]:
    for number in progress_bar("pack", range(len(samples))):
        try:
            sample = samples[number]
        except ValueError as error:
            skipped.messages.append(str(error))
            continue
        files = [(name, getattr(sample, name)) for name in MEDIA if getattr(sample, name) is not None]
        missing = [f"{name} {file}" for name, file in files if not _is_there(file)]
        if missing:
            skipped.messages.append(f"{sample.id}: expected the {', '.join(missing)}, got no such file or an empty one")
        else:
            yield sample


def _is_there(file: str | Path | Packed) -> bool:
    return isinstance(file, Packed) or (Path(file).is_file() and Path(file).stat().st_size > 0)
