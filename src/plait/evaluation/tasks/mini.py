"""plait-mini, and other data sets in Plait's own layout: held-out drawings and sounds with the names of their concepts.

manifest.jsonl -> Item(image | audio, label, answers) -> the class nearest in words, or a reply that names it
"""

from __future__ import annotations

import re
from pathlib import Path

from plait.evaluation.base import Item, Scored, Scoring, Source, Task, layout
from plait.evaluation.emergent import concept
from plait.evaluation.tasks.classes import top_k
from plait.types import Modality

QUESTION = "What is shown in this drawing?"


def naming(scoring: Scoring) -> Scored:
    """The reply names the thing: its name, without an article, stands in the reply as whole words.

    Returns accuracy in percent; drawings of one thing are one group.
    """
    hits = []
    for item, reply in scoring.pairs():
        said = f" {' '.join(re.findall(r'[a-z0-9]+', reply.lower()))} "
        names = [" ".join(re.findall(r"[a-z0-9]+", name.lower())) for name in item.answers or []]
        names = [name.removeprefix("a ").removeprefix("an ").removeprefix("the ") for name in names]
        hits.append(any(f" {name} " in said for name in names))
    return scoring.scored(hits)


def _items(source: Source, modality: Modality) -> list[Item]:
    """Items of one medium of a manifest, of the split asked for; the class is the concept, by its sorted name."""
    from plait.data.manifest import read_manifest

    rows = [row for row in read_manifest(source["manifest"]) if row.split == source.split]
    words = {concept(row): row.text or concept(row) for row in rows if row.image is not None}
    order = {name: index for index, name in enumerate(sorted(words))}
    classes = {index: words[name] for name, index in order.items()}
    items = []
    for row in rows:
        if tuple(one for one in row.modalities if one != "text") != (modality,) or concept(row) not in order:
            continue  # rows of two media together are no single drawing or sound
        place, root = Path(getattr(row, modality)).resolve(), source.root.resolve()
        file = place.relative_to(root).as_posix() if place.is_relative_to(root) else str(getattr(row, modality))
        item = Item(row.id, question=QUESTION, label=order[concept(row)], label_name=words[concept(row)])
        item.answers, item.group = [words[concept(row)]], concept(row)
        setattr(item, modality, file)
        item.meta["classes"] = classes
        items.append(item)
    return items


@layout("plait_mini_pictures", {"manifest": ("manifest.jsonl", "manifest.jsonl.gz")})
def pictures(source: Source) -> list[Item]:
    """Held-out drawings; the classes are the concepts drawn."""
    return _items(source, "image")


@layout("plait_mini_sounds", {"manifest": ("manifest.jsonl", "manifest.jsonl.gz")})
def sounds(source: Source) -> list[Item]:
    """Held-out audio of things that are drawn too."""
    return _items(source, "audio")


def _naming(name: str, about: str, layout_name: str, media: Modality) -> Task:
    """A task that names a drawing or a sound by the nearest of all names."""
    return Task(name, about, (layout_name,), "test", (media,), {"embed": "zero_shot"}, top_k, "top1")


TASKS = (
    _naming("mini_pictures", "plait-mini: name a held-out drawing, zero-shot", "plait_mini_pictures", "image"),
    _naming("mini_sounds", "plait-mini: name a held-out sound, zero-shot", "plait_mini_sounds", "audio"),
    Task(
        "mini_questions", "plait-mini: what is drawn here, answered in words", ("plait_mini_pictures",), "test",
        ("image",), {"generate": "prompt"}, naming, "accuracy", "short",
    ),
)  # fmt: skip
