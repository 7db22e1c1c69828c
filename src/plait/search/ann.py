"""The approximate index of vectors that do not fit in memory: its kind, and how far a question has to look in it.

rows of the table -> IvfSq (8 bits a number), or IvfRq (5 bits) where that binds -> questions of several kinds
    -> how many partitions their nearest rows take -> ANN (a file beside the table) -> `request`

A graph (HnswSq) takes 26 times as long to build for the same answers in the same time. Where even half of the
partitions do not hold what is nearest there is no index, and every row is compared.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from plait.places import atomic_write
from plait.reading import read_json
from plait.search.cells import questions_like

ANN = "ann.json"
"""In the index: what was built and measured."""
FLOOR = 100
"""Hits asked of the approximate index at least: rounded numbers find the nearest row among many candidates."""
WANTED = 0.99
"""Share of the ten nearest rows that has to be found, for every kind of question."""
_GROWN = 2
"""Times as many rows after which an index that did not pay is tried again."""
_ASKED = 16
"""Questions of each kind."""
_FIRST = 8
"""Partitions looked into at first; twice as many until enough is found."""
_SAMPLE = 4096
_REFINED = {"sq": 1, "rq": 4}
"""Candidates compared in full for each hit that is asked for; a graph of older versions of Plait takes 10."""


def describe(folder: Path) -> dict[str, Any]:
    """What was built in the index at `folder` and measured; empty where nothing was, or by an older version."""
    place = folder / ANN
    found = read_json(place) if place.is_file() else {}
    return found if isinstance(found, dict) else {}


def request(query: Any, k: int, known: dict[str, Any]) -> Any:
    """A question to Lance for at least k rows, looking as far as was measured.

    Args:
        query: of Lance, for a vector. known: of `describe`.
    """
    query = query.limit(max(2 * k, FLOOR)).refine_factor(_REFINED.get(known.get("kind") or "", 10))
    probes = known.get("probes")
    return query.nprobes(probes) if isinstance(probes, int) and 0 < probes < 2**16 else query


def may_pay(folder: Path, rows: int) -> bool:
    """Whether to build, which is tried again only once there are many more rows than when it did not pay."""
    known = describe(folder)
    tried = known.get("rows")
    return known.get("kind", "") is not None or not isinstance(tried, int) or rows >= _GROWN * tried


def build(table: Any, folder: Path, dim: int) -> None:
    """Build the approximate index of a table where it pays; what was found goes into `ANN`.

    Args:
        table: of Lance, without such an index. folder: of the index. dim: width of a vector.
    """
    from lancedb.index import IvfRq, IvfSq

    rows = table.count_rows()
    partitions = max(1, round(rows**0.5))
    kind = "rq" if rows * dim > available_bytes() / 2 else "sq"
    common: dict[str, Any] = {"distance_type": "dot", "num_partitions": partitions}
    table.create_index("vector", config=IvfRq(num_bits=5, **common) if kind == "rq" else IvfSq(**common))
    probes, recall = _measured(table, {"kind": kind}, partitions, dim)
    if recall < WANTED:
        name = next(one.name for one in table.list_indices() if "vector" in one.columns)
        table.drop_index(name)
    found = {"kind": kind if recall >= WANTED else None, "rows": rows, "partitions": partitions}
    atomic_write(folder / ANN, json.dumps(found | {"probes": probes, "recall": round(recall, 4)}))


def available_bytes() -> int:
    """Memory of this machine, which the index of all partitions should leave room in."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _measured(table: Any, known: dict[str, Any], partitions: int, dim: int) -> tuple[int, float]:
    """The least number of partitions that finds `WANTED` of what is nearest, at most half of them, and what it finds.

    Recall is that of the worst kind of question, for the ten nearest rows.
    """
    rng, rows = np.random.default_rng(0), table.count_rows()
    picked = np.sort(rng.choice(rows, min(rows, _SAMPLE), replace=False)).tolist()
    sample = _vectors(table.take_offsets(picked).select(["vector"]).to_arrow()["vector"], dim)
    questions = questions_like(sample, rng, _ASKED)
    edges = np.full((len(questions), 10), -np.inf, np.float32)  # cosines of the ten nearest rows
    for batch in table.search().select(["vector"]).to_batches(batch_size=8192):
        scores = questions @ _vectors(batch["vector"], dim).T
        edges = -np.sort(-np.concatenate([edges, scores], axis=1), axis=1)[:, :10]
    probes, recall = min(_FIRST, partitions), 0.0
    while True:
        hit = []
        for question, edge in zip(questions, edges):
            query = request(table.search(question).distance_type("dot"), 10, known | {"probes": probes})
            near = 1 - query.select(["_distance"]).to_arrow()["_distance"].to_numpy()[:10]
            hit.append(float(np.mean(near >= edge[-1] - 1e-5)) if len(near) == len(edge) else 0.0)
        recall = float(np.reshape(hit, (-1, _ASKED)).mean(1).min())
        if recall >= WANTED or probes * 2 > max(_FIRST, partitions // 2):
            return probes, recall
        probes *= 2


def _vectors(column: Any, dim: int) -> np.ndarray:
    """A column of Lance as (rows, dim) float32."""
    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
