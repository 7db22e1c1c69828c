"""One query of two modalities: a sound and a word (or a picture) find the picture that shows both things.

pairs never composed in training -> one picture each from held-out drawings -> gallery
note of the sounding thing + name (or drawing) of the other -> fused query -> recall, beside each part alone
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.data.compose import compose, held_out_pairs
from plait.data.manifest import write_manifest
from plait.evaluation.held_out import HeldOut, concept
from plait.evaluation.scores import Array, Score, fuse, score
from plait.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

    from plait.evaluation.emergent import EmbedderLike


@dataclass
class ComposedSet:
    """The gallery: picture i shows the sounding concept `pairs[i][0]` and the concept `pairs[i][1]`."""

    pairs: list[tuple[str, str]]
    pictures: list[Image]

    @classmethod
    def draw(cls, held_out: HeldOut) -> ComposedSet:
        """Compose every held-out pair from held-out drawings."""
        from plait.media.image import load_image

        pairs = held_out_pairs(held_out.sounding, list(held_out.names)) if held_out.sounding else []
        drawing = {concept(row): row.image for row in reversed(held_out.drawings)}
        cache = {name: load_image(drawing[name]) for name in sorted({name for pair in pairs for name in pair})}
        return cls(pairs, [compose(cache[a], cache[b], seed=i) for i, (a, b) in enumerate(pairs)])

    def write(self, held_out: HeldOut, directory: str | Path) -> None:
        """Keep the pictures in `directory`, with a manifest of everything that a query of the evaluation may find.

        manifest.jsonl lists held-out drawings and notes where they lie, and the composed pictures: ready to be indexed.
        """
        directory = Path(directory).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        rows = []
        for row in [*held_out.drawings, *held_out.notes]:
            there = {
                name: os.path.relpath(path, directory) for name in ("image", "audio") if (path := getattr(row, name))
            }
            rows.append(replace(row, **there))
        for (a, b), picture in zip(self.pairs, self.pictures):
            picture.save(directory / file_name((a, b)), quality=90)
            caption = f"{held_out.names[a]} and {held_out.names[b]}"
            rows.append(Sample(f"composed/{a}+{b}", image=file_name((a, b)), text=caption, split="test"))
        write_manifest(directory / "manifest.jsonl", rows)


def file_name(pair: tuple[str, str]) -> str:
    """How the picture of a pair is called on disk."""
    return f"{pair[0]}+{pair[1]}.webp"


def score_composed(
    embedder: EmbedderLike,
    held_out: HeldOut,
    composed: ComposedSet,
    by_note: Mapping[str, Array],
    by_name: Mapping[str, Array],
    *,
    clips_per_pair: int,
) -> tuple[dict[str, Score | None], list[dict[str, Any]]]:
    """Scores of fused queries and of each part alone on the same gallery and queries, and examples to look at.

    by_note: note id -> vector (dim,), by_name: concept -> vector (dim,) of its name. The units are the pairs.
    """
    pairs = composed.pairs
    gallery = embedder.embed([{"image": picture} for picture in composed.pictures])
    names = held_out.names
    captions = embedder.embed([{"text": f"{names[a]} and {names[b]}"} for a, b in pairs])
    others = _other_drawings(embedder, held_out, [b for _, b in pairs])
    asked = [(i, note) for i, (a, _) in enumerate(pairs) for note in held_out.spread(a, clips_per_pair)]
    rows = np.array([i for i, _ in asked])
    audio = np.stack([by_note[note.id] for _, note in asked])
    text = np.stack([by_name[pairs[i][1]] for i in rows])
    fused = fuse(audio, text)
    targets = rows[:, None] == np.arange(len(pairs))[None, :]
    units = [file_name(pairs[i]) for i in rows]
    queries = {
        "fused_to_image_r5": (fused, 5),
        "fused_to_image_r1": (fused, 1),
        "audio_only_to_image_r5": (audio, 5),
        "text_only_to_image_r5": (text, 5),
        "image_audio_to_image_r5": (fuse(audio, others[rows]), 5),
        "image_only_to_image_r5": (others[rows], 5),
        "full_caption_to_image_r5": (captions[rows], 5),
    }
    scores: dict[str, Score | None] = {
        name: score(query, gallery, targets, k, units) for name, (query, k) in queries.items()
    }
    shown = _examples(held_out, pairs, asked, fused @ gallery.T)
    return scores, shown


def _other_drawings(embedder: EmbedderLike, held_out: HeldOut, concepts: Sequence[str]) -> Array:
    """A vector (n, dim) per concept from a training drawing: another picture of the thing than the gallery shows.

    Falls back to the held-out drawing for a concept that has no other.
    """
    drawing = {concept(row): row for row in held_out.drawings}
    drawing.update({concept(row): row for row in reversed(held_out.training_drawings)})
    distinct = sorted(set(concepts))
    vectors = embedder.embed([{"image": drawing[name].image} for name in distinct])
    return vectors[[distinct.index(name) for name in concepts]]


def _examples(
    held_out: HeldOut, pairs: list[tuple[str, str]], asked: list[tuple[int, Sample]], similarity: Array, count: int = 12
) -> list[dict[str, Any]]:
    """`count` queries evenly spaced over all (not picked by result) with their five nearest composed pictures."""
    names = held_out.names
    examples = []
    for q in sorted({round(i * (len(asked) - 1) / max(1, count - 1)) for i in range(count)}):
        pair, note = asked[q]
        hits = [
            {
                "image": file_name(pairs[i]),
                "name": " + ".join(names[name] for name in pairs[i]),
                "score": round(float(similarity[q, i]), 4),
                "right": bool(i == pair),
                "half_right": bool(set(pairs[i]) & set(pairs[pair])),
            }
            for i in np.argsort(-similarity[q], kind="stable")[:5]
        ]
        sound, word = pairs[pair]
        examples.append(
            {
                "audio": held_out.relative(note.audio),
                "label": sound,
                "name": names[sound],
                "text": names[word],
                "hits": hits,
            }
        )
    return examples
