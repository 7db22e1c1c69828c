"""What an index holds already, and what became of what was to be added.

rows of an index -> `Ledger` -> a verdict on each entry (new, changed, moved ...) -> counted in an `AddReport`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plait.reading import is_gone
from plait.search.sources import Entry, Problem


@dataclass(slots=True)
class AddReport:
    """What `add` did: counts of rows, and what was left out and why.

    Attributes:
        added, replaced, unchanged: rows.
        duplicates: content that is there under another id.
        skipped: no media, unreadable, or not for this model.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    duplicates: list[Problem] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)

    def refuse_nothing(self, source: object) -> None:
        """Make an error of an `add` that took nothing.

        Args:
            source: what was to be added, for the message.

        Raises:
            ValueError: with the first reason, where nothing of `source` was taken and nothing was there already.
        """
        if self.added or self.replaced or self.unchanged or self.duplicates:
            return
        what = ", ".join(map(str, source)) if isinstance(source, list | tuple) else str(source)
        if not self.skipped:
            raise ValueError(f"expected images, videos or sounds, got none in {what}; pass a place that holds some")
        first = self.skipped[0]
        reason = first.reason
        reason = reason if reason.startswith("expected") else f"expected a media file, got {first.shown}: {reason}"
        if len(self.skipped) > 1:
            reason += f" (the first of {len(self.skipped)}, and none could be taken; --json lists all)"
        raise ValueError(reason if ";" in reason else f"{reason}; check the file")


Verdict = Literal["new", "changed", "unchanged", "moved", "duplicate", "taken"]


class Ledger:
    """The ids and contents of an index, kept up to date while rows are added.

    Args:
        rows: id, modality, checksum and path of every row that is there.
        deduplicate: whether equal content under another id is left out.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], *, deduplicate: bool) -> None:
        self._rows: dict[str, tuple[str, str | None]] = {}  # id -> (content, path)
        self._owner: dict[str, str] = {}  # content -> id
        self._deduplicate = deduplicate
        for row in rows:
            self._put(row["id"], f"{row['modality']}:{row['checksum']}", row["path"])

    def judge(self, entry: Entry) -> tuple[Verdict, str]:
        """The verdict on an entry, and the reason where it is left out. What is new or changed is remembered.

        Returns:
            "new", "changed", "unchanged", "moved" (content of a row whose file is gone from where it was),
            "duplicate" (content of another row) or "taken" (id of another row); and for "moved" the id of that
            row, for the last two the reason.
        """
        content = f"{entry.modality}:{entry.checksum}"
        before, owner = self._rows.get(entry.id), self._owner.get(content)
        # two manifests may use one id for different files: replacing the row would lose the first
        holder = self._rows[owner][1] if owner is not None else None
        has_moved = holder and entry.path and holder != entry.path and is_gone(holder)
        if owner is not None and has_moved and (before is None or owner == entry.id):
            del self._rows[owner], self._owner[content]
            self._put(entry.id, content, entry.path)
            return "moved", owner
        if before and before[1] != entry.path:
            return "taken", f"the id {entry.id} is taken by {before[1] or 'another row'}; give unique ids"
        if before and before[0] == content:
            return "unchanged", ""
        if self._deduplicate and owner is not None and owner != entry.id:
            return "duplicate", f"same content as {self._rows[owner][1] or owner}"
        self._put(entry.id, content, entry.path)
        return ("changed" if before else "new"), ""

    def _put(self, row_id: str, content: str, path: str | None) -> None:
        before = self._rows.get(row_id)
        # the old content of a changed row belongs to nobody any more
        if before and self._owner.get(before[0]) == row_id:
            del self._owner[before[0]]
        self._rows[row_id] = (content, path)
        self._owner.setdefault(content, row_id)
