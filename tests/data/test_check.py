"""`plait data check` finds what is wrong with a data set."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from plait.cli import main
from plait.data.check import Bounds, check


@pytest.fixture
def data(tmp_path):
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{name}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    return tmp_path


def write(data, *rows):
    (data / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_a_whole_data_set_has_no_problems(data):
    write(
        data,
        {"id": "a", "image": "a.png", "text": "red", "split": "train", "license": "MIT", "label": "r"},
        {"id": "b", "image": "b.png", "split": "test", "label": "b"},
    )
    report = check(data)
    assert report.problems == [] and report.labels == 2
    assert report.counts == {"train": {"text": 1, "image": 1}, "test": {"image": 1}}
    assert report.licenses == {"MIT": 1, "not stated": 1}


def test_leaks_missing_and_damaged_files_and_bad_rows_are_found(data, capsys):
    write(
        data,
        {"id": "a", "image": "a.png", "split": "train"},
        {"id": "copy", "image": "copy.png", "split": "test"},
        {"id": "gone", "image": "gone.png"},
        {"id": "bad", "image": "bad.png"},
        {"id": 1.5},
    )
    report = check(data)
    assert report.leaks == ["copy (test) is the same file as a (train)"]
    assert len(report.missing) == len(report.damaged) == len(report.bad_rows) == 1
    assert main(["data", "check", str(data), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_every_image_of_a_row_is_looked_at_and_its_map_of_classes_too(data, capsys):
    write(
        data,
        {"id": "two", "images": ["a.png", "b.png"], "split": "train"},
        {"id": "copy", "images": ["copy.png", "gone.png"], "split": "test"},
        {"id": "map", "image": "b.png", "mask": "bad.png", "split": "train"},
    )
    report = check(data)
    assert report.counts["train"]["image"] == 3
    assert report.leaks == ["copy (test) is the same file as two (train)"]
    assert len(report.missing) == 1 and "gone.png" in report.missing[0]
    assert len(report.damaged) == 1 and report.damaged[0].startswith("map: ")


@pytest.mark.parametrize("row", [{"images": ["a.png", "b.png"]}, {"image": "a.png", "mask": "b.png"}])
def test_rows_of_files_that_shards_do_not_hold_are_not_packed(data, row, capsys):
    write(data, {"id": "r", **row})
    assert main(["data", "pack", str(data), str(data / "packed")]) == 1
    named = "mask" if "mask" in row else "images"
    assert f"r: expected files that shards hold, one of each medium, got {named}" in capsys.readouterr().err
    assert not (data / "packed").exists()


def test_commands_say_what_was_wrong(tmp_path, capsys):
    assert main(["data", "build", "nano"]) == 2
    assert main(["data", "build", "full", "--shipped"]) == 2
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "expected a manifest file" in capsys.readouterr().err


def test_the_shipped_data_set_can_be_unpacked_and_a_folder_imported(data, capsys):
    pytest.importorskip("soundfile", reason="needs plait[media]")
    assert main(["data", "build", "mini", "--shipped", "--out", str(data / "mini")]) == 0
    assert "300 image" in capsys.readouterr().out
    assert main(["data", "from-folder", str(data / "mini" / "images" / "twemoji"), str(data / "out")]) == 1
    assert "expected pictures or sounds in named sub-folders" in capsys.readouterr().err
    assert main(["data", "from-folder", str(data / "mini" / "images" / ".."), str(data / "own")]) == 0
    assert (data / "own" / "manifest.jsonl").is_file()


def test_what_will_not_fit_a_model_is_said_and_is_no_fault_of_the_data(data, capsys):
    soundfile = pytest.importorskip("soundfile")
    for name, seconds in (("short", 1), ("long", 16), ("longer", 17)):
        soundfile.write(data / f"{name}.wav", np.zeros(seconds * 2000, np.float32), 2000)
    write(
        data,
        *({"id": name, "audio": f"{name}.wav", "text": name} for name in ("short", "long", "longer")),
        {"id": "words", "image": "a.png", "text": "many words " * 60},
    )
    assert main(["data", "check", str(data), "nano"]) == 0
    said = capsys.readouterr().out
    assert "2 sounds are longer than the 15 s that nano takes (the longest 17 s, row longer)" in said
    assert "1 text is longer than the 71 tokens that nano takes" in said
    bounds = Bounds("m", ["text", "image"], tokens=70)
    assert check(data, bounds=bounds).misfits[-1].startswith("3 audio files: m takes text, image; training leaves")
