"""Tables that a release brought with its weights, other layouts of tasks in the neighbouring files: tab-separated, a
header, columns chosen by name, the last one takes the rest."""

from __future__ import annotations

from pathlib import Path

from plait.evaluation.base import Item, Source, layout
from plait.evaluation.files import Row, read_lines, read_record, read_table
from plait.evaluation.tasks.classes import named


def _rows(path: Path) -> list[Row]:
    """Rows of a table of the release: tab-separated, quotes are text, the last column may hold tabs."""
    # nothing is escaped in these tables: quotes are text, and the last column takes what is left
    return read_table(path, delimiter="\t", quoting=False, last_takes_rest=True)


def _texts_of(source: Source, key: str, row: Row) -> list[str]:
    """Candidate texts of an item: from the map beside the table."""
    texts = read_record(source["texts"])
    if key not in texts:
        raise ValueError(f"{row.place}: expected an id of {source['texts'].name}, got {key!r}")
    return texts.texts(key)


@layout("one_peace_image_text_retrieval", {"table": "{split}.tsv", "texts": "{split}_texts.json"})
def image_text(source: Source) -> list[Item]:
    """Images in the order of the table; candidate texts from the map image_id -> list."""
    return [
        Item(row.text("image_id"), image=row.text("image"), captions=_texts_of(source, row.text("image_id"), row))
        for row in _rows(source["table"])
    ]


@layout("one_peace_grounding", {"table": "*_{split}.tsv"})
def grounding(source: Source) -> list[Item]:
    """Referring expressions; region_coord = x1,y1,x2,y2 in pixels. id = row number."""
    items = []
    for i, row in enumerate(_rows(source["table"])):
        try:
            box = [float(part) for part in row.text("region_coord").split(",")]
        except ValueError:
            box = []
        if len(box) != 4:
            raise row.wrong("region_coord", "four numbers x1,y1,x2,y2", row["region_coord"])
        items.append(Item(str(i), image=row.text("image"), text=row.text("text"), boxes=[box]))
    return items


@layout("one_peace_vqa", {"table": "vqa_{split}.tsv"})
def vqa(source: Source) -> list[Item]:
    """Questions with scored classes: refs = answer|!+class|!+score joined by &&.

    meta holds targets: (answer, class, score) of every right answer.
    """
    items = []
    for row in _rows(source["table"]):
        item = Item(row.text("uniq_id"), image=row.text("image"), question=row.text("question"))
        item.meta["targets"] = [_target(row, part) for part in row.text("refs").split("&&")]
        items.append(item)
    return items


def _target(row: Row, part: str) -> list[str | int | float]:
    """(answer, class, score) of one part of `refs`. Raises ValueError for another form."""
    try:
        answer, index, score = part.split("|!+")
        return [answer, int(index), float(score)]
    except ValueError:
        raise row.wrong("refs", "answer|!+class|!+score", part) from None


@layout("one_peace_nlvr2", {"table": "nlvr2_{split}.tsv"})
def nlvr2(source: Source) -> list[Item]:
    """Statements on two images."""
    return [
        Item(
            row.text("uniq_id"),
            images=[row.text("image1"), row.text("image2")],
            text=row.text("text"),
            label=row.one_of("label", ("True", "False")),
        )
        for row in _rows(source["table"])
    ]


def _sound(row: Row) -> Item:
    """An item of a sound, with its duration in seconds."""
    return Item(row.text("uniq_id"), audio=row.text("audio"), meta={"duration": float(row.number("duration"))})


@layout("one_peace_audio", {"retrieval": ("audiocaps_{split}.tsv", "clotho_{split}.tsv"), "texts": "*_texts.json"})
def audio_text(source: Source) -> list[Item]:
    """Audio with candidate texts from the map uniq_id -> list."""
    items = []
    for row in _rows(source["retrieval"]):
        item = _sound(row)
        item.captions = _texts_of(source, item.id, row)
        items.append(item)
    return items


@layout("one_peace_aqa", {"aqa": "avqa_{split}.tsv"})
def audio_questions(source: Source) -> list[Item]:
    """Questions about audio: question&&&four choices&&&index.

    Raises ValueError for another number of parts or an index above 3.
    """
    items = []
    for row in _rows(source["aqa"]):
        item = _sound(row)
        parts = row.text("text").split("&&&")
        if len(parts) != 6 or parts[-1] not in ("0", "1", "2", "3"):
            raise row.wrong("text", "question&&&choice&&&choice&&&choice&&&choice&&&index", row["text"])
        item.question, item.choices, item.answer_index = parts[0], parts[1:5], int(parts[5])
        items.append(item)
    return items


def _classes(source: Source) -> dict[int, str]:
    """Names of classes by number, from a list beside the table; none without it."""
    path = source.get("classes")
    return {} if path is None else dict(enumerate(read_lines(path)))


@layout("one_peace_fsd50k", {"fsd50k": "fsd50k_{split}.tsv", "classes": "*classes.txt"}, optional=("classes",))
def sound_tags(source: Source) -> list[Item]:
    """Audio with several classes: comma-joined indices. A list of class names, one a line, may lie beside.

    meta holds the duration in seconds.
    """
    classes = _classes(source)
    items = []
    for row in _rows(source["fsd50k"]):
        item = _sound(row)
        try:
            item.labels = [int(part) for part in row.text("text").split(",")]
        except ValueError:
            raise row.wrong("text", "class indices joined by commas", row["text"]) from None
        items.append(named(item, classes))
    return items


@layout("one_peace_vggsound", {"vggsound": "vggsound_{split}.tsv", "classes": "*classes.txt"}, optional=("classes",))
def sound_class(source: Source) -> list[Item]:
    """Audio with one class. A list of class names, one a line, may lie beside the table."""
    classes = _classes(source)
    items = []
    for row in _rows(source["vggsound"]):
        item = _sound(row)
        item.label = row.integer("text")
        items.append(named(item, classes))
    return items


TASKS = ()
