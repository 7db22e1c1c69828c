"""Manifests: JSONL rows on disk <-> samples, each error with file, line and field.

A manifest is a `.jsonl` or `.jsonl.gz` file, or a directory that holds `manifest.jsonl` (or `.jsonl.gz`). Media
paths are relative to the manifest's directory; reading makes them absolute, writing makes them relative again.

    read: row -> fields -> names inside the directory, or a list that Plait wrote here, or `outside` -> sample

A manifest of a stranger's could name any file of this machine, and what is read may end up on a page or in a shard that
is given away. So what Plait writes is known by its digest in the cache, which nobody else writes to.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import warnings
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import numpy as np

from plait.media.limits import Packed
from plait.modalities import in_files, names
from plait.places import atomic_write, cache_directory
from plait.reading import allowed, leads_outside
from plait.types import MODALITIES, Sample, plain, whole_text

NAMES = ("manifest.jsonl", "manifest.jsonl.gz")
MEDIA = ("image", "video", "audio")
STRINGS = ("text", "image", "video", "audio", "question", "label", "split", "source", "license", "author")
STRING_LISTS = ("answers", "captions")
OBJECT_LISTS = ("messages",)
_MAY_LEAD_OUT = re.compile(rb'\.\.|"/|\\')
"""In the bytes of a row: a step up, a text that begins as an absolute path, or an escape that may spell either."""
_UNTIDY = re.compile(r"(?<=.)/\.?(/|$)|^\./")
MAX_LINE = 1 << 26
"""Characters of one row, so that a small compressed file cannot fill the memory."""


def media_names() -> tuple[str, ...]:
    """Fields that hold files: of the built-in media, then of the modalities that a user added."""
    return (*MEDIA, *(name for name in names() if name not in MODALITIES))


def files_of(sample: Sample) -> dict[str, Any]:
    """Paths, and files inside others, of a row by their field; decoded media and a user's own values are no files."""
    built_in = {name: getattr(sample, name) for name in MEDIA}
    own = {name: sample.meta.get(name) for name in media_names() if name not in MEDIA}
    are_paths = {*MEDIA, *in_files(own)}
    return {
        name: value
        for name, value in (built_in | own).items()
        if isinstance(value, Packed) or (name in are_paths and value is not None)
    }


def more_files_of(sample: Sample) -> list[tuple[str, str]]:
    """Field and path of the files that a row names beside those of `files_of`: several images, a map of classes."""
    images = sample.meta.get("images")
    found = [("images", value) for value in images if isinstance(value, str)] if isinstance(images, list) else []
    mask = sample.meta.get("mask")
    return [*found, ("mask", mask)] if isinstance(mask, str) and os.path.isfile(mask) else found


def put_file(sample: Sample, name: str, file: Packed) -> None:
    """Let a row hold a file that lies inside another; a user's own modality is among the other fields of the row."""
    if name in MEDIA:
        setattr(sample, name, file)
    else:
        sample.meta[name] = file


@dataclass
class Skipped:
    """Rows left out by `on_bad="skip"`: one message each, as the error would have read."""

    messages: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.messages)


def manifest_path(path: str | Path) -> Path:
    """The manifest file behind a path to it or to its directory.

    Raises:
        ValueError: when there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    for name in NAMES:
        if (path / name).is_file():
            return path / name
    raise ValueError(f"expected a manifest file or a directory with {NAMES[0]}, got {path}; check the path")


MAX_UNPACKED = 1 << 26
"""Bytes that a manifest may always have unpacked; above, a hundred times what it has packed."""


class Manifest(Sequence[Sample]):
    """The rows of a manifest, every one checked at once and parsed again when it is asked for.

    12 bytes a row are held: where its line begins and how long it is. A compressed manifest is unpacked into a file
    without a name, since there is no seeking in gzip. The file stays open, so a manifest that is written anew meanwhile
    is read as it was.

    Args:
        path: of the manifest or of its directory.
        on_bad: "raise" for the first bad row, or "skip".
        skipped: takes the messages of rows that are left out; without it they become one warning.

    Raises:
        ValueError: for another on_bad, no manifest, a file that is not UTF-8 or cut, and a bad row, such as one that
            names a file outside of the manifest's directory (`plait.reading.outside` allows it).
    """

    def __init__(
        self, path: str | Path, on_bad: Literal["raise", "skip"] = "raise", skipped: Skipped | None = None
    ) -> None:
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"expected on_bad 'raise' or 'skip', got {on_bad!r}")
        self.path = manifest_path(path)
        self.folder: Path | None = self.path.parent
        report = Skipped() if skipped is None else skipped
        if self.path.suffix == ".gz":
            with TemporaryFile() as unpacked:
                self._fd = os.dup(unpacked.fileno())
        else:
            self._fd = os.open(self.path, os.O_RDONLY)
        # Without a with-block: readers of a run hold the manifest until the end of the process.
        weakref.finalize(self, os.close, self._fd)
        starts, sizes, numbers, names = array("q"), array("i"), array("q"), array("Q")
        is_own: bool | None = None
        for number, start, line in self._lines():
            if not line.strip():
                continue
            try:
                row = checked_json(line.decode("utf-8"))
                # nearly no line can name a file of elsewhere, and a look at its bytes tells
                if not is_own and _MAY_LEAD_OUT.search(line):
                    name = _first(row, lambda value: not allowed(self.path.parent, value))
                    # looked up when the first such name is met, since most lists have none
                    is_own = is_own if name is None else is_own is None and _written_here(self.path)
                    if name is not None and not is_own:
                        raise ValueError(_leads_out(row, name, self.path.parent))
                sample = _from_row(row, self.folder)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"expected UTF-8 JSON lines in {self.path}, got: {error}; write the file again"
                ) from error
            except ValueError as error:
                self._bad(number, error, on_bad, report)
                continue
            starts.append(start)
            sizes.append(len(line))
            numbers.append(number)
            # 8 bytes a row find repeated ids; the ids themselves would fill the memory.
            names.append(digest(sample.id))
        self._starts, self._sizes = np.array(starts, np.int64), np.array(sizes, np.int32)
        self._drop_repeated(np.array(names, np.uint64), np.array(numbers, np.int64), on_bad, report)
        if skipped is None and report.messages:
            warnings.warn(f"skipped {len(report)} bad rows; {'; '.join(report.messages)}", stacklevel=2)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        # safe from any thread
        line = os.pread(self._fd, int(self._sizes[number]), int(self._starts[number]))
        return checked_sample(line.decode("utf-8", "replace"), self.folder, f"{self.path}, row {number}")

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Number from 1, place and bytes of every line; what is compressed is written to the file without a name."""
        start, opener = 0, gzip.open if self.path.suffix == ".gz" else open
        # gzip packs a thousand equal bytes into one: JSON of rows shrinks to a tenth, and the disk is not endless
        limit = max(MAX_UNPACKED, 100 * self.path.stat().st_size)
        try:
            with opener(self.path, "rb") as lines:
                for number in itertools.count(1):
                    if not (line := lines.readline(MAX_LINE)):
                        return
                    if len(line) == MAX_LINE and not line.endswith(b"\n"):
                        raise EOFError(f"more than {MAX_LINE} characters in line {number}")
                    if self.path.suffix == ".gz":
                        if start > limit:
                            raise EOFError(f"{limit} bytes and more, a hundred times the file; unpack it yourself")
                        os.pwrite(self._fd, line, start)
                    mark = len(codecs.BOM_UTF8) if number == 1 and line.startswith(codecs.BOM_UTF8) else 0
                    yield number, start + mark, line[mark:]
                    start += len(line)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"expected UTF-8 JSON lines in {self.path}, got: {error}; write the file again") from error

    def _bad(self, number: int, error: ValueError, on_bad: str, report: Skipped) -> None:
        """Raise the error with file and line, or note it in `report`."""
        message = f"{self.path}, line {number}: {error}" + ("" if ";" in str(error) else "; correct the row")
        if on_bad == "raise":
            raise ValueError(message) from error
        report.messages.append(message)

    def _drop_repeated(self, names: np.ndarray, numbers: np.ndarray, on_bad: str, report: Skipped) -> None:
        """Leave out rows whose id an earlier row has; ids whose digests alone are equal are told apart by reading."""
        order = np.argsort(names, kind="stable")
        suspects = np.flatnonzero(names[order][1:] == names[order][:-1]) + 1
        dropped: list[int] = []
        for place in suspects.tolist():
            row = int(order[place])
            first = next(
                int(one)
                for one in order[np.searchsorted(names[order], names[row]) :]
                if one == row or self[int(one)].id == self[row].id
            )
            if first != row:
                dropped.append(row)
                said = (
                    f"field 'id': {self[row].id!r:.80} is already on line {numbers[first]}; give every row its own id"
                )
                self._bad(int(numbers[row]), ValueError(said), on_bad, report)
        if dropped:
            self._starts, self._sizes = np.delete(self._starts, dropped), np.delete(self._sizes, dropped)


def digest(text: str) -> int:
    """64 bits that stand for a text, the same in every process: two of a billion texts agree once in forty tries.

    Python's own `hash` of a text differs from run to run.
    """
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def read_manifest(
    path: str | Path, on_bad: Literal["raise", "skip"] = "raise", skipped: Skipped | None = None
) -> list[Sample]:
    """Read every row of a manifest as a sample with absolute media paths (strings).

    Args:
        path: of the manifest or of its directory.
        on_bad: "raise": the first bad row is a ValueError that names file, line and field. "skip": bad rows are left
            out and listed in `skipped` when it is given, else in one warning with their count.
        skipped: takes the messages.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_manifest(f"{folder}/manifest.jsonl", [Sample("a", text="cat")])
        ...     [sample.text for sample in read_manifest(path)]
        ['cat']
    """
    return list(Manifest(path, on_bad, skipped))


def write_manifest(path: str | Path, samples: Iterable[Sample], *, replace: bool = True) -> Path:
    """Write samples as JSONL (gzip when the name ends in `.gz`); media inside the manifest's directory become relative.

    The file is written aside and moved into place. Nothing but the rows goes into it, so equal rows give equal bytes.

    Args:
        path: of the file. samples: in their order.
        replace: whether a file that is there may go.

    Returns:
        The path.

    Raises:
        ValueError: for media that are not paths. UsageError: for a file that is there (not `replace`).
    """
    path = Path(path)
    lines, leads = [], False
    for sample in samples:
        row = sample.to_row()
        for name in (*MEDIA, *in_files(row)):
            if row.get(name) is not None:
                row[name] = _relative(row[name], path.parent, sample.id, name)
        if isinstance(row.get("images"), list):
            row["images"] = [_relative(value, path.parent, sample.id, "images") for value in row["images"]]
        if isinstance(row.get("mask"), str) and os.path.isfile(row["mask"]):
            row["mask"] = _relative(row["mask"], path.parent, sample.id, "mask")
        lines.append(row_line(row) + "\n")
        leads = leads or _first(row, lambda value: leads_outside(path.parent, value)) is not None
    content = "".join(lines).encode()
    packed = gzip.compress(content, mtime=0) if path.suffix == ".gz" else content
    if leads:
        _remember(packed)
    return atomic_write(path, packed, replace=replace)


def _first(row: dict[str, Any], is_so: Callable[[str], bool]) -> str | None:
    """The first field of a row that names a file of which something is so: media, a mask, or one of two images."""
    named = [(name, row.get(name)) for name in (*MEDIA, "mask", *in_files(row))]
    if isinstance(row.get("images"), list):
        named += [("images", value) for value in row["images"]]
    return next((name for name, value in named if isinstance(value, str) and is_so(value)), None)


def _leads_out(row: dict[str, Any], name: str, folder: Path) -> str:
    return (
        f"field {name!r}: expected a file inside {folder}, got {row[name]!s:.200}, which leads outside of it; pass "
        "--outside (plait.reading.outside in Python) where you trust the list"
    )


def _place_of(digest: str) -> Path:
    return cache_directory() / "written" / digest


def _remember(content: bytes) -> None:
    """Note that Plait wrote this list here. A cache that cannot be written loses the note, not the list."""
    place = _place_of(hashlib.sha256(content).hexdigest())
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def _written_here(path: Path) -> bool:
    """Whether Plait wrote exactly this list on this machine."""
    with path.open("rb") as content:
        return _place_of(hashlib.file_digest(content, "sha256").hexdigest()).exists()


def row_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON. Raises ValueError, naming the row, for values that JSON cannot hold."""
    try:
        return whole_text(json.dumps({name: plain(value, name) for name, value in row.items()}, ensure_ascii=False))
    except ValueError as error:
        raise ValueError(f"sample {row.get('id')!r:.80}: {error}") from error


def checked_sample(line: str, folder: Path | None, where: str) -> Sample:
    """The sample of one line of JSON from elsewhere than a manifest; its ValueErrors begin with `where`."""
    try:
        return _sample(line, folder)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def checked_row(row: dict[str, Any], folder: Path | None, where: str) -> Sample:
    """The sample of one decoded row; its errors begin with `where`. folder: what media paths are relative to."""
    try:
        return _from_row(row, folder)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _sample(line: str, folder: Path | None) -> Sample:
    """One line of JSON -> its sample, checked. Raises ValueError that names the field."""
    return _from_row(checked_json(line), folder)


def checked_json(line: str) -> dict[str, Any]:
    """The object of one line of JSON. Raises ValueError for anything else, and for numbers that are not finite."""
    try:
        row = json.loads(line, parse_constant=_finite, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected one JSON object, got broken JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        # numbers of too many digits or none, brackets within brackets
        raise ValueError(f"expected one JSON object, got one beyond the reader ({error!s:.80})") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected one JSON object, got {type(row).__name__}")
    if "\\ud" in line or "\\uD" in line:
        # an escape may write half a character, which no text file can hold
        whole_text(json.dumps(row, ensure_ascii=False))
    return row


def _finite(written: str) -> float:
    """A JSON number. NaN and Infinity, which Python's reader takes, and 1e999 would pass for numbers everywhere."""
    if not math.isfinite(value := float(written)):
        raise ValueError(f"the number {written}, which is not finite")
    return value


def decoded(content: bytes, path: Path, encoding: str | None = None) -> str:
    """The text of a file: UTF-8 or UTF-16 by its mark, else in `encoding`, or UTF-8.

    Args:
        content: of the file. path: for messages.
        encoding: a name that Python knows, such as cp1252 or shift_jis; nothing is guessed.

    Raises:
        ValueError: that names the file, for bytes of another encoding, and for an unknown name.
    """
    # spreadsheets call it "Unicode text"
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    is_marked = content.startswith(codecs.BOM_UTF8)
    name = "utf-16" if is_wide else "utf-8-sig" if is_marked or encoding is None else encoding
    try:
        return content.decode(name)
    except LookupError as error:  # also of codecs that make no text, such as hex
        raise ValueError(f"expected an encoding such as utf-8 or cp1252, got {encoding!r}; name another") from error
    except UnicodeDecodeError as error:
        got = f"byte 0x{content[error.start]:02x} at {error.start}"
        wanted = "UTF-8 or UTF-16" if encoding is None else encoding
        remedy = "save it as UTF-8, or name its encoding"
        raise ValueError(f"expected {wanted} text in {path}, got {got}; {remedy}") from error


def _from_row(row: dict[str, Any], folder: Path | None) -> Sample:
    """A decoded row -> its sample, media paths made absolute below `folder` where there is one."""
    _check_row(row)
    if folder is not None:
        for name in (*MEDIA, *in_files(row)):
            if row.get(name) is not None:
                row[name] = _absolute(row[name], folder)
        if row.get("images") is not None:
            row["images"] = [_absolute(value, folder) for value in row["images"]]
        # another person's column may be called so too: a path is what leads to a file
        if isinstance(row.get("mask"), str) and os.path.isfile(os.path.join(folder, row["mask"])):
            row["mask"] = _absolute(row["mask"], folder)
    return Sample.from_row(row)


def _absolute(value: str, folder: Path) -> str:
    """A media path below `folder`."""
    joined = os.path.join(folder, value)
    # only what pathlib would write otherwise goes through it: it interns every part of every path, and of a
    # million names the interpreter's table would keep its size
    return str(Path(joined)) if _UNTIDY.search(joined) else joined


def _check_row(row: dict[str, Any]) -> None:
    """Raise ValueError, naming the field, for a row whose fields are not of the kinds that `Sample` has."""
    if not isinstance(row.get("id"), str | int) or row["id"] == "":
        raise ValueError(f"field 'id': expected a unique name, got {row.get('id')!r:.80}; give every row an id")
    for name in STRINGS:
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"field {name!r}: expected a string, got {type(value).__name__}")
        if value == "" and name in MEDIA:
            raise ValueError(f"field {name!r}: expected a path, got an empty string; leave the field out")
        if value is not None and name in MEDIA and (what := address(value)):
            raise ValueError(f"field {name!r}: expected a path, got {what} {value[:80]!r}; save the file and name it")
    for name in in_files(row):
        if what := address(str(row[name])):
            raise ValueError(
                f"field {name!r}: expected a path, got {what} {row[name]!s:.80}; save the file and name it"
            )
    for name in (*STRING_LISTS, "images"):
        _check_list(row, name, str)
    for name in OBJECT_LISTS:
        _check_list(row, name, dict)
    boxes = row.get("boxes")
    if boxes is not None and not (isinstance(boxes, list) and all(_is_box(box) for box in boxes)):
        raise ValueError("field 'boxes': expected a list of boxes of 4 numbers")
    if not isinstance(row.get("meta", {}), dict):
        raise ValueError(f"field 'meta': expected an object, got {type(row['meta']).__name__}")


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


def address(value: str) -> str | None:
    """What a string is that other tools take for a file and no file system does: a URL or a data URI; else None."""
    if value.startswith("data:") and "," in value:
        return "a data URI"
    scheme = _SCHEME.match(value)
    return None if scheme is None else "a file: URI" if scheme[1].lower() == "file" else "a URL"


def no_such_file(name: str) -> str:
    """`no such file`, and where its name was written on another system."""
    if address(name):
        return f"{address(name)}; save the file and name its path"
    windows = "\\" in name or re.search(r"(^|/)[A-Za-z]:/", name)
    return (
        "no such file: a path with backslashes or a drive, as Windows has; write / in it" if windows else "no such file"
    )


def _check_list(row: dict[str, Any], name: str, kind: type) -> None:
    """Raise ValueError where the field `name` is neither missing nor a list of `kind` values."""
    value = row.get(name)
    if value is not None and not (isinstance(value, list) and all(isinstance(item, kind) for item in value)):
        raise ValueError(f"field {name!r}: expected a list of {kind.__name__} values, got {value!r:.80}")


def _is_box(box: Any) -> bool:
    """Whether this is a list of four numbers."""
    numbers = isinstance(box, list) and len(box) == 4
    # True and False are integers to Python, but no corners.
    return numbers and all(isinstance(x, int | float) and not isinstance(x, bool) for x in box)


def _relative(value: Any, folder: Path, sample_id: str, name: str) -> str:
    """A media path as the manifest writes it: relative inside `folder`, else as it is, with forward slashes."""
    if not isinstance(value, str | Path):
        raise ValueError(f"sample {sample_id!r}, field {name!r}: expected a path to write, got {type(value).__name__}")
    path = Path(value)
    root = folder.resolve()
    if path.is_absolute() and path.resolve().is_relative_to(root):
        path = path.resolve().relative_to(root)
    return path.as_posix()
