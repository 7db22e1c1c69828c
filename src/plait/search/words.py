"""Words of rows: captions, labels, names of files and folders, and what a photograph notes (date, place, camera).

words -> terms -> every term somewhere in a row (Lance's full-text indices, BM25) -> rows, best first

The full-text indices are made when somebody first asks for words; rows that were added since are looked through as they
are, so that what was added is found at once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from plait.errors import UsageError
from plait.search.index import one_line, writing

if TYPE_CHECKING:
    from plait.search.index import Index

WORDED = ("caption", "label", "path", "words")
"""Columns that hold words."""

_TERM = re.compile(r"\w+")
_MAX_TERMS = 32

_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for from if in into is it my no not of on or such that the their then there these"
        " they this to was will with",
    )
)
"""English words that say nothing of a picture; the full-text index drops them too, so none of them is ever found."""


def terms(words: str) -> list[str]:
    """What has to be found: the words without those that say nothing, each once.

    Raises:
        UsageError: for more than 32 of them.

    Example:
        >>> terms("Rex in the snow, 2024")
        ['rex', 'snow', '2024']
    """
    found = [term for term in dict.fromkeys(_TERM.findall(words.lower().replace("_", " "))) if term not in _STOP]
    if len(found) > _MAX_TERMS:
        raise UsageError(f"expected at most {_MAX_TERMS} words to look for, got {len(found)}; leave some out")
    return found


def prepare(index: Index) -> None:
    """Make the full-text indices that are missing, and the column of notes where an older Plait made the index.

    Raises:
        ValueError: while another process is writing. OSError: where the index cannot be written.
    """
    from lancedb.index import FTS

    made = {name for one in index.table.list_indices() for name in one.columns}
    if made.issuperset(WORDED):
        return
    with writing(index.path), one_line():
        if "words" not in index.table.schema.names:
            index.table.add_columns({"words": "cast(NULL as string)"})
        for name in WORDED:
            if name not in made:
                index.table.create_index(name, config=FTS())


def find_words(index: Index, words: str, k: int, condition: str | None, columns: list[str]) -> list[dict[str, Any]]:
    """The k rows that hold every word, best first.

    Args:
        index: its full-text indices are made where they are missing.
        words: as a person types them; English endings do not count (`dogs` finds `dog`).
        k: how many.
        condition: SQL that rows have to meet as well, of `plait.search.filters.to_sql`; None for none.
        columns: wanted of each row.

    Returns:
        Dicts of the columns and `_score` (BM25, higher is better); none where no word says anything.

    Raises:
        UsageError: for too many words, and a condition that is wrong.
    """
    from lancedb.query import BooleanQuery, MultiMatchQuery, Occur

    wanted = terms(words)
    if not wanted:
        return []
    prepare(index)
    query = BooleanQuery([(Occur.MUST, MultiMatchQuery(term, list(WORDED))) for term in wanted])
    with one_line(condition):
        request = index.table.search(query, query_type="fts").limit(k)
        if condition:
            request = request.where(condition, prefilter=True)
        rows = request.select([*columns, "_score"]).to_arrow().to_pylist()
    return sorted(rows, key=lambda row: (-row["_score"], row["id"]))
