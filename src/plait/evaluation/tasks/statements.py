"""Statements to be judged against one picture (SNLI-VE) or two (NLVR2).

annotation files -> Item(image | images, text, label) -> a word, of a reply or of a head's best class -> accuracy
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from plait.evaluation.base import Item, Scored, Scoring, Source, Task, layout, published
from plait.evaluation.files import read_rows

ENTAILMENT = ("contradiction", "neutral", "entailment")
"""Words of SNLI-VE in the order of their classes."""


def statements(scoring: Scoring) -> Scored:
    """True or False, read from the first word of the reply that is yes, true, no or false; accuracy in percent."""
    return _worded(scoring, {"yes": "True", "true": "True", "no": "False", "false": "False"})


def entailment(scoring: Scoring) -> Scored:
    """Entailment, contradiction or neutral, read from the first such word of the reply; accuracy in percent."""
    words = {word: word for word in ENTAILMENT}
    return _worded(scoring, words | {"entail": "entailment", "contradict": "contradiction"})


def _worded(scoring: Scoring, words: Mapping[str, str]) -> Scored:
    """Accuracy of replies by the first word that is in `words`, which gives the label.

    A reply without such a word is wrong and counted as unreadable.
    """
    scoring.keep(lambda item: item.label is not None, "label")
    # the first word that decides: "No, that is not true" holds true as well
    found = (re.findall(r"[a-z]+", reply.lower()) for reply in scoring.replies())
    said = [next((words[word] for word in reply if word in words), None) for reply in found]
    hits = (label == item.label for label, item in zip(said, scoring.items, strict=True))
    return scoring.scored(hits, (label is None for label in said))


@layout("nlvr2_official", {"annotations": "{split}.json"}, aliases={"test-P": "test1", "test": "test1", "val": "dev"})
def nlvr2(source: Source) -> list[Item]:
    """NLVR2: JSON lines; the identifier minus its last number names the two images."""
    items = []
    for row in read_rows(source["annotations"]):
        name = row.text("identifier")
        stem, dash, number = name.rpartition("-")
        if not dash or not number.isdigit():
            raise row.wrong("identifier", "a name such as test1-0-0-0", name)
        # img0 is the left picture, img1 the right one: statements name sides
        pictures: list[str | bytes] = [f"{stem}-img{i}.png" for i in (0, 1)]
        label = row.one_of("label", ("True", "False"))
        items.append(Item(name, images=pictures, text=row.text("sentence"), label=label))
    return items


@layout("snli_ve", {"official": "snli_ve_{split}.jsonl", "list": "ve_{split}.json"}, optional=("official", "list"))
def snli_ve(source: Source) -> list[Item]:
    """SNLI-VE: the official JSON lines, else the list of mPLUG and its predecessors (id = row number).

    Labels are the words of `ENTAILMENT`; images are those of Flickr30k.
    """
    # the lists of mPLUG's predecessors keep no pair id
    official = source.get("official")
    items = []
    for i, row in enumerate(read_rows(official or source["list"])):
        if official is not None:
            name, picture, text, label = row.text("pairID"), row.text("Flickr30K_ID"), "sentence2", "gold_label"
        else:
            name, picture, text, label = str(i), row.text("image").removesuffix(".jpg"), "sentence", "label"
        item = Item(name, image=f"{picture}.jpg", text=row.text(text), label=row.one_of(label, ENTAILMENT))
        items.append(item)
    return items


TASKS = (
    Task(
        "nlvr2", "is a statement true of two pictures", ("nlvr2_official", "one_peace_nlvr2"), "test-P", ("image",),
        {"decide": "decide", "generate": "prompt"}, statements, "accuracy", "statement", size=6967,
        published=published("readme ONE-PEACE: 87.8/88.3", "readme mPLUG large: 84.58/84.95"),
    ),
    Task(
        "snli_ve", "does a picture entail a statement", ("snli_ve",), "test", ("image",),
        {"decide": "decide", "generate": "prompt"}, entailment, "accuracy", "entailment", size=17901,
        published=published("readme mPLUG large: 89.45/89.29"),
    ),
)  # fmt: skip
