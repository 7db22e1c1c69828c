"""Questions with options to choose from."""

from __future__ import annotations

import ast
import base64
import binascii
import io
from typing import Any

from plait.evaluation.readers.files import Row, read_record, read_rows, read_table
from plait.evaluation.readers.item import Item, Media
from plait.evaluation.readers.layout import Source, layout

LETTERS = "ABCDEFGHIJ"
ROTATION = 1_000_000
"""Rows of MMBench whose indices differ by multiples of this are rotations of one question."""


@layout("scienceqa", {"problems": "problems.json", "splits": "pid_splits.json"})
def scienceqa(source: Source) -> list[Item]:
    """ScienceQA: in the order of pid_splits.json; the picture of a problem is <split>/<id>/<image>."""
    problems = read_record(source["problems"])
    items = []
    for number, key in enumerate(read_record(source["splits"]).texts(source.split), 1):
        if key not in problems:
            place = f"{source['splits'].name}, field {source.split!r}, row {number}"
            raise ValueError(f"{place}: expected an id of {source['problems'].name}, got {key!r}")
        row = problems.record(key)
        image = row.optional("image")
        item = Item(
            key,
            image=f"{source.split}/{key}/{image}" if image else None,
            question=row.text("question"),
            context=row.optional("hint"),
            choices=row.texts("choices"),
            answer_index=_index(row, "answer", len(row.texts("choices"))),
        )
        item.meta |= {name: row.get(name) for name in ("grade", "subject", "topic")}
        items.append(item)
    return items


def _index(row: Row, name: str, count: int) -> int:
    index = row.integer(name)
    if not 0 <= index < count:
        raise row.wrong(name, f"a number from 0 to {count - 1}", index)
    return index


@layout("mmbench", {"annotations": ("mmbench_{split}*.tsv", "*{split}*.tsv", "*_{SPLIT}*.tsv")})
def mmbench(source: Source) -> list[Item]:
    """MMBench: tab-separated with CSV quoting; pictures as base64, or the index of the row that has the picture."""
    rows = read_table(source["annotations"], delimiter="\t")
    pictures = {row.text("index"): row for row in rows}
    items = []
    for row in rows:
        if row.get("split", source.split) != source.split:
            continue
        letters = [letter for letter in LETTERS if row.optional(letter)]
        image = _base64_image(row, pictures)
        item = Item(row.text("index"), image=image, question=row.text("question"), context=row.optional("hint"))
        item.group = str(row.integer("index") % ROTATION)
        item.choices = [row.text(letter) for letter in letters]
        if row.optional("answer"):
            item.answer_index = letters.index(row.one_of("answer", letters))
        item.category, item.category_group = row.optional("category"), row.optional("l2-category")
        item.image_size = _size(image, row)
        items.append(item)
    return items


def _base64_image(row: Row, rows: dict[str, Row]) -> bytes:
    cell = row.text("image")
    if cell.isdigit() and cell in rows and cell != row.text("index"):
        cell = rows[cell].text("image")
    try:
        return base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise row.wrong("image", "a picture as base64 or the index of a row that has one", cell[:40]) from error


def _size(image: bytes, row: Row) -> tuple[int, int]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(image)) as picture:
            return picture.size
    except (UnidentifiedImageError, OSError) as error:
        raise row.wrong("image", "a picture as base64", image[:12]) from error


@layout("seed_bench", {"annotations": ("SEED-Bench.json", "SEED-Bench*.json")})
def seed_bench(source: Source) -> list[Item]:
    """SEED-Bench: image and video questions; segment = seconds of a video."""
    record = read_record(source["annotations"])
    kinds = record.record("question_type")
    names = {kinds.integer(name): name for name in kinds}
    items = []
    for row in record.records("questions"):
        kind = row.one_of("data_type", ("image", "video"))
        choices = [row.text(f"choice_{letter}") for letter in "abcd"]
        item = Item(row.text("question_id"), question=row.text("question"), choices=choices)
        setattr(item, kind, row.text("data_id"))
        if row.optional("answer"):
            item.answer_index = LETTERS.index(row.one_of("answer", "ABCD"))
        item.category = names[row.one_of("question_type_id", names)]
        if row.get("segment"):
            segment = row.items_of("segment")
            if len(segment) != 2 or not all(isinstance(second, int | float) for second in segment):
                raise row.wrong("segment", "start and end in seconds", segment)
            item.media_start, item.media_end = segment
        items.append(item)
    return items


@layout("q_bench", {"annotations": "llvisionqa_{split}.json", "iqa": "*_iqa.json"}, optional=("iqa",))
def q_bench(source: Source) -> list[Item]:
    """Q-Bench A1: the right answer is the text of an option; test files have none. id = row number."""
    items = []
    for i, row in enumerate(read_rows(source["annotations"])):
        choices = row.texts("candidates")
        item = Item(str(i), image=row.text("img_path"), question=row.text("question"), choices=choices)
        if "correct_ans" in row:
            item.answer_index = choices.index(row.one_of("correct_ans", choices))
        item.question_type = row.get("type")
        item.meta["question_concern"] = row.get("concern")
        items.append(item)
    return items


@layout("q_bench_iqa", {"iqa": "*.json"})
def q_bench_iqa(source: Source) -> list[Item]:
    """Picture quality sets: a mean opinion score per picture. id = row number."""
    rows = read_rows(source["iqa"])
    return [Item(str(i), image=row.text("img_path"), label=row.number("gt_score")) for i, row in enumerate(rows)]


@layout("mmmu", {"rows": ("{split}.jsonl", "{split}*.parquet")}, many=("rows",), aliases={"val": "validation"})
def mmmu(source: Source) -> list[Item]:
    """MMMU: options are the text of a list; several pictures; answers of open questions may be lists as text."""
    items = []
    for row in [row for path in source.files.values() for row in read_rows(path)]:
        name = row.text("id")
        options = _literal(row, "options")
        item = Item(name, question=row.text("question"), choices=[str(option) for option in options])
        item.images = [_picture(row, f"image_{i}") for i in range(1, 8) if row.get(f"image_{i}") is not None]
        item.question_type = row.one_of("question_type", ("multiple-choice", "open"))
        answer = row.optional("answer")
        answer = None if answer == "?" else answer  # the test split hides them
        is_list = item.question_type == "open" and answer is not None and answer.startswith("[")
        item.answers = None if answer is None else [str(a) for a in _literal(row, "answer")] if is_list else [answer]
        item.category = "_".join(name.split("_")[1:-1])
        items.append(item)
    return items


def _literal(row: Row, name: str) -> list[Any]:
    """The list that a field's text spells; read as a literal, never run."""
    value = row[name]
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise row.wrong(name, "the text of a list", row[name]) from error
    if not isinstance(value, list):
        raise row.wrong(name, "the text of a list", row[name])
    return value


def _picture(row: Row, name: str) -> Media:
    cell = row.record(name)
    return cell["bytes"] if cell.get("bytes") else cell.text("path")


@layout("avqa", {"annotations": "{split}_qa.json"})
def avqa(source: Source) -> list[Item]:
    """AVQA: four options about a clip; the answer is the index of one."""
    items = []
    for row in read_rows(source["annotations"]):
        name, choices = row.text("video_name"), row.texts("multi_choice")
        item = Item(row.text("id"), video=f"{name}.mp4", audio=f"{name}.wav", question=row.text("question_text"))
        item.choices, item.question_type, item.group = choices, row.get("question_type"), name
        if "answer" in row:
            item.answer_index = _index(row, "answer", len(choices))
        items.append(item)
    return items
