"""Models by name: name -> address -> file (resumed, sized, checked) -> model directory in the cache, converted once.

    plait get NAME -> official.json | package | hub -> files/NAME.part -> files/NAME -> models/NAME -> any verb

Addresses are those in the authors' READMEs. Those publish no checksums: the first fetch records one, and a later file
that differs from it is refused.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from plait.errors import UsageError
from plait.models import SHIPPED, by_name, cached_model, official_rows
from plait.places import atomic_write, cache_directory, mark, remove, writing
from plait.terminal import progress_bar

BLOCK = 1 << 20
TRIES = 5
"""Connections that break one after the other without a new byte."""
PATIENCE = 30.0
"""Seconds without a byte that count as a broken connection."""
SPARE = 64 << 20
"""Bytes that stay free beside what is fetched."""
HUB = "hub: "


@dataclass(frozen=True)
class Record:
    """What is known of a fetched file: where it came from, bytes, SHA-256, date."""

    url: str
    size: int
    sha256: str
    date: str


def get(name: str, *, keep: bool = False) -> Path:
    """The directory of a model, fetched and converted where it is not there yet.

    Args:
        name: "nano", "smollm2", one of `plait models` such as "one-peace", or a hub id.
        keep: whether the official file stays in the cache beside the directory that was made of it.

    Returns:
        A model directory, which every verb and `plait.load` know by the same name.

    Raises:
        UsageError: for a name that is none of these, and while another process fetches it.
        ValueError: for a host that is not reached (said as offline), a wrong size or checksum, and no room on the disk.

    Example:
        >>> plait.load(get("one-peace"), dtype="bfloat16")
    """
    if (found := by_name(name)) is not None:
        return found
    if name == "smollm2":
        from plait.data.packages import smollm2

        return smollm2()
    row = official_rows().get(name)
    if row is None:
        if "/" not in name:
            known = ", ".join((*SHIPPED, "smollm2", *official_rows()))
            raise UsageError(f"expected a hub id or one of {known}, got {name!r}; plait models tells more")
        from plait.models import locate

        return locate(name if name.startswith("hf:") else f"hf:{name}")
    target = cache_directory() / "models" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with writing(target.with_name(f"{name}.lock")):
        if target.is_dir():  # made while we waited
            return target
        if row["where"].startswith(HUB):
            from plait.models import locate

            source = locate(f"hf:{row['where'].removeprefix(HUB)}")
        else:
            source = cache_directory() / "files" / row["name"]
            # the directory that is made of the file is as large as the file, and both are there for a moment
            fetch_file(row["where"], source, copies=2)
        from plait.models.convert import convert

        convert(source, target)
        (target / "fetched.json").write_text(json.dumps({"name": name, "from": row["where"]}), encoding="utf-8")
        mark(target)
    # A file without a record was put there by hand: it is its owner's.
    if not keep and source.is_file() and _recorded(source.parent / "records.json", source.name) is not None:
        source.unlink()
    return target


def forget(name: str) -> int:
    """Remove what `get` left of a model: its directory, its file and parts of it.

    Args:
        name: as in `get`.

    Returns:
        Bytes that are free again.

    Raises:
        UsageError: where there is nothing of that name that Plait fetched.
    """
    row = official_rows().get(name)
    files = cache_directory() / "files"
    found = [] if row is None else [files / f"{row['name']}{end}" for end in ("", ".part", ".part.json")]
    found = [path for path in found if path.is_file()]
    if row is not None and _recorded(files / "records.json", row["name"]) is None:
        found = [path for path in found if path.name != row["name"]]  # put there by hand
    directory = cached_model(name)
    if not found and directory is None:
        raise UsageError(f"expected a model that was fetched, got {name!r}; plait models lists them")
    freed = sum(path.stat().st_size for path in found)
    for path in found:
        path.unlink()
    if directory is not None:
        freed += sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        mark(directory)  # it lies in the cache, under a name that only `get` and `smollm2` write
        remove(directory)
    return freed


def fetch_file(url: str, target: Path, *, size: int | None = None, sha256: str | None = None, copies: int = 1) -> Path:
    """One file, in as many connections as it takes; a part that is there is gone on with.

    Args:
        url: http or https.
        target: appears whole and checked, or not at all.
        size, sha256: where they are known; else those of the first fetch, which are recorded beside all files.
        copies: how many times its size has to be free before it begins.

    Returns:
        The target.

    Raises:
        ValueError: one line for each way in which it fails; what was fetched stays for the next call.
    """
    if target.is_file():
        return target
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise ValueError(
            f"expected to fetch {target.name}, got HF_HUB_OFFLINE (offline); unset it, or {_by_hand(target)}"
        )
    records = target.parent / "records.json"
    known = _recorded(records, target.name)
    if known is not None:
        size, sha256 = size or known.size, sha256 or known.sha256
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with writing(target.with_name(f"{target.name}.lock")):
        total = _fill(url, part, target, size, copies)
        digest = _digest(part)
        if sha256 is not None and digest != sha256:
            part.unlink()
            raise ValueError(
                f"expected {target.name} with SHA-256 {sha256}, got {digest}: it is damaged, or another file than the "
                f"one that was fetched first; run it again, or remove {records} to trust the new one"
            )
        part.replace(target)
        part.with_name(f"{part.name}.json").unlink(missing_ok=True)
        if known is None:
            record = Record(url, total, digest, datetime.now(UTC).strftime("%Y-%m-%d"))
            rows = json.loads(records.read_text(encoding="utf-8")) if records.is_file() else {}
            atomic_write(records, json.dumps(rows | {target.name: asdict(record)}, indent=1))
    return target


def _recorded(records: Path, name: str) -> Record | None:
    """What an earlier fetch recorded of a file."""
    rows = json.loads(records.read_text(encoding="utf-8")) if records.is_file() else {}
    return Record(**rows[name]) if name in rows else None


def _fill(url: str, part: Path, target: Path, size: int | None, copies: int) -> int:
    """Fetch into `part` until it is whole; its size. Raises ValueError."""
    failed = 0
    while True:
        have = part.stat().st_size if part.is_file() else 0
        try:
            with _opened(url, part, have) as (answer, start, total):
                if size is not None and total != size:
                    raise ValueError(
                        f"expected {target.name} of {size:,} bytes, got {total:,}: another file lies at its address "
                        "now; nothing was changed"
                    )
                _check_room(part.parent, total - start + (copies - 1) * total, target.name)
                if start < total:
                    _append(answer, part, start, total, target.name)
            if (got := part.stat().st_size) == total:
                return total
            raise http.client.IncompleteRead(b"", total - got)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            grown = (part.stat().st_size if part.is_file() else 0) > have
            failed = 0 if grown else failed + 1
            status = getattr(error, "code", None)
            if status is not None and status not in (408, 429, 500, 502, 503, 504):
                raise ValueError(f"expected {target.name} at {url}, got status {status}; {_by_hand(target)}") from error
            if failed >= TRIES or _is_offline(error):
                raise ValueError(_unreached(url, target, error)) from error
            time.sleep(min(10.0, WAIT * 2**failed))


WAIT = 0.5
"""Seconds before a broken connection is tried again; twice as many each time."""


@contextmanager
def _opened(url: str, part: Path, have: int) -> Generator[tuple[Any, int, int]]:
    """The rest of a file: an open answer, where it begins and how large the whole is.

    The host's mark of the version (ETag) goes along, so that a file that changed in between is begun anew.
    """
    noted = part.with_name(f"{part.name}.json")
    mark_of = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else {}
    headers = {"User-Agent": "plait", "Accept-Encoding": "identity"}
    if have and mark_of.get("url") == url:
        headers["Range"] = f"bytes={have}-"
        if mark_of.get("etag"):
            headers["If-Range"] = mark_of["etag"]
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
        if error.code != 416 or whole is None:
            raise
        error.close()
        if int(whole[1]) != have:  # more than there is: of another file
            part.unlink()
            raise http.client.IncompleteRead(b"") from error
        yield None, have, have
        return
    with answer:
        start, total = 0, answer.headers.get("Content-Length")
        if answer.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range") or "")
            if found is None or int(found[1]) != have:
                raise http.client.HTTPException("another range than was asked for")
            start, total = have, found[2]
        if total is None or not str(total).isdigit():
            raise ValueError(f"expected a host that says how large {part.stem} is, got none; fetch it by hand")
        # strong marks alone: a weak one does not promise equal bytes
        etag = answer.headers.get("ETag") or ""
        atomic_write(noted, json.dumps({"url": url, "etag": "" if etag.startswith("W/") else etag}))
        yield answer, start, int(total)


def _append(answer: http.client.HTTPResponse, part: Path, start: int, total: int, name: str) -> None:
    """Write what comes behind the first `start` bytes."""
    with (
        part.open("r+b" if start else "wb") as file,
        progress_bar(name, total=total, done=start, unit="B") as bar,
    ):
        file.seek(start)
        file.truncate()
        while block := answer.read1(BLOCK):  # what came before a break counts
            if file.tell() + len(block) > total:
                raise ValueError(f"expected {name} of {total:,} bytes, got more; nothing was changed")
            file.write(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())


def _check_room(folder: Path, wanted: int, name: str) -> None:
    """Raise ValueError where the disk has not so many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < wanted + SPARE:
        raise ValueError(
            f"expected {(wanted + SPARE) / 2**30:.1f} GiB free in {folder} for {name} and its conversion, got "
            f"{free / 2**30:.1f} GiB; free some, or set PLAIT_CACHE to another disk"
        )


def _is_offline(error: BaseException) -> bool:
    """Whether there is no way to any host: names are not resolved, or the network is down."""
    reason = getattr(error, "reason", error)
    down = (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH)
    return isinstance(reason, socket.gaierror) or (isinstance(reason, OSError) and reason.errno in down)


def _unreached(url: str, target: Path, error: BaseException) -> str:
    """One line for a host that does not answer: as offline where no host would."""
    host = urlsplit(url).hostname
    if _is_offline(error):
        return f"expected to reach {host} for {target.name}, got no network (offline); connect, or {_by_hand(target)}"
    return (
        f"expected the whole of {target.name} from {host}, got a connection that broke {TRIES} times; run the same "
        "command again: it goes on where it stopped"
    )


def _by_hand(target: Path) -> str:
    return f"fetch the file elsewhere and plait convert {target.name} DST"


def _digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
