"""Files that test servers, or people who grade, take, in the exact layout of each benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plait.evaluation.readers import Item
from plait.evaluation.readers.choices import LETTERS
from plait.evaluation.spreadsheet import write_spreadsheet
from plait.evaluation.tasks import Task
from plait.metrics.replies import letter

Pairs = Sequence[tuple[Item, str]]


def captions(pairs: Pairs, path: Path) -> Path:
    """COCO and NoCaps: [{image_id, caption}]."""
    return _json(path, [{"image_id": _number(item.id), "caption": text} for item, text in pairs])


def vqa(pairs: Pairs, path: Path) -> Path:
    """VQA v2: [{question_id, answer}]."""
    return _json(path, [{"question_id": _number(item.id), "answer": text} for item, text in pairs])


def vizwiz(pairs: Pairs, path: Path) -> Path:
    """VizWiz: [{image, answer}]."""
    return _json(path, [{"image": item.image, "answer": text} for item, text in pairs])


def seed(pairs: Pairs, path: Path) -> Path:
    """SEED-Bench: JSON lines question_id, prediction (a letter)."""
    path = path.with_suffix(".jsonl")
    lines = [json.dumps({"question_id": item.id, "prediction": text[:1].upper()}) for item, text in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def mmmu(pairs: Pairs, path: Path) -> Path:
    """MMMU: {id: answer}, the letter of a multiple-choice question; a reply without a letter is handed in as it is."""
    return _json(path, {item.id: _lettered(item, text) for item, text in pairs})


def _lettered(item: Item, text: str) -> str:
    return (letter(text, item.choices, "mmmu_official") or text) if item.choices else text


def mmbench(pairs: Pairs, path: Path) -> Path:
    """MMBench: a spreadsheet index, question, A, B, C, D, prediction."""
    rows: list[list[str | int]] = [["index", "question", "A", "B", "C", "D", "prediction"]]
    for item, text in pairs:
        choices = dict(zip(LETTERS, item.choices or []))
        rows.append([_number(item.id), item.question or "", *(choices.get(one, "") for one in "ABCD"), text])
    return write_spreadsheet(path.with_suffix(".xlsx"), rows)


def owl_eval(pairs: Pairs, path: Path, model: str) -> Path:
    """OwlEval's files of answers for people to grade: the lines of its questions with answer and model_id."""
    rows = [
        {"image": item.image, "question_id": _number(item.id), "question": item.question,
         "ability": ",".join(item.meta["abilities"]), "category": item.meta["categories"], "answer": text,
         "model_id": model}
        for item, text in pairs
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


WRITERS: Mapping[str, Callable[[Pairs, Path], Path]] = {
    "captions": captions, "vqa": vqa, "vizwiz": vizwiz, "seed": seed, "mmmu": mmmu, "mmbench": mmbench,
}  # fmt: skip


def write_submission(
    task: Task, items: Sequence[Item], rows: Sequence[Mapping[str, Any]], out: Path, model: str = ""
) -> Path:
    """Write the submission file of a task into `out`; an item without a reply gets an empty one. model: its name."""
    replies = {row["id"]: row.get("prediction") or "" for row in rows}
    out.mkdir(parents=True, exist_ok=True)
    pairs = [(item, replies.get(item.id, "")) for item in items]
    if task.submission == "owl_eval":
        return owl_eval(pairs, out / "answers.jsonl", model)
    return WRITERS[task.submission](pairs, out / "submission.json")


def _json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def _number(text: str) -> int | str:
    return int(text) if text.isdigit() else text
