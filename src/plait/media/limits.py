"""What media may cost, and how a source is opened: path | bytes -> open_media -> a file that is safe to look into."""

from __future__ import annotations

import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class Packed(ABC):
    """A file inside another one: a tar shard, a table."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a message calls it."""

    @abstractmethod
    def size(self) -> int | None:
        """Bytes, where that is known without reading; looked at before `read`."""

    @abstractmethod
    def read(self) -> bytes:
        """The whole file. Raises OSError where what it lies in is gone."""

    def __str__(self) -> str:
        return self.name


Source = str | Path | bytes | Packed
"""A path, the bytes of a file, or a file inside another."""

MAX_BYTES = 1 << 30
"""Bytes of one file."""
MAX_PIXELS = 64_000_000
"""Pixels of one image or video frame."""
MAX_SECONDS = 600.0
"""Length of one clip, sound or video."""
MAX_FRAMES = 100_000
"""Frames of one video."""
MAX_CHANNELS = 32
"""Channels of one sound."""
MAX_RATE = 768_000
"""Samples per second of one sound."""


class MediaError(ValueError):
    """Media that is missing, damaged, too large or of another kind; one line that names the file."""


def name_of(source: object) -> str:
    """What a message calls `source`."""
    return str(source) if isinstance(source, str | Path | Packed) else f"{type(source).__name__} in memory"


def refusal(kind: str, source: object, got: object, remedy: str = "check the file") -> MediaError:
    """The error `expected an image file, got photo.jpg: ...; remedy`."""
    reason = " ".join(str(got).split()).rstrip(".") or type(got).__name__
    article = "an" if kind[0] in "aeiou" else "a"
    return MediaError(f"expected {article} {kind} file, got {name_of(source)}: {reason}; {remedy}")


@contextmanager
def open_media(source: Source, kind: str, max_bytes: int = MAX_BYTES) -> Generator[BinaryIO]:
    """Open `source` for reading: an ordinary file of 1 to `max_bytes` bytes. Raises MediaError for anything else.

    Links are followed; a loop of links, a directory, a pipe or a device is an error and never opened.
    """
    if isinstance(source, Packed):
        if (size := source.size()) is not None:
            _check_size(kind, source, size, max_bytes)
        try:
            content = source.read()
        except OSError as error:
            raise refusal(kind, source, error.strerror or error, "check the file it lies in") from error
        _check_size(kind, source, len(content), max_bytes)
        source = content
    if isinstance(source, bytes | bytearray | memoryview):
        _check_size(kind, source, len(source), max_bytes)
        yield io.BytesIO(source)
        return
    if not isinstance(source, str | Path):
        raise refusal(kind, source, f"a {type(source).__name__}", "pass a path or the bytes of a file")
    if isinstance(source, str) and source.startswith(("http://", "https://", "ftp://", "s3://")):
        raise refusal(kind, source, "an address, which is never opened", "download it and pass the file")
    try:
        found = os.stat(source)
        if not stat.S_ISREG(found.st_mode):
            what = "a directory" if stat.S_ISDIR(found.st_mode) else "a pipe, device or socket"
            raise refusal(kind, source, what, "pass an ordinary file")
        _check_size(kind, source, found.st_size, max_bytes)
        file = open(source, "rb")  # noqa: SIM115 (closed below, apart from the errors of opening)
    except (OSError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else error
        raise refusal(kind, source, reason, "check the path and its permissions") from error
    with file:
        yield file


def _check_size(kind: str, source: object, size: int, max_bytes: int) -> None:
    if size == 0:
        raise refusal(kind, source, "an empty file")
    if size > max_bytes:
        raise refusal(kind, source, f"{size} bytes, more than {max_bytes}", "shorten it, or raise max_bytes")
