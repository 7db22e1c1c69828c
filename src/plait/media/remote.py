"""Files of object stores and other machines: an address that a person named -> a copy here, as local files are read.

s3://photos/2024 -> files_under -> RemoteFile, one a file -> copy (within `max_bytes`) -> sniffed, decoded, closed

fsspec opens addresses, by a package of their own that has to be installed (s3fs for s3, gcsfs for gs ...). Where the
store is and who asks is told to that package as its users do: `AWS_ENDPOINT_URL`, `~/.aws`, `FSSPEC_S3_...` and their
like. An address inside a file, such as a manifest or an index, is never opened: only `files_under` makes what can be
fetched, and it gets what a person wrote.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Any

from plait.errors import import_extra
from plait.media.limits import IN_FORCE, MediaError, Packed, exceeds, refusal

_PIECE = 1 << 20
"""Bytes that are fetched at a time."""


class RemoteFile(Packed):
    """One file behind an address. It is fetched once, when it is first looked into, and goes with this object.

    Args:
        address: as a person would write it. system: of fsspec, connected. place: the file's name there.
        num_bytes: as the store lists it; None where it does not say.
    """

    def __init__(self, address: str, system: Any, place: str, num_bytes: int | None) -> None:
        self.address, self._system, self._place, self._num_bytes = address, system, place, num_bytes
        self._folder: Path | None = None

    @property
    def name(self) -> str:
        """The address."""
        return self.address

    def size(self) -> int | None:
        """Bytes, as the store lists them."""
        return self._num_bytes

    def read(self) -> bytes:
        """The whole file."""
        return self.copy().read_bytes()

    def copy(self) -> Path:
        """Where a copy lies on this machine, under the file's own ending; removed with this object.

        Raises:
            MediaError: for more than `max_bytes`, whatever the store lists, and where it cannot be fetched.
        """
        if self._folder is None:
            if self._num_bytes is not None and self._num_bytes > IN_FORCE.max_bytes:
                raise self._too_large(self._num_bytes)
            folder = Path(mkdtemp(prefix="plait-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            with (
                _told(self.address),
                self._system.open(self._place, "rb") as source,
                (folder / self._named()).open("wb") as out,
            ):
                while piece := source.read(_PIECE):
                    if out.tell() + len(piece) > IN_FORCE.max_bytes:
                        raise self._too_large(out.tell() + len(piece))
                    out.write(piece)
            self._folder = folder
        return self._folder / self._named()

    def _named(self) -> str:
        """A name with the ending of the file, which may be anybody's."""
        suffix = PurePosixPath(self._place).suffix
        return f"file{suffix if suffix[1:].isalnum() and len(suffix) < 12 else ''}"

    def _too_large(self, size: int) -> MediaError:
        return exceeds("media", self.address, f"{size} bytes", "max_bytes", IN_FORCE.max_bytes, "leave it out")


def files_under(address: str) -> Iterator[RemoteFile]:
    """The files of a folder, by their names, or the one file that an address names; hidden ones are passed over.

    Raises:
        MediaError: where nothing is there or the store refuses, and for a data set: its rows name files, which nobody
            but a person may have fetched. MissingExtraError: without fsspec, or its package for this kind of store.
    """
    fsspec = import_extra("fsspec")
    scheme = address.partition(":")[0]
    with _told(address):
        system, place = fsspec.core.url_to_fs(address)
        facts = system.info(place)
        if facts["type"] == "file":
            if PurePosixPath(place).name.endswith((".jsonl", ".jsonl.gz")):
                raise _is_data_set(address)
            yield RemoteFile(address, system, place, facts.get("size"))
            return
        walked = system.walk(place, detail=True)
        while (step := next(walked, None)) is not None:
            _, folders, files = step
            for name in [name for name in folders if name.startswith(".") or name.endswith(".lance")]:
                del folders[name]  # in place: walk goes into what is left
            if any(name in ("manifest.jsonl", "manifest.jsonl.gz") for name in files):
                raise _is_data_set(address)
            for name, one in sorted(files.items()):
                if name and not name.startswith(".") and one["type"] == "file":
                    yield RemoteFile(f"{scheme}://{one['name'].lstrip('/')}", system, one["name"], one.get("size"))


def _is_data_set(address: str) -> MediaError:
    return refusal("media", address, "a data set, whose rows name files", "copy it here and add the copy")


@contextmanager
def _told(address: str) -> Generator[None]:
    """Turn what a store's package raises, which has errors of its own, into one line."""
    try:
        yield
    except (MediaError, GeneratorExit):
        raise
    except ImportError as error:
        raise refusal("media", address, error, "install that package") from error
    except FileNotFoundError as error:
        raise refusal("media", address, "nothing there", "check the address") from error
    except Exception as error:
        # botocore, aiohttp, google.auth, paramiko ...: each has a base of its own, and none is a ValueError
        raise refusal("media", address, error, "check the address and who may read it") from error
