"""Text alone: GLUE, MMLU, BIG-bench hard, AGIEval, ARC.

annotation files -> Item(text, text_pair, label | question, choices) -> class scores | likelihoods | a reply
-> GLUE's measures | accuracy
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plait.evaluation.base import Item, Method, Scored, Scoring, Source, Task, layout, published
from plait.evaluation.files import Row, read_record, read_rows, read_table
from plait.evaluation.tasks.classes import resampled
from plait.metrics import glue
from plait.metrics.answers import answer_after_key, exact_hits
from plait.metrics.checks import finite
from plait.metrics.choices import arc_scores, mmlu_scores
from plait.metrics.replies import LETTERS, letter
from plait.types import Capability

_OPTION = re.compile(r"^\(([A-Z])\)\s*")


def glue_measures(scoring: Scoring) -> Scored:
    """Accuracy, F1 and Matthews correlation of classes; Pearson and Spearman correlation of a score.

    Returns:
        Accuracy, and of two classes F1 and Matthews, in percent; correlations from -1 to 1, with an interval of
        their own.

    Raises:
        NotScored: for a split without labels (GLUE's test files).
    """
    scoring.keep(lambda item: item.label is not None, "label")
    raw, best = scoring.raw, scoring.predictions
    labels = np.array([item.label for item in scoring.items], dtype=float)
    # one number per item is a score, whatever the task's name
    if all(len(raw[item.id]) == 1 for item in scoring.items):
        values = finite([raw[item.id][0] for item in scoring.items])
        scores = {"pearson": glue.pearson(values, labels), "spearman": glue.spearman(values, labels)}
        interval = resampled(lambda drawn: glue.spearman(values[drawn], labels[drawn]), len(labels))
        return Scored(scores, resampled=interval)
    said = finite([best[item.id][0] for item in scoring.items], "classes")
    scored = scoring.scored((said == labels).tolist())
    scored.scores = {"accuracy": 100 * glue.accuracy(said, labels)}
    # F1 and Matthews correlation are those of class 1
    if set(labels) <= {0, 1}:
        scored.scores |= {"f1": 100 * glue.f1(said, labels), "matthews": 100 * glue.matthews(said, labels)}
    return scored


def _likelihoods(scoring: Scoring) -> list[list[float]]:
    """Likelihood of every choice; one for the chosen index and zero else where predictions hold no more."""
    scoring.keep(lambda item: item.answer_index is not None, "answer")
    raw, said = scoring.raw, scoring.predictions
    # predictions of others hold the index alone: it wins, and normalised accuracy is the same as plain
    chosen = ([float(i == said[item.id]) for i in range(len(item.choices or []))] for item in scoring.items)
    return [raw[i.id] if isinstance(raw[i.id], list) else row for i, row in zip(scoring.items, chosen, strict=True)]


def mmlu(scoring: Scoring) -> Scored:
    """The letter with the highest likelihood; accuracy over all questions (micro), and the mean of the subjects.

    Returns:
        Scores accuracy (micro, primary) and macro, in percent; categories: by subject.

    Raises:
        NotScored: for a split without answers.
    """
    subjects: dict[str, list[dict[str, Any]]] = {}
    for item, row in zip(scoring.items, _likelihoods(scoring), strict=True):
        right = item.right_letter
        subjects.setdefault(item.category or "", []).append({"choice_logprobs": row, "answer": right})
    found = mmlu_scores(subjects)
    hits = {subject: iter(values) for subject, values in found["hits"].items()}
    scored = scoring.scored([next(hits[item.category or ""]) for item in scoring.items])
    scored.scores = {"accuracy": found["micro"], "macro": found["macro"]}
    scored.categories = dict(sorted(found["per_subject"].items()))
    return scored


def arc(scoring: Scoring) -> Scored:
    """The choice with the highest summed likelihood, and (acc_norm) with the highest likelihood per character.

    Returns:
        Scores accuracy and acc_norm in percent; units are of accuracy.

    Raises:
        NotScored: for a split without answers.
    """
    rows = [
        {"choice_logprobs": row, "choice_texts": item.choices, "answer_index": item.answer_index}
        for item, row in zip(scoring.items, _likelihoods(scoring), strict=True)
    ]
    found = arc_scores(rows)
    right = (item.answer_index for item in scoring.items)
    scored = scoring.scored(said == index for said, index in zip(found["predictions"], right, strict=True))
    scored.scores = {"accuracy": found["acc"], "acc_norm": found["acc_norm"]}
    return scored


def bbh(scoring: Scoring) -> Scored:
    """The text after the last "the answer is ", without a final period, equals the target; accuracy in percent."""
    scoring.keep(lambda item: bool(item.answers), "answer")
    said = [answer_after_key(reply) for reply in scoring.replies()]
    return scoring.scored(exact_hits(said, [item.answer for item in scoring.items]))


def agieval(scoring: Scoring) -> Scored:
    """First capital letter A to F of the reply; several right letters must all be named; free answers must be equal.

    Returns:
        Accuracy in percent; unreadable: replies without a letter.

    Raises:
        NotScored: for a split without answers.
    """
    scoring.keep(lambda item: item.answer_index is not None or bool(item.answers), "answer")
    hits, unreadable = [], []
    for item, reply in scoring.pairs():
        if not item.choices:
            hits.append(reply.strip().removesuffix(".") in (item.answers or []))
            unreadable.append(False)
            continue
        # where several letters are right, all of them have to be said and no other
        right = [LETTERS[i] for i in item.labels or [item.answer_index or 0]]
        first = letter(reply, item.choices, "agieval_first_capital")
        hits.append(([c for c in LETTERS[: len(item.choices)] if c in reply] if len(right) > 1 else [first]) == right)
        unreadable.append(first is None)
    return scoring.scored(hits, unreadable)


@dataclass(frozen=True)
class GlueTask:
    """Where a GLUE task keeps its texts and labels.

    Attributes:
        folder, files: place of its tables.
        size: of its development split.
        texts, label: columns.
        words: label words in the order of their classes; without them labels are numbers.
        columns: names where the file has no header.
        is_number: whether the label is a score.
        primary: the score that is its headline.
    """

    folder: str
    size: int
    texts: tuple[str, ...]
    label: str
    words: tuple[str, ...] = ()
    files: tuple[str, ...] = ("{split}.tsv",)
    columns: tuple[str, ...] | None = None
    is_number: bool = False
    primary: str = "accuracy"


_ENTAILED = ("entailment", "not_entailment")
GLUE = {
    "sst2": GlueTask("SST-2", 872, ("sentence",), "label"),
    "cola": GlueTask(
        "CoLA", 1043, ("sentence",), "label", columns=("source", "label", "mark", "sentence"), primary="matthews"
    ),
    "mrpc": GlueTask(
        "MRPC", 408, ("#1 String", "#2 String"), "Quality", files=("{split}.tsv", "msr_paraphrase_test.txt")
    ),
    "qqp": GlueTask("QQP", 40430, ("question1", "question2"), "is_duplicate"),
    "mnli": GlueTask(
        "MNLI", 9815, ("sentence1", "sentence2"), "gold_label", ("entailment", "neutral", "contradiction"),
        files=("{split}_matched.tsv", "{split}.tsv"),
    ),
    "qnli": GlueTask("QNLI", 5463, ("question", "sentence"), "label", _ENTAILED),
    "rte": GlueTask("RTE", 277, ("sentence1", "sentence2"), "label", _ENTAILED),
    "stsb": GlueTask("STS-B", 1500, ("sentence1", "sentence2"), "score", is_number=True, primary="spearman"),
}  # fmt: skip
"""The tasks of GLUE by their short names."""


def _read_glue(source: Source, name: str) -> list[Item]:
    """Items of one GLUE file: tab-separated without quoting, texts stripped, id = row number without the header."""
    task, items = GLUE[name], []
    for i, row in enumerate(read_table(source[name], columns=task.columns, delimiter="\t", quoting=False)):
        # one text or a pair, as the task has columns
        first, *second = (row.text(name).strip() for name in task.texts)
        item = Item(str(i), text=first, text_pair=second[0] if second else None)
        if task.words:
            item.label_name = row.one_of(task.label, task.words)
            item.label = task.words.index(item.label_name)
        else:
            item.label = float(row.number(task.label)) if task.is_number else row.integer(task.label)
        items.append(item)
    return items


for _name, _task in GLUE.items():
    _patterns = tuple(f"{_task.folder}/{file}" for file in _task.files)
    layout(f"glue_{_name}", {_name: _patterns}, aliases={"val": "dev"})(partial(_read_glue, name=_name))


@layout("mmlu", {"test": ("{split}/*_{split}.csv", "*_{split}.csv")}, many=("test",))
def read_mmlu(source: Source) -> list[Item]:
    """MMLU: a headerless CSV per subject; rows of the subject's dev file are the examples shown before a question.

    The id is subject/row; meta holds the examples as items.
    """
    items = []
    for path in (path for path in source.files.values() if not path.stem.endswith("_dev") or source.split == "dev"):
        subject = path.stem.removesuffix("_test").removesuffix("_val").removesuffix("_dev")
        # the five examples of a subject are its dev file, as in the release
        shots = path.parent.parent / "dev" / f"{subject}_dev.csv"
        examples = [_mmlu_item(row, i, subject) for i, row in enumerate(_mmlu_rows(shots))] if shots.exists() else []
        for i, row in enumerate(_mmlu_rows(path)):
            item = _mmlu_item(row, i, subject)
            item.meta["examples"] = examples
            items.append(item)
    return items


def _mmlu_rows(path: Path) -> list[Row]:
    """Rows of a subject's file, which has no header."""
    return read_table(path, columns=("question", *"ABCD", "answer"))


def _mmlu_item(row: Row, number: int, subject: str) -> Item:
    """A question of a subject; number: of its row, from 0."""
    item = Item(f"{subject}/{number}", question=row.text("question"), category=subject)
    item.choices = [row.text(letter) for letter in "ABCD"]
    item.answer_index = "ABCD".index(row.one_of("answer", "ABCD"))
    return item


@layout("bbh", {"annotations": "*.json"}, many=("annotations",))
def read_bbh(source: Source) -> list[Item]:
    """BIG-bench hard: a file per task with a canary string and examples.

    The id is task/row; the category is the task.
    """
    items = []
    for path in source.files.values():
        record = read_record(path)
        record.text("canary")  # its absence means that the file was rebuilt from somewhere else
        for i, row in enumerate(record.records("examples")):
            answers = [row.text("target")]
            items.append(Item(f"{path.stem}/{i}", question=row.text("input"), answers=answers, category=path.stem))
    return items


@layout("agieval", {"annotations": "*.jsonl"}, many=("annotations",))
def read_agieval(source: Source) -> list[Item]:
    """AGIEval: options carry their letter, which is stripped; the label is a letter, several letters or an answer.

    The id is exam/row; the category is the exam. Questions without options have answers instead of choices.
    """
    items = []
    for path in source.files.values():
        for i, row in enumerate(read_rows(path)):
            item = Item(f"{path.stem}/{i}", context=row.optional("passage"), question=row.text("question"))
            item.category = path.stem
            options = row.get("options")
            if not options:
                item.answers = [row.text("answer")] if row.optional("answer") else None
            else:
                # an option reads "(A)text", and its place is its letter already
                item.choices = [_OPTION.sub("", option) for option in row.texts("options")]
                letters = LETTERS[: len(options)]
                if isinstance(row["label"], list):  # several letters are right
                    item.answers = row.texts("label")
                    item.labels = [letters.index(one) for one in item.answers]
                else:
                    item.answer_index = letters.index(row.one_of("label", letters))
            items.append(item)
    return items


def read_arc(source: Source) -> list[Item]:
    """ARC: three to five choices labelled A-E or 1-5.

    Test files without answerKey give items without a right choice.
    """
    items = []
    for row in read_rows(source["annotations"]):
        question = row.record("question")
        choices = question.records("choices")
        # some questions have 1 to 5 in the place of letters: positions count here
        labels = [choice.text("label") for choice in choices]
        item = Item(row.text("id"), question=question.text("stem"), choices=[choice.text("text") for choice in choices])
        if row.optional("answerKey"):
            item.answer_index = labels.index(row.one_of("answerKey", labels))
        items.append(item)
    return items


for _name, _pattern in (("arc", "ARC-*"), ("arc_challenge", "ARC-Challenge"), ("arc_easy", "ARC-Easy")):
    layout(_name, {"annotations": f"{_pattern}-{{split}}.jsonl"}, aliases={"test": "Test", "dev": "Dev"})(read_arc)


def _glue(name: str) -> Task:
    """The task of a GLUE table, on its development split: labels of the test split are hidden."""
    own, is_score = GLUE[name], name == "stsb"
    methods: Mapping[Capability, Method] = {"classify": "class_scores"}
    if is_score:
        methods = {**methods, "embed": "similarity"}
    about = f"GLUE {name.upper()}, a trained head{', or cosine of vectors' if is_score else ''}"
    return Task(
        f"glue_{name}", about, (f"glue_{name}",), "dev", ("text",), methods, glue_measures, own.primary, size=own.size
    )  # fmt: skip


def _text(name: str, about: str, size: int | None, methods, rule, kind, value: str) -> Task:
    """A task of a language model, with the number that mPLUG-Owl2's read-me gives."""
    return Task(
        name, about, (name,), "test", ("text",), {"text": methods}, rule, "accuracy", kind, size=size,
        published=published(f"readme mPLUG-Owl2: {value}"),
    )  # fmt: skip


TASKS = (
    _text("mmlu", "57 subjects, five examples before every question", 14042, "rank_choices", mmlu, "few_shot", "53.4"),
    _text("bbh", "BIG-bench hard, no examples", 6511, "prompt", bbh, "plain", "45.0"),
    _text("agieval", "exams, no examples", None, "prompt", agieval, "exam", "32.7"),
    _text("arc_challenge", "ARC, the hard questions", 1172, "rank_choices", arc, "plain", "65.8"),
    _text("arc_easy", "ARC, the easy questions", 2376, "rank_choices", arc, "plain", "79.9"),
    *map(_glue, GLUE),
)
