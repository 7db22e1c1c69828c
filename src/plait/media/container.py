"""FFmpeg containers: a file -> its first bytes choose the only demuxer -> headers are checked -> PyAV opens it.

Playlists, addresses and subtitles are no containers here: FFmpeg is never left to guess what a file is. MP4 and MOV
headers (ISO/IEC 14496-12) are looked at before FFmpeg does, since it makes room for every sample that a header
promises, and a damaged count makes a file of a thousand bytes take gigabytes:

file -> top-level boxes -> tables of samples (`stsz`, `trun`) -> counts that the file can hold
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, BinaryIO

from plait.errors import import_extra
from plait.media.kinds import MAX_HEADER, boxes, content_of, promised_bytes, sniff
from plait.media.limits import MediaError, Source, limit, open_media, refusal

DEMUXERS = {
    "mov": "mov",
    "m4a": "mov",
    "matroska": "matroska",
    "avi": "avi",
    "mpeg": "mpeg",
    "mpegts": "mpegts",
    "flv": "flv",
    "asf": "asf",
    "ogv": "ogg",
    "ogg": "ogg",
    "wav": "wav",
    "flac": "flac",
    "mp3": "mp3",
    "aac": "aac",
}
"""Container -> the only FFmpeg demuxer tried on it."""

SAMPLES_PER_SECOND = 96_000
"""Entries of a table of samples for a second of media: each value of uncompressed sound may be one."""
_DATA = {b"mdat", b"free", b"skip", b"wide"}
_TABLE = re.compile(rb"(?P<kind>stsz|trun)(?P<body>.{12})", re.DOTALL)


@contextmanager
def opened(
    source: Source,
    kind: str,
    max_bytes: int | None = None,
    max_pixels: int | None = None,
    max_seconds: float | None = None,
) -> Generator[Any]:
    """An FFmpeg container over `source`; whatever goes wrong inside becomes a MediaError. Limits: None as in force."""
    av = import_extra("av")
    with open_media(source, kind, max_bytes) as file:
        found = sniff(file)
        demuxer = DEMUXERS.get(found or "")
        if demuxer is None:
            raise refusal(kind, source, content_of(found), "convert it to MP4 or WebM")
        if demuxer == "mov":
            check_boxes(file, source, kind, limit("max_seconds", max_seconds))
        promised, size = promised_bytes(file, demuxer), file.seek(0, os.SEEK_END)
        if promised is not None and promised > size:
            # FFmpeg would show the first part without a word
            raise refusal(kind, source, f"{size} of {promised} bytes, a truncated file")
        file.seek(0)
        try:
            with av.open(file, mode="r", format=demuxer) as container:
                # PyAV reads the options when it opens the decoder, so the limit holds before a frame takes memory
                for stream in container.streams.video:
                    if stream.codec_context is not None:
                        stream.codec_context.options = {"max_pixels": str(limit("max_pixels", max_pixels))}
                yield container
        except MediaError:
            raise
        except Exception as error:  # on damaged files PyAV raises nearly everything
            said = " ".join(str(getattr(error, "strerror", None) or error).split())
            raise refusal(kind, source, f"a truncated or damaged file ({said})") from error


def check_boxes(file: BinaryIO, source: object, kind: str, max_seconds: float) -> None:
    """Raise MediaError where a table promises more samples than the file has bytes. Leaves `file` at its start."""
    size = file.seek(0, os.SEEK_END)
    for name, start, length in boxes(file, size):
        if name == b"mdat" and start + length > size:
            got = f"{size - start} of {length} bytes of media data"
            raise refusal(kind, source, f"{got}, a truncated file")
        if name in _DATA:
            continue
        if length < 8 or start + length > size:  # damage: what follows is looked at as a header
            length = size - start
        if length > MAX_HEADER:
            raise refusal(kind, source, f"a header of {length} bytes, more than {MAX_HEADER}", "convert it anew")
        file.seek(start)
        header = file.read(length)
        if b"cmov" in header:
            raise refusal(kind, source, "a compressed header", "convert it to MP4 or WebM")
        for table in _TABLE.finditer(header):
            # stsz: version, size of every sample (0: sizes follow, of at least a byte), count. trun: version, count.
            # The bytes may stand inside other data by chance: a count that the file can hold harms nobody.
            each, count = struct.unpack(">II", table["body"][4:])
            if table["kind"] == b"trun":
                each, count = 1, each
            if count * max(each, 1) > size or count > max_seconds * SAMPLES_PER_SECOND:
                got = f"a header that promises {count} samples in {size} bytes"
                raise refusal(kind, source, f"{got}, a truncated or damaged file")
    file.seek(0)
