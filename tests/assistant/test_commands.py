"""The verbs take files, folders and manifests, and every wrong input is one line and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from plait import cli
from plait.assistant import Assistant

from .conftest import GROUNDING, TALKING, grey, write_video

MODEL = str(TALKING)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_file_gives_a_line(assistant: Assistant, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["caption", MODEL, str(folder / "a.png"), "--num-beams", "2"]) == 0
    assert lines(capsys) == [f"{folder / 'a.png'}\t{assistant.caption(folder / 'a.png', num_beams=2)}"]


def test_a_folder_reports_what_it_skips(assistant: Assistant, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["caption", MODEL, str(folder), "--on-bad", "skip"]) == 0
    seen = capsys.readouterr()
    good = [folder / "a.png", folder / "c.mp4", folder / "deep" / "b.png"]
    assert seen.out.splitlines() == [f"{path}\t{assistant.caption(path)}" for path in good]
    assert "passed over 2 files" in seen.err
    assert [name in seen.err for name in ("d.png", "z.mp4", "e.wav")] == [True, True, False]


def test_one_file_passed_over_is_one_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "notes.txt").unlink()
    assert cli.main(["caption", MODEL, str(folder), "--on-bad", "skip"]) == 0
    assert "passed over 1 file that is neither image nor video\n" in capsys.readouterr().err


def test_one_bad_file_is_fatal_by_default(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "z.mp4").unlink()
    assert cli.main(["caption", MODEL, str(folder)]) == 1
    assert "d.png" in capsys.readouterr().err.splitlines()[-1]


def test_a_manifest_brings_its_own_questions(
    assistant: Assistant, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": "1", "image": "a.png", "question": "what"}, {"id": "2", "video": "c.mp4"}]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["answer", MODEL, str(folder / "manifest.jsonl"), "who", "--json"]) == 0
    found = [json.loads(line) for line in lines(capsys)]
    assert [row["name"] for row in found] == ["sample 1", "sample 2"]
    asked = [(folder / "a.png", "what"), (folder / "c.mp4", "who")]
    assert [row["answer"] for row in found] == [assistant.answer(*one) for one in asked]


def test_answers_from_a_list_or_a_file(assistant: Assistant, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "answers.list").write_text("cat\ndog\n")
    for given in ("cat, dog", f"@{folder / 'answers.list'}"):
        assert cli.main(["answer", MODEL, str(folder / "a.png"), "who", "--answers", given, "--json"]) == 0
        (row,) = (json.loads(line) for line in lines(capsys))
        assert sorted(one["text"] for one in row["answers"]) == ["cat", "dog"]
        best = assistant.rank(folder / "a.png", "who", ["cat", "dog"])[0]
        assert row["answers"][0] == {"text": best.text, "probability": pytest.approx(best.probability)}


def test_boxes_and_labels(
    assistant: Assistant, grounding: Assistant, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = folder / "a.png"
    assert cli.main(["ground", str(GROUNDING), str(picture), "the dog"]) == 0
    corners = " ".join(f"{edge:.1f}" for edge in grounding.ground(picture, "the dog"))
    assert lines(capsys) == [f"{picture}\t{corners}"]
    assert cli.main(["classify", MODEL, str(picture), "--labels", "dog,cat", "-k", "1"]) == 0
    best = assistant.classify(picture, ["dog", "cat"])[0]
    assert lines(capsys) == [f"{picture}\t{best.text} {best.probability:.3f}"]


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
    assert cli.main(["caption", MODEL, str(folder / name)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert cli.main(["caption", MODEL, str(folder / name), "--on-bad", "skip"]) == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["answer", MODEL, "{a}", "who", "--answers", " , "], 2, "empty list"),
        (["answer", MODEL, "{a}", "who", "--answers", "@nowhere"], 2, "nowhere"),
        (["answer", MODEL, "{a}", "x " * 41], 1, "at most 20 tokens"),
        (["answer", MODEL, "{a}"], 1, "expected a question"),
        (["caption", MODEL, "{a}", "--on-bad", "maybe"], 2, "--on-bad fail or skip"),
        (["classify", MODEL, "{a}", "--labels", ""], 2, "empty list"),
        (["caption", MODEL], 2, "MEDIA"),
    ],
)
def test_wrong_commands_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    assert cli.main([option.format(a=folder / "a.png") for option in options]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_row_without_a_question_is_reported_or_fatal(
    assistant: Assistant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        grey(10).save(tmp_path / f"{name}.png")
    rows = [{"id": "1", "image": "a.png", "question": "who"}, {"id": "2", "image": "b.png"}]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["answer", MODEL, str(manifest)]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    assert "expected a question or phrase for sample 2" in captured.err
    assert cli.main(["answer", MODEL, str(manifest), "--on-bad", "skip", "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["answer"], second["name"]) == (assistant.answer(tmp_path / "a.png", "who"), "sample 2")
    assert "expected a question" in second["error"]


def test_a_damaged_clip_among_good_ones_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_video(folder / "w.mp4", list(range(0, 250, 5))).read_bytes()
    (folder / "w.mp4").write_bytes(whole[: len(whole) // 2])
    assert cli.main(["caption", MODEL, str(folder), "--on-bad", "skip", "--json"]) == 0
    rows = [json.loads(line) for line in lines(capsys)]
    (bad,) = (row for row in rows if row["name"].endswith("w.mp4"))
    assert "w.mp4" in bad["error"]
    assert "caption" not in bad
