"""Emergent retrieval: a model that met pictures with words and sounds with words finds pictures by sound.

    held-out drawings, notes, names -> embedder -> similarities -> Score per name, with examples and vectors to look at

Every query and every gallery item is held out: drawings in a style that training never saw, notes at pitches it never
heard, pairs of things it never saw side by side. Audio scores are balanced over classes (ONE-PEACE, section 4.5:
emergent retrieval).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from plait.evaluation.composed import ComposedSet, score_composed
from plait.evaluation.held_out import HeldOut, concept
from plait.evaluation.scores import Array, Score, equal, score
from plait.types import Sample

NAMES = (
    *(f"image_to_text_r{k}" for k in (1, 5)),
    *(f"text_to_image_r{k}" for k in (1, 5)),
    *(f"audio_to_text_r{k}" for k in (1, 5)),
    *(f"audio_to_image_r{k}" for k in (1, 5)),
    *(f"audio_to_all_images_r{k}" for k in (1, 5)),
    *(f"image_to_audio_r{k}" for k in (1, 5)),
    *(f"fused_to_image_r{k}" for k in (1, 5)),
    "audio_only_to_image_r5",
    "text_only_to_image_r5",
    "image_audio_to_image_r5",
    "image_only_to_image_r5",
    "full_caption_to_image_r5",
    "unseen_font_audio_to_text_r1",
    *(f"unseen_font_audio_to_image_r{k}" for k in (1, 5)),
)
"""Every score of one evaluation, in the order of a report."""


class EmbedderLike(Protocol):
    """The part of `plait.Embedder` that an evaluation needs."""

    def embed(self, items: Sequence[Any], /) -> Array:
        """items: mappings of modality to media. Returns unit vectors (n, dim)."""
        ...


@dataclass
class Evaluation:
    """Scores by name (None where the data has nothing to measure), examples to look at, and vectors by modality."""

    scores: dict[str, Score | None]
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    vectors: dict[str, Array] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Scores and examples; the vectors are stored beside it by `save`."""
        scores = {name: None if found is None else found.to_json() for name, found in self.scores.items()}
        return {"metrics": scores, "examples": self.examples, "labels": self.labels}

    def save(self, directory: str | Path) -> Path:
        """Write vectors.npz, then evaluation.json (its presence says that both are whole). Returns the JSON's path."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        halves: dict[str, Any] = {modality: rows.astype(np.float16) for modality, rows in self.vectors.items()}
        np.savez_compressed(directory / "vectors.npz", **halves)
        path = directory / "evaluation.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        return partial.replace(path)


def evaluate_emergent(
    embedder: EmbedderLike,
    data: str | Path,
    *,
    gallery: str | Path | None = None,
    clips_per_pair: int = 5,
    audio: bool = True,
) -> Evaluation:
    """Measure every name of `NAMES` on a data set directory.

    gallery: directory that keeps the composed pictures and a manifest of all that is searched (nothing is kept when
    None). clips_per_pair: held-out notes that ask for each composed pair. audio: False for a model
    that has not learnt sounds yet.
    """
    held_out = HeldOut.read(data)
    concepts = list(held_out.names)
    vectors = {
        "text": embedder.embed([{"text": held_out.names[name]} for name in concepts]),
        "image": embedder.embed(media("image", held_out.drawings)),
    }
    result = Evaluation(dict.fromkeys(NAMES), vectors=vectors, labels={"text": concepts})
    result.labels["image"] = [concept(row) for row in held_out.drawings]
    _score_pictures(result)
    pairs = ComposedSet.draw(held_out)
    if gallery is not None:
        pairs.write(held_out, gallery)
    if not audio or not held_out.notes:
        return result
    vectors["audio"] = embedder.embed(media("audio", held_out.notes))
    result.labels["audio"] = [concept(row) for row in held_out.notes]
    _score_sounds(result, held_out, vectors["audio"], held_out.notes, prefix="")
    _score_pictures_to_sounds(result, held_out)
    if held_out.unseen_notes:
        unseen = embedder.embed(media("audio", held_out.unseen_notes))
        _score_sounds(result, held_out, unseen, held_out.unseen_notes, prefix="unseen_font_")
    result.examples["audio_to_image"] = _sound_examples(result, held_out)
    if pairs.pairs:
        by_note = dict(zip([row.id for row in held_out.notes], vectors["audio"]))
        by_name = dict(zip(concepts, vectors["text"]))
        scores, examples = score_composed(embedder, held_out, pairs, by_note, by_name, clips_per_pair=clips_per_pair)
        result.scores.update(scores)
        result.examples["fused_to_image"] = examples
    return result


def media(modality: str, rows: Sequence[Sample]) -> list[dict[str, Any]]:
    """Rows -> the mappings an embedder takes, with the media of one modality each."""
    return [{modality: getattr(row, modality)} for row in rows]


def _score_pictures(result: Evaluation) -> None:
    text, image = result.vectors["text"], result.vectors["image"]
    targets = equal(result.labels["image"], result.labels["text"])
    for k in (1, 5):
        result.scores[f"image_to_text_r{k}"] = score(image, text, targets, k, result.labels["image"])
        result.scores[f"text_to_image_r{k}"] = score(text, image, targets.T, k, result.labels["text"])


def _sounding_galleries(result: Evaluation, held_out: HeldOut) -> tuple[Array, Array]:
    """Vectors of the names (s, dim) and of one held-out drawing (s, dim) of every sounding concept."""
    row_of = {row.id: i for i, row in enumerate(held_out.drawings)}
    drawn = [row_of[row.id] for row in held_out.one_drawing_each(held_out.sounding)]
    named = [result.labels["text"].index(name) for name in held_out.sounding]
    return result.vectors["text"][named], result.vectors["image"][drawn]


def _score_sounds(result: Evaluation, held_out: HeldOut, clips: Array, rows: Sequence[Sample], prefix: str) -> None:
    names, drawings = _sounding_galleries(result, held_out)
    keep = [i for i, row in enumerate(rows) if concept(row) in held_out.sounding]
    clips, labels = clips[keep], [concept(rows[i]) for i in keep]
    targets = equal(labels, held_out.sounding)
    for k in (1, 5):
        result.scores[f"{prefix}audio_to_text_r{k}"] = score(clips, names, targets, k, labels)
        result.scores[f"{prefix}audio_to_image_r{k}"] = score(clips, drawings, targets, k, labels)
        everything = score(clips, result.vectors["image"], equal(labels, result.labels["image"]), k, labels)
        result.scores[f"{prefix}audio_to_all_images_r{k}"] = everything
    result.scores = {name: found for name, found in result.scores.items() if name in NAMES}


def _score_pictures_to_sounds(result: Evaluation, held_out: HeldOut) -> None:
    _, drawings = _sounding_galleries(result, held_out)
    targets = equal(held_out.sounding, result.labels["audio"])
    for k in (1, 5):
        found = score(drawings, result.vectors["audio"], targets, k, held_out.sounding)
        result.scores[f"image_to_audio_r{k}"] = found


def _sound_examples(result: Evaluation, held_out: HeldOut, k: int = 5) -> list[dict[str, Any]]:
    """The middle held-out note of every sound (not picked by result) with its nearest drawings in both galleries."""
    _, drawings = _sounding_galleries(result, held_out)
    few = held_out.one_drawing_each(held_out.sounding)
    index = {row.id: i for i, row in enumerate(held_out.notes)}
    examples = []
    for label in held_out.sounding:
        note = held_out.spread(label, 3)[-2:][0]
        query = result.vectors["audio"][index[note.id]]
        examples.append(
            {
                "audio": held_out.relative(note.audio),
                "label": label,
                "name": held_out.names[label],
                "hits": _hits(query, drawings, few, label=label, held_out=held_out, k=k),
                "hits_in_all": _hits(
                    query, result.vectors["image"], held_out.drawings, label=label, held_out=held_out, k=k
                ),
            }
        )
    return examples


def _hits(
    query: Array, gallery: Array, rows: Sequence[Sample], *, label: str, held_out: HeldOut, k: int
) -> list[dict[str, Any]]:
    similarity = gallery @ query
    best = np.argsort(-similarity, kind="stable")[:k]
    return [
        {
            "image": held_out.relative(rows[i].image),
            "name": held_out.names[concept(rows[i])],
            "score": round(float(similarity[i]), 4),
            "right": concept(rows[i]) == label,
        }
        for i in best
    ]
