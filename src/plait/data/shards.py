"""Tar shards with an index: a data set in a few large files, any row of which is read with one seek.

samples -> pack -> shard-00000.tar (members 000000012.json, 000000012.image.webp ...), index.npy, index.json
index.npy (mapped, 72 bytes a row) -> Shards[i] -> Sample whose media are `Member`s, read when they are decoded

The tars of others (webdataset, img2dataset) are read too: their headers are passed over once, which finds the rows.

The shards are ordinary webdataset tars. `index.json` states the size of every shard, so a missing or cut one is found
before anything is read.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.manifest import (
    MEDIA,
    checked_json,
    checked_row,
    checked_sample,
    files_of,
    media_names,
    put_file,
    row_line,
)
from plait.media.kinds import EXTENSIONS
from plait.media.limits import Packed
from plait.modalities import in_files, of_suffix
from plait.places import atomic_directory
from plait.reading import inside
from plait.types import Sample

INDEX, TABLE = "index.json", "index.npy"
FORMAT = "plait-shards 1"
COLUMNS = ("shard", "row", "row_bytes", *(f"{m}{end}" for m in MEDIA for end in ("", "_bytes")))
"""Of every table; two more follow for each modality that a user added and that rows hold."""
_WORDS = ("text", "label", "json")
_FIELDS = {**EXTENSIONS, "txt": "text", "text": "text", "caption": "text", "cls": "label", "json": "json"}
"""What the ending of a member makes of it. `cls` is a class; pickles and arrays (`pyd`, `npy`) are not opened."""
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
        self.columns: list[str] = facts["columns"]
        if self.table.shape != (facts["rows"], len(self.columns)):
            raise ValueError(
                f"expected {facts['rows']} rows of {len(self.columns)} numbers in {self.directory / TABLE}, got "
                f"{self.table.shape}; pack the data anew"
            )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        row = dict(zip(self.columns, self.table[number].tolist(), strict=True))
        path = self.shards[row["shard"]]
        where = f"{path}, row {number % len(self)}"
        line = Member(path, row["row"], row["row_bytes"], where).read()
        sample = checked_sample(line.decode("utf-8", "replace"), None, where)
        if named := next(iter(files_of(sample)), None):
            # `pack` writes none: a path would be read from this machine
            raise ValueError(f"{where}: expected the {named} in the shard, got a path; pack the data anew")
        for modality in self.columns[3::2]:
            if row[f"{modality}_bytes"]:
                member = Member(path, row[modality], row[f"{modality}_bytes"], f"{where}, {modality}")
                put_file(sample, modality, member)
        return sample

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))


class WebDataset(Sequence[Sample]):
    """The rows of webdataset tars: members of one name are a row, their ending says what each is.

    `a/000.jpg`, `a/000.txt` and `a/000.json` make the row `shard/a/000`: an image, its words, and further fields. Only
    headers are read here; 8 bytes a number are kept of what lies where.

    Args:
        tars: in their order.

    Raises:
        ValueError: for a file that is no plain tar or is cut, and where none holds a row.
    """

    def __init__(self, tars: Sequence[Path]) -> None:
        self.tars = [str(tar) for tar in tars]
        self.names: list[str] = []
        self.unread: tuple[str, ...] = ()
        self._order: tuple[str, ...] = (*media_names(), *_WORDS)
        self._places = array("q")  # row, tar, field, offset, bytes of every member that is read
        unread: dict[str, None] = {}
        for number in range(len(self.tars)):
            self._scan(number, unread)
        self.unread = tuple(unread)
        if not self.names:
            raise ValueError(
                f"expected webdataset tars, such as 000.jpg and 000.txt in a .tar, got {', '.join(self.tars[:3])} "
                "without any; name members by what they are"
            )
        self._table = np.frombuffer(self._places, np.int64).reshape(-1, 5)
        self._starts = np.searchsorted(self._table[:, 0], np.arange(len(self.names) + 1))

    def _scan(self, number: int, unread: dict[str, None]) -> None:
        """Note the members of one tar; webdataset writes those of a row next to each other."""
        path, last = self.tars[number], None
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if not member.isreg():
                        continue
                    folder, _, base = member.name.removeprefix("./").rpartition("/")
                    stem, _, ending = base.partition(".")
                    last_ending = ending.lower().rpartition(".")[2]
                    field = _FIELDS.get(last_ending) or of_suffix(f"file.{last_ending}") if stem else None
                    if field is None:
                        unread[f".{ending}"] = None
                        continue
                    key = f"{folder}/{stem}" if folder else stem
                    if key != last:
                        self.names.append(f"{Path(path).stem}/{key}")
                        last = key
                    where = (len(self.names) - 1, number, self._order.index(field), member.offset_data, member.size)
                    self._places.extend(where)
        except (tarfile.TarError, OSError, EOFError) as error:
            said = "a compressed or damaged file" if isinstance(error, tarfile.TarError) else error
            raise ValueError(f"expected a plain tar of webdataset, got {path}: {said}; unpack or copy it") from error

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        members: dict[str, Member] = {}
        for _, tar, field, offset, size in self._table[self._starts[number] : self._starts[number + 1]].tolist():
            name = self._order[field]
            where = f"{self.tars[tar]}, {self.names[number]}, {name}"
            members.setdefault(name, Member(self.tars[tar], offset, size, where))
        where = f"{self.tars[self._table[self._starts[number], 1]]}, {self.names[number]}"
        row: dict[str, Any] = {}
        if (found := members.pop("json", None)) is not None:
            try:
                row = checked_json(found.read().decode("utf-8", "replace"))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        for name in ("text", "label"):
            if (found := members.pop(name, None)) is not None:
                row[name] = found.read().decode("utf-8-sig", "replace").strip()
        caption = row.get("caption")  # as img2dataset calls it
        if not row.get("text") and isinstance(caption, str):
            row["text"] = caption
        # paths of another machine, which would be read from this one
        named = {*MEDIA, *in_files(row)}
        row = {name: value for name, value in row.items() if name not in named and value is not None}
        if isinstance(row.get("label"), int):
            row["label"] = str(row["label"])
        sample = checked_row({**row, "id": self.names[number]}, None, where)
        for name, member in members.items():
            put_file(sample, name, member)
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
    table: list[dict[str, int]] = []
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
    own = [name for name in media_names() if name not in MEDIA and any(name in row for row in table)]
    columns = [*COLUMNS, *(f"{name}{end}" for name in own for end in ("", "_bytes"))]
    np.save(out / TABLE, np.asarray([[row.get(column, 0) for column in columns] for row in table], np.int64))
    facts = {"format": FORMAT, "rows": len(table), "columns": columns, "shards": shards}
    (out / INDEX).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return len(table)


def _add(tar: tarfile.TarFile, sample: Sample, number: int, shard: int) -> dict[str, int]:
    """Append one row and its media; the row of the index, by column."""
    places = {"shard": shard}
    # media that are decoded are refused below: no file, and no JSON either
    files = {name: value for name in MEDIA if (value := getattr(sample, name)) is not None} | files_of(sample)
    row = {name: value for name, value in sample.to_row().items() if name not in files}
    for modality, source in files.items():
        name = f"{number:09d}.{modality}{_suffix(source)}"
        places[modality], places[f"{modality}_bytes"] = _append(tar, name, _bytes_of(source, sample, modality))
    line = row_line(row).encode()
    places["row"], places["row_bytes"] = _append(tar, f"{number:09d}.json", line)
    return places


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
        columns = facts.setdefault("columns", list(COLUMNS))
        pairs = list(zip(columns[len(COLUMNS) :: 2], columns[len(COLUMNS) + 1 :: 2], strict=True))
        is_ours = columns[: len(COLUMNS)] == list(COLUMNS) and all(
            isinstance(one, str) and one.isidentifier() and two == f"{one}_bytes" for one, two in pairs
        )
        if not is_ours:
            raise ValueError("other columns")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"expected an index of shards in {path}, got {type(error).__name__}; pack anew") from error
    if not known:
        raise ValueError(f"expected an index of {FORMAT!r} in {path}, got {facts['format']!r:.80}; pack the data anew")
    return facts
