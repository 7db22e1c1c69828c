"""`Index`: a directory on disk that holds vectors and what they stand for, and answers queries.

add: paths, samples, manifests -> entries (sniffed, hashed) -> embedder -> committed rows
search: query -> embedder -> nearest rows under a filter -> hits
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from plait.embedder import Embedder
from plait.models import name_of_shipped
from plait.search.ledger import AddReport, Ledger
from plait.search.sources import Candidate, Entry, Problem, entry_of, expand
from plait.search.table import create_table, one_line, open_table, table_exists, to_arrow, writing
from plait.search.where import COLUMNS, quote, to_sql

ANN_ROWS = 50_000
"""From this many rows on, `optimize` (and the end of an `add`) builds an approximate index; below, search is exact."""

_MANY_FRAGMENTS = 64
_KEEP_VERSIONS = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Hit:
    """One result. `score` is the cosine similarity of query and item; `path` is None for an indexed text."""

    path: str | None
    score: float
    modality: str
    caption: str | None
    id: str
    label: str | None = None
    checksum: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


Rows = list[dict[str, Any]]
Hits = list[Hit]
Problems = list[Problem]


class Index:
    """Vectors on disk, made with one model. Use `Index.create` or `Index.open`.

    Rows are committed in batches and a commit is atomic, so a process that dies loses only what it had not committed.
    Several processes may read while one writes.
    """

    def __init__(self, path: Path, table: Any, description: dict[str, Any]) -> None:
        self.path = path
        self.description = description
        self._table = table
        self._embedder: Embedder | None = None

    @classmethod
    def create(cls, path: str | Path, embedder: Embedder | str | Path) -> Index:
        """A new, empty index in the directory `path`. Raises ValueError when there is one already."""
        embedder = embedder if isinstance(embedder, Embedder) else Embedder(embedder)
        source = embedder.source
        own = name_of_shipped(source) if source else None  # by its name: the package may be installed elsewhere later
        description = {
            "fingerprint": embedder.fingerprint,
            "modalities": list(embedder.accepts),
            "model": own or (str(source) if source else None),
            "adapter": None if embedder.adapter is None else str(embedder.adapter),
            "model_beside": os.path.relpath(source, Path(path).resolve()) if source and not own else None,
        }
        create_table(Path(path), description, embedder.dim)
        return cls.open(path, embedder)

    @classmethod
    def open(cls, path: str | Path, embedder: Embedder | str | Path | None = None) -> Index:
        """Open the index at `path`. Without an embedder the recorded model is loaded when it is first needed.

        Raises ValueError when there is no index, or when `embedder` is not the model it was built with.
        """
        index = cls(Path(path), *open_table(Path(path)))
        if embedder is not None:
            index._use(embedder if isinstance(embedder, Embedder) else Embedder(embedder))
        return index

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Whether there is an index at `path`."""
        return table_exists(Path(path))

    @property
    def model_path(self) -> Path:
        """Where the model of the index was, or is beside an index that moved with it. Raises ValueError when gone."""
        recorded, beside = self.description["model"], self.description["model_beside"]
        if recorded and beside is None:
            return Path(recorded)
        places = [Path(recorded), self.path.resolve() / beside] if recorded else []
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise ValueError(f"expected the model of {self.path} at {recorded}, got nothing there; pass the model")
        return found

    @property
    def embedder(self) -> Embedder:
        """The model of the index, loaded from the recorded directory when none was given."""
        if self._embedder is None:
            self._use(Embedder(self.model_path, adapter=self.description.get("adapter")))
        assert self._embedder is not None
        return self._embedder

    def _use(self, embedder: Embedder) -> None:
        wanted, got = self.description["fingerprint"], embedder.fingerprint
        if wanted != got:
            raise ValueError(
                f"expected the model of {self.path}, {self.description.get('model') or 'in memory'} ({wanted}), "
                f"got {embedder.source or 'another in memory'} ({got}); use its own model or build a new index"
            )
        self._embedder = embedder

    def __len__(self) -> int:
        return self._table.count_rows()

    def add(
        self,
        source: Any,
        *,
        commit_rows: int = 64,
        deduplicate: bool = True,
        show_progress: bool | None = None,
    ) -> AddReport:
        """Add folders, files, manifests or samples (one or a list of them), committing every `commit_rows` rows.

        What is there already (same id and content) is passed over, so an interrupted `add` is simply run again; a file
        whose content changed replaces its row. Content that is there under another id is a duplicate and left out.
        What is no media, cannot be read or does not suit the model is left out and listed with its reason.
        Raises ValueError for a path that does not exist, for a bad manifest row and when another process is writing.
        """
        embedder, report = self.embedder, AddReport()
        found = expand(source, lambda path, reason: report.skipped.append(Problem(path, reason)))
        candidates = list(found) if isinstance(source, str | Path | Sequence) else found  # a list has a total
        with writing(self.path):
            rows = self._table.search().select(["id", "modality", "checksum", "path"]).to_arrow().to_pylist()
            ledger = Ledger(rows, deduplicate=deduplicate)
            with adding_progress(candidates, show_progress) as bar:
                stream = iter(candidates)
                while chunk := list(itertools.islice(stream, commit_rows)):
                    self._add_chunk(chunk, embedder, ledger, report)
                    bar.update(len(chunk))
            with one_line():
                self._maintain()
        return report

    def _add_chunk(self, chunk: Sequence[Candidate], embedder: Embedder, ledger: Ledger, report: AddReport) -> None:
        fresh = list(_fresh(chunk, ledger, report))
        found = embedder.embed_readable([entry.item for entry, _ in fresh], show_progress=False)
        report.skipped += [Problem.of(fresh[s.index][0].path or fresh[s.index][0].id, s.reason) for s in found.skipped]
        if not found.kept:
            return
        kept = [fresh[place] for place in found.kept]
        rows = to_arrow([entry for entry, _ in kept], found.vectors)
        replaced = sum(changed for _, changed in kept)
        with one_line():
            if replaced:  # one commit that replaces and adds: no moment without the old rows
                upsert = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                upsert.execute(rows)
            else:
                self._table.add(rows)
        report.replaced += replaced
        report.added += len(kept) - replaced

    def delete(
        self,
        where: str | Mapping[str, Any] | None = None,
        *,
        paths: str | Path | Sequence[str | Path] | None = None,
    ) -> int:
        """Delete the rows under a filter (`plait.search.where.to_sql`), of paths or of folders; returns how many.

        paths: one or several. A row goes when its path is one of them, or lies below one by whole names: `a/more` takes
        `a/more/1.png`, never `a/more-x/1.png`.
        """
        condition = self._condition(where, paths)
        with writing(self.path), one_line(condition):
            return int(self._table.delete(condition).num_deleted_rows)

    def deduplicate(self) -> Problems:
        """Delete rows of one modality with the checksum of an earlier row (as `add(deduplicate=False)` leaves them).

        Returns what was deleted, each with the row that has the same content.
        """
        with writing(self.path), one_line():
            rows = self._table.search().select(["id", "modality", "checksum", "path"]).to_arrow().to_pylist()
            first: dict[tuple[str, str], str] = {}
            ids, found = [], []
            for row in rows:
                name = row["path"] or row["id"]
                owner = first.setdefault((row["modality"], row["checksum"]), name)
                if owner != name:
                    ids.append(row["id"])
                    found.append(Problem(name, f"same content as {owner}"))
            if ids:
                self._table.delete(f"id IN ({', '.join(map(quote, ids))})")  # one commit: all of them or none
        return found

    def update(
        self,
        where: str | Mapping[str, Any],
        *,
        caption: str | None = None,
        label: str | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> int:
        """Write caption, label or meta (replaced whole) of the rows under a filter; returns how many.

        A file that changed on disk is brought up to date by adding it again.
        """
        values = {"caption": caption, "label": label, "meta": None if meta is None else json.dumps(dict(meta))}
        values = {name: value for name, value in values.items() if value is not None}
        if not values:
            raise ValueError("expected a caption, label or meta to write, got none")
        condition = self._condition(where, None)
        with writing(self.path), one_line(condition):
            return int(self._table.update(where=condition, values=values).rows_updated)

    def _condition(self, where: str | Mapping[str, Any] | None, paths: str | Path | Sequence[str | Path] | None) -> str:
        parts = [condition] if (condition := to_sql(where)) else []
        if paths:
            # one path is not its letters: the "." of "more/1.png" alone would be the working directory and all below
            listed = [paths] if isinstance(paths, str | Path) else paths
            parts.append("(" + " OR ".join(_at_or_below(Path(path).resolve()) for path in listed) + ")")
        if not parts:
            raise ValueError('expected a filter or paths, got neither; use where="true" for every row')
        return " AND ".join(parts)

    def list(self, where: str | Mapping[str, Any] | None = None, *, limit: int | None = None, offset: int = 0) -> Rows:
        """Rows (without vectors) under a filter, as dicts of id, modality, path, caption, label, checksum, meta."""
        query = self._table.search().select([*COLUMNS, "meta"]).offset(offset)
        if condition := to_sql(where):
            query = query.where(condition)
        if limit is not None:
            query = query.limit(limit)
        with one_line(condition):
            return [row | {"meta": json.loads(row["meta"] or "{}")} for row in query.to_arrow().to_pylist()]

    def stats(self) -> dict[str, Any]:
        """Rows (all, and by modality), size on disk, vector width, the model, and how queries are answered."""
        with one_line():
            kinds = self._table.search().select(["modality"]).to_arrow()["modality"].to_pylist()
            indices = self._table.list_indices()
            waiting = self._table.index_stats(indices[0].name).num_unindexed_rows if indices else len(kinds)
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        return {
            "path": str(self.path),
            "rows": len(kinds),
            "rows_by_modality": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "dim": self.description["dim"],
            "bytes": size,
            "search": "approximate" if indices else "exact",
            "rows_not_in_ann": waiting,
            "model": self.description["model"],
            "fingerprint": self.description["fingerprint"],
        }

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        where: str | Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
        modality: str | None = None,
        exact: bool = False,
    ) -> Hits:
        """The k nearest rows, best first.

        Args:
            query: an item as `Embedder.embed` takes it (text, Path, mapping of several media), or a vector (dim,).
            where: a filter, see `plait.search.where.to_sql`; rows are filtered before they are ranked.
            weights: weight per modality of a fused query. modality: only rows of this modality.
            exact: compare with every row even where an approximate index exists.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"expected k of at least 1, got {k!r}")
        vector = query if isinstance(query, np.ndarray) else self.embedder.embed([query], weights=weights)[0]
        if vector.shape != (self.description["dim"],):
            raise ValueError(f"expected a vector of shape ({self.description['dim']},), got {vector.shape}")
        request = self._table.search(np.asarray(vector, np.float32)).distance_type("dot").limit(k)
        request = request.refine_factor(10) if not exact else request.bypass_vector_index()
        if condition := to_sql(where, modality):
            request = request.where(condition)
        with one_line(condition):
            rows = request.select([*COLUMNS, "meta", "_distance"]).to_arrow().to_pylist()
        return [_hit(row) for row in rows]

    def optimize(self) -> None:
        """Merge small files, drop versions older than an hour, and build or extend the approximate index when large."""
        with writing(self.path), one_line():
            self._optimize()

    def _optimize(self) -> None:
        if len(self) >= ANN_ROWS and not self._table.list_indices():
            from lancedb.index import HnswSq

            self._table.create_index("vector", config=HnswSq(distance_type="dot"))
        self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)

    def _maintain(self) -> None:
        """At the end of an `add`: optimise when files are many or much is outside the approximate index."""
        indices = self._table.list_indices()
        inside = len(self) - self._table.index_stats(indices[0].name).num_unindexed_rows if indices else 0
        outside_ann = len(self) >= ANN_ROWS and inside < 0.8 * len(self)
        if outside_ann or self._table.stats()["fragment_stats"]["num_fragments"] > _MANY_FRAGMENTS:
            self._optimize()


def _at_or_below(path: Path) -> str:
    """SQL for the rows of a file, or of a folder by whole names. Not LIKE, to which `%` and `_` are wildcards."""
    folder = str(path) if path == path.parent else f"{path}{os.sep}"  # the root ends in its separator already
    return f"path = {quote(str(path))} OR starts_with(path, {quote(folder)})"


def _fresh(chunk: Sequence[Candidate], ledger: Ledger, report: AddReport) -> Iterator[tuple[Entry, bool]]:
    """The entries of a chunk that are new or (True) changed; the rest goes to the report."""
    for candidate in chunk:
        try:
            entry = entry_of(candidate)
        except (ValueError, OSError) as error:
            report.skipped.append(Problem.of(candidate.name, error))
            continue
        verdict, reason = ledger.judge(entry)
        if verdict in ("new", "changed"):
            yield entry, verdict == "changed"
        elif verdict == "unchanged":
            report.unchanged += 1
        else:
            left_out = report.duplicates if verdict == "duplicate" else report.skipped
            left_out.append(Problem(candidate.name, reason))


def _hit(row: Mapping[str, Any]) -> Hit:
    kept = {name: row[name] for name in COLUMNS}
    return Hit(score=1.0 - row["_distance"], meta=json.loads(row["meta"] or "{}"), **kept)


def adding_progress(candidates: Any, show: bool | None) -> Any:
    """A bar on stderr over a list (with a total) or a stream; None shows it when the work takes some seconds."""
    from tqdm import tqdm

    total = len(candidates) if isinstance(candidates, list) else None
    patience = 0.0 if show else 0.5 if sys.stderr.isatty() else 2.0
    return tqdm(total=total, desc="adding", unit="file", delay=patience, disable=show is False)
