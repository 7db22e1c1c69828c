"""The verbs take files, folders and manifests, and every wrong input is one line and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from plait import cli

from .conftest import Parrot, grey, write_video


@pytest.fixture(autouse=True)
def _behind(parrot: Parrot) -> None:
    """Every model is a parrot."""


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_file_gives_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["caption", "model", str(folder / "a.png"), "--num-beams", "2"]) == 0
    assert lines(capsys) == [f"{folder / 'a.png'}\timage 10 num_beams=2"]


def test_a_folder_reports_what_it_skips(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["caption", "model", str(folder), "--on-bad", "skip"]) == 0
    seen = capsys.readouterr()
    assert [line.split("\t")[1].split()[0] for line in seen.out.splitlines()] == ["image", "video", "image"]
    assert "passed over 2 files" in seen.err
    assert [name in seen.err for name in ("d.png", "z.mp4", "e.wav")] == [True, True, False]


def test_one_file_passed_over_is_one_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "notes.txt").unlink()
    assert cli.main(["caption", "model", str(folder), "--on-bad", "skip"]) == 0
    assert "passed over 1 file that is neither image nor video\n" in capsys.readouterr().err


def test_one_bad_file_is_fatal_by_default(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "z.mp4").unlink()
    assert cli.main(["caption", "model", str(folder)]) == 1
    assert "d.png" in capsys.readouterr().err.splitlines()[-1]


def test_a_manifest_brings_its_own_questions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "1", "image": "a.png", "question": "what"}, {"id": "2", "video": "c.mp4"}]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["answer", "model", str(folder / "manifest.jsonl"), "who", "--json"]) == 0
    found = [json.loads(line) for line in lines(capsys)]
    assert [row["name"] for row in found] == ["sample 1", "sample 2"]
    assert [row["answer"].split()[0] for row in found] == ["what", "who"]


def test_answers_from_a_list_or_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "answers.list").write_text("cat\ndog\n")
    for given in ("cat, dog", f"@{folder / 'answers.list'}"):
        assert cli.main(["answer", "model", str(folder / "a.png"), "who", "--answers", given, "--json"]) == 0
        (row,) = (json.loads(line) for line in lines(capsys))
        assert row["answers"][0] == {"text": "dog", "probability": 0.75}


def test_boxes_and_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ground", "model", str(folder / "a.png"), "the dog"]) == 0
    assert lines(capsys) == [f"{folder / 'a.png'}\t0.0 1.5 4.0 6.0"]
    assert cli.main(["classify", "model", str(folder / "a.png"), "-k", "1"]) == 0
    assert lines(capsys) == [f"{folder / 'a.png'}\tbright 0.500"]


def sound_in_a_video_file(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.mp4", "no such file"),
        ("z.mp4", "an empty file"),
        ("e.wav", "got audio"),
        ("notes.txt", "a text file"),
        ("d.png", "d.png"),
        ("sound.mp4", "got audio"),
    ],
)
def test_wrong_files_are_one_line_and_exit_one(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    sound_in_a_video_file(folder / "sound.mp4")
    assert cli.main(["caption", "model", str(folder / name)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert cli.main(["caption", "model", str(folder / name), "--on-bad", "skip"]) == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["answer", "model", "{a}", "who", "--answers", " , "], 2, "empty list"),
        (["answer", "model", "{a}", "who", "--answers", "@nowhere"], 2, "nowhere"),
        (["answer", "model", "{a}", "x" * 41], 1, "at most 40 letters"),
        (["answer", "model", "{a}"], 1, "expected a question"),
        (["caption", "model", "{a}", "--on-bad", "maybe"], 2, "--on-bad fail or skip"),
        (["classify", "model", "{a}", "--labels", ""], 2, "empty list"),
        (["caption", "model"], 2, "MEDIA"),
    ],
)
def test_wrong_commands_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    assert cli.main([option.format(a=folder / "a.png") for option in options]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_row_without_a_question_is_reported_or_fatal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        grey(10).save(tmp_path / f"{name}.png")
    rows = [{"id": "1", "image": "a.png", "question": "who"}, {"id": "2", "image": "b.png"}]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["answer", "model", str(manifest)]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    assert "expected a question or phrase for sample 2" in captured.err
    assert cli.main(["answer", "model", str(manifest), "--on-bad", "skip", "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["answer"], second["name"]) == ("who 10", "sample 2")
    assert "expected a question" in second["error"]


def test_a_damaged_clip_among_good_ones_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_video(folder / "w.mp4", list(range(0, 250, 5))).read_bytes()
    (folder / "w.mp4").write_bytes(whole[: len(whole) // 2])
    assert cli.main(["caption", "model", str(folder), "--on-bad", "skip", "--json"]) == 0
    rows = [json.loads(line) for line in lines(capsys)]
    (bad,) = (row for row in rows if row["name"].endswith("w.mp4"))
    assert "w.mp4" in bad["error"]
    assert "caption" not in bad
