"""What teachers bring at small scale: a student of nano's size beside `nano`, and a fused vector beside its parts.

python benchmarks/teaching.py DIR [students | fused] [seeds]     runs lie under DIR; run again, it goes on

students: stage 1 on the drawings of `mini` from nothing, the same rows and steps with (weight 1) and without (0) the
relations of `nano` in the loss. Measured on held-out drawings.
fused: `one_peace.fuse` from `nano` with (teach 1) and without (0) the fused vector as a teacher, and `nano` as it is.
Measured on pictures of two things that were never composed in training: by a note of the one and the name of the other.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import plait
from plait.data.mini import cached_mini
from plait.evaluation.emergent import ComposedSet, HeldOut, concept, equal, score, score_composed
from plait.models.auto import load
from plait.recipes import find_recipe
from plait.training.run import run_recipe
from plait.training.stages import Options

STUDENT = {"preset": "nano", "steps": 80, "batch_size": 48}
FUSED = {"steps": 50, "batch_size": 32}
ARMS = {"without": 0.0, "with": 1.0}


def drawings(embedder: plait.Embedder, held_out: HeldOut) -> dict[str, dict[str, float]]:
    """Names and held-out drawings that find each other: value and chance in percent."""
    pictures = embedder.embed([{"image": row.image} for row in held_out.drawings])
    things = list(held_out.names)
    names = embedder.embed([held_out.names[thing] for thing in things])
    drawn = [concept(row) for row in held_out.drawings]
    found = {}
    for k in (1, 5):
        found[f"drawing > name R@{k}"] = score(pictures, names, equal(drawn, things), k, drawn)
        found[f"name > drawing R@{k}"] = score(names, pictures, equal(things, drawn), k, things)
    return {title: {"value": 100 * one.value, "chance": 100 * one.chance} for title, one in found.items()}


def together(embedder: plait.Embedder, held_out: HeldOut, composed: ComposedSet) -> dict[str, dict[str, float]]:
    """Queries of a note and a name, each alone, and how much the two are better than the better of them."""
    notes = embedder.embed([{"audio": row.audio} for row in held_out.notes])
    by_note = {row.id: vector for row, vector in zip(held_out.notes, notes, strict=True)}
    names = embedder.embed(list(held_out.names.values()))
    by_name = dict(zip(held_out.names, names, strict=True))
    scores, _ = score_composed(embedder, held_out, composed, by_note, by_name, clips_per_pair=3)
    found = {t: {"value": 100 * one.value, "chance": 100 * one.chance} for t, one in scores.items() if one is not None}
    better = max(found[f"{part}_only_to_image_r5"]["value"] for part in ("audio", "text"))
    found["fused over the better part, R@5"] = {"value": found["fused_to_image_r5"]["value"] / better, "chance": 1.0}
    pictures = embedder.embed([{"image": row.image} for row in held_out.drawings])
    heard, drawn = ([concept(row) for row in rows] for rows in (held_out.notes, held_out.drawings))
    alone = score(notes, pictures, equal(heard, drawn), 5, heard)
    return found | {"sound > drawing R@5": {"value": 100 * alone.value, "chance": 100 * alone.chance}}


def over_seeds(found: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean, least and most of every metric, and its chance."""
    table = {}
    for metric, first in found[0].items():
        values = [one[metric]["value"] for one in found]
        spread = {"value": np.mean(values), "least": min(values), "most": max(values), "chance": first["chance"]}
        table[metric] = {name: round(float(value), 2) for name, value in spread.items()}
    return table


def main(place: Path, parts: Sequence[str], seeds: int) -> None:
    from measure import write

    held_out = HeldOut.read(cached_mini())
    composed = ComposedSet.draw(held_out)
    for part in parts:
        arms: dict[str, Any] = {}
        for arm, weight in ARMS.items():
            if part == "students":
                build = partial(find_recipe("one_peace.distil"), teacher="nano", weight=weight, **STUDENT)
                judge = partial(drawings, held_out=held_out)
            else:
                build = partial(find_recipe("one_peace.fuse"), teach=weight, **FUSED)
                judge = partial(together, held_out=held_out, composed=composed)
            found = []
            for seed in range(seeds):
                out = place / f"{part}-{arm}-{seed}"
                run_recipe(build, out, seed=seed, options=Options(progress=False))
                found.append(judge(plait.Embedder(load(out / "model"))))
                print(out.name, found[-1], flush=True)
            arms[f"{arm} teacher"] = over_seeds(found)
        nano = plait.Embedder("nano")
        known = drawings(nano, held_out) if part == "students" else together(nano, held_out, composed)
        arms["nano"] = over_seeds([known])
        settings = STUDENT if part == "students" else FUSED
        write(f"teaching_{part}", {"settings": settings, "seeds": seeds, "arms": arms})


if __name__ == "__main__":
    asked = [one for one in sys.argv[2:] if one in ("students", "fused")] or ["students", "fused"]
    main(Path(sys.argv[1]), asked, next((int(one) for one in sys.argv[2:] if one.isdigit()), 3))
