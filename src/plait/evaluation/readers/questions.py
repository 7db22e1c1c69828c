"""Questions with free answers about pictures and videos, and yes/no questions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from plait.evaluation.readers.captions import video_file
from plait.evaluation.readers.files import Row, read_lines, read_record, read_rows, read_table
from plait.evaluation.readers.item import Item
from plait.evaluation.readers.layout import Source, layout

_COCO_YEARS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}


def _vqa(source: Source) -> list[Item]:
    questions = read_record(source["questions"])
    subset = questions.text("data_subtype").replace("test-dev", "test")
    items = {}
    for row in questions.records("questions"):
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
    """VQA v2: questions and annotations joined by question_id, in the order of the questions."""
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
def gqa(source: Source) -> list[Item]:
    """GQA: a dictionary by question id, in the order of the file."""
    record = read_record(source["questions"])
    items = []
    for key in record:
        row = record.record(key)
        kind = row.record("types").text("structural") if "types" in row else None
        answers = [row.text("answer")] if "answer" in row else None
        image = f"{row.text('imageId')}.jpg"
        items.append(Item(key, image=image, question=row.text("question"), answers=answers, question_type=kind))
    return items


@layout("vizwiz", {"annotations": "{split}.json"})
def vizwiz(source: Source) -> list[Item]:
    """VizWiz: the file stem identifies the row; test files have image and question only."""
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
    """Owl2's converted question files: JSON lines, or one JSON list as the release's loader reads."""
    return [
        Item(
            row.text("question_id"),
            image=row.text("image"),
            question=row.text("question"),
            answers=_answers(row) if row.get("answer") is not None else None,
        )
        for row in read_rows(source.get("lines") or source["list"])
    ]


def _answers(row: Row) -> list[str]:
    return row.texts("answer") if isinstance(row["answer"], list) else [row.text("answer")]


@layout("msrvtt_qa", {"annotations": "{split}_qa.json"})
def msrvtt_qa(source: Source) -> list[Item]:
    """MSRVTT-QA: video_id is a number, the file video<number>.mp4."""
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
    answers = [row.text("answer")] if "answer" in row else None
    return Item(row.text("id"), video=video, question=row.text("question"), answers=answers, group=video)


@layout("tgif_frameqa", {"annotations": ("{split}_frameqa_question.csv",)}, aliases={"test": "Test", "train": "Train"})
def tgif_frameqa(source: Source) -> list[Item]:
    """TGIF-FrameQA: tab-separated despite its name; id = row number."""
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
    """mPLUG-2's question files: id = row number."""
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
        seen[name] += 1
        items.append(item)
    return items


@layout("pope", {"annotations": ("coco_pope_{split}.json", "*pope_{split}.json*")})
def pope(source: Source) -> list[Item]:
    """POPE: JSON lines, one file per split (random, popular, adversarial)."""
    return [
        Item(
            row.text("question_id"),
            image=row.text("image"),
            question=row.text("text"),
            answers=[row.one_of("label", ("yes", "no"))],
            group=row.text("image"),
        )
        for row in read_rows(source["annotations"])
    ]


@layout("mm_vet", {"annotations": "mm-vet.json"})
def mm_vet(source: Source) -> list[Item]:
    """MM-Vet: a dictionary by id; every question asks for some of six capabilities."""
    record = read_record(source["annotations"])
    items = []
    for key in record:
        row = record.record(key)
        item = Item(key, image=row.text("imagename"), question=row.text("question"), answers=[row.text("answer")])
        item.meta["capabilities"] = row.texts("capability")
        items.append(item)
    return items


@layout("mmhal_bench", {"annotations": ("response_template.json", "*mmhal*.json")})
def mmhal_bench(source: Source) -> list[Item]:
    """MMHal-Bench (field names recalled): image_src ends in the name of the picture; id = row number."""
    items = []
    for i, row in enumerate(read_rows(source["annotations"])):
        image = row.text("image_src").rpartition("/")[2]
        item = Item(str(i), image=image, question=row.text("question"), answers=[row.text("gt_answer")])
        item.context, item.category = ", ".join(row.texts("image_content")), row.text("question_type")
        items.append(item)
    return items


@layout("owl_eval", {"questions": ("questions.jsonl", "*.jsonl")})
def owl_eval(source: Source) -> list[Item]:
    """OwlEval: abilities a..f and categories; multi-turn questions of one image are the turns of one dialogue."""
    items, turns = [], Counter[str]()
    for row in read_rows(source["questions"]):
        image = row.text("image")
        item = Item(row.text("question_id"), image=image, question=row.text("question"), group=image)
        item.meta["abilities"] = row.text("ability").split(",")
        item.meta["categories"] = row.texts("category")
        if "multi_turn" in item.meta["categories"]:
            item.meta["turn"] = turns[image]
            turns[image] += 1
        items.append(item)
    return items


_IMAGES_BELOW = ("landmark", "artwork", "celebrity", "posters", "scene")
"""Categories of MME that keep their pictures in a folder `images`."""


@layout("mme", {"category": "*.txt"}, many=("category",))
def mme(source: Source) -> list[Item]:
    """MME: a file per category; image, question, answer (and perhaps a reply), two lines per image."""
    items = []
    for path in [source.files[source.split]] if source.split in source.files else source.files.values():
        category, seen = path.stem, Counter[str]()
        columns = ("image", "question", "answer")
        for row in read_table(path, columns=columns, delimiter="\t", quoting=False, last_takes_rest=True):
            image = row.text("image")
            folder = f"{category}/images" if category in _IMAGES_BELOW else category
            answer, _, reply = row.text("answer").partition("\t")
            if answer not in ("Yes", "No"):
                raise row.wrong("answer", "Yes or No", answer)
            item = Item(f"{category}/{image}/{seen[image]}", image=f"{folder}/{image}", category=category)
            item.question, item.answers, item.group = row.text("question"), [answer], f"{category}/{image}"
            if reply:
                item.meta["prediction"] = reply
            seen[image] += 1
            items.append(item)
    return items
