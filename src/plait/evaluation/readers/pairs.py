"""Statements to be judged against one picture or two."""

from __future__ import annotations

from plait.evaluation.readers.files import read_rows
from plait.evaluation.readers.item import Item
from plait.evaluation.readers.layout import Source, layout

ENTAILMENT = ("contradiction", "neutral", "entailment")
"""Words of SNLI-VE in the order of their classes."""


@layout("nlvr2_official", {"annotations": "{split}.json"}, aliases={"test-P": "test1", "test": "test1", "val": "dev"})
def nlvr2(source: Source) -> list[Item]:
    """NLVR2: JSON lines; the identifier minus its last number names the two pictures."""
    items = []
    for row in read_rows(source["annotations"]):
        name = row.text("identifier")
        stem, dash, number = name.rpartition("-")
        if not dash or not number.isdigit():
            raise row.wrong("identifier", "a name such as test1-0-0-0", name)
        pictures: list[str | bytes] = [f"{stem}-img{i}.png" for i in (0, 1)]
        label = row.one_of("label", ("True", "False"))
        items.append(Item(name, images=pictures, text=row.text("sentence"), label=label))
    return items


@layout("snli_ve", {"official": "snli_ve_{split}.jsonl", "list": "ve_{split}.json"}, optional=("official", "list"))
def snli_ve(source: Source) -> list[Item]:
    """SNLI-VE: the official JSON lines, else the list of mPLUG and its predecessors (id = row number)."""
    if (path := source.get("official")) is not None:
        return [
            Item(
                row.text("pairID"),
                image=f"{row.text('Flickr30K_ID')}.jpg",
                text=row.text("sentence2"),
                label=row.one_of("gold_label", ENTAILMENT),
            )
            for row in read_rows(path)
        ]
    return [
        Item(
            str(i),
            image=f"{row.text('image').removesuffix('.jpg')}.jpg",
            text=row.text("sentence"),
            label=row.one_of("label", ENTAILMENT),
        )
        for i, row in enumerate(read_rows(source["list"]))
    ]
