"""Questions with free answers about pictures (VQA v2, OK-VQA, GQA, VizWiz, TextVQA) and videos (MSRVTT, MSVD, TGIF).

annotation files -> Item(image | video, question, answers) -> a reply -> agreement with annotators | equal strings
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from plait.evaluation.base import (
    Item,
    Pairs,
    Scored,
    Scoring,
    Source,
    Task,
    layout,
    means,
    number_of,
    published,
    write_json,
)  # fmt: skip
from plait.evaluation.files import Row, read_lines, read_record, read_rows, read_table
from plait.evaluation.judge import judged
from plait.evaluation.tasks.captions import texts_of, video_file
from plait.metrics.answers import exact_hits, gqa_normalised, gqa_scores, judge_scores, judge_verdict
from plait.metrics.vqa import RULES, vqa_accuracy


def vqa(scoring: Scoring) -> Scored:
    """VQA accuracy under the rule of the run, in percent; per question type and answer type.

    Tables of ONE-PEACE hold the score of every right answer instead of the annotators': the rule is then of no
    use.

    Returns:
        Score accuracy; units: accuracy of every item; categories: by type. Notes say where answers are not the
        usual ten.

    Raises:
        NotScored: for a split without answers.
    """
    scoring.keep(lambda item: bool(item.answers or item.meta.get("targets")), "answers")
    hits = []  # shares between 0 and 1, not only right and wrong
    for item, reply in scoring.pairs():
        targets = {answer: value for answer, _, value in item.meta.get("targets", [])}
        own = (
            targets.get(reply, 0.0) if targets else vqa_accuracy(reply, item.answers or [], scoring.rule or "official")
        )
        hits.append(own)
    scored = scoring.scored(hits)
    # every item counts under its question type and under its answer type
    kinds = ((kind, item.id) for item in scoring.items for kind in (item.question_type, item.answer_type))
    scored.categories = means((kind, scored.units[name]) for kind, name in kinds if kind is not None)
    if any(len(item.answers or []) == 1 for item in scoring.items):
        scored.notes.append(
            "items with one answer instead of ten: a hit needs that answer, which no published number does"
        )
    if any("targets" in item.meta for item in scoring.items):
        scored.notes.append("answers have the scores of the table, whatever the rule")
    return scored


def gqa(scoring: Scoring) -> Scored:
    """GQA's metrics over the balanced questions, after lower case and without a final period.

    Unbalanced questions of the file are asked, since consistency looks at what an answer entails, but never
    counted.

    Returns:
        Scores accuracy (primary), binary, open and distribution, and consistency where an entailed question is
        in the file; categories: accuracy by structural and semantic type.

    Raises:
        NotScored: for a split without answers.
        ValueError: where no question is balanced.
    """
    scoring.keep(lambda item: bool(item.answers), "answer")
    questions = {item.id: item.meta["question_record"] for item in scoring.items}
    said = {item.id: gqa_normalised(reply) for item, reply in scoring.pairs()}
    if not any(question["isBalanced"] for question in questions.values()):
        raise ValueError(
            "expected at least one balanced question, got none: GQA counts those alone; pass a larger part"
        )
    found = gqa_scores(questions, said)
    units = {name: 100.0 * hit for name, hit in found["hits"].items()}
    parts = (found["accuracyPerStructuralType"], found["accuracyPerSemanticType"])
    left_out = len(questions) - len(units)
    is_entailed = any(
        other in questions for name, one in questions.items() for other in one["entailed"] if other != name
    )
    # consistency needs pairs of questions, one of which entails the other; without any it would be a
    # made-up number
    shown = ("accuracy", "binary", "open", *(["consistency"] if is_entailed else []), "distribution")
    return Scored(
        {name: found[name] for name in shown},
        units,
        {name: group for name, group in scoring.groups.items() if name in units},
        {kind: share for part in parts for kind, (share, _) in part.items()},
        notes=[f"{left_out} unbalanced questions are not counted"] if left_out else [],
    )


def verdict_prompt(item: Item, reply: str) -> str:
    """Ask whether an answer to a video question means the same as the right one."""
    return (
        "Compare an answer to a question about a video with the right answer. Paraphrases count as right.\n"
        f"Question: {item.question}\nRight answer: {item.answer}\nAnswer: {reply}\n"
        "Reply with a Python dictionary only, such as {'pred': 'yes', 'score': 4}: pred yes or no, score 0 to 5."
    )


def video_qa(scoring: Scoring) -> Scored:
    """Free answers about videos. Rule exact: the reply is the annotated string. Rule judge: a judge says yes or no.

    Returns:
        Score accuracy in percent; by a judge also score, the mean of its grades from 0 to 5. Replies of the
        judge that cannot be read are left out of both and counted as unreadable.

    Raises:
        NotScored: for a split without answers, and for rule judge without a judge.
    """
    scoring.keep(lambda item: bool(item.answers), "answer")
    if scoring.rule != "judge":
        scored = scoring.scored(exact_hits(scoring.replies(), [item.answer for item in scoring.items]))
        kinds = ((item.question_type, scored.units[item.id]) for item in scoring.items if item.question_type)
        scored.categories = means(kinds)
        return scored
    told, judge = judged(scoring, "rule judge", verdict_prompt)
    read = {name: judge_verdict(reply) for name, reply in told.items()}
    # a verdict that cannot be read says nothing about the reply, so it is left out, not wrong
    units = {name: 100.0 * verdict[0] for name, verdict in read.items() if verdict is not None}
    unreadable = [name for name in read if name not in units]
    if not units:
        return Scored({}, unreadable=unreadable, notes=[f"not scored: no readable verdict of {judge}"])
    found = judge_scores(list(told.values()))
    scores = {"accuracy": 100 * found["accuracy"], "score": found["score"]}
    return Scored(scores, units, scoring.groups, {}, unreadable, [judge])


def submitted_vqa(pairs: Pairs, out: Path, model: str) -> Path:
    """Write what VQA v2's server takes: [{question_id, answer}], ids as numbers."""
    return write_json(out / "submission.json", [{"question_id": number_of(i.id), "answer": text} for i, text in pairs])


def submitted_vizwiz(pairs: Pairs, out: Path, model: str) -> Path:
    """Write what VizWiz's server takes: [{image, answer}], with the name of the image."""
    return write_json(out / "submission.json", [{"image": item.image, "answer": text} for item, text in pairs])


_COCO_YEARS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}


def _vqa(source: Source) -> list[Item]:
    """Items of VQA v2 and OK-VQA: questions, joined by question_id with annotations where these are there."""
    questions = read_record(source["questions"])
    # the pictures of test-dev are those of test: one folder, one name
    subset = questions.text("data_subtype").replace("test-dev", "test")
    items = {}
    for row in questions.records("questions"):
        # COCO of 2014 and 2015 writes the number of a picture in twelve digits
        image = f"COCO_{subset}_{row.integer('image_id'):012d}.jpg"
        key = row.text("question_id")
        if key in items:
            raise row.wrong("question_id", "an id that comes once", key)
        items[key] = Item(key, image=image, question=row.text("question"), group=row.text("image_id"))
    if (path := source.get("annotations")) is None:
        return list(items.values())
    record = read_record(path)
    names = dict(record.record("question_types")) if record.get("question_types") else {}
    answered = set()
    for row in record.records("annotations"):
        if (item := items.get(row.text("question_id"))) is None:
            raise row.wrong("question_id", f"an id of {source['questions'].name}", row["question_id"])
        item.answers = [answer.text("answer") for answer in row.records("answers")]
        kind = row.text("question_type")
        item.question_type, item.answer_type = names.get(kind, kind), row.text("answer_type")
        answered.add(item.id)
    if (bare := next((key for key in items if key not in answered), None)) is not None:
        raise ValueError(f"{path.name}: expected answers to every question, got none for question_id {bare}")
    return list(items.values())


@layout(
    "vqav2",
    {
        "questions": "v2_OpenEnded_mscoco_{split}*questions.json",
        "annotations": "v2_mscoco_{split}*annotations.json",
        "results": "vqa_results.json",
    },
    optional=("annotations", "results"),
    aliases=_COCO_YEARS,
)
def vqav2(source: Source) -> list[Item]:
    """VQA v2: questions and annotations joined by question_id, in the order of the questions.

    Items hold question, image, ten answers, question type and answer type; questions about one image are one
    group. Without annotations (test splits) there are no answers. Raises ValueError for a question without an
    annotation.
    """
    return _vqa(source)


@layout(
    "ok_vqa",
    {"questions": "OpenEnded_mscoco_{split}*questions.json", "annotations": "mscoco_{split}*annotations.json"},
    aliases=_COCO_YEARS,
)
def ok_vqa(source: Source) -> list[Item]:
    """OK-VQA: as VQA v2; question types are words that a map at the top names."""
    return _vqa(source)


@layout("gqa", {"questions": ("{split}_balanced_questions.json", "{split}*questions.json")})
def read_gqa(source: Source) -> list[Item]:
    """GQA: a dictionary by question id, in the order of the file. A file without `isBalanced` is of balanced ones."""
    record = read_record(source["questions"])
    items = []
    for key in record:
        row = record.record(key)
        types = row.record("types") if "types" in row else Row({}, row.place)
        item = Item(key, image=f"{row.text('imageId')}.jpg", question=row.text("question"))
        item.question_type = types.text("structural") if types else None
        item.group = row.text("imageId")
        if "answer" in row:
            item.answers = [row.text("answer")]
        groups = row.record("groups") if row.get("groups") else Row({}, row.place)
        item.meta["question_record"] = {
            "question": item.question,
            "answer": item.answer,
            # the balanced files leave the field out
            "isBalanced": row.one_of("isBalanced", (True, False)) if "isBalanced" in row else True,
            "types": {kind: types.get(kind) or "" for kind in ("structural", "semantic", "detailed")},
            "groups": {"global": groups.optional("global")},
            "entailed": row.texts("entailed") if "entailed" in row else [],
            "semantic": [
                {name: step.text(name) for name in ("operation", "argument")} for step in row.records("semantic")
            ]
            if "semantic" in row
            else [],
        }
        items.append(item)
    return items


@layout("vizwiz", {"annotations": "{split}.json"})
def vizwiz(source: Source) -> list[Item]:
    """VizWiz: the file stem identifies the row; test files have image and question only.

    meta holds answerable, where the file tells it.
    """
    items = []
    for row in read_rows(source["annotations"]):
        image = row.text("image")
        item = Item(Path(image).stem, image=image, question=row.text("question"))
        if "answers" in row:
            item.answers = [answer.text("answer") for answer in row.records("answers")]
            item.answer_type = row.optional("answer_type")
            item.meta["answerable"] = bool(row.integer("answerable")) if "answerable" in row else None
        items.append(item)
    return items


@layout(
    "textvqa", {"annotations": "TextVQA_[0-9]*_{split}.json", "ocr": "TextVQA_*OCR*_{split}.json"}, optional=("ocr",)
)
def textvqa(source: Source) -> list[Item]:
    """TextVQA: image = image_id + .jpg; OCR tokens, where their file is there, joined by image_id."""
    tokens = {}
    if (path := source.get("ocr")) is not None:
        tokens = {row.text("image_id"): row.texts("ocr_tokens") for row in read_record(path).records("data")}
    items = []
    for row in read_record(source["annotations"]).records("data"):
        image_id = row.text("image_id")
        answers = row.texts("answers") if "answers" in row else None
        item = Item(row.text("question_id"), image=f"{image_id}.jpg", question=row.text("question"), answers=answers)
        if path is not None:
            item.meta["ocr_tokens"] = tokens.get(image_id, [])
        item.group = image_id
        items.append(item)
    return items


@layout("qwen_style_vqa_list", {"lines": ("*{split}*.jsonl",), "list": ("*{split}*list.json",)}, optional=("list",))
def qwen_style(source: Source) -> list[Item]:
    """Owl2's converted question files: JSON lines, or one JSON list as the release's loader reads.

    Answers are one text or a list; test files may have none.
    """
    return [
        Item(
            row.text("question_id"),
            image=row.text("image"),
            question=row.text("question"),
            answers=texts_of(row, "answer") if row.get("answer") is not None else None,
        )
        for row in read_rows(source.get("lines") or source["list"])
    ]


@layout("msrvtt_qa", {"annotations": "{split}_qa.json"})
def msrvtt_qa(source: Source) -> list[Item]:
    """MSRVTT-QA: video_id is a number, the file video<number>.mp4.

    One answer a question; questions about one video are one group.
    """
    return [_video_question(row, f"video{row.integer('video_id')}.mp4") for row in read_rows(source["annotations"])]


@layout("msvd_qa", {"annotations": "{split}_qa.json", "mapping": "youtube_mapping.txt"})
def msvd_qa(source: Source) -> list[Item]:
    """MSVD-QA: video_id k -> vid<k> -> clip name by the mapping -> .avi."""
    path = source["mapping"]
    clips = {}
    for number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if len(words) != 2:
            raise ValueError(f"{path.name}, row {number}: expected a clip name and vid<number>, got {line!r:.60}")
        clips[words[1]] = words[0]
    items = []
    for row in read_rows(source["annotations"]):
        if (clip := clips.get(f"vid{row.integer('video_id')}")) is None:
            raise row.wrong("video_id", f"a video of {path.name}", row["video_id"])
        items.append(_video_question(row, f"{clip}.avi"))
    return items


def _video_question(row: Row, video: str) -> Item:
    """An item of MSRVTT-QA or MSVD-QA; questions about one video are one group."""
    answers = [row.text("answer")] if "answer" in row else None
    return Item(row.text("id"), video=video, question=row.text("question"), answers=answers, group=video)


@layout("tgif_frameqa", {"annotations": ("{split}_frameqa_question.csv",)}, aliases={"test": "Test", "train": "Train"})
def tgif_frameqa(source: Source) -> list[Item]:
    """TGIF-FrameQA: tab-separated despite its name; id = row number.

    question_type is object, number, color or location.
    """
    kinds = ("object", "number", "color", "location")
    items = []
    for i, row in enumerate(read_table(source["annotations"], delimiter="\t")):
        video = f"{row.text('gif_name')}.gif"
        if not 0 <= row.integer("type") < len(kinds):
            raise row.wrong("type", "0 (object), 1 (number), 2 (color) or 3 (location)", row["type"])
        kind = kinds[row.integer("type")]
        item = Item(str(i), video=video, question=row.text("question"), answers=[row.text("answer")], group=video)
        item.question_type = kind
        items.append(item)
    return items


@layout(
    "mplug2_video_qa",
    {"annotations": "*qa_{split}.jsonl", "answer_list": "answer_list.json"},
    optional=("answer_list",),
)
def mplug2_video_qa(source: Source) -> list[Item]:
    """mPLUG-2's question files: id = row number; a video of tumblr is a GIF."""
    return [
        Item(
            str(i),
            video=video_file(row.text("video_id")),
            question=row.text("question"),
            answers=[row.text("answer")] if "answer" in row else None,
            group=row.text("video_id"),
        )
        for i, row in enumerate(read_rows(source["annotations"]))
    ]


@layout("video_judge_predictions", {"predictions": "*.json"})
def video_judge_predictions(source: Source) -> list[Item]:
    """Input of the public judge script: repeated video names get the suffixes _0, _1, ..."""
    seen: Counter[str] = Counter()
    items = []
    for row in read_rows(source["predictions"]):
        name = row.text("video_name")
        item = Item(f"{name}_{seen[name]}", question=row.text("Q"), answers=[row.text("A")])
        item.meta["prediction"] = row.text("pred")
        # one video has several questions, and a name alone would come twice
        seen[name] += 1
        items.append(item)
    return items


_VIDEO = {"media": ("video",), "rules": ("exact", "judge")}


def _question(name: str, about: str, layouts: tuple[str, ...], split: str, size: int, rule=vqa, **more) -> Task:
    """A task with free short answers."""
    media, methods = more.pop("media", ("image",)), more.pop("methods", {"generate": "prompt"})
    return Task(name, about, layouts, split, media, methods, rule, "accuracy", "short", size=size, **more)


TASKS = (
    _question(
        "vqav2", "VQA v2", ("vqav2", "qwen_style_vqa_list", "one_peace_vqa"), "val", 214354, rules=RULES,
        methods={"decide": "decide", "generate": "prompt"}, submission=submitted_vqa, answers="answer_list.json",
        published=published(
            "readme ONE-PEACE: 82.6/82.5", "readme mPLUG-Owl2: 79.4", "readme mPLUG-Owl2.1: 79.9",
            "readme mPLUG large: 81.27/81.26",
            "recalled mPLUG-2: 81.11/81.13",
        ),
    ),
    _question(
        "ok_vqa", "questions that need outside knowledge", ("ok_vqa",), "val", 5046, rules=RULES,
        published=published("readme mPLUG-Owl2: 57.7", "readme mPLUG-Owl2.1: 58.1"),
    ),
    _question(
        "gqa", "compositional questions", ("gqa",), "testdev", 12578, gqa,
        published=published("readme mPLUG-Owl2: 56.1", "readme mPLUG-Owl2.1: 60.3"),
    ),
    _question(
        "vizwiz", "questions of blind people, zero-shot", ("vizwiz",), "val", 4319,
        rules=("evalai", "official", "release"), submission=submitted_vizwiz,
        published=published("readme mPLUG-Owl2: 54.5", "readme mPLUG-Owl2.1: 61.82"),
    ),
    _question(
        "textvqa", "questions about written text, zero-shot", ("textvqa",), "val", 5000,
        rules=("evalai", "release", "official"),
        published=published(
            "readme mPLUG-Owl2: 54.3", "readme mPLUG-Owl2.1: 57.4",
        ),
    ),
    _question(
        "msrvtt_qa", "MSRVTT-QA", ("msrvtt_qa", "mplug2_video_qa"), "test", 72821, video_qa, **_VIDEO,
        published=published(
            "readme mPLUG-2: 48.0", "readme mPLUG large: 21.1 (zero-shot)", "paper mPLUG-Owl2: 23.6 exact, 46.7 judged"
        ),
    ),
    _question(
        "msvd_qa", "MSVD-QA", ("msvd_qa", "mplug2_video_qa"), "test", 13157, video_qa, **_VIDEO,
        published=published(
            "readme mPLUG-2: 58.1", "readme mPLUG large: 37.2 (zero-shot)", "paper mPLUG-Owl2: 42.4 exact, 65.4 judged"
        ),
    ),
    _question(
        "tgif_frameqa", "TGIF-FrameQA", ("tgif_frameqa", "mplug2_video_qa"), "test", 13691, video_qa, **_VIDEO,
        published=published("recalled mPLUG-2: 75.4", "paper mPLUG-Owl2: 61.6 exact, 67.1 judged"),
    ),
)  # fmt: skip
