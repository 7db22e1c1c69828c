"""Every reader, every field: what is absent or of a wrong type is one line that names file, row and field."""

from __future__ import annotations

import copy
import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plait.evaluation.base import LAYOUTS, Source

FORMATS = Path(__file__).parents[2] / "goldens" / "formats"
KINDS = sorted(path.name for path in FORMATS.iterdir() if path.is_dir() and path.name in LAYOUTS)
WITHOUT_FIELDS = {"ade20k"}
"""Masks alone; see test_readers."""
PLACE = r"row \d|line \d|field '[^']"
"""Where in the file: a row, a line, or a field of the record that is the file."""
NAMED = r"field '[^']|\d columns \(|expected (a file name|a name|a clip name|answers|an id|every id|a 'domain')"
"""What was expected there, where it is not the broken field by its own name (an id that others refer to)."""
TABLES = {".csv", ".tsv"}


def records(value: Any) -> Iterator[dict[str, Any]]:
    """All records inside decoded JSON."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from records(child)


def broken_json(text: str) -> Iterator[tuple[str, str]]:
    """(field, text with that field absent or of a wrong type), for the first five records that have fields."""
    try:
        document, is_lines = json.loads(text), False
    except ValueError:
        document, is_lines = [json.loads(line) for line in text.splitlines()], True
    for number, record in enumerate(records(document)):
        for field in list(record):
            for value in (None, {"wrong": 1}):
                other = copy.deepcopy(document)
                place = next(found for i, found in enumerate(records(other)) if i == number)
                if value is None:
                    del place[field]
                else:
                    place[field] = value
                yield field, "\n".join(map(json.dumps, other)) if is_lines else json.dumps(other)


def broken_table(text: str, delimiter: str) -> Iterator[tuple[str, str]]:
    """(cell of the first line, text without its column)."""
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    for i, column in enumerate(rows[0]):
        buffer = io.StringIO()
        table = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
        table.writerows([cell for n, cell in enumerate(row) if n != i] for row in rows)
        yield column, buffer.getvalue()


def errors(kind: str, root: Path) -> Iterator[tuple[str, str, str]]:
    """(file, field, message) of everything that the reader refuses."""
    expected = json.loads((FORMATS / kind / "expected.json").read_text(encoding="utf-8"))
    files = {role: root / name for role, name in expected["files"].items() if (root / name).is_file()}
    source = Source(root, files, expected["split"])
    for path in files.values():
        if path.suffix in (".p", ".png"):
            continue
        whole = path.read_text(encoding="utf-8")
        if path.suffix in (".json", ".jsonl"):
            variants = broken_json(whole)
        elif path.suffix in TABLES:
            variants = broken_table(whole, "\t" if "\t" in whole.splitlines()[0] else ",")
        else:
            variants = iter([("", f"{whole}lonely\n")])
        for field, content in variants:
            path.write_text(content, encoding="utf-8")
            try:
                LAYOUTS[kind].read(source)
            except ValueError as error:
                yield path.name, field, str(error)
        path.write_text(whole, encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_field_is_one_line_with_file_row_and_field(kind: str, tmp_path: Path) -> None:
    root = Path(shutil.copytree(FORMATS / kind, tmp_path / kind))
    found = list(errors(kind, root))
    names = [path.name for path in root.rglob("*") if path.is_file()]
    for _, field, message in found:
        assert "\n" not in message
        assert any(name in message for name in names), message
        assert re.search(PLACE, message), message
        assert field in message or re.search(NAMED, message), (field, message)
    assert found or kind in WITHOUT_FIELDS
