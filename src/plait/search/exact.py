"""Exact search in memory: the vectors of one version of an index, read once and compared with many queries at a time.

version of the table -> vectors (rows, dim) and columns of hits; queries (q, dim) -> one product per block -> k nearest
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from plait.search.filters import COLUMNS
from plait.search.hits import HitList, hit_of

_FLOOR = 100
"""Hits asked of the approximate index at least: it finds the nearest row among a thousand candidates, not among ten."""
MOST_BYTES = 2**29
"""Vectors held in memory at most: 262,144 rows of 512 numbers. Of larger indices Lance reads the rows anew."""
_BLOCK = 2**22
"""Scores computed at a time (16 MiB): a block of queries is so many that all rows fit."""
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
        vectors = self.vectors[places] if few else self.vectors
        size = max(1, _BLOCK // max(1, len(vectors)))
        for start in range(0, len(queries), size):
            scores = queries[start : start + size] @ vectors.T  # (block, rows)
            if places is not None and not few:
                scores = scores[:, places]
            for line in scores:
                best = _largest(line, k)
                rows = self._columns.take(best if places is None else places[best]).to_pylist()
                yield list(zip(rows, line[best].tolist(), strict=True))


class Memory:
    """Answers of one table: from memory where that pays, else by Lance.

    Args:
        table: of Lance; always asked for its newest version.
        dim: width of a vector.
    """

    def __init__(self, table: Any, dim: int) -> None:
        self._table, self._dim = table, dim
        self.held: Held | None = None
        self._is_approximate = False  # of the version that is held
        self._asked: int | None = None  # the version that the last question met

    def answer(self, units: np.ndarray, k: int, condition: str | None, exact: bool | None) -> list[HitList]:
        """Hits of each query (q, dim). exact: compare with every row; None does so of many queries where it can."""
        if (held := self._of(exact)) is not None:
            places = held.passing(self._table, condition) if condition else None
            return [HitList(hit_of(row, score) for row, score in near) for near in held.nearest(units, k, places)]
        return [self._ask(vector, k, condition, bool(exact)) for vector in units]

    def _ask(self, vector: np.ndarray, k: int, condition: str | None, exact: bool) -> HitList:
        """The k nearest rows of a unit vector (dim,), by Lance."""
        request = self._table.search(vector).distance_type("dot").limit(max(k, _FLOOR))
        # the approximate index holds 8 bits a number: ten times as many candidates are compared in full
        request = request.bypass_vector_index() if exact else request.refine_factor(10)
        request = request.where(condition) if condition else request
        rows = request.select([*COLUMNS, "meta", "_distance"]).to_arrow().slice(0, k).to_pylist()
        # Lance's dot distance is 1 - product, and vectors have length 1
        return HitList(hit_of(row, 1.0 - row["_distance"]) for row in rows)

    def _of(self, exact: bool | None) -> Held | None:
        """All vectors of the newest version; None where Lance answers better.

        It does for the first question of a process (reading everything pays from the second on), for large indices,
        and with an approximate index, unless exact answers are asked for.
        """
        version = self._table.version
        if self.held is None or self.held.version != version:
            self.held, asked_before = None, self._asked == version
            self._asked = version
            is_large = self._table.count_rows() * self._dim * 4 > MOST_BYTES
            if is_large or (exact is not None and not asked_before):
                return None
            self._is_approximate = waiting(self._table) is not None
            if exact is False and self._is_approximate:
                return None
            held = Held(self._table)
            self.held = held if held.version == self._table.version else None  # else somebody wrote meanwhile
        return None if exact is False and self._is_approximate else self.held


def waiting(table: Any) -> int | None:
    """Rows that the approximate index of a table does not hold yet; None where there is no such index."""
    built = next((one for one in table.list_indices() if "vector" in one.columns), None)
    return None if built is None else table.index_stats(built.name).num_unindexed_rows


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest of (rows,) numbers, falling; of equal ones the first."""
    if k < len(scores):
        edge = np.partition(scores, len(scores) - k)[len(scores) - k]
        found = np.flatnonzero(scores >= edge)  # more than k only where several equal the last
    else:
        found = np.arange(len(scores))
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
