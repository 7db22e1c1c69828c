"""A folder of mixed files, strange and hostile ones among them: indexed and searched in one go, nothing left unsaid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from plait.cli import main

from ..hostile import write_hostile, write_plain

pytest.importorskip("lancedb")
pytest.importorskip("av")


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str | None]]]:
    folder = tmp_path / "mixed"
    plain = write_plain(folder / "plain", 18)
    yield folder, dict.fromkeys((path.name for path in plain), None) | write_hostile(folder / "strange")
    (folder / "strange" / "unreadable.png").chmod(0o600)


def test_every_file_is_indexed_or_listed_with_its_reason(
    mixed: tuple[Path, dict[str, str | None]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, expected = mixed
    index = str(tmp_path / "mixed.lance")
    assert len(expected) <= 60
    assert main(["index", "add", index, str(folder), "--model", "nano", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    taken = [name for name, reason in expected.items() if reason is None]
    assert report["added"] == len(taken)
    assert report["duplicates"] == []
    skipped = {Path(problem["path"]).name: problem["reason"] for problem in report["skipped"]}
    assert set(skipped) == set(expected) - set(taken)
    for name, reason in skipped.items():
        assert (expected[name] or "") in reason, (name, reason)
        assert "\n" not in reason
    for query, found in (("--image", "cmyk.jpg"), ("--audio", "eight-bit.wav"), ("--video", "silent.mp4")):
        assert main(["search", index, query, str(folder / "strange" / found), "-k", "3", "--json"]) == 0
        hits = json.loads(capfd.readouterr().out)
        assert Path(hits[0]["path"]).name == found
        assert hits[0]["score"] == pytest.approx(1, abs=1e-4)


def test_what_was_skipped_is_printed_one_line_each(
    mixed: tuple[Path, dict[str, str | None]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, expected = mixed
    assert main(["index", "add", str(tmp_path / "i.lance"), str(folder / "strange"), "--model", "nano"]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "%|" not in line]
    left_out = sum(reason is not None for reason in expected.values())
    assert lines[-1] == f"skipped: and {left_out - 20} more; --json lists all"
    assert len(lines) == 21
    assert all(line.startswith("skipped: ") and line.isprintable() for line in lines)


def test_many_files_with_one_reason_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_plain(tmp_path / "all", 2)
    for n in range(30):
        (tmp_path / "all" / f"{n:02}.txt").write_text("milk")
    (tmp_path / "all" / "half.png").write_bytes((tmp_path / "all" / "plain-0.png").read_bytes()[:30])
    monkeypatch.chdir(tmp_path)
    assert main(["index", "add", "{i}.lance", "all", "--model", "nano"]) == 0
    out, err = capfd.readouterr()
    assert out == "{i}.lance: 2 added, 0 replaced, 0 there already, 2 in all\n"
    assert [line for line in err.splitlines() if "%|" not in line] == [
        "skipped: 30 files: no picture, video or sound (all/00.txt, all/01.txt, all/02.txt, ...)",
        "skipped: all/half.png: a truncated or damaged PNG file; check the file",
    ]
