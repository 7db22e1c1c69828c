"""Questions with options to choose from: ScienceQA, MMBench, SEED-Bench, Q-Bench, MMMU, AVQA.

annotation files -> Item(image | video | audio, question, choices) -> a reply, whose letter the suite's own rule
reads, or the index of a choice -> accuracy; what cannot be read is wrong and counted
"""

from __future__ import annotations

import ast
import base64
import binascii
import io
import json
from pathlib import Path
from typing import Any

from plait.evaluation.base import (
    Item,
    Pairs,
    Scored,
    Scoring,
    Source,
    Task,
    layout,
    number_of,
    published,
    write_json,
)  # fmt: skip
from plait.evaluation.files import Row, read_record, read_rows, read_table, write_spreadsheet
from plait.metrics.choices import (
    ROTATION,
    mmbench_scores,
    mmmu_hits,
    q_bench_scores,
    scienceqa_scores,
    seed_bench_scores,
)  # fmt: skip
from plait.metrics.replies import LETTERS, letter


def _answered(scoring: Scoring) -> list[tuple[Item, str]]:
    """Items and replies, where every item has a right choice."""
    scoring.keep(lambda item: item.answer_index is not None, "answer")
    return scoring.pairs()


def scienceqa(scoring: Scoring) -> Scored:
    """Accuracy over questions with an image (SQA-IMG), and the columns of the official table.

    Returns:
        Score image_accuracy in percent; categories: the official table, without columns that it leaves empty
        (-1).

    Raises:
        NotScored: for a split without answers.
    """
    replies = {item.id: reply for item, reply in _answered(scoring)}
    problems = {
        item.id: {**item.meta, "choices": item.choices, "answer": item.answer_index, "hint": item.context,
                  "image": item.image}
        for item in scoring.items
    }  # fmt: skip
    found = scienceqa_scores(problems, replies)
    scored = scoring.scored(found["hits"].values(), [index < 0 for index in found["predicted_index"].values()])
    # questions without a picture were left out when the items were read
    scored.scores = {"image_accuracy": found["image_accuracy"]}
    scored.categories = {name: float(share) for name, share in found["official_table"].items() if share != "-1"}
    scored.notes.append("letters read by rule scienceqa")
    return scored


def mmbench(scoring: Scoring) -> Scored:
    """Circular accuracy: a question counts when all its rotations are right; vanilla looks at the unrotated row.

    Returns:
        Scores circular (primary) and vanilla in percent; units: questions, not rows; categories: of both
        levels.

    Raises:
        NotScored: for a split without answers (the test split: hand in the submission).
    """
    rule = scoring.rule or "mmbench_2023"
    rows = [
        {"index": item.id, **dict(zip(LETTERS, item.choices or [])), "answer": item.right_letter,
         "category": item.category, "l2-category": item.category_group, "prediction": reply}
        for item, reply in _answered(scoring)
    ]  # fmt: skip
    found = mmbench_scores(rows, rule)
    # both levels in one table; the name None stands for rows without a category
    kinds = [*found["by_category"].items(), *found["by_l2_category"].items()]
    return Scored(
        {"circular": found["circular_accuracy"], "vanilla": found["vanilla_accuracy"]},
        {index: 100.0 * hit for index, hit in found["hit_per_question"].items()},
        categories={kind: share for kind, share in kinds if kind != "None"},
        unreadable=[item.id for item, lost in zip(scoring.items, scoring.unreadable(rule)) if lost],
        notes=[f"letters read by rule {rule}"],
    )


def seed_bench(scoring: Scoring) -> Scored:
    """Accuracy over all questions, and over the types about images and about videos.

    The first character of a reply counts, in either case.
    """
    rows = [
        {"question_type_id": item.meta["question_type_id"], "answer": item.right_letter, "prediction": reply}
        for item, reply in _answered(scoring)
    ]
    found = seed_bench_scores(rows)
    # the rule looks at one character: anything else in its place is lost
    unreadable = [row["prediction"].strip()[:1].upper() not in tuple(i.letters) for i, row in zip(scoring.items, rows)]
    scored = scoring.scored(found["hits"], unreadable)
    parts = {f"{kind} accuracy": found[kind] for kind in ("image", "video") if found[kind] is not None}
    scored.scores = {"accuracy": found["overall"], **parts}
    scored.notes.append("letters read by rule first_character")
    return scored


def q_bench(scoring: Scoring) -> Scored:
    """Accuracy in percent, by question type (0 yes-or-no, 1 what, 2 how) and by concern.

    Raises NotScored for a split without answers.
    """
    rows = [
        {"candidates": item.choices, "correct_ans": (item.choices or [])[item.answer_index or 0], "prediction": reply,
         "type": item.question_type, "concern": item.meta.get("question_concern")}
        for item, reply in _answered(scoring)
    ]  # fmt: skip
    found = q_bench_scores(rows)
    scored = scoring.scored(found["correct"], scoring.unreadable("mmmu_official"))
    kinds = (("type", "by_type"), ("concern", "by_concern"))
    scored.categories = {f"{word} {kind}": share for word, key in kinds for kind, share in sorted(found[key].items())}
    scored.notes.append("letters read by rule mmmu_official")
    return scored


def mmmu(scoring: Scoring) -> Scored:
    """Micro average over all questions, by subject, under one of two rules.

    Rule official: the benchmark's parser for letters and for open answers. Rule release: a reply must be the
    letter alone (Owl2's script); open answers as official.

    Raises:
        NotScored: for the test split, which hides its answers.
    """
    scoring.keep(lambda item: bool(item.answers), "answer")
    rows = [
        {"id": item.id, "question_type": item.question_type, "answer": item.answers, "prediction": reply,
         "options": item.choices}
        for item, reply in scoring.pairs()
    ]  # fmt: skip
    hits = mmmu_hits(rows, rule=scoring.rule or "official")
    # a question without a readable letter is wrong under both rules: no random guess takes its place
    return scoring.scored([hit for hit, _ in hits], [not is_read for _, is_read in hits])


def avqa(scoring: Scoring) -> Scored:
    """Accuracy of chosen indices, in percent. Raises NotScored for a split without answers."""
    scoring.keep(lambda item: item.answer_index is not None, "answer")
    found = scoring.predictions
    return scoring.scored(found[item.id] == item.answer_index for item in scoring.items)


def submitted_seed(pairs: Pairs, out: Path, model: str) -> Path:
    """Write what SEED-Bench's server takes: JSON lines with question_id and prediction, a letter."""
    # the letter alone, in capitals
    lines = [json.dumps({"question_id": item.id, "prediction": text[:1].upper()}) for item, text in pairs]
    path = out / "submission.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def submitted_mmmu(pairs: Pairs, out: Path, model: str) -> Path:
    """MMMU: {id: answer}, the letter of a multiple-choice question; a reply without a letter is handed in as it is."""
    said = {i.id: (letter(text, i.choices, "mmmu_official") or text) if i.choices else text for i, text in pairs}
    return write_json(out / "submission.json", said)


def submitted_mmbench(pairs: Pairs, out: Path, model: str) -> Path:
    """Write what MMBench's server takes: a spreadsheet with index, question, A, B, C, D and prediction."""
    rows: list[list[str | int]] = [["index", "question", "A", "B", "C", "D", "prediction"]]
    for item, text in pairs:
        choices = dict(zip(LETTERS, item.choices or []))
        rows.append([number_of(item.id), item.question or "", *(choices.get(one, "") for one in "ABCD"), text])
    return write_spreadsheet(out / "submission.xlsx", rows)


@layout("scienceqa", {"problems": "problems.json", "splits": "pid_splits.json"})
def read_scienceqa(source: Source) -> list[Item]:
    """ScienceQA: in the order of pid_splits.json; the image of a problem is <split>/<id>/<image>."""
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
            answer_index=row.integer("answer", below=len(row.texts("choices"))),
        )
        item.meta |= {name: row.get(name) for name in ("grade", "subject", "topic")}
        items.append(item)
    return items


@layout("mmbench", {"annotations": ("mmbench_{split}*.tsv", "*{split}*.tsv", "*_{SPLIT}*.tsv")})
def read_mmbench(source: Source) -> list[Item]:
    """MMBench: tab-separated with CSV quoting; images as base64, or the index of the row that has the image."""
    rows = read_table(source["annotations"], delimiter="\t")
    pictures = {row.text("index"): row for row in rows}
    items = []
    for row in rows:
        if row.get("split", source.split) != source.split:
            continue
        letters = [letter for letter in LETTERS if row.optional(letter)]
        image, size = _picture_in_cell(row, pictures)
        item = Item(row.text("index"), image=image, question=row.text("question"), context=row.optional("hint"))
        # a rotation's index is that of its question plus a multiple of this number
        item.group = str(row.integer("index") % ROTATION)
        item.choices = [row.text(letter) for letter in letters]
        if row.optional("answer"):
            item.answer_index = letters.index(row.one_of("answer", letters))
        item.category, item.category_group = row.optional("category"), row.optional("l2-category")
        item.image_size = size
        items.append(item)
    return items


def _picture_in_cell(row: Row, rows: dict[str, Row]) -> tuple[bytes, tuple[int, int]]:
    """A picture and its size; rotations name the row that holds theirs."""
    from PIL import Image, UnidentifiedImageError

    cell = row.text("image")
    # the official files write a picture once, rotations and shared pictures hold the index of that row
    if cell.isdigit() and cell in rows and cell != row.text("index"):
        cell = rows[cell].text("image")
    try:
        # strictly: without `validate` other bytes would be passed over in silence
        image = base64.b64decode(cell, validate=True)
    except binascii.Error as error:
        raise row.wrong("image", "a picture as base64 or the index of a row that has one", cell[:40]) from error
    try:
        with Image.open(io.BytesIO(image)) as picture:
            return image, picture.size
    except (UnidentifiedImageError, OSError) as error:
        raise row.wrong("image", "a picture as base64", image[:12]) from error


@layout("seed_bench", {"annotations": ("SEED-Bench.json", "SEED-Bench*.json")})
def read_seed_bench(source: Source) -> list[Item]:
    """SEED-Bench: image and video questions; segment = seconds of a video."""
    record = read_record(source["annotations"])
    kinds = record.record("question_type")
    names = {kinds.integer(name): name for name in kinds}
    items = []
    for row in record.records("questions"):
        kind = row.one_of("data_type", ("image", "video"))
        choices = [row.text(f"choice_{letter}") for letter in "abcd"]
        item = Item(row.text("question_id"), question=row.text("question"), choices=choices)
        # data_type is the name of the field: image or video
        setattr(item, kind, row.text("data_id"))
        if row.optional("answer"):
            item.answer_index = LETTERS.index(row.one_of("answer", "ABCD"))
        item.category = names[row.one_of("question_type_id", names)]
        item.meta["question_type_id"] = row.integer("question_type_id")
        if row.get("segment"):
            segment = row.items_of("segment")
            if len(segment) != 2 or not all(isinstance(second, int | float) for second in segment):
                raise row.wrong("segment", "start and end in seconds", segment)
            item.media_start, item.media_end = segment
        items.append(item)
    return items


@layout("q_bench", {"annotations": "llvisionqa_{split}.json", "iqa": "*_iqa.json"}, optional=("iqa",))
def read_q_bench(source: Source) -> list[Item]:
    """Q-Bench A1: the right answer is the text of an option; test files have none. id = row number.

    question_type is 0 (yes-or-no), 1 (what) or 2 (how); meta holds question_concern.
    """
    items = []
    for i, row in enumerate(read_rows(source["annotations"])):
        choices = row.texts("candidates")
        item = Item(str(i), image=row.text("img_path"), question=row.text("question"), choices=choices)
        if "correct_ans" in row:
            # test files have no correct_ans at all
            item.answer_index = choices.index(row.one_of("correct_ans", choices))
        item.question_type = row.get("type")
        item.meta["question_concern"] = row.get("concern")
        items.append(item)
    return items


@layout("q_bench_iqa", {"iqa": "*.json"})
def q_bench_iqa(source: Source) -> list[Item]:
    """Image quality sets: a mean opinion score per image. id = row number.

    The label is that score, on the scale of its set.
    """
    rows = read_rows(source["iqa"])
    return [Item(str(i), image=row.text("img_path"), label=row.number("gt_score")) for i, row in enumerate(rows)]


@layout("mmmu", {"rows": ("{split}.jsonl", "{split}*.parquet")}, many=("rows",), aliases={"val": "validation"})
def read_mmmu(source: Source) -> list[Item]:
    """MMMU: options are the text of a list; several images; answers of open questions may be lists as text."""
    items = []
    for row in [row for path in source.files.values() for row in read_rows(path)]:
        name = row.text("id")
        options = _literal(row, "options")
        item = Item(name, question=row.text("question"), choices=[str(option) for option in options])
        cells = [row.record(f"image_{i}") for i in range(1, 8) if row.get(f"image_{i}") is not None]
        item.images = [cell["bytes"] if cell.get("bytes") else cell.text("path") for cell in cells]
        item.question_type = row.one_of("question_type", ("multiple-choice", "open"))
        answer = row.optional("answer")
        answer = None if answer == "?" else answer  # the test split hides them
        is_list = item.question_type == "open" and answer is not None and answer.startswith("[")
        item.answers = None if answer is None else [str(a) for a in _literal(row, "answer")] if is_list else [answer]
        # ids are SPLIT_SUBJECT_NUMBER, and a subject may hold the same mark
        item.category = "_".join(name.split("_")[1:-1])
        items.append(item)
    return items


def _literal(row: Row, name: str) -> list[Any]:
    """The list that a field's text spells; read as a literal, never run."""
    value = row[name]
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise row.wrong(name, "the text of a list", row[name]) from error
    if not isinstance(value, list):
        raise row.wrong(name, "the text of a list", row[name])
    return value


@layout("avqa", {"annotations": "{split}_qa.json"})
def read_avqa(source: Source) -> list[Item]:
    """AVQA: four options about a clip; the answer is the index of one.

    The id is the question's; questions about one clip are one group.
    """
    items = []
    for row in read_rows(source["annotations"]):
        name, choices = row.text("video_name"), row.texts("multi_choice")
        # both media are named: a task takes the sound, and the clip holds it too
        item = Item(row.text("id"), video=f"{name}.mp4", audio=f"{name}.wav", question=row.text("question_text"))
        item.choices, item.question_type, item.group = choices, row.get("question_type"), name
        if "answer" in row:
            item.answer_index = row.integer("answer", below=len(choices))
        items.append(item)
    return items


def _letters(name: str, about: str, split: str, size: int, rule, primary: str, kind, **more) -> Task:
    """A task that asks for the letter of a choice."""
    media = more.pop("media", ("image",))
    return Task(name, about, (name,), split, media, {"generate": "prompt"}, rule, primary, kind, size=size, **more)


TASKS = (
    _letters(
        "scienceqa", "school questions with a picture, zero-shot", "test", 2017, scienceqa, "image_accuracy",
        "letters_with_hint", published=published("readme mPLUG-Owl2: 68.7", "readme mPLUG-Owl2.1: 72.3"),
    ),
    _letters(
        "mmbench", "options in every rotation, all must be right", "dev", 4377, mmbench, "circular",
        "letters_with_hint", rules=("mmbench_2023", "mmbench_toolkit"), submission=submitted_mmbench,
        published=published("readme mPLUG-Owl2: 64.5", "readme mPLUG-Owl2.1: 73.7", "paper mPLUG-Owl2: 65.4 (448 px)"),
    ),
    _letters(
        "seed_bench", "SEED-Bench v1, pictures and videos", "v1", 19242, seed_bench, "accuracy", "letters",
        media=("image", "video"), submission=submitted_seed,
        published=published("readme mPLUG-Owl2: 57.8", "readme mPLUG-Owl2.1: 60.8"),
    ),
    _letters(
        "q_bench", "Q-Bench A1: low-level vision", "dev", 1495, q_bench, "accuracy", "letters",
        published=published(
            "readme mPLUG-Owl2: 62.9 (test)", "readme mPLUG-Owl2.1: 64.7 (test)", "paper mPLUG-Owl: 58.93",
        ),
    ),
    _letters(
        "mmmu", "college questions with several pictures", "val", 900, mmmu, "accuracy", "letters_or_words",
        rules=("official", "release"), submission=submitted_mmmu,
        published=published("recalled mPLUG-Owl2: 32.7 val / 32.1 test"),
    ),
    Task(
        "avqa", "questions about sounds with four choices, sound alone", ("avqa", "one_peace_aqa"), "val", ("audio",),
        {"decide": "choose_text", "embed": "choose_text"}, avqa, "accuracy", size=16910,
        published=published("readme ONE-PEACE: 92.2"),
    ),
)  # fmt: skip
