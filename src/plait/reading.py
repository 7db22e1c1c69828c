"""Files that Plait did not make, read within bounds: only regular ones, only so large, only of the expected shape.

path -> check_regular -> read_json -> a dictionary or a list, or one line

A model directory or a data set may come from anybody. A pipe in the place of a file waits for ever, `/dev/zero` never
ends, and brackets in brackets are deeper than Python goes.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_JSON = 1 << 26
"""Bytes of a JSON file that is read whole: shard indexes of the largest models have a few million."""

_SHAPES: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}


def check_regular(path: str | Path) -> None:
    """Raise ValueError where `path` is there and no regular file, without opening it. Links are followed."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return  # whoever opens it says what is wrong
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"expected a regular file, got {path}, a device or a pipe; copy its content into a file")


_ADDRESS = re.compile(r"(s3|s3a|gs|gcs|az|abfs|abfss|adl|oss|oci|hdfs|webhdfs|sftp|ssh|smb|memory):/{1,3}(?=[^/])")
"""Stores of files that fsspec opens; a Path has made one slash of two. Chains (`zip::s3://`) and hubs are none."""


def address_of(path: str | Path) -> str | None:
    """`s3://photos/a` of an address or of the Path that was made of it; None for a path of this machine."""
    found = _ADDRESS.match(text := str(path))
    return None if found is None else f"{found[1]}://{text[found.end() :]}"


def is_gone(path: str) -> bool:
    """Whether a file of this machine is no longer there. What has an address is elsewhere: nobody asks for it."""
    return address_of(path) is None and not os.path.exists(path)


MAX_LAYERS = 4096
"""Layers, blocks or stages a configuration may ask for: the deepest published models have 200."""


def check_layers(config: Any, place: object) -> None:
    """Raise ValueError where a configuration asks for so many layers that they would be built for ever.

    config: read from JSON or a checkpoint, with parts inside it; place: where it stands.
    """
    parts, seen = [config], 0
    while parts and seen < 100_000:
        part, seen = parts.pop(), seen + 1
        if isinstance(part, list):
            parts += [one for one in part if isinstance(one, dict | list)]
        elif isinstance(part, dict):
            parts += [one for one in part.values() if isinstance(one, dict | list)]
            for name, value in part.items():
                counts = value if isinstance(value, list) else [value]
                is_count = any(word in str(name).lower() for word in ("layers", "depth", "blocks", "num_stages"))
                if is_count and any(type(one) in (int, float) and not one <= MAX_LAYERS for one in counts):
                    raise ValueError(
                        f"expected at most {MAX_LAYERS} layers as {name!s:.60} in {place}, got more; check the file"
                    )


def check_directory(place: str | Path) -> None:
    """Raise ValueError where a model directory holds a device or a pipe, or asks for too many layers."""
    place = Path(place)
    if place.is_dir():
        for path in place.iterdir():
            check_regular(path)
        if (place / "config.json").is_file():
            check_layers(read_json(place / "config.json"), place / "config.json")


def shape_of(value: Any) -> str:
    """What a JSON value is, in words, without its content."""
    return f"the number {value}" if type(value) in (int, float) else _SHAPES.get(type(value), type(value).__name__)


def inside(root: str | Path, name: str) -> Path:
    """Where a name from a file stands, as it is written: links inside `root` are its owner's.

    root: directory of the data set; name: of a file in it. Raises ValueError where the name leads outside.
    """
    place = Path(root) / name
    if not Path(os.path.abspath(place)).is_relative_to(os.path.abspath(root)):
        raise ValueError(f"expected the name of a file in {root}, got {name!s:.200}, which leads outside of it")
    return place


class _Outside:
    """Whether names in lists of files may lead out of their data sets: of the process, as `plait.media.raised` is."""

    is_allowed = False


@contextmanager
def outside(is_allowed: bool | None = True) -> Generator[None]:
    """Whether manifests that are opened in the block may name media outside of their directory, from any thread.

    They may not by themselves: a list that comes from a stranger could name any file of this machine. Lists that Plait
    wrote here (`plait data from-folder`, `write_manifest`) may always, as long as nobody changed them.

    Args:
        is_allowed: False for a block in which they may not; None leaves it as it is and undoes `allow_outside`.

    Example:
        >>> with outside():
        ...     allowed("data", "../photos/rex.jpg")
        True
    """
    before = _Outside.is_allowed
    _Outside.is_allowed = before if is_allowed is None else is_allowed
    try:
        yield
    finally:
        _Outside.is_allowed = before


def allow_outside() -> None:
    """As `outside`, until the end of the process or of an `outside` around it."""
    _Outside.is_allowed = True


def allowed(root: str | Path, name: str) -> bool:
    """Whether a name from a file may be opened: it stands inside of `root`, or all may (`outside`)."""
    return _Outside.is_allowed or not leads_outside(root, name)


def leads_outside(root: str | Path, name: str) -> bool:
    """Whether a name from a file stands outside of a directory, as it is written.

    Args:
        root: of the data set; links inside are its owner's.
        name: relative to it, or absolute.
    """
    if not (name.startswith("/") or ".." in name):
        # nearly all names: a million of them are looked at
        return False
    top, place = os.path.abspath(root), os.path.abspath(os.path.join(root, name))
    if Path(place).is_relative_to(top):
        return False
    # an absolute name may spell the same directory in another way, through a link above it
    return not Path(os.path.realpath(os.path.dirname(place))).is_relative_to(os.path.realpath(top))


def read_json(path: str | Path, shape: type = dict, most: int = MAX_JSON) -> Any:
    """The JSON value in a file. Raises ValueError for what is no JSON or of another shape, OSError for no file.

    most: bytes of it.
    """
    path = Path(path)
    check_regular(path)
    if (size := path.stat().st_size) > most:
        raise ValueError(f"expected a JSON file of at most {most} bytes, got {path} of {size}; check the file")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError, MemoryError) as error:
        reason = "too many levels" if isinstance(error, RecursionError) else error
        raise ValueError(f"expected JSON in {path}, got {reason}; check the file") from error
    if not isinstance(value, shape):
        raise ValueError(f"expected {_SHAPES[shape]} in {path}, got {shape_of(value)}; check the file")
    return value
