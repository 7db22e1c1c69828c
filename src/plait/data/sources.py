"""One door to every kind of data set on disk: path -> a sequence of samples.

manifest | tar shards (packed, or of webdataset) | parquet | directory saved by `datasets` | folder of media | mini
    -> open_samples -> samples

`plait data pack`: any data set -> tar shards with an index, and what had to be left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from plait.data.folder import scan
from plait.data.manifest import NAMES, Manifest, Skipped, files_of, more_files_of, write_manifest
from plait.data.mini import cached_mini
from plait.data.shards import Shards, WebDataset, is_shards, pack
from plait.data.tables import is_saved_data_set, read_parquet, read_saved
from plait.media.kinds import kind_of
from plait.media.limits import Packed
from plait.reading import outside
from plait.terminal import progress_bar
from plait.types import Sample


def open_samples(
    path: str | Path, on_bad: Literal["raise", "skip"] = "raise", skipped: Skipped | None = None
) -> Sequence[Sample]:
    """The samples of a data set, whatever it is stored as, each read when it is asked for; media when they are decoded.

    path: of the data set; `mini` is the one that ships with Plait, unpacked once into the cache.

    Rows of a manifest are all checked here (`on_bad`, `skipped` as in `read_manifest`); of shards and tables each when
    it is asked for. Files of a folder are decoded once to see that they can be; `plait data from-folder` keeps what was
    found. Raises ValueError where the path holds no data set, or a shard is missing.
    """
    place = cached_mini() if str(path) == "mini" else Path(path)
    if place.is_dir() and not any((place / name).is_file() for name in NAMES):
        if is_shards(place):
            return Shards(place)
        if is_saved_data_set(place):
            return read_saved(place)
        if next(place.rglob("*.parquet"), None) is not None:
            return read_parquet(place)
        if tars := sorted(place.glob("*.tar")):
            return WebDataset(tars)
        return _folder(place, on_bad, skipped)
    if place.suffix == ".parquet" and place.is_file():
        return read_parquet(place)
    if place.suffix == ".tar" and place.is_file():
        return WebDataset([place])
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


def pack_data(
    data: str | Path, out: str | Path, shard_bytes: int, *, skip: bool = False, outside: bool = False
) -> tuple[int, list[str]]:
    """Pack the data set `data` into `out`; the number of rows, and one line for each that was left out.

    What is packed leaves this machine: a manifest of a stranger could name any file, so names stay inside, and every
    file has to be of the kind that its row says.

    Args:
        data: of any kind that `open_samples` takes. out: a new directory. shard_bytes: of a shard.
        skip: leave out rows that are wrong or whose media are missing; otherwise the first is a ValueError.
        outside: take files from outside the data set too.
    """
    skipped, place = Skipped(), Path(data)
    root = (place if place.is_dir() else place.parent).resolve()
    rows = pack(_checked(place, None if outside else root, skipped if skip else None), out, shard_bytes)
    return rows, skipped.messages


def _checked(data: Path, root: Path | None, skipped: Skipped | None) -> Iterator[Sample]:
    """The samples whose media may be packed; of others the reason goes into `skipped`, or is raised without it."""
    # opened when the first is asked for, which is once the output is held
    with outside():
        # whose own rule is stricter: what is given away stays inside, whoever wrote the list
        samples = open_samples(data, "raise" if skipped is None else "skip", skipped)
    for number in progress_bar("pack", range(len(samples))):
        try:
            sample = samples[number]
            for name, file in files_of(sample).items():
                _check_medium(file, name, sample, root)
            if more := more_files_of(sample):
                raise ValueError(
                    f"{sample.id}: expected files that shards hold, one of each medium, got {more[0][0]}; train on the "
                    "manifest itself"
                )
        except ValueError as error:
            if skipped is None:
                raise
            skipped.messages.append(str(error))
            continue
        yield sample


def _check_medium(file: str | Path | Packed, name: str, sample: Sample, root: Path | None) -> None:
    """Raise ValueError where a file is missing, is not of the kind that the row says, or lies outside `root`."""
    if isinstance(file, Packed):
        return
    path = Path(file)
    if root is not None and not path.resolve().is_relative_to(root):
        raise ValueError(
            f"{sample.id}: expected the {name} inside {root}, got {path}, which is outside; "
            "pass --outside to pack files from everywhere"
        )
    if not path.is_file() or not path.stat().st_size:
        raise ValueError(f"{sample.id}: expected the {name} {path}, got no such file or an empty one")
    if (kind := kind_of(path)) != name:
        raise ValueError(f"{sample.id}: expected {name} in {path}, got {kind or 'no media'}; correct the row")
