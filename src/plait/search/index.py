"""`Index`: a directory on disk that holds vectors and what they stand for, and answers queries.

    add: paths, samples, manifests -> entries (sniffed, hashed) -> `Ledger` (new? changed? there already?)
         -> embedder -> rows, committed in batches
    search: query -> embedder -> nearest rows under a filter (`to_sql`) -> hits

INDEX/items.lance is one Lance data set; what the index knows of its model is in the schema's metadata. INDEX/.lock is
held while somebody writes; the system releases it when the writer dies.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from plait.embedder import Embedder
from plait.embedder.parts import Item
from plait.errors import MissingExtraError, UsageError, import_extra
from plait.models import name_of_shipped, shipped
from plait.places import atomic_write, check_local, claim
from plait.reading import read_json
from plait.search import ann
from plait.search.exact import ANN_ROWS, Memory, is_large, unit, waiting
from plait.search.filters import COLUMNS, quote, to_sql
from plait.search.hits import HitList, facts
from plait.search.ledger import AddReport, Ledger
from plait.search.sources import Candidate, Entry, Problem, entry_of, expand, to_arrow
from plait.terminal import progress_bar
from plait.types import plain

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

TABLE = "items"
FORMAT = 1
"""Of the table's schema; an index of another format is refused rather than guessed at."""

ADDED = "added.json"
"""In the index: which weights of modalities that a user added its rows were made with."""

LOCK_SECONDS = 5.0
"""Longer than a commit takes: who still waits then waits for a whole `add`, and had better be told."""

_KEPT = "free some and run the same command again: what is committed is kept"
_REMEDIES = {
    "no space": _KEPT,
    "file too large": _KEPT,
    "quota": _KEPT,
    "permission denied": "check its owner and permissions",
    "read-only": "copy the index to a place that can be written",
}
_MANY_FRAGMENTS = 64
"""A commit is a file of its own, and a search opens every one of them."""

_KEEP_VERSIONS = timedelta(hours=1)  # a reader that began before holds on to the version that it opened
Rows = list[dict[str, Any]]
Problems = list[Problem]
Answers = list[HitList]


class Index:
    """Vectors on disk, made with one model. Use `Index.create` or `Index.open`.

    Rows are committed in batches and a commit is atomic, so a process that dies loses only what it had not
    committed. Several processes may read while one writes.

    Example:
        >>> index = Index.create("pets", "nano")
        >>> index.add("photos").added  # 12
        >>> index.search("a sleeping dog", k=3)[0].path  # '/home/me/photos/rex.jpg'
    """

    def __init__(self, path: Path, table: Any, description: dict[str, Any]) -> None:
        self.path = path
        self.description = description
        self._table = table
        self._embedder: Embedder | None = None
        self._memory = Memory(table, description["dim"], path)

    @classmethod
    def create(cls, path: str | Path, embedder: Embedder | str | Path) -> Index:
        """A new, empty index in the directory `path`.

        Args:
            path: of the index; made where there is none.
            embedder: an `Embedder`, or what one is made of (a model directory, hub id or "nano").

        Returns:
            The open index.

        Raises:
            ValueError: when there is an index already, or no such model.
        """
        check_new(Path(path))  # before a model is read for it
        embedder = embedder if isinstance(embedder, Embedder) else Embedder(embedder)
        source = embedder.source
        own = name_of_shipped(source) if source else None  # by its name: the package may be installed elsewhere later
        description = {
            # of the model without what a user added: the index lives on when that is added or trained anew
            "fingerprint": embedder.fingerprints[""],
            "dtype": embedder.number_type,
            "modalities": list(embedder.accepts),
            "model": own or (str(source) if source else None),
            "adapter": None if embedder.adapter is None else str(embedder.adapter),
            "model_beside": os.path.relpath(source, Path(path).resolve()) if source and not own else None,
        }
        create_table(Path(path), description, embedder.dim)
        return cls.open(path, embedder)

    @classmethod
    def open(cls, path: str | Path, embedder: Embedder | str | Path | None = None) -> Index:
        """Open the index at `path`.

        Args:
            path: of the index.
            embedder: the model it was built with; without it the recorded model is loaded when it is first
                needed.

        Raises:
            ValueError: when there is no index, or when `embedder` is another model (another fingerprint).
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
    def table(self) -> Any:
        """The Lance table of the rows, for what reads them with other tools; what writes goes through the index."""
        return self._table

    @property
    def model_path(self) -> Path:
        """Where the model of the index was, or is beside an index that moved with it.

        Raises:
            ValueError: when it is at neither place, or was never on disk.
        """
        recorded, beside = self.description["model"], self.description["model_beside"]
        # a shipped model is recorded by its name, which is no path
        if recorded and beside is None:
            # The name of a shipped model and nothing else: an index is a file of anybody's, and asks no hub for one.
            if (own := shipped(recorded)) is None:
                raise ValueError(f"expected a model that ships with Plait in {self.path}, got {recorded}; pass --model")
            return own
        places = [Path(recorded), self.path.resolve() / beside] if recorded else []
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise ValueError(f"expected the model of {self.path} at {recorded}, got nothing there; pass the model")
        return found

    @property
    def embedder(self) -> Embedder:
        """The model of the index, loaded from the recorded directory when none was given.

        Raises:
            ValueError: when the recorded directory holds another model now.
        """
        if self._embedder is None:
            kind = self.description.get("dtype")
            self._use(Embedder(self.model_path, adapter=self.description.get("adapter"), dtype=kind))
        assert self._embedder is not None
        return self._embedder

    def _use(self, embedder: Embedder) -> None:
        """Take an embedder, or raise ValueError when its fingerprint is not the one the rows were made with."""
        wanted, prints = self.description["fingerprint"], embedder.fingerprints
        got = prints[""]
        if wanted not in (got, embedder.fingerprint):
            raise ValueError(
                f"expected the model of {self.path}, {self.description.get('model') or 'in memory'} ({wanted}), "
                f"got {embedder.source or 'another in memory'} ({got}); use its own model or build a new index"
            )
        for name, made_with in self._added().items():
            rows = f"modality = {quote(name)}"
            if prints.get(name, made_with) != made_with and self._table.count_rows(rows):
                raise ValueError(
                    f"expected the {name} that the rows of {self.path} were made with ({made_with}), got another "
                    f'({prints[name]}); plait index delete --where "{rows}" and add them anew'
                )
        self._embedder = embedder

    def _added(self) -> dict[str, str]:
        """Modality that a user added -> fingerprint of its weights when its rows were made."""
        place = self.path / ADDED
        return read_json(place) if place.is_file() else {}

    def __len__(self) -> int:
        """Rows, by the newest commit."""
        return self._table.count_rows()

    def add(
        self,
        source: Any,
        *,
        commit_rows: int = 64,
        deduplicate: bool = True,
        show_progress: bool | None = None,
    ) -> AddReport:
        """Add folders, files, manifests or samples (one or a list of them).

        What is there already (same id and content) is passed over, so an interrupted `add` is simply run again;
        a file whose content changed replaces its row. Content that is there under another id is a duplicate and
        left out. What is no media, cannot be read or does not suit the model is left out and listed with its
        reason.

        Args:
            source: see `plait.search.sources.expand`.
            commit_rows: rows of a commit, and most that a kill loses.
            deduplicate: False takes duplicates as rows of their own; `Index.deduplicate` removes them later.
            show_progress: None shows a bar on stderr when the work takes longer than about two seconds.

        Returns:
            `AddReport`: counts, and what was left out and why.

        Raises:
            ValueError: for a path that does not exist, a bad manifest row, and while another process is writing.
                OSError: when the disk is full or fails; what is committed stays.
        """
        embedder, report = self.embedder, AddReport()
        found = expand(source, lambda path, reason: report.skipped.append(Problem(path, reason)))
        candidates = list(found) if isinstance(source, str | Path | Sequence) else found  # a list has a total
        with writing(self.path):
            rows = self._table.search().select(["id", "modality", "checksum", "path"]).to_arrow().to_pylist()
            ledger = Ledger(rows, deduplicate=deduplicate)
            total = len(candidates) if isinstance(candidates, list) else None
            with progress_bar("adding", total=total, unit="file", show=show_progress) as bar:
                stream = iter(candidates)
                while chunk := list(itertools.islice(stream, commit_rows)):
                    self._add_chunk(chunk, embedder, ledger, report)
                    bar.update(len(chunk))
            with one_line():
                unbuilt = waiting(self._table)
                inside = 0 if unbuilt is None else len(self) - unbuilt
                # rows added since the last build are compared one by one: extend it when they are a fifth of all
                large = is_large(self._table, self.description["dim"])
                outside_ann = large and inside < 0.8 * len(self) and ann.may_pay(self.path, len(self))
                if outside_ann or self._table.stats()["fragment_stats"]["num_fragments"] > _MANY_FRAGMENTS:
                    self._optimize()
        return report

    def _add_chunk(self, chunk: Sequence[Candidate], embedder: Embedder, ledger: Ledger, report: AddReport) -> None:
        """Hash, judge, embed and commit one chunk; what came of it goes into `report`."""
        fresh: list[tuple[Entry, bool]] = []  # (entry, whether it replaces a row)
        moved: list[tuple[Entry, str]] = []  # (entry, the id of the row that had its content under a path now gone)
        for candidate in chunk:
            try:
                entry = entry_of(candidate)
            except (ValueError, OSError) as error:
                report.skipped.append(Problem.of(candidate.name, error))
                continue
            verdict, reason = ledger.judge(entry)
            if verdict in ("new", "changed"):
                fresh.append((entry, verdict == "changed"))
            elif verdict == "moved":
                moved.append((entry, reason))
            elif verdict == "unchanged":
                report.unchanged += 1
            else:
                left_out = report.duplicates if verdict == "duplicate" else report.skipped
                left_out.append(Problem(candidate.name, reason))
        if moved:
            self.follow(moved)
            report.replaced += len(moved)
        found = embedder.embed_readable([entry.item for entry, _ in fresh], show_progress=False)
        report.skipped += [Problem.of(fresh[s.index][0].path or fresh[s.index][0].id, s.reason) for s in found.skipped]
        if not found.kept:
            return
        kept = [fresh[place] for place in found.kept]
        known, made_with = self._added(), embedder.fingerprints
        now = {entry.modality: made_with[entry.modality] for entry, _ in kept if entry.modality in made_with}
        if now and known | now != known:  # before the rows: a kill may leave a print without rows, never the reverse
            atomic_write(self.path / ADDED, json.dumps(known | now))
        rows = self.fitting(to_arrow([entry for entry, _ in kept], found.vectors))
        replaced = sum(changed for _, changed in kept)
        with one_line():
            if replaced:  # one commit that replaces and adds: no moment without the old rows
                upsert = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                upsert.execute(rows)
            else:
                self._table.add(rows)
        report.replaced += replaced
        report.added += len(kept) - replaced

    def take_along(self, moved: Sequence[tuple[Entry, str]]) -> None:
        """Let rows follow their files.

        Args:
            moved: an entry under its new path, and the id of the row that has its vector; one commit.

        Raises:
            ValueError: while another process is writing.
        """
        with writing(self.path):
            self.follow(moved)

    def follow(self, moved: Sequence[tuple[Entry, str]]) -> None:
        """As `take_along`, for who holds the index for writing: paths are new, vectors stay."""
        ids = ", ".join(quote(old) for _, old in moved)
        with one_line():
            wanted = ["id", "caption", "label", "meta", "words", "vector"]
            held = self._table.search().where(f"id IN ({ids})")
            held = held.select([name for name in wanted if name in self._table.schema.names])
            rows = {row["id"]: row for row in held.limit(len(moved)).to_arrow().to_pylist()}
            entries = []
            for entry, old in moved:  # a file of a folder says nothing of itself: its row keeps its words
                row = rows[old]
                words = {"caption": row["caption"], "label": row["label"], "meta": json.loads(row["meta"] or "{}")}
                given = {"caption": entry.caption, "label": entry.label, "meta": entry.meta}
                if entry.id == entry.path:  # its own notes, which a person may have changed in the index
                    given["meta"] = words["meta"]
                kept = {name: given[name] or words[name] for name in words}
                entries.append(replace(entry, words=entry.words or row.get("words"), **kept))
            vectors = np.array([rows[old]["vector"] for _, old in moved], np.float32)
            made = self.fitting(to_arrow(entries, vectors))
            upsert = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            upsert.execute(made)  # first the new rows: a kill leaves rows of files that are gone, never files without
            if gone := {old for _, old in moved} - {entry.id for entry in entries}:
                self._table.delete(f"id IN ({', '.join(map(quote, sorted(gone)))})")

    def fitting(self, rows: pa.Table) -> pa.Table:
        """Rows without the columns that an index made by an older Plait lacks."""
        return rows.select([name for name in rows.column_names if name in self._table.schema.names])

    def delete(
        self,
        where: str | Mapping[str, Any] | None = None,
        *,
        paths: str | Path | Sequence[str | Path] | None = None,
    ) -> int:
        """Delete rows under a filter, of paths or of folders.

        Args:
            where: a filter, see `to_sql`; `"true"` is every row.
            paths: one or several. A row goes when its path is one of them, or lies below one by whole names:
                `a/more` takes `a/more/1.png`, never `a/more-x/1.png`. With a filter, both must hold.

        Returns:
            How many rows went.

        Raises:
            UsageError: for a filter that is no SQL of these columns.
            ValueError: for neither filter nor paths, and while another process is writing.
        """
        condition = self._condition(where, paths)
        with writing(self.path), one_line(condition):
            return int(self._table.delete(condition).num_deleted_rows)

    def deduplicate(self) -> Problems:
        """Delete rows of one modality with the checksum of an earlier row (as `add(deduplicate=False)` leaves them).

        Returns:
            What was deleted, each with the row that has the same content.

        Raises:
            ValueError: while another process is writing.
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
        """Write caption, label or meta of the rows under a filter.

        A file that changed on disk is brought up to date by adding it again.

        Args:
            where: a filter, see `to_sql`.
            caption, label: None leaves them as they are.
            meta: replaces all fields of meta; None leaves them.

        Returns:
            How many rows were written.

        Raises:
            UsageError: for a filter that is no SQL of these columns.
            ValueError: for nothing to write, and while another process is writing.
        """
        values = {"caption": caption, "label": label, "meta": None if meta is None else json.dumps(plain(meta, "meta"))}
        values = {name: value for name, value in values.items() if value is not None}
        if not values:
            raise ValueError("expected a caption, label or meta to write, got none")
        condition = self._condition(where, None)
        with writing(self.path), one_line(condition):
            return int(self._table.update(where=condition, values=values).rows_updated)

    def _condition(self, where: str | Mapping[str, Any] | None, paths: str | Path | Sequence[str | Path] | None) -> str:
        """Filter and paths as one SQL condition. Raises ValueError when there is neither."""
        parts = [condition] if (condition := to_sql(where)) else []
        if paths:
            # one path is not its letters: the "." of "more/1.png" alone would be the working directory and all below
            listed = [paths] if isinstance(paths, str | Path) else paths
            places = []
            for path in (Path(one).resolve() for one in listed):
                folder = str(path) if path == path.parent else f"{path}{os.sep}"  # the root ends in its separator
                # not LIKE, to which `%` and `_` in a name are wildcards
                places.append(f"path = {quote(str(path))} OR starts_with(path, {quote(folder)})")
            parts.append(f"({' OR '.join(places)})")
        if not parts:
            raise ValueError('expected a filter or paths, got neither; use where="true" for every row')
        return " AND ".join(parts)

    def list(self, where: str | Mapping[str, Any] | None = None, *, limit: int | None = None, offset: int = 0) -> Rows:
        """Rows under a filter, without vectors.

        Args:
            where: a filter, see `to_sql`; None lists all.
            limit, offset: how many rows at most, and how many to pass over first.

        Returns:
            Dicts of id, modality, path, caption, label, checksum and meta (a dict).

        Raises:
            UsageError: for a filter that is no SQL of these columns.
        """
        query = self._table.search().select([*COLUMNS, "meta"]).offset(offset)
        if condition := to_sql(where):
            query = query.where(condition)
        if limit is not None:
            query = query.limit(limit)
        with one_line(condition):
            return [row | {"meta": json.loads(row["meta"] or "{}")} for row in query.to_arrow().to_pylist()]

    def to_arrow(self, where: str | Mapping[str, Any] | None = None) -> pa.Table:
        """All columns of the rows under a filter, for pandas, polars and others that read Arrow.

        Args:
            where: a filter, see `to_sql`; None takes all.

        Returns:
            id, modality, path, caption, label, checksum and meta (JSON) as strings, vector as float32 lists of one
            length.

        Raises:
            UsageError: for a filter that is no SQL of these columns.

        Example:
            >>> polars.from_arrow(index.to_arrow({"label": "dog"}))
        """
        import pyarrow as pa

        query = self._table.search().select([*COLUMNS, "meta", "vector"])
        if condition := to_sql(where):
            query = query.where(condition)
        with one_line(condition):
            table = query.to_arrow()
        # Lance keeps meta in a type of its own, which others do not know
        place = table.schema.get_field_index("meta")
        meta = pa.array([value and str(value) for value in table["meta"].to_pylist()], pa.string())
        return table.set_column(place, "meta", meta).replace_schema_metadata(None)

    def to_pandas(self, where: str | Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The same as a data frame, meta as dicts and vectors as arrays (dim,).

        Args:
            where: as in `to_arrow`.

        Raises:
            UsageError: as `to_arrow`. MissingExtraError: without pandas.
        """
        import_extra("pandas")
        frame = self.to_arrow(where).to_pandas()
        frame["meta"] = [json.loads(value or "{}") for value in frame["meta"]]
        return frame

    @property
    def vectors(self) -> np.ndarray:
        """The unit vectors of all rows, (rows, dim) float32, in the order of `to_arrow` and of iteration."""
        column = self.to_arrow()["vector"].combine_chunks()
        return column.flatten().to_numpy().reshape(-1, self.description["dim"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows as `list` gives them, a batch at a time."""
        for batch in self._table.search().select([*COLUMNS, "meta"]).to_batches():
            yield from (row | {"meta": json.loads(row["meta"] or "{}")} for row in batch.to_pylist())

    def __enter__(self) -> Self:
        """Nothing is held open: what a call wrote is committed when it returns."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def __getstate__(self) -> dict[str, Any]:
        """Without the connection, so that workers and other processes open their own."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_table", "_memory")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._table, self.description = open_table(self.path)
        self._memory = Memory(self._table, self.description["dim"], self.path)

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}, {len(self)} rows, dim {self.description['dim']})"

    def _repr_html_(self) -> str:
        """What it holds, as a small table, for notebooks."""
        return facts(self.stats())

    def stats(self) -> dict[str, Any]:
        """What the index holds, how large it is and how it answers.

        Returns:
            path, rows, rows_by_modality, dim (width of a vector), bytes on disk, search ("exact" or
            "approximate"), rows_not_in_ann (compared one by one until `optimize`), model and fingerprint.
        """
        with one_line():
            kinds = self._table.search().select(["modality"]).to_arrow()["modality"].to_pylist()
            unbuilt = waiting(self._table)
        in_memory = len(kinds) >= ANN_ROWS and not is_large(self._table, self.description["dim"])
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        return {
            "path": str(self.path),
            "rows": len(kinds),
            "rows_by_modality": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "dim": self.description["dim"],
            "bytes": size,
            "search": "approximate" if in_memory or unbuilt is not None else "exact",
            "rows_not_in_ann": 0 if in_memory else len(kinds) if unbuilt is None else unbuilt,
            "model": self.description["model"],
            "fingerprint": self.description["fingerprint"],
        }

    def search(
        self,
        query: Item | np.ndarray,
        k: int = 10,
        *,
        where: str | Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
        modality: str | None = None,
        exact: bool = False,
    ) -> HitList:
        """The k nearest rows, best first.

        Args:
            query: an item as `Embedder.embed` takes it (text, Path, mapping of several media), or a vector
                (dim,), which is brought to unit length.
            k: how many, at least 1; fewer come where fewer rows fit.
            where: a filter, see `to_sql`; rows are filtered before they are ranked.
            weights: weight per modality of a fused query.
            modality: only rows of this modality.
            exact: compare with every row even where an approximate index exists.

        Returns:
            Hits by falling cosine similarity.

        Raises:
            UsageError: for a filter that is no SQL of these columns, or a modality that is none.
            ValueError: for another k or width of vector, and for a query that cannot be embedded.

        Example:
            >>> index.search({"audio": "rain.wav", "text": "street", "not": {"text": "car"}}, where={"label": "city"})
        """
        return self._search([query], k, where, weights, modality, exact)[0]

    def search_many(
        self,
        queries: Sequence[Item | np.ndarray],
        k: int = 10,
        *,
        where: str | Mapping[str, Any] | None = None,
        weights: Mapping[str, float] | None = None,
        modality: str | None = None,
    ) -> Answers:
        """The k nearest rows of each of many queries, which are embedded in batches and compared in one pass, exactly.

        Args:
            queries: items or vectors as `search` takes them, each for itself.
            k, where, weights, modality: as in `search`; more than half a GiB of vectors are asked query by query.

        Returns:
            Hits of each query, in order.

        Raises:
            UsageError, ValueError: as `search`.
        """
        if isinstance(queries, str | bytes | Path | Mapping):
            raise ValueError(f"expected a list of queries, got one {type(queries).__name__}; wrap it in a list")
        return self._search(list(queries), k, where, weights, modality, None)

    def _search(
        self, queries: Sequence[Any], k: int, where: Any, weights: Any, modality: str | None, exact: bool | None
    ) -> Answers:
        """As `search`, and with exact=None as `search_many`."""
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"expected k of at least 1, got {k!r}")
        items = [query for query in queries if not isinstance(query, np.ndarray)]
        embedded = iter(self.embedder.embed(items, weights=weights) if items else ())
        vectors = [query if isinstance(query, np.ndarray) else next(embedded) for query in queries]
        units, condition = unit(vectors, self.description["dim"]), to_sql(where, modality)
        with one_line(condition):
            return self._memory.answer(units, k, condition, exact) if queries else []

    def optimize(self) -> None:
        """Merge small files, drop old versions (an hour), build or extend the approximate index of a large table.

        Raises:
            ValueError: while another process is writing.
        """
        with writing(self.path), one_line():
            self._optimize()

    def _optimize(self) -> None:
        """As `optimize`, for who holds the lock already."""
        if (
            is_large(self._table, self.description["dim"])
            and waiting(self._table) is None
            and ann.may_pay(self.path, len(self))
        ):
            ann.build(self._table, self.path, self.description["dim"])
        self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)


LEAST = (0, 33)
"""The oldest lancedb that was tried with the tables of today; 0.30 cannot write their column of JSON."""


def engine() -> Any:
    """The package that keeps indices. Raises MissingExtraError for one that is not there, or older than `LEAST`."""
    lancedb = import_extra("lancedb")
    version = tuple(int(part) for part in re.findall(r"\d+", lancedb.__version__)[:2])
    if version < LEAST:
        raise MissingExtraError(
            f"expected lancedb {LEAST[0]}.{LEAST[1]} or newer, got {lancedb.__version__}; "
            "install it with: pip install -U lancedb"
        )
    return lancedb


def check_new(path: Path) -> None:
    """Raise ValueError where there is an index already, and MissingExtraError without the package that makes them."""
    engine()
    if table_exists(path):
        raise ValueError(f"expected no index at {path}, got one; open it, or choose another path")


def table_exists(path: Path) -> bool:
    """Whether the directory `path` holds a table (its first commit is there).

    Raises UsageError for an address of another machine: locks and renames keep rows whole, and it has neither.
    """
    check_local(path)
    return (path / f"{TABLE}.lance" / "_versions").is_dir()


def create_table(path: Path, description: dict[str, Any], dim: int) -> Any:
    """An empty table in the directory `path`.

    Args:
        path: made where there is none.
        description: what the index knows of its model; goes into the schema's metadata.
        dim: width of a vector.

    Returns:
        The Lance table.

    Raises:
        ValueError: when there is one already. UsageError: when the directory holds what Plait did not make.
    """
    check_new(path)
    lancedb = engine()
    import pyarrow as pa

    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("path", pa.string()),
            pa.field("caption", pa.string()),
            pa.field("label", pa.string()),
            pa.field("checksum", pa.string(), nullable=False),
            pa.field("meta", pa.json_()),
            pa.field("words", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ],
        metadata={"plait": json.dumps(description | {"format": FORMAT, "dim": dim})},
    )
    claim(path)
    with writing(path), one_line():
        if table_exists(path):  # another process was faster
            raise ValueError(f"expected no index at {path}, got one made just now; run the same command again")
        return lancedb.connect(path).create_table(TABLE, schema=schema)


def open_table(path: Path) -> tuple[Any, dict[str, Any]]:
    """The table in `path` and its description.

    Raises:
        ValueError: when there is none, or it is of another format.
        OSError: when it cannot be read.
    """
    lancedb = engine()
    if not table_exists(path):
        raise ValueError(f"expected an index, got {path}: none there; create it with plait index create")
    with one_line():
        # an interval of zero: a reader always sees what the last writer committed
        table = lancedb.connect(path, read_consistency_interval=timedelta(0)).open_table(TABLE)
        description = json.loads((table.schema.metadata or {}).get(b"plait", b"{}"))
    if description.get("format") != FORMAT:
        raise ValueError(
            f"expected an index of format {FORMAT}, got {description.get('format')} at {path}; build it anew"
        )
    return table, description


def open_beside(path: Path, name: str, schema: Any) -> Any:
    """Another table in the directory of an index, made where there is none; it sees what other processes commit."""
    with one_line():
        connection = engine().connect(path, read_consistency_interval=timedelta(0))
        return connection.create_table(name, schema=schema, exist_ok=True)


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Hold the index for writing, as a context; the system lets go when the process dies.

    Raises:
        ValueError: when another process writes for longer than `LOCK_SECONDS`.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(path / ".lock", timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise ValueError(
            f"expected to write to {path}, got an index that another process is writing; wait for it"
        ) from error


@contextmanager
def one_line(where: str | None = None) -> Generator[None]:
    """Turn Lance's long errors into one line, as a context.

    Args:
        where: the filter in use, which is to blame for a ValueError; None where there is none.

    Raises:
        UsageError: for a wrong filter.
        OSError: for a disk that fails, with what to do.
    """
    try:
        yield
    except ValueError as error:
        if where is None:
            raise
        reason = _first(error).removeprefix("Invalid input, ").rstrip(".")
        raise UsageError(f"expected a filter such as \"label = 'dog'\", got another: {reason}; correct it") from error
    except (RuntimeError, OSError) as error:
        reason = _first(error)
        if where is not None and "Execution error" in reason:  # found only when the filter met the rows
            said = reason.rpartition("Execution error: ")[2].rstrip(".")
            told = f"a value that the rows do not have ({said})"
            raise UsageError(f"expected a filter such as \"label = 'dog'\", got {where}: {told}; correct it") from error
        remedy = next((told for sign, told in _REMEDIES.items() if sign in reason.lower()), "check the disk")
        raise OSError(f"expected an index that can be read and written, got {reason}; {remedy}") from error


def _first(error: Exception) -> str:
    """The first line of an error without the source locations that Lance adds, at most 300 characters."""
    return str(error).split(", /")[0].splitlines()[0][:300] if str(error) else type(error).__name__
