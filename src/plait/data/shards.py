"""Tar shards with an index: a data set in a few large files, any row of which is read with one seek.

samples -> pack -> shard-00000.tar (members 000000012.json, 000000012.image.webp ...), index.npy, index.json
index.npy (mapped, 72 bytes a row) -> Shards[i] -> Sample whose media are `Member`s, read when they are decoded

The shards are ordinary webdataset tars. `index.json` states the size of every shard, so a missing or cut one is found
before anything is read.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.manifest import MEDIA, checked_sample
from plait.media.limits import Packed
from plait.places import atomic_directory
from plait.reading import inside
from plait.types import Sample

INDEX, TABLE = "index.json", "index.npy"
FORMAT = "plait-shards 1"
COLUMNS = ("shard", "row", "row_bytes", *(f"{m}{end}" for m in MEDIA for end in ("", "_bytes")))
# Few files even for terabytes, and each still quickly copied and checked.
SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class Member(Packed):
    """A file inside a tar.

    Args:
        path: of the tar. offset, num_bytes: where its content lies there.
        where: file, row and medium, for messages.
    """

    path: str
    offset: int
    num_bytes: int
    where: str

    @property
    def name(self) -> str:
        """File, row and medium."""
        return self.where

    def size(self) -> int:
        """Bytes of the member."""
        return self.num_bytes

    def read(self) -> bytes:
        """One seek and one read; safe from any thread."""
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), self.num_bytes, self.offset)


class Shards(Sequence[Sample]):
    """The rows of packed shards, each read when asked for. Opening costs the same for any number of rows.

    Args:
        directory: that `pack` wrote.

    Raises:
        ValueError: where the index is damaged, or a shard is missing or not as long as it was written.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        facts = _facts(self.directory)
        self.shards = [str(inside(self.directory, shard["name"])) for shard in facts["shards"]]
        for shard, path in zip(facts["shards"], self.shards, strict=True):
            found = os.path.getsize(path) if os.path.isfile(path) else None
            if found != shard["bytes"]:
                got = "no such file" if found is None else f"{found} bytes"
                raise ValueError(
                    f"expected {shard['bytes']} bytes in shard {path}, got {got}; copy it again or pack the data anew"
                )
        # Mapped, so processes share it; allow_pickle=False, since an array of a stranger could hold code.
        self.table = np.load(self.directory / TABLE, mmap_mode="r", allow_pickle=False)
        if self.table.shape != (facts["rows"], len(COLUMNS)):
            raise ValueError(
                f"expected {facts['rows']} rows of {len(COLUMNS)} numbers in {self.directory / TABLE}, got "
                f"{self.table.shape}; pack the data anew"
            )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        row = dict(zip(COLUMNS, self.table[number].tolist(), strict=True))
        path = self.shards[row["shard"]]
        where = f"{path}, row {number % len(self)}"
        line = Member(path, row["row"], row["row_bytes"], where).read()
        sample = checked_sample(line.decode("utf-8", "replace"), None, where)
        for modality in MEDIA:
            if row[f"{modality}_bytes"]:
                member = Member(path, row[modality], row[f"{modality}_bytes"], f"{where}, {modality}")
                setattr(sample, modality, member)
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))


def is_shards(path: str | Path) -> bool:
    """Whether this is a directory that `pack` wrote."""
    return (Path(path) / INDEX).is_file() and (Path(path) / TABLE).is_file()


def pack(samples: Iterable[Sample], out: str | Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Write samples with the bytes of their media into shards under the new directory `out`; the number of rows.

    Media are copied as they are, never decoded. The directory appears whole or not at all.

    Args:
        samples: in their order. out: must not exist. shard_bytes: a shard is closed when it holds so many.

    Raises:
        ValueError: where `out` exists, media cannot be read or are empty, and without rows.
    """
    out = Path(out)
    if shard_bytes < 1:
        raise ValueError(f"expected shards of at least 1 byte, got {shard_bytes}")
    with atomic_directory(out) as aside:
        return _write_shards(samples, aside, shard_bytes)


def _write_shards(samples: Iterable[Sample], out: Path, shard_bytes: int) -> int:
    """Shards, `index.npy` and `index.json` in `out`; the number of rows."""
    table: list[list[int]] = []
    shards: list[dict[str, Any]] = []
    rows = iter(samples)
    for first in rows:
        name = f"shard-{len(shards):05d}.tar"
        with tarfile.open(out / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            # The outer loop took the first row of this shard, so that none is opened for nothing.
            for sample in chain((first,), rows):
                table.append(_add(tar, sample, len(table), len(shards)))
                if tar.offset >= shard_bytes:
                    break
        shards.append({"name": name, "bytes": (out / name).stat().st_size})
    if not table:
        raise ValueError("expected rows to pack, got none")
    np.save(out / TABLE, np.asarray(table, np.int64))
    facts = {"format": FORMAT, "rows": len(table), "columns": COLUMNS, "shards": shards}
    (out / INDEX).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return len(table)


def _add(tar: tarfile.TarFile, sample: Sample, number: int, shard: int) -> list[int]:
    """Append one row and its media; the row of the index."""
    places = {column: 0 for column in COLUMNS} | {"shard": shard}
    row = sample.to_row()
    for modality in MEDIA:
        if (source := row.pop(modality, None)) is not None:
            name = f"{number:09d}.{modality}{_suffix(source)}"
            places[modality], places[f"{modality}_bytes"] = _append(tar, name, _bytes_of(source, sample, modality))
    line = json.dumps(row, ensure_ascii=False).encode()
    places["row"], places["row_bytes"] = _append(tar, f"{number:09d}.json", line)
    return [places[column] for column in COLUMNS]


def _append(tar: tarfile.TarFile, name: str, content: bytes) -> tuple[int, int]:
    """Write a member; offset and length of its content in the tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
    blocks = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    # addfile leaves the offset behind the content, which is padded to whole blocks of 512 bytes.
    return tar.offset - blocks, len(content)


def _bytes_of(source: Any, sample: Sample, modality: str) -> bytes:
    """The bytes of a path or packed file. Raises ValueError, naming the row, where there are none."""
    try:
        content = source.read() if isinstance(source, Packed) else Path(source).read_bytes()
    except (OSError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"a {type(source).__name__}"
        raise ValueError(f"sample {sample.id!r}: expected the {modality} {source}, got {reason}") from error
    if not content:
        raise ValueError(f"sample {sample.id!r}: expected the {modality} {source}, got an empty file")
    return content


def _suffix(source: Any) -> str:
    """The ending of a file's name where it is plain, else `.bin`: names of members come from outside."""
    suffix = Path(str(source)).suffix.lower() if isinstance(source, str | Path) else ""
    return suffix if suffix[1:].isalnum() and len(suffix) < 8 else ".bin"


def _facts(directory: Path) -> dict[str, Any]:
    """`index.json`, its types checked. Raises ValueError for anything else."""
    path = directory / INDEX
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        known = facts["format"] == FORMAT and isinstance(facts["rows"], int) and isinstance(facts["shards"], list)
        known = known and all(isinstance(one["name"], str) and type(one["bytes"]) is int for one in facts["shards"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"expected an index of shards in {path}, got {type(error).__name__}; pack anew") from error
    if not known:
        raise ValueError(f"expected an index of {FORMAT!r} in {path}, got {facts['format']!r:.80}; pack the data anew")
    return facts
