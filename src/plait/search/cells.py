"""Approximate search in memory: vectors lie in cells around sampled centres, and a query looks into the nearest few.

vectors (rows, dim) -> centres (cells, dim) -> rows ordered by cell
query -> cells whose mean is nearest -> cosines in full precision -> k best

A cell is compared in full precision, so what is found has its exact cosine, and only a row in a cell that was passed
over can be missed. Passed over are cells whose mean is further from the question than the nearest one by some slack,
which is measured when cells are made, on questions of several kinds: one in the midst of a cluster looks into a few
cells, one far from all into most. Where most rows have to be compared anyway there are no cells; every answer is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_ROWS = 5_000
"""Below, comparing every row takes less than choosing cells."""
DEPTHS = (10, 100, 1000)
"""Rows of an answer for which the slack is measured; one of more rows compares all."""
_SHARE = 0.25
"""Of all rows at most that half of the questions may compare: beyond, little is saved."""
_MOST = 0.5
"""Of all rows from which on a question compares all, which is one product instead of many."""
_MISSED = 0.002
"""Share of the nearest rows that may lie in cells further off; the bar is 0.01."""
_ASKED = 64
"""Questions of each kind that cells are measured with."""
_SAMPLED = 64
"""Rows for every cell that its centre is moved by."""
_BLOCK = 2**22
"""Scores computed at a time (16 MiB)."""


@dataclass(frozen=True)
class Cells:
    """Where the rows of each cell lie, once they are ordered by cell.

    Attributes:
        means: (cells, dim) float32, of each cell's rows: their product with a question is the rows' mean product.
        starts: (cells + 1,) place of each cell's first row, and the number of rows.
        slack: for each of `DEPTHS`, how far behind the best cell the mean product with a unit question may be.
    """

    means: np.ndarray
    starts: np.ndarray
    slack: tuple[float, ...]

    def places(self, query: np.ndarray, k: int, passing: np.ndarray | None = None) -> list[tuple[int, int]] | None:
        """Ranges of rows to compare with a unit vector (dim,) for the k nearest; None where all have to be.

        passing: places of the rows that pass a filter, ascending. The k nearest of them lie among some k / share
        nearest of all rows, ten times as many to be safe (they may lie unevenly); cells without any do not count.
        """
        products, wanted = self.means @ query, k
        if passing is not None and len(passing):
            inside = np.diff(np.searchsorted(passing, self.starts))
            products = np.where(inside > 0, products, -np.inf)
            wanted = 10 * k * int(self.starts[-1]) // len(passing)
        slack = next((slack for depth, slack in zip(DEPTHS, self.slack) if wanted <= depth), None)
        if slack is None:
            return None
        chosen = np.flatnonzero(products >= products.max() - slack)
        ranges = list(zip(self.starts[chosen].tolist(), self.starts[chosen + 1].tolist()))
        return ranges if _rows_in(ranges) < _MOST * self.starts[-1] else None


def _rows_in(ranges: list[tuple[int, int]] | None) -> float:
    """How many rows are compared; None stands for all."""
    return float("inf") if ranges is None else sum(end - start for start, end in ranges)


def make_cells(vectors: np.ndarray) -> tuple[Cells, np.ndarray] | None:
    """Cells of unit vectors (rows, dim), and the rows in the order of their cells.

    Returns:
        None where there are few rows, or the nearest rows of a question are spread over too many cells.
    """
    rows = len(vectors)
    if rows < LEAST_ROWS:
        return None
    rng = np.random.default_rng(0)  # the same index answers the same in every process
    cell = _nearest_centre(vectors, _centres(vectors, round(rows**0.5), rng))
    order = np.argsort(cell, kind="stable")
    _, firsts, inside, sizes = np.unique(cell[order], return_index=True, return_inverse=True, return_counts=True)
    means = np.add.reduceat(vectors[order], firsts) / sizes[:, None].astype(np.float32)
    cell = np.empty(rows, np.intp)
    cell[order] = inside  # cells that got no row are gone
    questions = questions_like(vectors, rng, _ASKED)
    cells = Cells(means, np.append(firsts, rows), _slack(vectors, means, cell, questions))
    compared = [_rows_in(cells.places(question, DEPTHS[0])) for question in questions[:_ASKED]]  # those like the rows
    return (cells, order) if np.median(compared) < _SHARE * rows else None


def _centres(vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors (count, dim): sampled rows, moved twice to the mean of the sampled rows that are nearest to them."""
    sample = vectors[np.sort(rng.choice(len(vectors), min(len(vectors), _SAMPLED * count), replace=False))]
    centres = sample[rng.choice(len(sample), count, replace=False)]
    for _ in range(2):
        nearest = _nearest_centre(sample, centres)
        order = np.argsort(nearest, kind="stable")
        known, firsts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], firsts)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        has_direction = lengths[:, 0] > 0  # opposite rows cancel; such a centre stays where it was
        centres = centres.copy()
        centres[known[has_direction]] = (sums / np.maximum(lengths, 1e-30))[has_direction]
    return centres


def _nearest_centre(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(rows,) number of the centre with the largest product, for vectors (rows, dim)."""
    size = max(1, _BLOCK // len(centres))
    blocks = [np.argmax(vectors[at : at + size] @ centres.T, axis=1) for at in range(0, len(vectors), size)]
    return np.concatenate(blocks)


def questions_like(vectors: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Unit vectors (3 * count, dim) to measure with, near the rows and far from them; vectors: (rows, dim).

    Rows of the index (something like it), sums of two rows (several media in one question), and rows on the other side
    of what all rows have in common, as texts are to an index of images (the modality gap).
    """
    picked = vectors[rng.choice(len(vectors), 2 * count, replace=len(vectors) < 2 * count)]
    own, others = picked[:count], picked[count:]
    questions = np.concatenate([own, own + others, own - 2 * picked.mean(0)])
    return questions / np.maximum(np.linalg.norm(questions, axis=1, keepdims=True), 1e-30)


def _slack(vectors: np.ndarray, means: np.ndarray, cell: np.ndarray, questions: np.ndarray) -> tuple[float, ...]:
    """`Cells.slack` with which at most `_MISSED` of the nearest rows of each kind of question are missed."""
    deepest = min(max(DEPTHS) + 1, len(vectors))
    worst = [0.0] * len(DEPTHS)
    for start in range(0, len(questions), _ASKED):
        asked = questions[start : start + _ASKED]
        scores, products = asked @ vectors.T, asked @ means.T  # (asked, rows), (asked, cells)
        found = np.argpartition(-scores, deepest - 1, axis=1)[:, :deepest]
        found = np.take_along_axis(found, np.argsort(-np.take_along_axis(scores, found, 1), axis=1), 1)
        behind = products.max(1, keepdims=True) - np.take_along_axis(products, cell[found], axis=1)
        if start == 0:
            behind = behind[:, 1:]  # the question itself is a row
        for place, depth in enumerate(DEPTHS):
            needed = float(np.quantile(behind[:, :depth], 1 - _MISSED, method="higher"))
            worst[place] = max(worst[place], needed + 1e-6)
    return tuple(worst)
