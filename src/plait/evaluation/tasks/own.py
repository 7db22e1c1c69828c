"""Two tasks for every modality that a user added, on a manifest of their own: NAME_names and NAME_retrieval.

manifest.jsonl -> Item(NAME, label, captions) -> the name nearest in words | ranks of both directions

They are there as soon as the file that adds the modality was used (`--plugin`); no line is written for them. Rows of
split "test" (or the one asked for) count; the classes of NAME_names are all words that the split has.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from plait.evaluation.base import LAYOUTS, Item, Layout, Source, Task
from plait.evaluation.emergent import concept
from plait.evaluation.tasks.classes import top_k
from plait.evaluation.tasks.retrieval import retrieval
from plait.modalities import is_registered

TASKS: tuple[Task, ...] = ()
"""None before a modality was added."""

KINDS = ("names", "retrieval")
_ROLES = {"manifest": ("manifest.jsonl", "manifest.jsonl.gz")}


def own_task(name: str) -> Task | None:
    """The task of this name, of a modality that a user added; None for another name."""
    modality, _, kind = name.rpartition("_")
    if kind not in KINDS or not is_registered(modality):
        return None
    layout = f"rows_of_{modality}"
    LAYOUTS[layout] = Layout(layout, partial(items_of, modality), _ROLES)
    if kind == "names":
        about, methods, score, primary = (
            "name it by the nearest words, zero-shot",
            {"embed": "zero_shot"},
            top_k,
            "top1",
        )
    else:
        about, methods, score, primary = "find words and be found", {"embed": "retrieve"}, retrieval, "mean_recall"
    return Task(name, f"{modality}: {about}", (layout,), "test", (modality,), methods, score, primary)  # ty: ignore


def items_of(modality: str, source: Source) -> list[Item]:
    """Items of one modality of a manifest, of the split asked for; rows of one label are one class.

    Raises:
        ValueError: for files outside the data set's directory.
    """
    from plait.data.manifest import read_manifest

    rows = [
        row
        for row in read_manifest(source["manifest"])
        if row.split == source.split and row.meta.get(modality) is not None and (row.text or row.label)
    ]
    words = {concept(row): row.text or concept(row) for row in rows}
    order = {name: index for index, name in enumerate(sorted(words))}
    classes, root = {index: words[name] for name, index in order.items()}, source.root.resolve()
    items = []
    for row in rows:
        place = Path(row.meta[modality]).resolve()
        if not place.is_relative_to(root):
            raise ValueError(f"expected the {modality} of row {row.id} inside {root}, got {place}; move it there")
        name = concept(row)
        item = Item(row.id, label=order[name], label_name=words[name], captions=[words[name]], group=name)
        item.meta = {"classes": classes, modality: place.relative_to(root).as_posix()}
        items.append(item)
    return items
