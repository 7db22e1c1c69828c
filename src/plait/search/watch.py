"""A folder kept in an index while it changes: new, changed, moved and deleted files.

folder -> (path, size, time) of every file -> what differs from the last look, and has been still since
       -> `Index.add` (new, changed, moved) | `Index.delete` (gone)

Looking again every few seconds works on every disk, those of the network too, and needs no help of the system.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from plait.errors import UsageError
from plait.search.ledger import AddReport
from plait.search.sources import expand
from plait.types import Sample

if TYPE_CHECKING:
    from plait.search.index import Index

_AT_ONCE = 256
"""Files of one `add`, after which what is new is found."""

Stamp = tuple[int, int]
"""Bytes and nanoseconds of the last change of a file."""


@dataclass(slots=True)
class Change:
    """What one look found and did.

    Attributes:
        report: of what was added, replaced, moved or left out.
        deleted: paths whose rows went.
        waiting: files that are still being written, or could not be looked at.
    """

    report: AddReport = field(default_factory=AddReport)
    deleted: list[str] = field(default_factory=list)
    waiting: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was done."""
        return not (self.report.added or self.report.replaced or self.deleted or self.report.skipped)


class Watch:
    """A folder and the index that follows it.

    Args:
        index: gains and loses rows of files below the folder; no other row is touched.
        folder: must be there.
        still: seconds for which a file has to be unchanged before it is read: what is being copied is half a file.
        clock: seconds since the epoch, as files are stamped.

    Raises:
        UsageError: for no folder.
    """

    def __init__(
        self, index: Index, folder: str | Path, *, still: float = 2.0, clock: Callable[[], float] = time.time
    ) -> None:
        self.index, self.folder, self.still = index, Path(folder).resolve(), still
        if not self.folder.is_dir():
            raise UsageError(f"expected a folder to watch, got {folder}: none there; check the path")
        self._clock = clock
        self._seen: dict[str, Stamp] = {}
        self._device = self.folder.stat().st_dev

    def look(self) -> Change:
        """Bring the index up to date with the folder as it is now.

        A folder that is gone, or another disk than at first, deletes nothing: a disk that is not mounted has no files
        either. A file that cannot be read is tried again when it changes.

        Raises:
            ValueError: while another process is writing to the index. OSError: when its disk fails.
        """
        change = Change()
        try:
            if self.folder.stat().st_dev != self._device:
                raise OSError("another disk")
            now = self._files()
        except OSError:
            change.waiting = len(self._seen) or 1
            return change
        late = (self._clock() - self.still) * 1e9
        fresh = [path for path, (stamp, _) in now.items() if self._seen.get(path) != stamp]
        ready = [path for path in fresh if now[path][0][1] <= late]
        change.waiting = len(fresh) - len(ready)
        for start in range(0, len(ready), _AT_ONCE):
            part = ready[start : start + _AT_ONCE]
            _join(change.report, self.index.add([now[path][1] for path in part], show_progress=False))
            self._seen |= {path: now[path][0] for path in part}
        # behind the adding, in which rows follow files that were moved: what has no file now is gone
        change.deleted = self._forget(now)
        self._seen = {path: stamp for path, stamp in self._seen.items() if path in now}
        return change

    def _files(self) -> dict[str, tuple[Stamp, Path | Sample]]:
        """Every file that may be added, resolved: its stamp, and what is added (itself, or its row of a manifest)."""
        found = {}
        for candidate in expand(self.folder, lambda path, reason: None):
            if candidate.path is None:  # what a manifest holds itself; `plait index add` takes it
                continue
            try:
                status = candidate.path.stat()
            except OSError:  # went while it was looked at
                continue
            stamp = status.st_size, status.st_mtime_ns
            found[str(candidate.path.resolve())] = stamp, candidate.sample or candidate.path
        return found

    def _forget(self, now: Collection[str]) -> list[str]:
        """Delete rows of files that were below the folder and are not there any more; their paths."""
        below = f"{self.folder}{os.sep}"
        rows = [row["path"] for row in self.index.list() if (row["path"] or "").startswith(below)]
        gone = sorted({path for path in rows if path not in now and not os.path.lexists(path)})
        for start in range(0, len(gone), _AT_ONCE):
            self.index.delete({"path": gone[start : start + _AT_ONCE]})
        return gone


def _join(whole: AddReport, part: AddReport) -> None:
    """Add the counts and lists of one `add` to those of a look."""
    whole.added += part.added
    whole.replaced += part.replaced
    whole.unchanged += part.unchanged
    whole.duplicates += part.duplicates
    whole.skipped += part.skipped
