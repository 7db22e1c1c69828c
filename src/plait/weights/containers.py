"""The ways torch lays pickles and tensor bytes into one file.

mapped file -> read_zip | read_legacy | read_pickle -> what was pickled, tensors as LazyTensor

Zip (torch 1.6 and newer): `NAME/data.pkl` and one uncompressed entry `NAME/data/KEY` per storage. Legacy: five pickles
(magic number, version, byte order, the object, storage keys), then each storage as a 64-bit length and its bytes.
Plain pickle: tensors hold their storage as a legacy file inside a byte string. Format: `torch/serialization.py`.
"""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

from plait.weights.standins import PickleError, Storage, storage_dtype
from plait.weights.unpickle import PickleReader

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_ENTRIES = 200_000
"""Entries a zip file may have."""


class _Storages:
    """Answers torch's persistent ids with storages, one per key."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def __call__(self, identity: Any) -> Storage:
        if not isinstance(identity, tuple) or len(identity) not in {5, 6} or identity[0] != "storage":
            raise PickleError("expected a persistent id of a torch storage, got another")
        _, kind, key, _, length, *view = identity
        if not isinstance(key, str) or type(length) is not int or not 0 <= length < 1 << 60:
            raise PickleError("expected a torch storage with a key and a length, got another")
        if view not in ([], [None]):
            raise PickleError("expected a whole torch storage, got a view of one")
        storage = Storage(storage_dtype(kind), length)
        known = self.by_key.setdefault(key, storage)
        if (known.dtype, known.length) != (storage.dtype, storage.length):
            raise PickleError(f"expected one type and length for storage {key:.40}, got two")
        return known


def read_pickle(data: memoryview) -> Any:
    """A plain pickle. Raises PickleError."""
    return PickleReader(data, blob=_nested).load()


def _nested(blob: Any) -> Any:
    """torch.storage._load_from_bytes: a legacy file in a byte string."""
    if not isinstance(blob, memoryview):
        raise PickleError("expected bytes of a nested torch file, got something else")
    return read_legacy(blob)


def is_legacy(data: memoryview) -> bool:
    """Whether `data` starts with the pickled magic number of torch's older format."""
    try:
        return PickleReader(data[:64]).load() == LEGACY_MAGIC
    except PickleError:
        return False


def read_legacy(data: memoryview) -> Any:
    """A file of torch 1.5 and older, or of `_use_new_zipfile_serialization=False`. Raises PickleError."""
    storages, position, parts = _Storages(), 0, []
    for _ in range(5):
        reader = PickleReader(data, position, persistent=storages)
        parts.append(reader.load())
        position = reader.position
    magic, _, system, value, keys = parts
    if magic != LEGACY_MAGIC:
        raise PickleError("expected the magic number of a torch file, got another")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("expected a little-endian torch file, got another byte order")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages.by_key):
        raise PickleError("expected a list of the storages in use, got another")
    for key in keys:
        storage = storages.by_key[key]
        end = position + 8 + storage.num_bytes
        if end > len(data):
            raise PickleError(
                f"expected {storage.num_bytes} bytes for storage {key:.40}, got {len(data) - position - 8}"
            )
        if struct.unpack("<q", data[position : position + 8])[0] != storage.length:
            raise PickleError(f"expected {storage.length} elements in storage {key:.40}, got another number")
        storage.data = data[position + 8 : end]
        position = end
    return value


def read_zip(data: memoryview) -> Any:
    """A zip file of torch 1.6 and newer. Raises PickleError."""
    entries = _entries(data)
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(roots) != 1:
        raise PickleError(f"expected a zip file with one data.pkl, as torch writes it, got {len(roots)}")
    root = roots[0]
    order = entries.get(f"{root}byteorder")
    if order is not None and bytes(order[:16]) != b"little":
        raise PickleError("expected a little-endian torch file, got another byte order")
    storages = _Storages()
    value = PickleReader(entries[f"{root}data.pkl"], persistent=storages).load()
    for key, storage in storages.by_key.items():
        found = entries.get(f"{root}data/{key}")
        if found is None or len(found) < storage.num_bytes:
            raise PickleError(f"expected {storage.num_bytes} bytes for storage {key:.40}, got {len(found or b'')}")
        storage.data = found[: storage.num_bytes]
    return value


def _entries(data: memoryview) -> dict[str, memoryview]:
    """The bytes of every entry, uncompressed and inside the file, without copying."""
    try:
        with zipfile.ZipFile(_Window(data)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError, EOFError) as error:
        raise PickleError(f"expected a whole zip file, got a damaged one ({error})") from error
    if len(infos) > MAX_ENTRIES:
        raise PickleError(f"expected at most {MAX_ENTRIES} entries in a zip file, got {len(infos)}")
    return {info.filename: _entry(data, info) for info in infos}


def _entry(data: memoryview, info: zipfile.ZipInfo) -> memoryview:
    start = info.header_offset
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise PickleError(f"expected uncompressed entries, as torch writes them, got {info.filename!r:.60} compressed")
    if start + 30 > len(data) or bytes(data[start : start + 4]) != b"PK\x03\x04":
        raise PickleError(f"expected entry {info.filename!r:.60} at {start}, got other bytes")
    name_length, extra_length = struct.unpack("<HH", data[start + 26 : start + 30])
    start += 30 + name_length + extra_length
    if start + info.file_size > len(data):
        raise PickleError(f"expected {info.file_size} bytes in entry {info.filename!r:.60}, got a shorter file")
    return data[start : start + info.file_size]


class _Window(io.RawIOBase):
    """A seekable file over `data` that copies only what is read."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._position = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        if position < 0:
            raise OSError(f"expected a position inside the file, got {position}")
        self._position = position
        return position

    def read(self, size: int | None = -1) -> bytes:
        # Never more than there is: the size comes from the file.
        end = len(self._data) if size is None or size < 0 else min(len(self._data), self._position + size)
        part = bytes(self._data[self._position : end])
        self._position += len(part)
        return part
