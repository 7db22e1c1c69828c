"""An index and the files it stands for, kept together: what is gone or changed, pruned, or found where it was moved to.

index -> rows with a path -> is the file there, and is it the same? -> check | prune | move
"""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path

from plait.reading import address_of, is_gone
from plait.search.index import Index
from plait.search.sources import Entry
from plait.terminal import progress_bar

_AT_ONCE = 1000
"""Rows that are moved in one commit: their vectors are in memory meanwhile."""


@dataclass(slots=True)
class State:
    """Rows of an index by what became of their files; names are paths.

    Attributes:
        whole: rows whose file is there (and, where contents were compared, the same), and texts, which have none.
        gone: the file is not there any more.
        changed: the file holds something else than it did; `plait index add` embeds it anew.
    """

    whole: int = 0
    gone: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def check(index: Index, *, contents: bool = False, show_progress: bool | None = None) -> State:
    """Look for the file of every row.

    Args:
        index: it is only read.
        contents: read every file and compare it with the checksum of its row.
        show_progress: None shows a bar on stderr when the work takes longer than about a second.

    Returns:
        `State`, in the order of the rows.

    Example:
        >>> check(index, contents=True).gone  # ['/home/me/photos/rex.jpg']
    """
    state = State()
    for row in progress_bar("checking", index.list(), unit="row", show=show_progress):
        path = row["path"]
        if path is not None and is_gone(path):
            state.gone.append(path)
        elif path is not None and contents and address_of(path) is None and _checksum(path) != row["checksum"]:
            state.changed.append(path)
        else:
            state.whole += 1
    return state


def _checksum(path: str) -> str:
    """As `plait.search.sources.entry_of` writes it; empty where the file cannot be read."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    except OSError:
        return ""


def prune(index: Index) -> list[str]:
    """Delete the rows of files that are gone.

    A disk that is not mounted has no files either: what would be deleted is told by `check` first.

    Args:
        index: loses rows.

    Returns:
        The paths of the deleted rows.

    Raises:
        ValueError: while another process is writing.
    """
    gone = check(index).gone
    for start in range(0, len(gone), _AT_ONCE):
        index.delete({"path": gone[start : start + _AT_ONCE]})
    return gone


def move(index: Index, old: str | Path, new: str | Path) -> int:
    """Rows of a file or folder that was moved or renamed get its new path; vectors, captions and labels stay.

    Args:
        index: is changed in commits of `_AT_ONCE` rows, each whole; a second call goes on behind a kill.
        old: where the file, or all below the folder, was.
        new: where it is; must be there.

    Returns:
        How many rows were moved.

    Raises:
        ValueError: where nothing is at `new`, no row is of `old`, or a row of another file has the new path.
    """
    before, after = (Path(os.path.abspath(place)) for place in (old, new))
    if not after.exists():
        raise ValueError(f"expected a file or folder at {new}, got none; name the place where {old} is now")
    after = after.resolve()
    rows = [row for row in index.list() if row["path"] and Path(row["path"]).is_relative_to(before)]
    if not rows:
        raise ValueError(f"expected rows of {old} in {index.path}, got none; plait index list shows what it has")
    places = {row["path"]: str(after / Path(row["path"]).relative_to(before)) for row in rows}
    taken = {row["path"] for row in index.list()} - set(places)
    if double := next((place for place in places.values() if place in taken), None):
        raise ValueError(f"expected a place that no row has yet, got {double}; delete its row, or add the folder anew")
    stream = iter(rows)
    while chunk := list(itertools.islice(stream, _AT_ONCE)):
        moved = []
        for row in chunk:
            place = places[row["path"]]
            # a file that was found in a folder is called by its path, a row of a manifest by its own id
            row_id = place if row["id"] == row["path"] else row["id"]
            known = {name: row[name] for name in ("modality", "checksum", "caption", "label", "meta")}
            moved.append((Entry(id=row_id, item={}, path=place, **known), row["id"]))
        index.take_along(moved)
    return len(rows)
