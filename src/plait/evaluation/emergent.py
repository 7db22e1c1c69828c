"""Emergent retrieval: a model that met pictures with words and sounds with words finds pictures by sound.

    manifest.jsonl -> `HeldOut`: drawings, notes and names -> embedder -> similarities -> `Score` per name
    pairs never composed in training -> `ComposedSet`, the gallery of two things in one picture
    note of the sounding thing + name (or drawing) of the other -> fused query -> recall, beside each part alone

Every query and every gallery item is held out: drawings in a style that training never saw, notes at pitches it
never heard, pairs of things it never saw side by side. Audio scores are balanced over classes (ONE-PEACE,
section 4.5: emergent retrieval). A `Score` remembers what it is the mean of, so that chance and interval come
with it.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from plait.data.manifest import read_manifest, write_manifest
from plait.data.pairs import compose, held_out_pairs
from plait.errors import UsageError
from plait.metrics.retrieval import bootstrap_interval, class_means, expected_chance, hits_at_k
from plait.places import atomic_write, claim, is_ours
from plait.types import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Score:
    """Recall@k as the mean over units (queries, or classes of queries that hang together).

    Attributes:
        units: hit rate of every unit, from 0 to 1.
        chance: what a random order of the gallery reaches on the same queries.
        k: how many of the nearest count.
        queries, gallery: how many there are.
    """

    units: Mapping[str, float]
    chance: float
    k: int
    queries: int
    gallery: int

    @property
    def value(self) -> float:
        """The mean over units, between 0 and 1."""
        return float(np.mean(list(self.units.values())))

    def to_json(self) -> dict[str, Any]:
        """Value, chance, 95 % bootstrap interval over units, and the units themselves."""
        low, high = bootstrap_interval(self.units.values())
        return {
            "value": round(self.value, 6),
            "chance": round(self.chance, 6),
            "interval": [round(low, 6), round(high, 6)],
            "k": self.k,
            "queries": self.queries,
            "gallery": self.gallery,
            "units": {name: round(rate, 6) for name, rate in self.units.items()},
        }


def score(queries: Array, gallery: Array, targets: Array, k: int, units: Sequence[str]) -> Score:
    """Recall@k of cosine search.

    Queries that share a unit name count as one unit, so a class with many clips weighs as much as one with few.

    Args:
        queries: (q, dim) unit vectors.
        gallery: (g, dim) unit vectors.
        targets: bool (q, g), True = right.
        k: how many of the nearest count.
        units: q names.

    Returns:
        A `Score`.
    """
    hits = hits_at_k(queries @ gallery.T, targets, k)
    chance = expected_chance(targets, k, units)
    return Score(class_means(hits, units), chance, k, queries=len(queries), gallery=len(gallery))


def equal(left: Sequence[str], right: Sequence[str]) -> Array:
    """Boolean (len(left), len(right)): where the names are the same."""
    return np.asarray(left, dtype=str)[:, None] == np.asarray(right, dtype=str)[None, :]


def fuse(*parts: Array) -> Array:
    """Several unit vectors per query as one: their sum brought back to unit length.

    Args:
        parts: (n, dim) each.

    Returns:
        (n, dim).
    """
    total = np.sum(parts, axis=0)
    # opposite parts have no direction: 1e-12 keeps zero instead of NaN
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def concept(sample: Sample) -> str:
    """What a row is about: its label, or its text where it has none."""
    return sample.label or sample.text or sample.id


@dataclass
class HeldOut:
    """Held-out rows of a data set.

    Attributes:
        root: its directory.
        drawings: images of split "test".
        notes, unseen_notes: notes of the splits "test" and "unseen_font" that have a held-out drawing.
        training_drawings: images of split "train".
    """

    root: Path
    drawings: list[Sample]
    notes: list[Sample] = field(default_factory=list)
    unseen_notes: list[Sample] = field(default_factory=list)
    training_drawings: list[Sample] = field(default_factory=list)

    @classmethod
    def read(cls, data: str | Path) -> HeldOut:
        """Read a data set directory.

        Raises:
            ValueError: where no image is held out.
        """
        rows = read_manifest(data)
        drawings = [row for row in rows if row.image is not None and row.split == "test"]
        if not drawings:
            raise ValueError(
                f"expected pictures of split 'test' in {data}, got none; hold some out: "
                "plait data from-folder does, or set the field in the manifest"
            )
        drawn = {concept(row) for row in drawings}
        # a sound without a drawing could not be found in the gallery
        heard = [row for row in rows if row.audio is not None and row.image is None and concept(row) in drawn]
        return cls(
            Path(data).resolve(),
            drawings,
            notes=[row for row in heard if row.split == "test"],
            unseen_notes=[row for row in heard if row.split == "unseen_font"],
            training_drawings=[row for row in rows if row.image is not None and row.split == "train"],
        )

    @cached_property
    def names(self) -> dict[str, str]:
        """Concept -> its name in words, for every concept with a held-out drawing, in the order of the manifest."""
        names: dict[str, str] = {}
        for row in self.drawings:
            names.setdefault(concept(row), row.text or concept(row))
        return names

    @cached_property
    def sounding(self) -> list[str]:
        """Concepts with a held-out drawing and held-out notes, sorted."""
        return sorted({concept(row) for row in self.notes})

    def one_drawing_each(self, concepts: Sequence[str]) -> list[Sample]:
        """The first held-out drawing of each concept."""
        # reversed, so that the first row of a concept is what stays
        first = {concept(row): row for row in reversed(self.drawings)}
        return [first[name] for name in concepts]

    def spread(self, label: str, count: int) -> list[Sample]:
        """`count` held-out notes of one instrument, evenly over all it has (all of them where it has fewer)."""
        notes = [row for row in self.notes if concept(row) == label]
        count = min(count, len(notes))
        return [notes[i * len(notes) // count] for i in range(count)]

    def relative(self, path: str | Path) -> str:
        """A media path as it can be stored: relative to the data set where it lies inside."""
        path = Path(path).resolve()
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


@dataclass
class ComposedSet:
    """The gallery: image i shows the sounding concept `pairs[i][0]` and the concept `pairs[i][1]`."""

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
        """Keep the images in a directory, with a manifest of everything that a query of the evaluation may find.

        Args:
            held_out: its drawings and notes are listed where they lie.
            directory: gets manifest.jsonl and the composed images: ready to be indexed.
        """
        directory = Path(directory).resolve()
        claim(directory)
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
    """How the image of a pair is called on disk."""
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

    Args:
        embedder: embeds the composed images, captions and drawings.
        held_out, composed: what is asked, and the gallery.
        by_note: note id -> vector (dim,).
        by_name: concept -> vector (dim,) of its name.
        clips_per_pair: notes that ask for each pair.

    Returns:
        Scores by name, whose units are the pairs, and examples.
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
    # training drawings win: the gallery is made of the held-out ones, and a query must not be a part of
    # its answer
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
    # evenly spaced, so that the page shows failures as well
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
        """Unit vectors (n, dim) of mappings of modality to media."""
        ...


@dataclass
class Evaluation:
    """What `evaluate_emergent` found.

    Attributes:
        scores: by the names of `NAMES`; None where the data has nothing to measure.
        examples: queries with what they found, to look at.
        vectors: modality -> (n, dim).
        labels: modality -> concept of each vector.
    """

    scores: dict[str, Score | None]
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    vectors: dict[str, Array] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Scores and examples; the vectors are stored beside it by `save`."""
        scores = {name: None if found is None else found.to_json() for name, found in self.scores.items()}
        return {"metrics": scores, "examples": self.examples, "labels": self.labels}

    def save(self, directory: str | Path) -> Path:
        """Write vectors.npz, then evaluation.json, whose presence says that both are whole.

        Args:
            directory: made where there is none; an earlier evaluation in it is replaced.

        Returns:
            The JSON's path.

        Raises:
            UsageError: for a vectors.npz of another making.
        """
        directory = Path(directory)
        vectors, result = directory / "vectors.npz", directory / "evaluation.json"
        if vectors.exists() and not (result.exists() or is_ours(directory)):
            raise UsageError(f"expected no vectors.npz of another making in {directory}, got one; pass another place")
        # half precision: the vectors are for maps, the scores are made before
        halves: dict[str, Any] = {modality: rows.astype(np.float16) for modality, rows in self.vectors.items()}
        memory = io.BytesIO()
        np.savez_compressed(memory, **halves)
        atomic_write(vectors, memory.getvalue())
        return atomic_write(result, json.dumps(self.to_json(), indent=1) + "\n")


def evaluate_emergent(
    embedder: EmbedderLike,
    data: str | Path,
    *,
    gallery: str | Path | None = None,
    clips_per_pair: int = 5,
    audio: bool = True,
) -> Evaluation:
    """Measure every name of `NAMES` on a data set directory.

    Args:
        embedder: a `plait.Embedder` or the like.
        data: directory with a manifest that holds some rows out.
        gallery: directory that keeps the composed images and a manifest of all that is searched; None keeps
            nothing.
        clips_per_pair: held-out notes that ask for each composed pair.
        audio: False for a model that has not learnt audio yet.

    Raises:
        ValueError: where no image is held out.

    Source:
        ONE-PEACE (arXiv 2305.11172), section 4.5.

    Example:
        >>> found = evaluate_emergent(plait.Embedder("nano"), "data")
        >>> found.scores["text_to_image_r1"].value
    """
    held_out = HeldOut.read(data)
    concepts, drawn = list(held_out.names), [concept(row) for row in held_out.drawings]
    text = embedder.embed([{"text": held_out.names[name]} for name in concepts])
    image = embedder.embed(media("image", held_out.drawings))
    labels = {"text": concepts, "image": drawn}
    result = Evaluation(dict.fromkeys(NAMES), vectors={"text": text, "image": image}, labels=labels)

    def recall(name: str, queries: Array, gallery: Array, asked: Sequence[str], there: Sequence[str]) -> None:
        """Recall of queries about `asked` in a gallery of `there`; the units are the things asked for."""
        for k in (1, 5):
            if f"{name}_r{k}" in NAMES:
                result.scores[f"{name}_r{k}"] = score(queries, gallery, equal(asked, there), k, asked)

    recall("image_to_text", image, text, drawn, concepts)
    recall("text_to_image", text, image, concepts, drawn)
    # drawn before the sounds are looked at: pictures are kept for people even of a model that hears
    # nothing
    pairs = ComposedSet.draw(held_out)
    if gallery is not None:
        pairs.write(held_out, gallery)
    if not audio or not held_out.notes:
        return result
    result.vectors["audio"] = embedder.embed(media("audio", held_out.notes))
    result.labels["audio"] = [concept(row) for row in held_out.notes]
    # a gallery of one drawing per sounding thing, beside the one of all drawings: chance differs, so both are told
    sounding, few = held_out.sounding, held_out.one_drawing_each(held_out.sounding)
    row_of = {row.id: i for i, row in enumerate(held_out.drawings)}
    drawings = image[[row_of[row.id] for row in few]]
    names = text[[concepts.index(name) for name in sounding]]
    for prefix, rows in (("", held_out.notes), ("unseen_font_", held_out.unseen_notes)):
        if rows:
            clips = embedder.embed(media("audio", rows)) if prefix else result.vectors["audio"]
            kept = [i for i, row in enumerate(rows) if concept(row) in sounding]
            clips, heard = clips[kept], [concept(rows[i]) for i in kept]
            recall(f"{prefix}audio_to_text", clips, names, heard, sounding)
            recall(f"{prefix}audio_to_image", clips, drawings, heard, sounding)
            recall(f"{prefix}audio_to_all_images", clips, image, heard, drawn)
    recall("image_to_audio", drawings, result.vectors["audio"], sounding, result.labels["audio"])
    result.examples["audio_to_image"] = _sound_examples(result, held_out, drawings)
    if pairs.pairs:
        by_note = dict(zip([row.id for row in held_out.notes], result.vectors["audio"]))
        by_name = dict(zip(concepts, text))
        scores, examples = score_composed(embedder, held_out, pairs, by_note, by_name, clips_per_pair=clips_per_pair)
        result.scores.update(scores)
        result.examples["fused_to_image"] = examples
    return result


def media(modality: str, rows: Sequence[Sample]) -> list[dict[str, Any]]:
    """Rows -> the mappings an embedder takes, with the media of one modality each."""
    return [{modality: getattr(row, modality)} for row in rows]


def _sound_examples(result: Evaluation, held_out: HeldOut, drawings: Array) -> list[dict[str, Any]]:
    """The middle held-out note of every sound (not picked by result) with its nearest drawings in both galleries."""
    few = held_out.one_drawing_each(held_out.sounding)
    index = {row.id: i for i, row in enumerate(held_out.notes)}
    galleries = (("hits", drawings, few), ("hits_in_all", result.vectors["image"], held_out.drawings))
    examples = []
    for label in held_out.sounding:
        note = held_out.spread(label, 3)[-2:][0]
        query = result.vectors["audio"][index[note.id]]
        example: dict[str, Any] = {"audio": held_out.relative(note.audio), "label": label}
        example["name"] = held_out.names[label]
        for name, gallery, rows in galleries:
            similarity = gallery @ query
            example[name] = [
                {
                    "image": held_out.relative(rows[i].image),
                    "name": held_out.names[concept(rows[i])],
                    "score": round(float(similarity[i]), 4),
                    "right": concept(rows[i]) == label,
                }
                for i in np.argsort(-similarity, kind="stable")[:5]
            ]
        examples.append(example)
    return examples
