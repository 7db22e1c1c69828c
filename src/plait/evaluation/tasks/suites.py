"""Suites of yes and no (MME, POPE), of a judge's grade (MM-Vet, MMHal-Bench) and of people's grades (OwlEval).

annotation files -> Item(image, question, answers) -> a reply -> yes or no | judge or people -> the suite's totals
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from plait.evaluation.base import (
    Item,
    Method,
    Pairs,
    Rule,
    Scored,
    Scoring,
    Source,
    Task,
    layout,
    means,
    number_of,
    published,
)  # fmt: skip
from plait.evaluation.files import read_record, read_rows, read_table
from plait.evaluation.judge import judged
from plait.metrics.replies import mme_label
from plait.metrics.suites import (
    MARKS,
    MME_PERCEPTION,
    judge_grade,
    mm_vet_scores,
    mme_scores,
    mmhal_rating,
    mmhal_scores,
    owl_eval_table,
    pope_scores,
)  # fmt: skip
from plait.types import Capability, QuestionKind


def mme(scoring: Scoring) -> Scored:
    """acc + acc+ per category (at most 200 each), summed over perception and over cognition.

    Units are images: what an image adds to the perception score, times the number of images, so that their mean
    is that score.
    """
    scoring.keep(lambda item: bool(item.answers), "answer")
    rows = [
        {"category": item.category, "image": item.group or item.id, "answer": item.answer, "prediction": reply}
        for item, reply in scoring.pairs()
    ]
    found = mme_scores(rows)
    # perception is the headline, so cognition's pictures are no units
    seen = {image: share for (category, image), share in found["shares"].items() if category in MME_PERCEPTION}
    return Scored(
        {name: found[name] for name in ("perception", "cognition")},
        {image: share * len(seen) for image, share in seen.items()},
        categories=found["scores"],
        unreadable=[item.id for item, reply in scoring.pairs() if mme_label(reply) == "other"],
    )


def pope(scoring: Scoring) -> Scored:
    """Accuracy, precision, recall and F1 of yes, and the share of yes, in percent. No reply is wrong, not yes.

    Raises NotScored for a split without answers.
    """
    scoring.keep(lambda item: bool(item.answers), "answer")
    # None tells a missing reply from one that says nothing like yes
    found = pope_scores([reply or None for reply in scoring.replies()], [item.answer for item in scoring.items])
    scored = scoring.scored(found["hits"])
    scored.scores = {name: 100 * found[name] for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")}
    return scored


def grade_prompt(item: Item, reply: str) -> str:
    """Ask for a grade from 0.0 to 1.0 of a free answer. <AND> joins what must all be there, <OR> alternatives."""
    truth = item.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return (
        "Grade how much of the ground truth an answer gives, from 0.0 to 1.0 in steps of 0.1. <AND> joins parts that "
        "must all be given, <OR> parts of which one is enough. Reply with the number only.\n"
        f"Question: {item.question}\nGround truth: {truth}\nAnswer: {reply}\nGrade:"
    )


def mm_vet(scoring: Scoring) -> Scored:
    """Mean grade of a judge (0.0 to 1.0; 0 where none can be read), in percent, in total and per capability.

    Raises NotScored without a judge.
    """
    told, judge = judged(scoring, "MM-Vet", grade_prompt)
    # a grade that cannot be read is 0, as the model gets nothing from a silent judge
    grades = {name: judge_grade(reply.strip()) for name, reply in told.items()}
    needs = {item.id: item.meta.get("capabilities", []) for item in scoring.items}
    found = mm_vet_scores(needs, {name: [grade or 0.0] for name, grade in grades.items()})
    return Scored(
        {"score": found["total"]["mean"]},
        {name: 100 * (grade or 0.0) for name, grade in grades.items()},
        categories={part: found[part]["mean"] for part in sorted({part for parts in needs.values() for part in parts})},
        unreadable=[name for name, grade in grades.items() if grade is None],
        notes=[judge],
    )


def rating_prompt(item: Item, reply: str) -> str:
    """Ask for a rating from 0 to 6 of how far an answer keeps to an image, whose content is given in words."""
    return (
        "Rate an answer to a question about a picture from 0 to 6. 0 to 2: it says what is not in the picture (0"
        " without other use, 2 with much). 3 to 6: it does not (3 without information, 6 very informative).\n"
        f"In the picture: {item.context}\nQuestion: {item.question}\nStandard answer: {item.answer}\n"
        f"Answer: {reply}\nExplain in one sentence, then end with a line such as: Rating: 4"
    )


def mmhal_bench(scoring: Scoring) -> Scored:
    """Mean rating of a judge (0 to 6) and share of hallucinating replies (rating below 3); by question type.

    Raises NotScored without a judge.
    """
    told, judge = judged(scoring, "MMHal-Bench", rating_prompt)
    ratings = {name: mmhal_rating(reply) for name, reply in told.items()}
    units = {name: float(rating or 0) for name, rating in ratings.items()}
    parts = means((item.category, units[item.id]) for item in scoring.items if item.category)
    unreadable = [name for name, rating in ratings.items() if rating is None]
    return Scored(mmhal_scores(list(ratings.values())), units, {}, parts, unreadable, [judge])


def owl_eval(scoring: Scoring) -> Scored:
    """Rates of people's grades A to D over all, per ability and per kind of dialogue; A+B is the headline.

    Raises ValueError for other grades; without any the note says what is needed.
    """
    if scoring.judge is None:
        return Scored({}, notes=["not scored: OwlEval needs people's grades, --judge FILE.jsonl with id and reply"])
    # the grades are stored by id, nobody is asked
    grades, _ = judged(scoring, "OwlEval", lambda item, reply: "")
    if bad := next((name for name, mark in grades.items() if mark not in tuple(MARKS)), None):
        raise ValueError(f"expected grades A, B, C or D in {scoring.judge}, got {grades[bad]!r} for id {bad}")
    marked = [
        {"grades": [grades[i.id]], "category": i.meta["categories"], "ability": ",".join(i.meta["abilities"])}
        for i in scoring.items
    ]
    parts: dict[str, float] = {}  # with people's rates of the whole under the bare marks
    for name, rates in sorted(owl_eval_table(marked).items()):
        head = "" if name == "all" else f"{name.replace('_', ' ', 1)}: "
        shares = {mark: 100 * float(rates[mark]) for mark in MARKS}
        # "A+B" first: the order of the page
        parts |= {f"{head}{mark}": share for mark, share in {"A+B": shares["A"] + shares["B"], **shares}.items()}
    scores = {name: parts.pop(name) for name in ("A+B", *MARKS)}
    units = {item.id: 100.0 * (grades[item.id] in "AB") for item in scoring.items}
    return Scored(scores, units, scoring.groups, parts)


def submitted_owl_eval(pairs: Pairs, out: Path, model: str) -> Path:
    """OwlEval's files of answers for people to grade: the lines of its questions with answer and model_id."""
    rows = [
        {"image": item.image, "question_id": number_of(item.id), "question": item.question,
         "ability": ",".join(item.meta["abilities"]), "category": item.meta["categories"], "answer": text,
         "model_id": model}
        for item, text in pairs
    ]  # fmt: skip
    path = out / "answers.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@layout("pope", {"annotations": ("coco_pope_{split}.json", "*pope_{split}.json*")})
def read_pope(source: Source) -> list[Item]:
    """POPE: JSON lines, one file per split (random, popular, adversarial).

    Questions about one image are one group; the right answer is yes or no.
    """
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
def read_mm_vet(source: Source) -> list[Item]:
    """MM-Vet: a dictionary by id; every question asks for some of six capabilities.

    meta holds the capabilities; the answer may join parts by <AND> and <OR>.
    """
    record = read_record(source["annotations"])
    items = []
    for key in record:
        row = record.record(key)
        item = Item(key, image=row.text("imagename"), question=row.text("question"), answers=[row.text("answer")])
        item.meta["capabilities"] = row.texts("capability")
        items.append(item)
    return items


@layout("mmhal_bench", {"annotations": ("response_template.json", "*mmhal*.json")})
def read_mmhal_bench(source: Source) -> list[Item]:
    """MMHal-Bench (field names recalled): image_src ends in the name of the image; id = row number."""
    items = []
    for i, row in enumerate(read_rows(source["annotations"])):
        image = row.text("image_src").rpartition("/")[2]
        item = Item(str(i), image=image, question=row.text("question"), answers=[row.text("gt_answer")])
        item.context, item.category = ", ".join(row.texts("image_content")), row.text("question_type")
        items.append(item)
    return items


@layout("owl_eval", {"questions": ("questions.jsonl", "*.jsonl")})
def read_owl_eval(source: Source) -> list[Item]:
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
def read_mme(source: Source) -> list[Item]:
    """MME: a file per category; image, question, answer (and perhaps a reply), two lines per image."""
    items = []
    for path in [source.files[source.split]] if source.split in source.files else source.files.values():
        category, seen = path.stem, Counter[str]()
        columns = ("image", "question", "answer")
        for row in read_table(path, columns=columns, delimiter="\t", quoting=False, last_takes_rest=True):
            image = row.text("image")
            folder = f"{category}/images" if category in _IMAGES_BELOW else category
            # files of results have the reply behind the answer
            answer, _, reply = row.text("answer").partition("\t")
            if answer not in ("Yes", "No"):
                raise row.wrong("answer", "Yes or No", answer)
            # a picture has two questions: the number behind it tells them apart
            item = Item(f"{category}/{image}/{seen[image]}", image=f"{folder}/{image}", category=category)
            item.question, item.answers, item.group = row.text("question"), [answer], f"{category}/{image}"
            if reply:
                item.meta["prediction"] = reply
            seen[image] += 1
            items.append(item)
    return items


def _suite(name: str, about: str, split: str, size: int, rule: Rule, primary: str, kind: QuestionKind, **more) -> Task:
    """A task whose questions are answered in words about pictures."""
    methods: Mapping[Capability, Method] = {"generate": "prompt"}
    return Task(name, about, (name,), split, ("image",), methods, rule, primary, kind, size=size, **more)


TASKS = (
    _suite(
        "mme", "yes/no questions in 14 categories; perception is the headline", "all", 2374, mme, "perception",
        "yes_no",
        published=published("readme mPLUG-Owl2: 1450.19", "readme mPLUG-Owl2.1: 1545", "recalled mPLUG-Owl: 967.3"),
    ),
    _suite(
        "mm_vet", "open questions, graded by a judge", "test", 218, mm_vet, "score", "open", needs="judge",
        published=published("readme mPLUG-Owl2: 36.2", "readme mPLUG-Owl2.1: 39.0"),
    ),
    _suite(
        "pope", "does the model see what is not there (random, popular, adversarial)", "random", 3000, pope, "accuracy",
        "open", published=published("paper mPLUG-Owl2: 88.28/86.20/84.12", "paper mPLUG-Owl: 53.97/50.90/50.67"),
    ),
    _suite(
        "mmhal_bench", "does the model make things up, rated 0 to 6 by a judge; share of replies that do", "test", 96,
        mmhal_bench, "score", "open", needs="judge", published=published("paper mPLUG-Owl2: 2.17 / 0.56"),
    ),
    _suite(
        "owl_eval", "OwlEval: replies graded A to D by people", "all", 82, owl_eval, "A+B", "open",
        needs="people's grades", submission=submitted_owl_eval,
        published=published("recalled mPLUG-Owl: 66 of 82 replies A or B"),
    ),
)  # fmt: skip
