"""What can be added: folders, files, manifests and samples become entries, one per piece of media.

path | folder | manifest.jsonl | Sample -> expand -> candidates (cheap) -> entry_of -> Entry (sniffed, hashed)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plait import modalities
from plait.data.manifest import NAMES, read_manifest
from plait.embedder.parts import NO_MEDIA
from plait.media import kind_of
from plait.media.limits import IN_FORCE, exceeds
from plait.media.noted import Noted, noted
from plait.media.remote import RemoteFile, files_under
from plait.media.values import medium
from plait.modalities import held
from plait.places import check_local
from plait.reading import address_of
from plait.search.filters import COLUMNS
from plait.terminal import printable
from plait.types import Sample, plain, whole_text

if TYPE_CHECKING:
    import pyarrow as pa

OnProblem = Callable[[str, str], None]
"""Called with the path (or name) of what is left out and the reason."""

_COLUMNS = ("id", "label", "captions")


class Problem(NamedTuple):
    """Something that was left out, and why.

    Attributes:
        path: of the file, or the name of a sample.
        reason: one line.
    """

    path: str
    reason: str

    @classmethod
    def of(cls, name: str, error: Exception | str) -> Problem:
        """From an error or a reason: one line, without the name that stands beside it."""
        # an OSError's own text repeats the path and a number; strerror is the words alone
        said = getattr(error, "strerror", None) or str(error)
        line = said.splitlines()[0] if said else type(error).__name__
        return cls(name, line.partition(f", got {name}: ")[2] or line)

    @property
    def shown(self) -> str:
        """The path for a terminal: as seen from here, on one line."""
        near = self.path.removeprefix(os.getcwd() + os.sep)
        return printable(near)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may become an entry: a file, or one medium of a sample.

    Attributes:
        path: of a file; None for what a sample holds in memory.
        sample, modality: where it came from; None for a file that was found.
        remote: a file of another machine, that was found at an address.
    """

    path: Path | None = None
    sample: Sample | None = None
    modality: str | None = None
    remote: RemoteFile | None = None

    @property
    def name(self) -> str:
        """The path or address, or the id of a sample."""
        if self.remote is not None:
            return self.remote.address
        return str(self.path) if self.path else f"sample {self.sample.id}" if self.sample else ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row to be.

    Attributes:
        id, modality, path, checksum, caption, label, meta: as in `plait.search.index.Hit`.
        item: what the embedder takes.
        words: what the file itself notes, such as the date and place of a photograph.
    """

    id: str
    modality: str
    item: dict[str, Any]
    path: str | None
    checksum: str
    caption: str | None = None
    label: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    words: str | None = None


def expand(source: Any, problem: OnProblem) -> Iterator[Candidate]:
    """Everything that may be added, one candidate per piece of media; files are not opened yet.

    A folder that holds a `manifest.jsonl` stands for that manifest. Hidden files are passed over, and so are
    directories of indices (`*.lance`); links are followed, loops of links are not. An address (`s3://photos`) is a file
    or folder of media there, see `plait.media.remote`.

    Args:
        source: a path (file, folder, manifest), a `Sample`, or an iterable of these, nested as one likes.
        problem: called with the path or name of what is left out, and the reason.

    Raises:
        ValueError: for a path that does not exist, a manifest row that cannot be read, and other types.
    """
    if isinstance(source, Sample):
        yield from _of_sample(source, problem)
    elif isinstance(source, str | Path):
        yield from _of_path(Path(source), problem)
    elif isinstance(source, Iterable) and not isinstance(source, bytes | dict):
        for part in source:
            yield from expand(part, problem)
    else:
        raise ValueError(f"expected a path, a Sample or a list of them to add, got {type(source).__name__}")


def missing(path: Path) -> ValueError:
    """What is wrong with a path that does not exist."""
    return ValueError(f"expected a file, folder or manifest, got {path}: no such file or folder; check the path")


def check_there(paths: Iterable[Path], *, may_be_remote: bool = False) -> None:
    """Raise ValueError for the first path that does not exist: asked before a model is read, which takes minutes.

    may_be_remote: whether addresses of other machines may be among them, whose first file is asked for.
    """
    for path in paths:
        if may_be_remote and (address := address_of(path)) is not None:
            next(files_under(address), None)
            continue
        check_local(path)
        if not path.exists():
            raise missing(path)


def _of_path(path: Path, problem: OnProblem) -> Iterator[Candidate]:
    """Candidates of a folder, a data set, a manifest or one file, here or at an address."""
    if (address := address_of(path)) is not None and not path.exists():
        yield from (Candidate(remote=file) for file in files_under(address))
    elif path.is_dir():
        is_data_set = any((path / name).is_file() for name in NAMES)
        yield from _of_manifest(path, problem) if is_data_set else _of_folder(path, problem)
    elif not path.exists():
        check_local(path)
        raise missing(path)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _of_manifest(path, problem)
    else:
        yield Candidate(path=path)


def _of_folder(root: Path, problem: OnProblem) -> Iterator[Candidate]:
    """Files below a folder, in the order of their names, each real folder once."""
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        problem(str(error.filename), error.strerror or str(error))

    for folder, names, files in os.walk(root, onerror=unreadable, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            names.clear()  # a link led back to a folder that was walked already
            continue
        seen.add((status.st_dev, status.st_ino))
        # in place: os.walk goes into what is left here
        names[:] = sorted(n for n in names if not n.startswith(".") and not n.endswith(".lance"))
        yield from (Candidate(path=Path(folder, name)) for name in sorted(files) if not name.startswith("."))


def _of_manifest(path: Path, problem: OnProblem) -> Iterator[Candidate]:
    """Candidates of every row of a manifest."""
    for sample in read_manifest(path):
        yield from _of_sample(sample, problem, f" of {path}")


def _of_sample(sample: Sample, problem: OnProblem, origin: str = "") -> Iterator[Candidate]:
    """One candidate per medium of a sample; its text where it has no other. origin: words for the message."""
    found = held(sample)
    media = [m for m in found if not medium(m).is_words] or list(found)
    if not media:
        problem(f"sample {sample.id}{origin}", f"none of {', '.join(modalities.names())}; add one to the row")
    for modality in media:
        value = found[modality]
        is_file = not medium(modality).is_words and isinstance(value, str | Path)
        yield Candidate(Path(value) if is_file else None, sample, modality)


def entry_of(candidate: Candidate) -> Entry:
    """Sniff and hash a candidate.

    Args:
        candidate: a file, or a value of a sample.

    Returns:
        Its `Entry`; the path is resolved, so the same file has one id however it was named.

    Raises:
        ValueError: for no media, an empty or too large file, not a regular file, or a name that cannot be printed.
            OSError: where it cannot be read.
    """
    remote = candidate.remote
    path = candidate.path if remote is None else remote.copy()
    if path is None:
        return _entry_of_value(candidate)
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    status = path.stat()
    modality = candidate.modality or kind_of(path)
    if modality is None or medium(modality).is_words:
        raise ValueError(NO_MEDIA)
    if (size := status.st_size) == 0:
        raise ValueError("the file is empty")
    if size > IN_FORCE.max_bytes:  # before it is hashed
        raise exceeds(modality, path, f"{size} bytes", "max_bytes", IN_FORCE.max_bytes, "shorten it")
    where = path.resolve() if remote is None else remote.address
    # such as a lone surrogate, of a name that is no UTF-8: SQL and JSON cannot hold it
    try:
        # a name is bytes of a person's choice, and an index stores any that are text; escaping is for display
        str(where).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a name that is no UTF-8; rename it") from error
    with path.open("rb") as stream:
        # 128 bits of the digest tell files apart, and keep rows short
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    notes = noted(path) if medium(modality).is_drawn else Noted()
    # a row of a manifest says itself what is known of it; a file that was found has its own notes alone
    found: dict[str, Any] = {"id": str(where), "meta": notes.fields()}
    described = _described(candidate.sample, modality) if candidate.sample else found
    return Entry(
        modality=modality, item={modality: remote or where}, path=str(where), checksum=checksum,
        words=notes.text() or None, **described,
    )  # fmt: skip


def _entry_of_value(candidate: Candidate) -> Entry:
    """The entry of text, bytes or an array that a sample holds itself."""
    sample, modality = candidate.sample, candidate.modality
    assert sample is not None and modality is not None
    value = held(sample)[modality]
    item: dict[str, Any] = {modality: value}
    if medium(modality).seconds is not None and isinstance(value, np.ndarray):
        item = {modality: (value, sample.meta.get("sampling_rate"))}
    # the modality is hashed too: equal bytes of two kinds are two things
    checksum = hashlib.sha256(f"{modality}:".encode() + _bytes_of(value)).hexdigest()[:32]
    return Entry(modality=modality, item=item, path=None, checksum=checksum, **_described(sample, modality))


def _described(sample: Sample, modality: str) -> dict[str, Any]:
    """Id, caption, label and meta that a sample gives the row of one of its media."""
    media = [m for m in held(sample) if not medium(m).is_words]
    columns = (*_COLUMNS, *modalities.names())
    caption = sample.text or (sample.captions[0] if sample.captions else None)
    for text in (sample.id, caption, sample.label):
        whole_text(text or "")
    return {
        "id": sample.id if len(media) < 2 else f"{sample.id}#{modality}",
        "caption": caption,
        "label": sample.label,
        "meta": {name: plain(value, name) for name, value in sample.to_row().items() if name not in columns},
    }


def _bytes_of(value: Any) -> bytes:
    """The bytes to hash of a text, of bytes, or of an array or picture."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    return value.tobytes() if hasattr(value, "tobytes") else np.asarray(value).tobytes()


def to_arrow(entries: Sequence[Entry], vectors: np.ndarray) -> pa.Table:
    """Rows of the table.

    Args:
        entries: n of them.
        vectors: (n, dim) float32.
    """
    import pyarrow as pa

    columns = {name: pa.array([getattr(entry, name) for entry in entries], pa.string()) for name in COLUMNS}
    columns["meta"] = pa.array([json.dumps(entry.meta) for entry in entries], pa.json_())
    columns["words"] = pa.array([entry.words for entry in entries], pa.string())
    columns["vector"] = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
    # meta keeps its type: under the table's own schema it would be stored as plain bytes
    return pa.table(columns)
