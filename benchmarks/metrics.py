"""What scoring costs: CIDEr of 5,000 captions with their tokens, and ranks of 25,000 captions against 5,000 pictures.

COCO's Karpathy test split has these sizes. Captions are drawn from a list of words with frequencies like those of
English; vectors are random. Each part runs in a process of its own, so that peaks of memory do not mix.

    python benchmarks/metrics.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import numpy as np

ITEMS, REFERENCES, VOCABULARY = 5000, 5, 8000
QUERIES, GALLERY, DIM = 25_010, 5000, 1536
RUNS = 3


def captions(count: int, generator: np.random.Generator) -> list[str]:
    """Sentences of 8 to 14 words, word n drawn in proportion to 1 / n."""
    words = np.array([f"w{'abcdefghij'[i % 10]}{i}" if i % 9 == 0 else _spelled(i) for i in range(VOCABULARY)])
    weights = 1 / np.arange(1, VOCABULARY + 1)
    drawn = generator.choice(words, size=(count, 14), p=weights / weights.sum())
    return [f"A {' '.join(row[: 8 + i % 7])}." for i, row in enumerate(drawn)]


def _spelled(number: int) -> str:
    """A word of letters for a number."""
    letters = ""
    while number or not letters:
        number, letter = divmod(number, 26)
        letters += "abcdefghijklmnopqrstuvwxyz"[letter]
    return letters


def cider() -> dict[str, float]:
    """Seconds of CPU of all figures without Java, and of their tokens alone."""
    from plait.metrics.captions import token_scores, tokenized

    generator = np.random.default_rng(0)
    said = captions(ITEMS, generator)
    flat = captions(ITEMS * REFERENCES, generator)
    right = [flat[i * REFERENCES : (i + 1) * REFERENCES] for i in range(ITEMS)]
    start = time.process_time()
    tokens = tokenized(said, right)
    middle = time.process_time()
    found = token_scores(*tokens)
    end = time.process_time()
    assert len(found.cider) == ITEMS
    return {"tokens_seconds": middle - start, "all_seconds": end - start}


def ranks() -> dict[str, float]:
    """Seconds of CPU and peak memory of both directions of retrieval, vectors included."""
    from plait.metrics.two_way_retrieval import rank_scores, vector_ranks

    generator = np.random.default_rng(0)
    pictures = generator.standard_normal((GALLERY, DIM), np.float32)
    texts = generator.standard_normal((QUERIES, DIM), np.float32)
    owners = np.arange(QUERIES) % GALLERY
    start = time.process_time()
    for found in (
        vector_ranks(texts, pictures, owners.tolist(), range(GALLERY)),
        vector_ranks(pictures, texts, range(GALLERY), owners.tolist()),
    ):
        rank_scores(found)
    seconds = time.process_time() - start
    return {"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def alone(part: str) -> list[dict[str, float]]:
    """What a part measures, each time in a new process."""
    command = [sys.executable, __file__, part]
    return [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(RUNS)]


def main() -> None:
    """Measure both parts and write the result beside the others."""
    if len(sys.argv) > 1:
        print(json.dumps({"cider": cider, "ranks": ranks}[sys.argv[1]]()))
        return
    from measure import write

    found = {part: alone(part) for part in ("cider", "ranks")}
    middle = {
        part: {name: round(float(np.median([run[name] for run in runs])), 2) for name in runs[0]}
        for part, runs in found.items()
    }
    sizes = {"items": ITEMS, "references": REFERENCES, "queries": QUERIES, "gallery": GALLERY, "dim": DIM, "runs": RUNS}
    write("metrics", {"sizes": sizes, **middle})


if __name__ == "__main__":
    main()
