"""Which modality a file holds: first bytes -> container -> modality; the extension decides where bytes do not."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from plait.modalities import of_suffix
from plait.types import Modality

HEAD = 1024
"""Bytes looked at."""
_MAX_TAG = 1 << 28
"""Bytes of the longest ID3 tag: four times seven bits."""
_MAX_ZEROS = 1 << 20
"""Zeros in front of an MP3 that are passed over, as cutting programs leave them."""
MAX_HEADER = 1 << 26
"""Bytes of one box that is no media data."""
UNKNOWN_LENGTH = 0x7FFF_0000
"""From here on a length of RIFF is none: what writes to a pipe puts 0x7FFFF000, 0x80000000 or all ones."""
_MAX_TRACKS = 1 << 20
"""Bytes of a Matroska or ASF header that are looked at for its tracks."""

_BY_EXTENSION: dict[Modality, str] = {
    "text": "txt md",
    "image": "jpg jpeg jpe jfif png webp gif bmp dib tif tiff avif heic heif hif jxl jp2 cr3 ppm pgm pbm pnm",
    "video": "mp4 m4v mov qt 3gp 3g2 mkv webm avi mpg mpeg ts m2ts mts m2t flv ogv wmv asf",
    "audio": "wav wave flac ogg oga opus mp3 aif aiff aifc au snd caf w64 rf64 m4a m4b aac mka weba wma",
}
EXTENSIONS: dict[str, Modality] = {name: kind for kind, names in _BY_EXTENSION.items() for name in names.split()}
"""Ending of a name -> what it promises."""

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
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jpeg xl"),
    (b"\xff\x0a", "jpeg xl"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jpeg 2000"),
    (b"caff", "caf"),
    (b".snd", "au"),
    (b"RF64", "wav"),
    (b"riff\x2e\x91\xcf\x11", "w64"),
    (b"\x1aE\xdf\xa3", "matroska"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"FLV\x01", "flv"),
    (b"0&\xb2u\x8ef\xcf\x11", "asf"),
)

_BY_CONTAINER: dict[Modality, tuple[str, ...]] = {
    "image": (*["jpeg", "png", "gif", "bmp", "tiff", "webp", "avif", "heic", "netpbm", "cr3"], "jpeg xl", "jpeg 2000"),
    "audio": tuple(["flac", "mp3", "caf", "au", "wav", "w64", "aiff", "aac", "ogg", "m4a"]),
    "video": tuple(["mov", "matroska", "mpeg", "mpegts", "flv", "asf", "avi", "ogv"]),
}
_MODALITY: dict[str, Modality] = {name: kind for kind, names in _BY_CONTAINER.items() for name in names}
_EITHER = {"mov", "matroska", "asf", "flv"}
"""Containers that hold sound alone as well: their tracks decide, and an extension of sounds."""
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"}
_QUICKTIME = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
"""First boxes of films from before `ftyp`: Live Photos and older cameras still write them."""


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
        if head[8:12] in _HEIF:
            return "heic"
        if head[8:12] == b"crx ":  # Canon's raw photographs
            return "cr3"
        return "m4a" if head[8:11] in (b"M4A", b"M4B") else "mov"
    if head[4:8] in _QUICKTIME:
        return "mov"
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        # MPEG audio starts with eleven set bits; layer 0 means AAC, and bit rate 15 or sampling rate 3 is no frame
        if head[1] & 0x06 == 0:
            if head[1] & 0xF0 == 0xF0:
                return "aac"
        elif head[2] >> 4 != 15 and head[2] & 0x0C != 0x0C:
            return "mp3"
    if len(head) > 188 and head[0] == head[188] == 0x47:
        return "mpegts"
    # camcorders put a clock of 4 bytes before each packet, and a capture may begin inside of one
    for size, starts in ((192, (4,)), (188, range(1, 188))):
        if any(head[start::size][:4] == b"\x47" * 4 for start in starts):
            return "mpegts"
    return "netpbm" if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace() else None


def sniff(file: BinaryIO) -> str | None:
    """The container of an open file, as `container_of`; looks behind an ID3 tag and behind zeros. Leaves it at 0."""
    file.seek(0)
    head = file.read(HEAD)
    found = container_of(head)
    if head.startswith(b"ID3") and len(head) > 9:
        # a tag says nothing of what it belongs to: MP3, AAC or FLAC
        size = sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
        file.seek(min(size, _MAX_TAG) + 10 + (10 if head[5] & 0x10 else 0))
        found = {"aac": "aac", "flac": "flac"}.get(container_of(file.read(HEAD).lstrip(b"\0")) or "", "mp3")
    elif found is None and head[:2] == b"\0\0":
        file.seek(0)
        behind = file.read(_MAX_ZEROS).lstrip(b"\0")[:HEAD]
        found = "mp3" if container_of(behind) == "mp3" else None
    file.seek(0)
    return found


def content_of(container: str | None) -> str:
    """How a message calls the content of a file that its loader does not take."""
    return f"{container.upper()} content" if container else "content of no kind known here"


def boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and length of every top-level box of an MP4 or MOV; a length that cannot be is given as it is."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1:  # the length follows the name, in 64 bits
            length = int.from_bytes(file.read(8), "big")
        if length == 0:  # up to the end
            length = size - start
        yield name, start, length
        if length < 8:
            return
        start += length


def promised_bytes(file: BinaryIO, container: str) -> int | None:
    """Where an AVI or Matroska file says that it ends; None where it does not, as what was written to a pipe."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if container == "avi":  # beyond 1 GB several RIFF chunks follow each other
        end = 0
        while end + 8 <= size:
            file.seek(end)
            name, length = struct.unpack("<4sI", file.read(8))
            if name != b"RIFF" or not 0 < length < UNKNOWN_LENGTH:
                break
            end += 8 + length
        return end or None
    if container == "matroska":
        head = file.read(64)
        name, start, length = _element(head, 0)
        if length is not None and start:
            name, start, length = _element(head, start + length)
            if name == 0x18538067 and length is not None:
                return start + length
    return None


def has_picture(file: BinaryIO, container: str) -> bool | None:
    """Whether a container of video or audio has a video track, from its header; None where that is unknown."""
    if container == "mov":
        size = file.seek(0, os.SEEK_END)
        kinds: set[bytes] = set()
        for name, start, length in boxes(file, size):
            if name == b"moov" and length <= MAX_HEADER:
                file.seek(start)
                kinds |= set(re.findall(rb"hdlr.{8}(vide|soun)", file.read(length), re.DOTALL))
        return b"vide" in kinds if kinds else None
    file.seek(0)
    head = file.read(_MAX_TRACKS)
    if container == "flv":
        return bool(head[4] & 1) if head[4:5] else None
    if container == "asf":  # the GUIDs of stream types: video, audio
        film, sound = (
            bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b"),
            bytes.fromhex("409e69f84d5bcf11a8fd00805f5c442b"),
        )
        return True if film in head else False if sound in head else None
    segment_tracks_entry_type = (0x18538067, 0x1654AE6B, 0xAE, 0x83)
    types = [head[start:stop] for start, stop in _elements(head, 0, len(head), segment_tracks_entry_type)]
    return b"\x01" in types if types else None


def _elements(data: bytes, start: int, stop: int, path: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Start and end of what lies under a path of Matroska (EBML) elements, in the part of the file that `data` is."""
    while start < min(stop, len(data)):
        name, body, length = _element(data, start)
        if not body:
            return
        end = stop if length is None else min(stop, body + length)
        if name == path[0] and len(path) == 1:
            yield body, end
        elif name == path[0]:
            yield from _elements(data, body, end, path[1:])
        start = end


def _element(data: bytes, start: int) -> tuple[int, int, int | None]:
    """Name of an EBML element, where its body starts (0 where there is no element), its length (None: unknown)."""
    numbers = []
    for _ in range(2):  # the zeros in front of the first one tell how many more bytes a number has
        if start >= len(data) or not data[start]:
            return 0, 0, None
        width = 9 - data[start].bit_length()
        numbers.append(int.from_bytes(data[start : start + width], "big"))
        start += width
    name, number = numbers
    length = number ^ (1 << 7 * width)
    # all ones: up to the end
    return name, start, None if length == (1 << 7 * width) - 1 else length


def kind_of(source: str | Path | bytes) -> str | None:
    """The modality of a file, or of its bytes, by its first ones, else by its extension; None for what nobody loads.

    A file that cannot be read counts by its extension, so that loading it says why. What is of no kind known here may
    be of one that a user added, by its extension.
    """
    if isinstance(source, bytes):
        extension, (container, shows) = None, _shown(io.BytesIO(source), None)
    else:
        extension = EXTENSIONS.get(Path(source).suffix.lower().removeprefix("."))
        container, shows = None, None
        with suppress(OSError, ValueError):
            if stat.S_ISREG(os.stat(source).st_mode):  # a pipe would wait for its writer
                with open(source, "rb") as file:
                    container, shows = _shown(file, extension)
    if container is None or (container in _EITHER and extension == "audio"):
        return extension or (None if isinstance(source, bytes) else of_suffix(source))
    return "audio" if shows is False else _MODALITY[container]


def _shown(file: BinaryIO, extension: str | None) -> tuple[str | None, bool | None]:
    """The container, and whether it has a picture where it may have none; a film in `.mka` is asked for its sound."""
    container = sniff(file)
    asks = container in _EITHER and extension != "audio"
    return container, has_picture(file, container) if asks and container else None
