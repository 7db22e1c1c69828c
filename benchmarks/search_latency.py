"""How fast are embedding and search: batches against one by one, and the latency of a query over many vectors.

    python benchmarks/search_latency.py [--model DIR] [--rows 10000 100000]
    python benchmarks/search_latency.py million --dim 512

Prints JSON with date, commit and hardware and writes it to results/search_latency.json (or search_million_DIM.json).
Without --model, a random CLIP of ViT-B/32 size: weights do not change the time. Pictures are decoded from disk; vectors
come from clusters, as those of real pictures do, and for recall from other shapes too. Embedding is timed in CPU time
of one thread; a query in wall time, which other work on the machine lengthens, and in the CPU time of all threads that
answer it, which it does not. numpy's product of one query with all vectors is timed beside it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import write

from plait import Embedder, Index
from plait.search.ann import describe
from plait.search.exact import MOST_BYTES
from plait.search.index import create_table, open_table, to_arrow
from plait.search.sources import Entry

DIM, BLOCK = 512, 20_000
QUERIES = 100
BARS = {
    "batched_over_one_by_one": 1.1,
    "cpu_ms_of_a_query": 3.0,
    "cpu_ms_of_a_filtered_query": 3.0,
    "cpu_exact_over_numpy": 2.0,
    "recall": 0.99,
}
MILLION_BARS = {"cpu_ms_of_a_query": 5.0, "recall": 0.95}
DEPTHS = (1, 2, 5, 10)
SHAPES = ("random", "cone", "clusters", "gap")
WARM = 30  # questions of a process before it is timed: cells are made among them


def random_clip() -> tuple[Any, Any]:
    """A CLIP of ViT-B/32's shape with random weights, and a processor for pictures."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel(CLIPConfig())
    images = CLIPImageProcessorPil()
    return model, lambda images_=images, **kinds: images_(kinds["images"], return_tensors="pt")


def pictures(folder: Path, count: int) -> list[Path]:
    """Random 640 x 480 JPEG files."""
    from PIL import Image

    rng = np.random.default_rng(0)
    paths = [folder / f"{n}.jpg" for n in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def embedding(model: str | None, count: int, repeats: int) -> dict[str, float]:
    """Pictures per second in batches of 32 and one by one, interleaved, medians of `repeats`."""
    embedder = Embedder(model) if model else Embedder(random_clip())
    with tempfile.TemporaryDirectory() as folder:
        paths = pictures(Path(folder), count)
        embedder.embed(paths[:2])
        batched, single = [], []
        for _ in range(repeats):
            batched.append(count / cpu(lambda: embedder.embed(paths, batch_size=32, show_progress=False)))
            single.append(count / cpu(lambda: [embedder.embed([path], show_progress=False) for path in paths]))
    return {
        "pictures_per_cpu_second_batched": round(statistics.median(batched), 2),
        "pictures_per_cpu_second_one_by_one": round(statistics.median(single), 2),
        "batched_over_one_by_one": round(statistics.median(b / s for b, s in zip(batched, single)), 3),
    }


def clustered(rows: int, seed: int, shape: str = "clusters", dim: int = DIM) -> np.ndarray:
    """Unit vectors (rows, dim) around 200 centres, or of another shape; odd seeds are questions, across the gap."""
    centres = np.random.default_rng(1).standard_normal((200, dim), dtype=np.float32)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((rows, dim), dtype=np.float32)
    if shape in ("clusters", "gap"):
        vectors = centres[rng.integers(0, 200, rows)] + 0.7 * vectors
    if shape == "gap":
        vectors += (-1 if seed % 2 else 1) * centres[0]
    if shape == "cone":
        vectors += 3 * centres[0]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(folder: Path, rows: int, shape: str, dim: int = DIM) -> Index:
    """An index of synthetic rows: the embedding of so many pictures is not what is timed."""
    description = {"fingerprint": "0" * 16, "model": None, "model_beside": None, "modalities": ["image"]}
    create_table(folder, description, dim)
    index = Index(folder, *open_table(folder))
    for start in range(0, rows, BLOCK):
        part = clustered(min(BLOCK, rows - start), seed=2 + 2 * start, shape=shape, dim=dim)
        entries = [
            Entry(f"{start + n}", "image", {}, f"/photos/{start + n}.jpg", f"{start + n:032x}")
            for n in range(len(part))
        ]
        index.table.add(to_arrow(entries, part))
    return index


def searching(rows: int, shape: str = "clusters", dim: int = DIM) -> dict[str, Any]:
    """Milliseconds per query for the ten nearest of `rows` vectors, recall, and numpy beside them."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("PLAIT_BENCH_DIR")) as folder:
        index = filled(Path(folder) / "bench.lance", rows, shape, dim)
        wall = time.perf_counter()
        optimizing = cpu(index.optimize)
        wall = time.perf_counter() - wall
        queries = clustered(QUERIES, seed=3, shape=shape, dim=dim)
        first = latency(lambda query: index.search(query, k=10), queries[:1])
        for query in queries[:WARM]:
            index.search(query, k=10)
        result: dict[str, Any] = {
            "rows": rows,
            "dim": dim,
            "shape": shape,
            "search": index.stats()["search"],
            "optimize_cpu_seconds": round(optimizing, 1),
            "optimize_wall_seconds": round(wall, 1),
            "ann": describe(index.path),
            "first": first,
        }
        result |= latency(lambda query: index.search(query, k=10), queries)
        result["recall"] = recall(index, queries)
        where = "path LIKE '%7.jpg'"
        index.search(queries[0], where=where)
        result["filtered"] = latency(lambda query: index.search(query, k=10, where=where), queries)
        result["recall_filtered"] = recall(index, queries[:20], where=where)
        result["exact"] = latency(lambda query: index.search(query, k=10, exact=True), queries[:20])
        if rows * dim * 4 < MOST_BYTES:
            vectors = index.vectors
            result["numpy"] = latency(lambda query: np.argpartition(-(vectors @ query), 10)[:10], queries)
            result["exact_over_numpy"] = round(result["exact"]["cpu_ms"] / result["numpy"]["cpu_ms"], 2)
    return result


def recall(index: Index, queries: np.ndarray, **more: Any) -> dict[str, float]:
    """Share of the k nearest rows that a query for k rows finds, by k."""
    whole = [[hit.id for hit in index.search(query, k=max(DEPTHS), exact=True, **more)] for query in queries]
    return {
        str(k): round(
            statistics.mean(
                len({hit.id for hit in index.search(query, k=k, **more)} & set(wanted[:k])) / k
                for query, wanted in zip(queries, whole)
            ),
            4,
        )
        for k in DEPTHS
    }


def latency(call: Callable[[np.ndarray], object], queries: np.ndarray) -> dict[str, float]:
    """Median and 95th percentile of wall time, and mean CPU time, in milliseconds."""
    times = []
    busy = time.process_time()
    for query in queries:
        start = time.perf_counter()
        call(query)
        times.append(1000 * (time.perf_counter() - start))
    busy = 1000 * (time.process_time() - busy) / len(times)
    times.sort()
    middle, late = statistics.median(times), times[int(0.95 * len(times))]
    return {"median_ms": round(middle, 2), "p95_ms": round(late, 2), "cpu_ms": round(busy, 2)}


def cpu(call: Callable[[], object]) -> float:
    """CPU seconds of one call, all its threads together."""
    start = time.process_time()
    call()
    return time.process_time() - start


def judged(embedded: dict[str, float], indices: list[dict[str, Any]], shapes: list[dict[str, Any]]) -> dict[str, Any]:
    """Every bar, the worst that was measured for it, and whether it holds."""
    large = [index for index in indices if index["search"] == "approximate"]
    found = [index[name].values() for index in [*indices, *shapes] for name in ("recall", "recall_filtered")]
    got = {
        "batched_over_one_by_one": embedded["batched_over_one_by_one"],
        "cpu_ms_of_a_query": max(index["cpu_ms"] for index in large),
        "cpu_ms_of_a_filtered_query": max(index["filtered"]["cpu_ms"] for index in large),
        "cpu_exact_over_numpy": max(index["exact_over_numpy"] for index in indices),
        "recall": min(min(one) for one in found),
    }
    return told(got, BARS)


def told(got: dict[str, float], bars: dict[str, float]) -> dict[str, Any]:
    """Each bar with what was got and whether it holds; those of time are upper ones."""
    holds = {
        name: value <= bars[name] if name.startswith("cpu") else value >= bars[name] for name, value in got.items()
    }
    return {name: {"bar": bars[name], "got": value, "holds": holds[name]} for name, value in got.items()}


def main() -> None:
    """Run all and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["million"], help="a million vectors instead")
    parser.add_argument("--model", help="model directory to embed with")
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--dim", type=int, default=DIM, help="of the million")
    arguments = parser.parse_args()
    if arguments.part:
        one = searching(1_000_000, dim=arguments.dim)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        bars = told({"cpu_ms_of_a_query": one["cpu_ms"], "recall": one["recall"]["10"]}, MILLION_BARS)
        name = f"search_million_{arguments.dim}"
        return write(name, {"load": os.getloadavg()[0], **one, "peak_memory_gib": round(peak, 2), "bars": bars})
    measured = embedding(arguments.model, arguments.pictures, arguments.repeats)
    model = {"model": arguments.model or "random CLIP ViT-B/32", "pictures": arguments.pictures}
    indices = [searching(rows) for rows in arguments.rows]
    shapes = [searching(max(arguments.rows), shape) for shape in SHAPES if shape != "clusters"]
    result = {"load": os.getloadavg()[0], "embedding": model | measured, "index": indices, "shapes": shapes}
    write("search_latency", result | {"bars": judged(measured, indices, shapes)})


if __name__ == "__main__":
    main()
