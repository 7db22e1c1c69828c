"""A list of a stranger's names files of its own directory and no others, wherever it is read."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from plait import Sample
from plait.assistant import requests_under
from plait.cli import main
from plait.data.folder import scan, write_scan
from plait.data.manifest import Skipped, read_manifest, write_manifest
from plait.data.reader import select
from plait.data.sources import open_samples, pack_data
from plait.reading import leads_outside, outside

NANO = Path(__file__).parents[2] / "src" / "plait" / "models" / "shipped" / "nano"


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set with a picture of its own, beside a folder of somebody's photographs; a cache that knows nothing."""
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    for place in ("theirs/a.png", "photos/dog/mine.png", "photos/cat/other.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (len(place), 90, 10)).save(tmp_path / place)
    return tmp_path / "theirs"


def listed(folder: Path, *names: object, field: str = "image", to: str = "manifest.jsonl") -> Path:
    rows = [{"id": str(i), field: name, "text": "a dog"} for i, name in enumerate(names)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / to).write_bytes(gzip.compress(content) if to.endswith(".gz") else content)
    return folder / to


def ways_out(folder: Path) -> list[str]:
    mine = folder.parent / "photos" / "dog" / "mine.png"
    return [
        str(mine),
        "../photos/dog/mine.png",
        "a/../../photos/dog/mine.png",
        "./../photos/dog/mine.png",
        "/etc/passwd",
    ]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("to", ["manifest.jsonl", "manifest.jsonl.gz"])
def test_a_name_that_leads_out_is_one_line(stranger: Path, number: int, to: str) -> None:
    name = ways_out(stranger)[number]
    path = listed(stranger, "a.png", name, to=to)
    for read in (
        lambda: read_manifest(path),
        lambda: open_samples(stranger),
        lambda: select(str(path), "images", bool),
    ):
        with pytest.raises(
            ValueError, match=r"line 2: field 'image': expected a file inside .* pass --outside"
        ) as said:
            read()
        assert name in str(said.value) and "\n" not in str(said.value)
    skipped = Skipped()
    assert [row.id for row in read_manifest(path, "skip", skipped)] == ["0"]
    assert len(skipped) == 1
    with outside():
        assert len(read_manifest(path)) == 2
    with pytest.raises(ValueError, match="leads outside"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("audio", "../b.wav"), ("video", "/b.mp4"), ("mask", "../m.png"), ("images", ["a.png", "../b.png"])],
)
def test_every_field_that_names_a_file_is_looked_at(stranger: Path, field: str, value: object) -> None:
    path = listed(stranger, value, field=field)
    with pytest.raises(ValueError, match=f"field '{field}': expected a file inside"):
        read_manifest(path)


def test_names_inside_are_taken_however_they_are_written(stranger: Path) -> None:
    (stranger / "b").mkdir()
    inside = ["a.png", "./a.png", "b/../a.png", str(stranger / "a.png"), "dots..png", "..a.png"]
    assert len(read_manifest(listed(stranger, *inside))) == len(inside)
    os.symlink(stranger, stranger.parent / "link")  # the same directory by another name
    path = listed(stranger, str(stranger / "a.png"))
    assert len(read_manifest(stranger.parent / "link" / path.name)) == 1
    assert not leads_outside(stranger, "a.png") and leads_outside(stranger, "../theirs-too/a.png")


def test_a_list_that_plait_wrote_may_name_what_it_likes_until_somebody_changes_it(stranger: Path) -> None:
    photos = stranger.parent / "photos"
    made = write_scan(scan(photos), stranger.parent / "data") / "manifest.jsonl"
    assert {Path(row.image).parent.parent for row in read_manifest(made)} == {photos}
    copied = write_manifest(stranger / "mine.jsonl.gz", read_manifest(made))
    assert len(read_manifest(copied)) == 2
    with made.open("a") as more:
        more.write(json.dumps({"id": "c", "image": "/etc/passwd"}) + "\n")
    with pytest.raises(ValueError, match="leads outside"):
        read_manifest(made)
    # what was written while everything was allowed is known later too
    with outside():
        write_manifest(stranger / "again.jsonl", [Sample("a", image=str(photos / "dog" / "mine.png"))])
    assert len(read_manifest(stranger / "again.jsonl")) == 1


def test_a_cache_that_cannot_be_written_loses_no_list(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stranger / "file").touch()
    monkeypatch.setenv("PLAIT_CACHE", str(stranger / "file"))
    path = write_manifest(stranger / "m.jsonl", [Sample("a", image="/elsewhere/a.png")])
    with pytest.raises(ValueError, match="leads outside"):
        read_manifest(path)


def test_what_is_given_away_stays_inside_whoever_wrote_the_list(stranger: Path) -> None:
    data = write_scan(scan(stranger.parent / "photos"), stranger.parent / "data")
    with pytest.raises(ValueError, match="--outside"):
        pack_data(data, stranger.parent / "shards", 1 << 20)
    assert pack_data(data, stranger.parent / "shards2", 1 << 20, outside=True)[0] == 2


COMMANDS = {
    "embed": "embed nano {list} --out {out}.npy",
    "index add": "index add {out}.lance {list} --model nano",
    "train": "train finetune --set model=nano --set data={list} --set task=retrieval --set steps=1 --out {out}",
    "plan": "plan finetune --set model=nano --set data={list} --set task=retrieval --set steps=1",
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_verbs_read_outside_when_they_are_asked_to(
    verb: str, stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if verb == "index add":
        pytest.importorskip("lancedb")
    out = str(stranger.parent / "out")
    photos = stranger.parent / "photos"
    rows = [{"id": n, "image": str(photos / n), "text": n, "label": n, "split": s} for n, s in SPLITS]
    path = stranger / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = COMMANDS[verb].format(list=path, out=out).split()
    assert main(words) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "pass --outside" in said
    assert main([*words, "--outside"]) == 0, capsys.readouterr().err
    with pytest.raises(ValueError, match="leads outside"):  # for one command
        read_manifest(path)


SPLITS = [("dog/mine.png", "train"), ("cat/other.png", "test")]


def test_verbs_that_read_no_list_do_not_take_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(NANO), "--outside"]) == 2
    assert "--outside" in capsys.readouterr().err


def test_assistants_read_lists_by_the_same_rule(stranger: Path) -> None:
    path = listed(stranger, "../photos/dog/mine.png")
    with pytest.raises(ValueError, match="leads outside"):
        requests_under(path)
    with outside():
        assert len(requests_under(path)[0]) == 1


@pytest.mark.parametrize("written", [r"\u002e./photos/dog/mine.png", r"\/etc/passwd", r"\u002fetc/passwd"])
def test_a_name_in_escapes_is_read_as_what_it_spells(stranger: Path, written: str) -> None:
    (stranger / "manifest.jsonl").write_text('{"id": "a", "image": "' + written + '"}\n')
    with pytest.raises(ValueError, match="leads outside"):
        read_manifest(stranger)
