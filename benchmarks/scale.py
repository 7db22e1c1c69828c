"""How an index grows: rows committed through the bulk path, bytes on disk, memory and the time of a query, by rows.

    python benchmarks/scale.py [--rows 10000 100000 1000000] [--dim 128]

Vectors are synthetic (clusters, seed 0) and come as finished blocks, as workers of Ray or torchrun leave them: what is
measured is one committer and search, not a model. Search is exact (no approximate index is built). Writes
results/scale.json with date, commit and hardware. CPU time is of all threads; wall time is lengthened by other work.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import write

from plait.search.bulk import commit, write_block
from plait.search.index import Index, create_table, open_table, to_arrow
from plait.search.ledger import AddReport
from plait.search.sources import Entry

BLOCK, QUERIES, CLUSTERS = 20_000, 30, 1000


def rows_of(rng: np.random.Generator, centres: np.ndarray, first: int, count: int) -> Any:
    """A block of rows: unit vectors around centres, ids and checksums by number."""
    vectors = centres[rng.integers(0, CLUSTERS, count)] + 0.3 * rng.standard_normal(
        (count, centres.shape[1]), dtype=np.float32
    ) / np.sqrt(centres.shape[1])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    entries = [Entry(f"{n:09d}", "image", {}, None, f"{n:032x}") for n in range(first, first + count)]
    return to_arrow(entries, vectors.astype(np.float32))


def measure(count: int, dim: int, folder: Path) -> dict[str, Any]:
    """Build one index of `count` rows and ask it."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    create_table(folder, {"fingerprint": "0" * 16, "model": None, "model_beside": None, "modalities": ["image"]}, dim)
    index = Index(folder, *open_table(folder))
    places = []
    for first in range(0, count, BLOCK):
        places.append(folder / "bulk" / f"{first:09d}.arrow")
        write_block(places[-1], rows_of(rng, centres, first, min(BLOCK, count - first)))
    report = AddReport()
    wall, cpu = time.perf_counter(), time.process_time()
    commit(index, places, report)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert report.added == len(index) == count
    taken, spent = [], []
    for query in centres[:QUERIES]:
        begin, used = time.perf_counter(), time.process_time()
        index.search(query, 10, exact=True)
        taken.append(time.perf_counter() - begin)
        spent.append(time.process_time() - used)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "rows": count, "commit_wall_s": round(wall, 2), "commit_cpu_s": round(cpu, 2),
        "rows_per_cpu_s": round(count / cpu), "bytes_per_row": round(size / count, 1),
        "query_wall_ms_p50": round(1000 * statistics.median(taken), 2),
        "query_cpu_ms_p50": round(1000 * statistics.median(spent), 2),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=128)
    given = parser.parse_args()
    curve = []
    for count in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            curve.append(measure(count, given.dim, Path(folder) / "index"))
        print(curve[-1], flush=True)
    write("scale", {"dim": given.dim, "block": BLOCK, "curve": curve})


if __name__ == "__main__":
    main()
