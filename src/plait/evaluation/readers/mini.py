"""Data sets in Plait's own layout (manifest.jsonl): held-out drawings and sounds with the names of their concepts."""

from __future__ import annotations

from plait.evaluation.emergent import concept
from plait.evaluation.readers.item import Item
from plait.evaluation.readers.layout import Source, layout
from plait.types import Sample

QUESTION = "What is shown in this drawing?"


def _items(source: Source, modality: str) -> list[Item]:
    from plait.data.manifest import read_manifest

    rows = [row for row in read_manifest(source["manifest"]) if row.split == source.split]
    words = {concept(row): row.text or concept(row) for row in rows if row.image is not None}
    order = {name: index for index, name in enumerate(sorted(words))}
    classes = {index: words[name] for name, index in order.items()}
    items = []
    for row in (row for row in rows if _is_alone(row, modality) and concept(row) in order):
        file = _relative(getattr(row, modality), source)
        item = Item(row.id, question=QUESTION, label=order[concept(row)], label_name=words[concept(row)])
        item.answers, item.group = [words[concept(row)]], concept(row)
        setattr(item, modality, file)
        item.meta["classes"] = classes
        items.append(item)
    return items


def _is_alone(row: Sample, modality: str) -> bool:
    return tuple(m for m in row.modalities if m != "text") == (modality,)


def _relative(path: str, source: Source) -> str:
    from pathlib import Path

    place, root = Path(path).resolve(), source.root.resolve()
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else str(path)


@layout("plait_mini_pictures", {"manifest": ("manifest.jsonl", "manifest.jsonl.gz")})
def pictures(source: Source) -> list[Item]:
    """Held-out drawings; the classes are the concepts drawn."""
    return _items(source, "image")


@layout("plait_mini_sounds", {"manifest": ("manifest.jsonl", "manifest.jsonl.gz")})
def sounds(source: Source) -> list[Item]:
    """Held-out sounds of things that are drawn too."""
    return _items(source, "audio")
