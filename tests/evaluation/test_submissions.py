"""Files for test servers: a run on a split without answers writes them, in each server's layout."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_run import QUIET, Parrot
from whole_fixtures import fixture

from plait.evaluation.files import read_results, write_spreadsheet
from plait.evaluation.run import evaluate, score_file
from plait.evaluation.tasks import TASKS


def without_answers(name: str, place: Path) -> Path:
    """The fixture of a task as its test split comes: no answers in the files."""
    data, _ = fixture(TASKS[name], TASKS[name].layouts[0], place)
    if name == "vqav2":
        (data / "v2_mscoco_val2014_annotations.json").unlink()
    elif name == "mmbench":
        (path,) = data.glob("*.tsv")
        rows = list(csv.reader(path.read_text().splitlines(), delimiter="\t"))
        keep = [i for i, column in enumerate(rows[0]) if column != "answer"]
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([row[i] for i in keep] for row in rows)
    else:
        (path,) = [file for file in data.iterdir() if file.suffix in (".json", ".jsonl")]
        path.write_text(_hidden(name, path.read_text()))
    return data


def _hidden(name: str, content: str) -> str:
    if name == "mmmu":
        return "".join(json.dumps(json.loads(line) | {"answer": "?"}) + "\n" for line in content.splitlines())
    document = json.loads(content)
    if name == "nocaps":
        images = [{key: value for key, value in row.items() if key != "domain"} for row in document["images"]]
        return json.dumps({"images": images})
    rows = document["questions"] if name == "seed_bench" else document
    for row in rows:
        row.pop("answers", None)
        row.pop("answer", None)
    return json.dumps(document)


def run(name: str, reply: str, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    data = without_answers(name, tmp_path / "data")
    result = evaluate(TASKS[name], Parrot(reply=reply), data, tmp_path / "out", QUIET)
    assert result["score"] is None
    assert result["notes"][0].startswith("submitted, not scored")
    assert "not scored" in (tmp_path / "out" / "result.html").read_text()
    return result, tmp_path / "out" / result["submission"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vqav2", {"question_id": 262148000, "answer": "a dog"}),
        ("vizwiz", {"image": "VizWiz_val_00000700.jpg", "answer": "a dog"}),
        ("nocaps", {"image_id": 0, "caption": "a dog"}),
    ],
)
def test_lists_of_records_have_the_ids_of_the_files(name: str, expected: dict[str, Any], tmp_path: Path) -> None:
    result, path = run(name, " a dog ", tmp_path)
    rows = json.loads(path.read_text())
    assert path.name == "submission.json"
    assert len(rows) == result["items"]
    assert rows[0].keys() == expected.keys()
    assert [type(value) for value in rows[0].values()] == [type(value) for value in expected.values()]
    assert all(list(row.values())[1] == "a dog" for row in rows)
    ids = [json.loads(line)["id"] for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [key for key, _ in read_results(path)] == ids
    again = score_file(TASKS[name], path, tmp_path / "data", None, QUIET)
    assert again["items"] == result["items"]


def test_seed_takes_lines_with_a_letter(tmp_path: Path) -> None:
    result, path = run("seed_bench", "b. It is red.", tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert path.suffix == ".jsonl"
    assert [row.keys() for row in rows] == [{"question_id", "prediction"}] * result["items"]
    assert {row["prediction"] for row in rows} == {"B"}
    assert [key for key, _ in read_results(path)] == [row["question_id"] for row in rows]


def test_mmmu_takes_a_letter_for_choices_and_words_for_open_questions(tmp_path: Path) -> None:
    _, path = run("mmmu", "The answer is (B).", tmp_path)
    found = json.loads(path.read_text())
    assert set(found.values()) == {"B", "The answer is (B)."}
    assert all(key.startswith("validation_") for key in found)


def test_mmbench_takes_a_spreadsheet_with_every_rotation(tmp_path: Path) -> None:
    result, path = run("mmbench", "A & <B>", tmp_path)
    assert path.name == "submission.xlsx"
    rows = sheet(path)
    assert rows[0] == ["index", "question", "A", "B", "C", "D", "prediction"]
    assert len(rows) == result["items"] + 1
    assert {row[-1] for row in rows[1:]} == {"A & <B>"}
    assert all(row[0].isdigit() for row in rows[1:])


def sheet(path: Path) -> list[list[str]]:
    """Cells of a workbook, read as any XML."""
    with zipfile.ZipFile(path) as archive:
        assert {"[Content_Types].xml", "_rels/.rels", "xl/workbook.xml"} <= set(archive.namelist())
        root = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    return [["".join(cell.itertext()) for cell in row.iter(f"{space}c")] for row in root.iter(f"{space}row")]


def test_a_spreadsheet_keeps_every_text_that_xml_can_hold(tmp_path: Path) -> None:
    path = write_spreadsheet(tmp_path / "a.xlsx", [["n", "text"], [7, ' a "b"\n& <c>\x01 ü ']])
    assert sheet(path) == [["n", "text"], ["7", ' a "b"\n& <c> ü ']]
    assert (
        path.read_bytes()
        == write_spreadsheet(tmp_path / "b.xlsx", [["n", "text"], [7, ' a "b"\n& <c>\x01 ü ']]).read_bytes()
    )


def test_every_server_task_of_the_specification_writes_a_file() -> None:
    tasks = {name for name, task in TASKS.items() if task.submission}
    assert tasks == {"vqav2", "vizwiz", "mmbench", "nocaps", "mmmu", "seed_bench", "owl_eval"}
