"""One table as an Office Open XML workbook (.xlsx), which test servers ask for: numbers and inline texts, no styles.

Files that test servers, or people who grade, take, in the exact layout of each benchmark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from plait.evaluation.readers import Item
from plait.evaluation.readers.choices import LETTERS
from plait.evaluation.tasks import Task
from plait.metrics.replies import letter

_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{_KIND}.sheet.main+xml"/>'
    f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_KIND}.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}">'
    '<sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
}
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML cannot hold."""
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)


def write_spreadsheet(path: Path, rows: Sequence[Sequence[str | int]]) -> Path:
    """Write rows, the first being the header; equal rows give equal bytes."""
    cells = ("".join(_cell(value, n, i) for i, value in enumerate(row)) for n, row in enumerate(rows, 1))
    lines = [f'<row r="{n}">{row}</row>' for n, row in enumerate(cells, 1)]
    sheet = f'<worksheet xmlns="{_MAIN}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
    with ZipFile(path, "w") as archive:
        for name, content in {**_PARTS, "xl/worksheets/sheet1.xml": sheet}.items():
            archive.writestr(ZipInfo(name, _FIRST_DAY), _HEAD + content, ZIP_DEFLATED)
    return path


def _cell(value: str | int, row: int, column: int) -> str:
    place = f"{chr(ord('A') + column)}{row}"
    if isinstance(value, int):
        return f'<c r="{place}"><v>{value}</v></c>'
    text = escape(_FORBIDDEN.sub("", value))
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'


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
