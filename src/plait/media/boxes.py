"""MP4 and MOV headers, looked at before FFmpeg does: it makes room for every sample a header promises.

file -> top-level boxes -> tables of samples (`stsz`, `trun`) -> counts that the file can hold

A damaged count makes a file of a thousand bytes take gigabytes. Boxes: ISO/IEC 14496-12.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from plait.media.limits import MAX_SECONDS, refusal

MAX_SAMPLES = int(MAX_SECONDS) * 96_000
"""Entries of a table of samples: each value of uncompressed sound may be one."""
MAX_HEADER = 1 << 26
"""Bytes of one box that is no media data."""

_DATA = {b"mdat", b"free", b"skip", b"wide"}
_TABLE = re.compile(rb"(?P<kind>stsz|trun)(?P<body>.{12})", re.DOTALL)


def check_boxes(file: BinaryIO, source: object, kind: str) -> None:
    """Raise MediaError where a table promises more samples than the file has bytes. Leaves `file` at its start."""
    size = file.seek(0, os.SEEK_END)
    for start, length in _headers(file, size):
        if length > MAX_HEADER:
            raise refusal(kind, source, f"a header of {length} bytes, more than {MAX_HEADER}", "convert it anew")
        file.seek(start)
        header = file.read(length)
        if b"cmov" in header:
            raise refusal(kind, source, "a compressed header", "convert it to MP4 or WebM")
        for table in _TABLE.finditer(header):
            count, each = _promised(table["kind"], table["body"])
            if count * each > size or count > MAX_SAMPLES:
                got = f"a header that promises {count} samples in {size} bytes"
                raise refusal(kind, source, f"{got}, a truncated or damaged file")
    file.seek(0)


def _headers(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Start and length of every top-level box that is no media data, and of what follows a damaged one."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        length, name = struct.unpack(">I4s", file.read(8))
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        if length < 8 or start + length > size:
            length = size - start
        if name not in _DATA:
            yield start, length
        start += length


def _promised(name: bytes, body: bytes) -> tuple[int, int]:
    """Samples of a table, and the least bytes of each in the file."""
    if name == b"trun":
        return struct.unpack(">I", body[4:8])[0], 1
    each, count = struct.unpack(">II", body[4:])
    return count, max(each, 1)
