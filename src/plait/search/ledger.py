"""What an index holds already: decides for each entry whether it is new, changed, there already or a duplicate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plait.search.sources import Entry, Problem

Verdict = Literal["new", "changed", "unchanged", "duplicate", "taken"]


@dataclass(slots=True)
class AddReport:
    """What `add` did: counts of rows, and what was left out and why."""

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    duplicates: list[Problem] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)

    def refuse_nothing(self, source: object) -> None:
        """Raise ValueError, with the first reason, where nothing of `source` was taken."""
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


class Ledger:
    """The ids and contents of an index, kept up to date while rows are added."""

    def __init__(self, rows: Iterable[Mapping[str, Any]], *, deduplicate: bool) -> None:
        self._rows: dict[str, tuple[str, str | None]] = {}  # id -> (content, path)
        self._owner: dict[str, str] = {}  # content -> id
        self._deduplicate = deduplicate
        for row in rows:
            self._put(row["id"], f"{row['modality']}:{row['checksum']}", row["path"])

    def judge(self, entry: Entry) -> tuple[Verdict, str]:
        """The verdict on an entry and the reason for leaving it out; what is new or changed is remembered."""
        content = f"{entry.modality}:{entry.checksum}"
        before, owner = self._rows.get(entry.id), self._owner.get(content)
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
        if before and self._owner.get(before[0]) == row_id:
            del self._owner[before[0]]
        self._rows[row_id] = (content, path)
        self._owner.setdefault(content, row_id)
