"""Rows of an index with their vectors, as arrays: all of them in pieces, or those that are asked for.

index -> batches | by_id -> vectors (rows, dim)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.search.filters import quote
from plait.search.index import one_line

if TYPE_CHECKING:
    from plait.search.index import Index

_STREAMED = 4096
"""Rows in memory at a time, whatever the size of the index."""
_NAMED = 1000
"""Values named in one filter."""


def batches(index: Index, columns: Sequence[str], condition: str | None = None) -> Iterator[Any]:
    """All rows under a condition, some thousand at a time, as Arrow batches of `columns` and `vector`."""
    with one_line(condition):
        request = index.table.search()
        request = request.where(condition) if condition else request
        yield from request.select([*columns, "vector"]).to_batches(_STREAMED)


def vectors_of(batch: Any) -> np.ndarray:
    """Vectors (rows, dim) float32 of an Arrow batch."""
    column = batch["vector"]
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1).astype(np.float32, copy=False)


def by_id(index: Index, ids: Sequence[str], columns: Sequence[str], key: str = "id") -> list[dict[str, Any]]:
    """Rows with one of the ids, in the order of the ids; an id that no row has gives none.

    Args:
        index: is read.
        ids: of rows, or values of another column.
        columns: wanted of each row; `key` is among them.
        key: the column; of another than id, all rows with a value come.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    stream = iter(dict.fromkeys(ids))
    while chunk := list(itertools.islice(stream, _NAMED)):
        condition = f"{key} IN ({', '.join(map(quote, chunk))})"
        with one_line():
            request = index.table.search().where(condition).select(list(dict.fromkeys([key, *columns])))
            for row in request.to_arrow().to_pylist():
                found.setdefault(row[key], []).append(row)
    return [row for one in dict.fromkeys(ids) for row in found.get(one, ())]
