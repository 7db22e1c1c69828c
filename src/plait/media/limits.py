"""What media may cost, and how a source is opened: path | bytes -> open_media -> a file that is safe to look into.

The limits in force are those of the process: loaders run in threads, and behind every verb. `raised` changes them.
"""

from __future__ import annotations

import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO


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


@dataclass(slots=True)
class Limits:
    """What one file may cost before it is decoded.

    Args:
        max_bytes: of one file. max_pixels: of one image or video frame.
        max_seconds: of one clip, audio or video. max_frames: of one video.
    """

    max_bytes: int = 1 << 30
    max_pixels: int = 64_000_000
    max_seconds: float = 600.0
    max_frames: int = 100_000


IN_FORCE = Limits()
"""What a loader goes by where its caller names no limit of its own."""

MAX_CHANNELS = 32
"""Channels of one sound."""
MAX_RATE = 768_000
"""Samples per second of one sound."""
MAX_SAMPLES = 1 << 26
"""Rate x seconds of one sound, in proportion more where `max_seconds` is raised: ten minutes at 96 kHz fit."""
MAX_VALUES = 1 << 29
"""The same with channels."""


@contextmanager
def raised(**limits: float) -> Generator[Limits]:
    """Other limits on media for everything that is loaded in the block, in every thread of the process.

    Args:
        limits: any of max_bytes, max_pixels, max_seconds and max_frames, above 0.

    Raises:
        ValueError: for another name, and for what is no number above 0.

    Example:
        >>> with raised(max_seconds=3600):
        ...     IN_FORCE.max_seconds
        3600
    """
    before = asdict(IN_FORCE)
    try:
        set_limits(**limits)
        yield IN_FORCE
    finally:
        set_limits(**before)


def set_limits(**limits: float) -> None:
    """As `raised`, until the end of the process or of a `raised` around it."""
    for name, value in limits.items():
        if name not in Limits.__slots__:
            raise ValueError(f"expected a limit among {', '.join(Limits.__slots__)}, got {name!r}; choose one of them")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"expected a number above 0 for {name}, got {value!r}; give a larger one")
    for name, value in limits.items():
        setattr(IN_FORCE, name, value if name == "max_seconds" else int(value))


def limit(name: str, own: Any) -> Any:
    """A caller's own limit, else the one in force."""
    return getattr(IN_FORCE, name) if own is None else own


def exceeds(kind: str, source: object, got: str, name: str, value: float, remedy: str) -> MediaError:
    """The error for a file that costs more than a limit; it says how to raise it.

    got: what the file has, in words. name, value: of the limit. remedy: what else helps.
    """
    said = f"{got}, more than " + (f"{value:g} s" if name == "max_seconds" else str(value))
    return refusal(kind, source, said, f"{remedy}, or raise {name} (--limit {name}=NUMBER, plait.media.raised)")


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
def open_media(source: Source, kind: str, max_bytes: int | None = None) -> Generator[BinaryIO]:
    """Open `source` for reading: an ordinary file of 1 to `max_bytes` bytes. Raises MediaError for anything else.

    Links are followed; a loop of links, a directory, a pipe or a device is an error and never opened.
    """
    max_bytes = limit("max_bytes", max_bytes)
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
        raise exceeds(kind, source, f"{size} bytes", "max_bytes", max_bytes, "shorten it")
