"""Which modality a file holds: first bytes -> container -> modality; the extension decides where bytes do not."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from plait.types import Modality

HEAD = 512
"""Bytes looked at."""

_BY_EXTENSION: dict[Modality, str] = {
    "text": "txt md",
    "image": "jpg jpeg jpe jfif png webp gif bmp dib tif tiff avif heic heif ppm pgm pbm pnm",
    "video": "mp4 m4v mov 3gp 3g2 mkv webm avi mpg mpeg ts m2ts flv ogv wmv asf",
    "audio": "wav wave flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 m4a m4b aac mka weba wma",
}
_EXTENSIONS: dict[str, Modality] = {name: kind for kind, names in _BY_EXTENSION.items() for name in names.split()}

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
    (b"fLaC", "flac"),
    (b"ID3", "mp3"),
    (b"caff", "caf"),
    (b".snd", "au"),
    (b"RF64", "wav"),
    (b"riff\x2e\x91\xcf\x11", "w64"),
    (b"\x1aE\xdf\xa3", "matroska"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"FLV\x01", "flv"),
    (b"0&\xb2u\x8ef\xcf\x11", "asf"),
)

_BY_CONTAINER: dict[Modality, str] = {
    "image": "jpeg png gif bmp tiff webp avif heic netpbm",
    "audio": "flac mp3 caf au wav w64 aiff aac ogg m4a",
    "video": "mov matroska mpeg mpegts flv asf avi ogv",
}
_MODALITY: dict[str, Modality] = {name: kind for kind, names in _BY_CONTAINER.items() for name in names.split()}
_EITHER = {"mov", "matroska", "asf"}
"""Containers that hold sound alone as well: their extension decides."""


def container_of(head: bytes) -> str | None:
    """The container that starts with `head`: `jpeg`, `wav`, `mov`, `matroska`, ... or None."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] in (b"RIFF", b"FORM"):
        return {b"WEBP": "webp", b"WAVE": "wav", b"AVI ": "avi", b"AIFF": "aiff", b"AIFC": "aiff"}.get(head[8:12])
    if head[:4] == b"OggS":
        return "ogv" if b"theora" in head[:128] else "ogg"
    if head[4:8] == b"ftyp":
        # ISO base media: told apart by the brands in the first box, the major one at byte 8, compatible ones from 16 on
        brands = {head[8:12], *(head[i : i + 4] for i in range(16, min(len(head), head[3]), 4))}
        if brands & {b"avif", b"avis"}:
            return "avif"
        if head[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
            return "heic"
        return "m4a" if head[8:11] in (b"M4A", b"M4B") else "mov"
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        # MPEG audio starts with eleven set bits; layer 0 means AAC, and bit rate 15 or sampling rate 3 is no frame
        if head[1] & 0x06 == 0:
            return "aac" if head[1] & 0xF0 == 0xF0 else None
        return "mp3" if head[2] >> 4 != 15 and head[2] & 0x0C != 0x0C else None
    if len(head) > 188 and head[0] == head[188] == 0x47:
        return "mpegts"
    return "netpbm" if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace() else None


def content_of(container: str | None) -> str:
    """How a message calls the content of a file that its loader does not take."""
    return f"{container.upper()} content" if container else "content of no kind known here"


def kind_of(path: str | Path) -> Modality | None:
    """The modality of a file by its first bytes, else by its extension; None for what no loader here takes.

    A file that cannot be read counts by its extension, so that loading it says why.
    """
    extension = _EXTENSIONS.get(Path(path).suffix.lower().removeprefix("."))
    head = b""
    with suppress(OSError, ValueError):
        if stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for its writer
            with open(path, "rb") as file:
                head = file.read(HEAD)
    container = container_of(head)
    if container is None or (container in _EITHER and extension == "audio"):
        return extension
    return _MODALITY[container]
