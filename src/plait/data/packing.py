"""`plait data pack`: any data set -> tar shards with an index, and what had to be left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from plait.data.manifest import MEDIA, Skipped
from plait.data.shards import pack
from plait.data.sources import open_samples
from plait.media.limits import Packed
from plait.types import Sample


def pack_data(data: str | Path, out: str | Path, shard_bytes: int, *, skip: bool = False) -> tuple[int, list[str]]:
    """Pack the data set `data` into `out`; the number of rows, and one line for each that was left out.

    skip: leave out rows that are wrong or whose media are missing; otherwise the first is a ValueError.
    """
    skipped = Skipped()
    samples = open_samples(data, "skip" if skip else "raise", skipped)
    rows = pack(_readable(samples, skipped) if skip else _all(samples), out, shard_bytes)
    return rows, skipped.messages


def _all(samples: Sequence[Sample]) -> Iterator[Sample]:
    yield from tqdm((samples[i] for i in range(len(samples))), desc="pack", total=len(samples), disable=None)


def _readable(samples: Sequence[Sample], skipped: Skipped) -> Iterator[Sample]:
    for number in tqdm(range(len(samples)), desc="pack", disable=None):
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
