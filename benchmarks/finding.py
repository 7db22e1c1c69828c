"""Is nothing found where nothing is, and are copies told from look-alikes? With `nano` and the shipped drawings.

    python benchmarks/finding.py [--seeds 5] [--pictures 100]

Present and absent: half of the 300 held-out concepts are indexed (their pictures), the others are not; each is asked
for by its word. AUROC of the best score, and for `--min-score auto` the stated share of false alarms beside the
measured one, and the share of present concepts for which something is found. Copies: pictures that were compressed,
scaled, made lighter and cut by 2 % at each side, among all others. Writes results/finding.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import write
from PIL import Image

from plait import Embedder, Index
from plait.data.manifest import read_manifest
from plait.data.mini import cached_mini
from plait.embedder.parts import parts_of
from plait.search.background import floors
from plait.search.bulk import commit, write_block
from plait.search.index import to_arrow
from plait.search.ledger import AddReport
from plait.search.likeness import WITHIN, duplicates
from plait.search.sources import Entry
from plait.types import Sample


def auroc(present: np.ndarray, absent: np.ndarray) -> float:
    """Chance that a present thing scores above an absent one, equals counted half."""
    return float((present[:, None] > absent).mean() + 0.5 * (present[:, None] == absent).mean())


def presence(embedder: Embedder, rows: Sequence[Sample], seeds: int) -> dict[str, Any]:
    """AUROC and rates at stated shares of false alarms, mean and standard deviation over draws of the present half."""
    pictures = embedder.embed([{"image": row.image} for row in rows])
    words = embedder.embed([row.text for row in rows])
    found: dict[str, list[float]] = {}
    for seed in range(seeds):
        chosen = np.random.default_rng(seed).permutation(len(rows)) < len(rows) // 2
        best = (words @ pictures[chosen].T).max(1)
        found.setdefault("auroc", []).append(auroc(best[chosen], best[~chosen]))
        with tempfile.TemporaryDirectory() as folder:
            index = Index.create(Path(folder) / "i", embedder)
            entries = [Entry(f"{n}", "image", {}, None, f"{n:032x}") for n in np.nonzero(chosen)[0]]
            write_block(index.path / "one.arrow", to_arrow(entries, pictures[chosen]))
            commit(index, [index.path / "one.arrow"], AddReport())
            for share in (0.05, 0.1, 0.2):
                floor = floors(index, parts_of("word"), share).by_kind["image"]
                found.setdefault(f"false_alarms_at_{share}", []).append(float((best[~chosen] >= floor).mean()))
                found.setdefault(f"present_found_at_{share}", []).append(float((best[chosen] >= floor).mean()))
    return {name: {"mean": round(float(np.mean(v)), 3), "std": round(float(np.std(v)), 3)} for name, v in found.items()}


def altered(picture: Image.Image) -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    """Copies as people come by them: name of the file's ending -> picture and how it is saved."""
    width, height = picture.size
    dx, dy = max(1, width // 50), max(1, height // 50)
    return {
        "compressed.jpg": (picture, {"quality": 40}),
        "smaller.png": (picture.resize((width * 2 // 3, height * 2 // 3)), {}),
        "lighter.png": (picture.point(lambda level: min(255, round(level * 1.15))), {}),
        "cut.png": (picture.crop((dx, dy, width - dx, height - dy)), {}),
    }


def copies(embedder: Embedder, rows: Sequence[Sample]) -> dict[str, Any]:
    """Pairs of original and copy that are found, by kind of change, and groups in which different pictures stand."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "pictures")
        folder.mkdir()
        for n, row in enumerate(rows):
            picture = Image.open(str(row.image)).convert("RGB").resize((160, 160))
            picture.save(folder / f"{n}.original.png")
            for name, (changed, how) in altered(picture).items():
                changed.save(folder / f"{n}.{name}", **how)
        index = Index.create(Path(place) / "i", embedder)
        index.add(folder)
        groups = [[Path(path).name for path in group.paths] for group in duplicates(index)]
    wrong = sum(len({name.split(".")[0] for name in group}) > 1 for group in groups)
    whole = {name: group for group in groups for name in group}
    told = {}
    for kind in altered(Image.new("RGB", (100, 100))):
        pairs = [(f"{n}.original.png", f"{n}.{kind}") for n in range(len(rows))]
        told[kind] = round(sum(b in whole.get(a, ()) for a, b in pairs) / len(rows), 3)
    return {"pictures": len(rows), "within": WITHIN, "copies_found": told, "groups": len(groups), "groups_mixed": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=100)
    given = parser.parse_args()
    embedder = Embedder("nano")
    rows = [row for row in read_manifest(cached_mini()) if row.split == "test" and row.image]
    result = {"seeds": given.seeds, "presence": presence(embedder, rows, given.seeds)}
    print(result, flush=True)
    write("finding", {**result, "copies": copies(embedder, rows[: given.pictures])})


if __name__ == "__main__":
    main()
