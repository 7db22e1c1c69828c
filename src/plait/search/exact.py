"""Search in memory: the vectors of one version of an index, read once and compared with many queries at a time.

version of the table -> vectors (rows, dim) and columns of hits; queries (q, dim) -> one product per block -> k nearest
one query of a large index -> the rows of some `cells` -> k nearest
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from plait.search import ann
from plait.search.cells import Cells, make_cells
from plait.search.filters import COLUMNS
from plait.search.hits import HitList, hit_of

ANN_ROWS = 50_000
"""From this many rows on search is approximate; below, every row is compared."""
MOST_BYTES = 2**29
"""Vectors held in memory at most: 262,144 rows of 512 numbers. Of larger indices Lance reads the rows anew."""
_BLOCK = 2**22
"""Scores computed at a time (16 MiB): a block of queries is so many that all rows fit."""
_CELLS_AFTER = 20
"""Single questions of a process after which making cells pays: it costs as much as a hundred exact answers."""
_KEPT = 8
"""Share of the rows, one in so many, whose vectors are kept a second time for a filter."""
_FILTERS = 16
"""Filters whose rows are remembered: a page or a server asks with the same few."""


class Held:
    """Vectors and columns of one version of an index.

    Args:
        table: of Lance; all its rows are read.
    """

    def __init__(self, table: Any) -> None:
        import pyarrow as pa

        self.version: int = table.version
        rows = table.search().select([*COLUMNS, "meta", "vector"]).with_row_id(True).to_arrow()
        flat = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        self.vectors: np.ndarray = flat.reshape(rows.num_rows, rows.schema.field("vector").type.list_size)
        # sorted by the row's number, so that those that pass a filter are found by bisection
        numbers = rows["_rowid"].to_numpy()
        self._order = np.argsort(numbers, kind="stable")
        self._numbers = numbers[self._order]
        # one chunk each: taking a few rows out of many pieces costs more than ranking them
        columns = {name: rows[name].combine_chunks() for name in [*COLUMNS, "meta"]}
        self._columns = pa.table({n: c.storage if isinstance(c, pa.ExtensionArray) else c for n, c in columns.items()})
        self._passing: dict[str, np.ndarray] = {}
        self._turn: np.ndarray | None = None  # (rows,) place of each row before it was put into its cell
        self._copied: tuple[np.ndarray, np.ndarray] | None = None  # rows that passed the last filter, their vectors
        self.cells: Cells | None = None

    def in_cells(self) -> Self:
        """The same rows ordered by cell, so that a question compares some of them; itself where cells do not pay."""
        if (made := make_cells(self.vectors)) is None:
            return self
        cells, order = made
        held = copy.copy(self)  # somebody may be asking this one meanwhile
        place = np.empty_like(order)
        place[order] = np.arange(len(order))  # where each row is now
        held.vectors, held._columns, held._turn = self.vectors[order], self._columns.take(order), order
        held._order, held._passing, held._copied, held.cells = place[self._order], {}, None, cells
        return held

    def near(self, query: np.ndarray, k: int, places: np.ndarray | None = None) -> list[tuple[dict[str, Any], float]]:
        """As `nearest` for one query (dim,), comparing the rows of some cells only where there are cells.

        places: of the rows that pass a filter, ascending.
        """
        ranges = None if self.cells is None else self.cells.places(query, k, places)
        if ranges is None:
            return next(self.nearest(query[None], k, places))
        vectors, rows = self.vectors, np.concatenate([np.arange(start, end) for start, end in ranges])
        if places is not None and self._is_few(places):  # their copy is in the order of cells too
            ranges, vectors = np.searchsorted(places, ranges).tolist(), self._those(places)
            rows = np.concatenate([places[start:end] for start, end in ranges])
        scores = np.concatenate([vectors[start:end] @ query for start, end in ranges])
        if places is not None and vectors is self.vectors:
            passes = np.zeros(len(vectors), bool)
            passes[places] = True
            rows, scores = rows[passes[rows]], scores[passes[rows]]
        if len(rows) < k:
            return next(self.nearest(query[None], k, places))
        return self._told(rows, scores, k)

    def _told(self, rows: np.ndarray | None, scores: np.ndarray, k: int) -> list[tuple[dict[str, Any], float]]:
        """The k best of rows with their scores (rows,); None stands for all rows in order."""
        turn = self._turn if rows is None or self._turn is None else self._turn[rows]
        best = _largest(scores, k, turn if self._turn is not None else None)
        return list(
            zip(
                self._columns.take(best if rows is None else rows[best]).to_pylist(), scores[best].tolist(), strict=True
            )
        )

    def passing(self, table: Any, condition: str) -> np.ndarray:
        """Places of the rows that pass a filter, ascending; asked of Lance once."""
        if condition not in self._passing:
            found = table.search().where(condition).select(["id"]).with_row_id(True).to_arrow()["_rowid"].to_numpy()
            at = np.searchsorted(self._numbers, found).clip(max=max(0, len(self._numbers) - 1))
            places = self._order[at[self._numbers[at] == found]] if len(self._numbers) else at
            if len(self._passing) == _FILTERS:
                self._passing.pop(next(iter(self._passing)))
            self._passing[condition] = np.sort(places)
        return self._passing[condition]

    def nearest(
        self, queries: np.ndarray, k: int, places: np.ndarray | None = None
    ) -> Iterator[list[tuple[dict[str, Any], float]]]:
        """For each query the k nearest rows and their cosines, best first; equal ones in the order of the rows.

        Args:
            queries: (q, dim) float32 of unit length.
            k: rows of each; fewer come where fewer are held.
            places: of the rows to compare with; None for all.
        """
        # few of many: copying those is cheaper than comparing all
        few = places is not None and len(places) < len(self.vectors) // 2
        vectors = self._those(places) if few and places is not None else self.vectors
        size = max(1, _BLOCK // max(1, len(vectors)))
        for start in range(0, len(queries), size):
            scores = queries[start : start + size] @ vectors.T  # (block, rows)
            if places is not None and not few:
                scores = scores[:, places]
            for line in scores:
                yield self._told(places, line, k)

    def _those(self, places: np.ndarray) -> np.ndarray:
        """Vectors of some rows; the last few are kept for the same filter: copying costs more than comparing."""
        kept = self._copied
        if kept is None or kept[0] is not places:
            kept = (places, self.vectors[places])
            if self._is_few(places):
                self._copied = kept
        return kept[1]

    def _is_few(self, places: np.ndarray) -> bool:
        """Whether vectors of so many rows are kept a second time."""
        return len(places) <= len(self.vectors) // _KEPT


class Memory:
    """Answers of one table: from memory where that pays, else by Lance.

    Args:
        table: of Lance; always asked for its newest version.
        dim: width of a vector.
        folder: of the index, where it is written what was built.
    """

    def __init__(self, table: Any, dim: int, folder: Path) -> None:
        self._table, self._dim, self._folder = table, dim, folder
        self._ann: dict[str, Any] = {}
        self.held: Held | None = None
        self._is_approximate = False  # of the version that is held
        self._singles = 0  # questions that may be answered approximately
        self._asked: int | None = None  # the version that the last question met

    def answer(self, units: np.ndarray, k: int, condition: str | None, exact: bool | None) -> list[HitList]:
        """Hits of each query (q, dim). exact: compare with every row; None does so of many queries where it can."""
        if (held := self._of(exact)) is not None:
            if exact is False and self._is_approximate:
                held = self._with_cells(held)
                places = held.passing(self._table, condition) if condition else None
                return [HitList(hit_of(*one) for one in held.near(unit, k, places)) for unit in units]
            places = held.passing(self._table, condition) if condition else None
            return [HitList(hit_of(row, score) for row, score in near) for near in held.nearest(units, k, places)]
        return [self._ask(vector, k, condition, bool(exact)) for vector in units]

    def _with_cells(self, held: Held) -> Held:
        """The same, in cells once enough was asked."""
        self._singles += 1
        if self._singles == _CELLS_AFTER:
            held = held.in_cells()
            if self.held is not None and self.held.version == held.version:
                self.held = held
        return held

    def _ask(self, vector: np.ndarray, k: int, condition: str | None, exact: bool) -> HitList:
        """The k nearest rows of a unit vector (dim,), by Lance."""
        request = self._table.search(vector).distance_type("dot")
        request = request.limit(k).bypass_vector_index() if exact else ann.request(request, k, self._ann)
        request = request.where(condition) if condition else request
        rows = request.select([*COLUMNS, "meta", "_distance"]).to_arrow().slice(0, k).to_pylist()
        # Lance's dot distance is 1 - product, and vectors have length 1
        return HitList(hit_of(row, 1.0 - row["_distance"]) for row in rows)

    def _of(self, exact: bool | None) -> Held | None:
        """All vectors of the newest version; None where Lance answers better.

        It does for the first question of a process (reading everything pays from the second on) and for large indices.
        """
        version = self._table.version
        if self.held is None or self.held.version != version:
            self.held, asked_before = None, self._asked == version
            if not asked_before:
                self._asked, self._ann = version, ann.describe(self._folder)
            if is_large(self._table, self._dim) or (exact is not None and not asked_before):
                return None
            self._is_approximate, self._singles = self._table.count_rows() >= ANN_ROWS, 0
            held = Held(self._table)
            self.held = held if held.version == self._table.version else None  # else somebody wrote meanwhile
        return self.held


def is_large(table: Any, dim: int) -> bool:
    """Whether the vectors of a table do not fit in memory, so that Lance answers from an index of its own."""
    return table.count_rows() * dim * 4 > MOST_BYTES


def waiting(table: Any) -> int | None:
    """Rows that the approximate index of a table does not hold yet; None where there is no such index."""
    built = next((one for one in table.list_indices() if "vector" in one.columns), None)
    return None if built is None else table.index_stats(built.name).num_unindexed_rows


def _largest(scores: np.ndarray, k: int, turn: np.ndarray | None = None) -> np.ndarray:
    """Places of the k largest of (rows,) numbers, falling; of equal ones the first, or those of the first `turn`."""
    if k < len(scores):
        edge = np.partition(scores, len(scores) - k)[len(scores) - k]
        found = np.flatnonzero(scores >= edge)  # more than k only where several equal the last
    else:
        found = np.arange(len(scores))
    if turn is not None:
        found = found[np.argsort(turn[found])]
    return found[np.argsort(-scores[found], kind="stable")][:k]


def unit(queries: Sequence[np.ndarray], dim: int) -> np.ndarray:
    """Query vectors as (q, dim) float32 of unit length. Raises ValueError for others than finite ones of this width."""
    for vector in queries:
        if vector.shape != (dim,):
            raise ValueError(f"expected a vector of shape ({dim},), got {vector.shape}")
        if not np.isfinite(vector).all():  # Lance finds nothing near NaN, and says so without an error
            raise ValueError("expected a vector of finite numbers, got NaN or infinity; embed the query anew")
    vectors = np.asarray(queries, np.float32).reshape(len(queries), dim)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError("expected a query of some length, got one of zeros; embed the query anew")
    return vectors / lengths
