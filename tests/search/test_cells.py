"""Cells: at least 99 of 100 nearest rows are found on vectors of every shape, at every k, with a filter too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_embedders import HueModel, HueProcessor

from plait import Embedder, Index
from plait.search import cells, exact
from plait.search.cells import make_cells
from plait.search.exact import Held
from plait.search.index import to_arrow
from plait.search.sources import Entry

ROWS, DIM = 12_000, 48
SHAPES = ("random", "cone", "clusters", "gap", "mixed", "pairs", "few dimensions")


def vectors(shape: str, rows: int, *, asked: bool = False) -> np.ndarray:
    """Unit vectors (rows, DIM), of an index or of the questions asked of it."""
    rng = np.random.default_rng(7 if asked else 3)
    centres = np.random.default_rng(1).standard_normal((60, DIM))
    noise, kinds = rng.standard_normal((rows, DIM)), rng.integers(0, 60, rows)
    made = {
        "random": noise,
        "cone": noise + 3 * centres[0],
        "clusters": centres[kinds] + 0.5 * noise,
        "gap": centres[kinds] + 0.5 * noise + (-1 if asked else 1) * centres[0],
        "mixed": centres[kinds] + 0.5 * noise + np.where(kinds % 2, 1, -1)[:, None] * 2 * centres[0],
        "pairs": centres[kinds] + 0.5 * noise + (centres[kinds[::-1]] if asked else 0),
        "few dimensions": noise[:, :8] @ centres[:8] + 0.2 * noise,
    }[shape]
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


class Table:
    """Stands for one of Lance: rows with a vector and a number, and filters by that number."""

    version = 1

    def __init__(self, made: np.ndarray) -> None:
        self.made, self.condition, self.rows = made, "", np.arange(len(made))

    def search(self) -> Table:
        self.rows = np.arange(len(self.made))
        return self

    def select(self, columns: list[str]) -> Table:
        return self

    def with_row_id(self, _: bool) -> Table:
        return self

    def where(self, condition: str) -> Table:
        every, rest = map(int, condition.split())
        self.rows = self.rows[self.rows % every == rest]
        return self

    def to_arrow(self) -> pa.Table:
        text = pa.array([str(row) for row in self.rows])
        columns: dict[str, Any] = dict.fromkeys([*exact.COLUMNS, "meta"], text)
        flat = pa.array(self.made[self.rows].ravel())
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, DIM)
        return pa.table(columns | {"_rowid": pa.array(self.rows[:] * 5)})


def ids(found: list[tuple[dict[str, Any], float]]) -> list[str]:
    return [row["id"] for row, _ in found]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_near_is_found_at_every_k_with_and_without_a_filter(shape: str) -> None:
    table = Table(vectors(shape, ROWS))
    plain = Held(table)
    held = plain.in_cells()
    if shape == "clusters":
        assert held.cells is not None
    questions = vectors(shape, 30, asked=True)
    for condition in ("", "2 1", "3 0", "40 7"):
        mine = held.passing(table, condition) if condition else None
        theirs = plain.passing(table, condition) if condition else None
        for k in (1, 2, 5, 10, 60, 150):
            wanted = [ids(one) for one in plain.nearest(questions, k, theirs)]
            got = [ids(held.near(one, k, mine)) for one in questions]
            assert all(len(one) == k for one in got)
            found = [len(set(a) & set(b)) / k for a, b in zip(wanted, got)]
            assert np.mean(found) >= 0.99, (condition, k)


def test_a_filter_that_leaves_what_is_far_finds_the_nearest_of_that() -> None:
    made = vectors("clusters", ROWS)
    made[1::2] = -made[1::2]  # rows of odd numbers lie on the other side of every question
    table = Table(made)
    held, questions = Held(table).in_cells(), vectors("clusters", 40, asked=True)
    assert held.cells is not None
    places = held.passing(table, "2 1")
    found = [len(set(ids(held.near(q, 10, places))) & set(ids(next(held.nearest(q[None], 10, places)))))
             for q in questions]  # fmt: skip
    assert np.mean(found) >= 9.9


def test_a_question_in_a_cluster_compares_a_tenth_of_the_rows() -> None:
    made = make_cells(vectors("clusters", ROWS))
    assert made is not None
    compared = [cells._rows_in(made[0].places(q, 10)) for q in vectors("clusters", 50, asked=True)]
    assert np.median(compared) < ROWS / 10


def test_there_are_no_cells_where_they_do_not_pay() -> None:
    assert make_cells(vectors("random", ROWS)) is None
    assert make_cells(vectors("clusters", cells.LEAST_ROWS - 1)) is None


def test_rows_in_cells_keep_their_columns_exact_answers_and_the_order_of_equals() -> None:
    made = vectors("clusters", ROWS)
    made[[17, 4000, 9000]] = made[17]
    plain, held = Held(Table(made)), Held(Table(made)).in_cells()
    assert held.cells is not None and plain.cells is None
    assert ids(held.near(made[17], 3)) == ids(next(held.nearest(made[17:18], 3))) == ["17", "4000", "9000"]
    assert ids(held.near(made[17], 2)) == ["17", "4000"]
    for row in (5, 777, 11_999):
        assert ids(held.near(made[row], 1)) == [str(row)]


def test_an_index_of_many_rows_answers_from_cells_once_enough_was_asked(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(exact, "ANN_ROWS", 6000)
    monkeypatch.setattr("plait.search.index.ANN_ROWS", 6000)
    monkeypatch.setattr(exact, "_CELLS_AFTER", 3)
    index = Index.create(tmp_path / "i", Embedder((HueModel(), HueProcessor())))
    rng, dim = np.random.default_rng(0), index.description["dim"]
    made = (np.eye(dim)[rng.integers(0, dim, 6000)] + 0.1 * rng.standard_normal((6000, dim))).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    index._table.add(to_arrow([Entry(str(n), "image", {}, f"/{n}", f"{n:032x}") for n in range(6000)], made))
    assert index.stats()["search"] == "approximate" and index.stats()["rows_not_in_ann"] == 0
    for query in made[:5]:
        assert {h.id for h in index.search(query, 10)} == {h.id for h in index.search(query, 10, exact=True)}
    assert index._memory.held is not None and index._memory.held.cells is not None
    index.delete({"id": "0"})
    assert "0" not in {hit.id for hit in index.search(made[0], 10)}
