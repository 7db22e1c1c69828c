"""Text alone: GLUE, MMLU, BIG-bench hard, AGIEval, ARC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from plait.evaluation.readers.files import Row, read_record, read_rows, read_table
from plait.evaluation.readers.item import Item
from plait.evaluation.readers.layout import Source, layout

_OPTION = re.compile(r"^\(([A-Z])\)\s*")


@dataclass(frozen=True)
class GlueTask:
    """Where a GLUE task keeps its texts and labels. words: label words in the order of their classes."""

    folder: str
    texts: tuple[str, ...]
    label: str
    words: tuple[str, ...] = ()
    files: tuple[str, ...] = ("{split}.tsv",)
    columns: tuple[str, ...] | None = None
    is_number: bool = False


_ENTAILED = ("entailment", "not_entailment")
GLUE = {
    "sst2": GlueTask("SST-2", ("sentence",), "label"),
    "cola": GlueTask("CoLA", ("sentence",), "label", columns=("source", "label", "mark", "sentence")),
    "mrpc": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", files=("{split}.tsv", "msr_paraphrase_test.txt")),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate"),
    "mnli": GlueTask(
        "MNLI",
        ("sentence1", "sentence2"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        files=("{split}_matched.tsv", "{split}.tsv"),
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", _ENTAILED),
    "rte": GlueTask("RTE", ("sentence1", "sentence2"), "label", _ENTAILED),
    "stsb": GlueTask("STS-B", ("sentence1", "sentence2"), "score", is_number=True),
}
"""The tasks of GLUE by their short names."""


def glue_items(path: Path, task: GlueTask) -> list[Item]:
    """Items of one GLUE file: tab-separated without quoting, texts stripped, id = row number without the header."""
    items = []
    for i, row in enumerate(read_table(path, columns=task.columns, delimiter="\t", quoting=False)):
        first, *second = (row.text(name).strip() for name in task.texts)
        item = Item(str(i), text=first, text_pair=second[0] if second else None)
        if task.words:
            item.label_name = row.one_of(task.label, task.words)
            item.label = task.words.index(item.label_name)
        else:
            item.label = float(row.number(task.label)) if task.is_number else row.integer(task.label)
        items.append(item)
    return items


def _register(name: str, task: GlueTask) -> None:
    patterns = tuple(f"{task.folder}/{file}" for file in task.files)

    @layout(f"glue_{name}", {name: patterns}, aliases={"val": "dev"})
    def read(source: Source) -> list[Item]:
        return glue_items(source[name], task)


for _name, _task in GLUE.items():
    _register(_name, _task)


@layout("mmlu", {"test": ("{split}/*_{split}.csv", "*_{split}.csv")}, many=("test",))
def mmlu(source: Source) -> list[Item]:
    """MMLU: a headerless CSV per subject; rows of the subject's dev file are the examples shown before a question."""
    items = []
    for path in (path for path in source.files.values() if not path.stem.endswith("_dev") or source.split == "dev"):
        subject = path.stem.removesuffix("_test").removesuffix("_val").removesuffix("_dev")
        shots = path.parent.parent / "dev" / f"{subject}_dev.csv"
        examples = [_mmlu_item(row, i, subject) for i, row in enumerate(_mmlu_rows(shots))] if shots.exists() else []
        for i, row in enumerate(_mmlu_rows(path)):
            item = _mmlu_item(row, i, subject)
            item.meta["examples"] = examples
            items.append(item)
    return items


def _mmlu_rows(path: Path) -> list[Row]:
    return read_table(path, columns=("question", *"ABCD", "answer"))


def _mmlu_item(row: Row, number: int, subject: str) -> Item:
    item = Item(f"{subject}/{number}", question=row.text("question"), category=subject)
    item.choices = [row.text(letter) for letter in "ABCD"]
    item.answer_index = "ABCD".index(row.one_of("answer", "ABCD"))
    return item


@layout("bbh", {"annotations": "*.json"}, many=("annotations",))
def bbh(source: Source) -> list[Item]:
    """BIG-bench hard: a file per task with a canary string and examples."""
    return [
        Item(f"{path.stem}/{i}", question=row.text("input"), answers=[row.text("target")], category=path.stem)
        for path in source.files.values()
        for i, row in enumerate(_with_canary(path).records("examples"))
    ]


def _with_canary(path: Path) -> Row:
    record = read_record(path)
    record.text("canary")  # its absence means that the file was rebuilt from somewhere else
    return record


@layout("agieval", {"annotations": "*.jsonl"}, many=("annotations",))
def agieval(source: Source) -> list[Item]:
    """AGIEval: options carry their letter, which is stripped; the label is a letter, several letters or an answer."""
    items = []
    for path in source.files.values():
        for i, row in enumerate(read_rows(path)):
            item = Item(f"{path.stem}/{i}", context=row.optional("passage"), question=row.text("question"))
            item.category = path.stem
            options = row.get("options")
            if not options:
                item.answers = [row.text("answer")] if row.optional("answer") else None
            else:
                item.choices = [_OPTION.sub("", option) for option in row.texts("options")]
                _agieval_label(item, row, len(options))
            items.append(item)
    return items


def _agieval_label(item: Item, row: Row, count: int) -> None:
    letters = "ABCDEFGHIJ"[:count]
    if isinstance(row["label"], list):
        item.answers = row.texts("label")
        item.labels = [letters.index(letter) for letter in item.answers]
    else:
        item.answer_index = letters.index(row.one_of("label", letters))


def _arc(source: Source) -> list[Item]:
    items = []
    for row in read_rows(source["annotations"]):
        question = row.record("question")
        choices = question.records("choices")
        labels = [choice.text("label") for choice in choices]
        item = Item(row.text("id"), question=question.text("stem"), choices=[choice.text("text") for choice in choices])
        if row.optional("answerKey"):
            item.answer_index = labels.index(row.one_of("answerKey", labels))
        items.append(item)
    return items


for _name, _pattern in (("arc", "ARC-*"), ("arc_challenge", "ARC-Challenge"), ("arc_easy", "ARC-Easy")):

    @layout(_name, {"annotations": f"{_pattern}-{{split}}.jsonl"}, aliases={"test": "Test", "dev": "Dev"})
    def arc(source: Source) -> list[Item]:
        """ARC: three to five choices labelled A-E or 1-5."""
        return _arc(source)
