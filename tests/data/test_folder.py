"""A folder of one's own becomes a data set, or a sentence says why not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from plait.cli import main
from plait.data.check import check
from plait.data.folder import scan, write_scan
from plait.data.manifest import read_manifest

soundfile = pytest.importorskip("soundfile", reason="needs plait[media]")


def picture(path, color):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)


def sound(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, 800).astype("float32"), 16000)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "mine"
    for i in range(5):
        picture(root / "grey_cat" / f"{i}.png", (i, i, i))
    for i in range(2):
        picture(root / "dog" / f"{i}.png", (200, i, 0))
        sound(root / "dog" / "sounds" / f"{i}.wav", i)
    return root


def test_sub_folders_name_what_lies_in_them(folder, tmp_path):
    samples = read_manifest(write_scan(scan(folder), tmp_path / "out"))
    assert {(s.label, s.text) for s in samples} == {("grey_cat", "grey cat"), ("dog", "dog")}
    assert sum(s.audio is not None for s in samples) == 2
    assert check(tmp_path / "out").problems == []


def test_each_label_and_modality_has_both_splits(folder):
    splits = {(s.label, s.modalities[-1], s.split) for s in scan(folder).samples}
    kinds = {("grey_cat", "image"), ("dog", "image"), ("dog", "audio")}
    assert splits == {(*kind, split) for kind in kinds for split in ("train", "test")}


def test_the_split_follows_the_content_not_the_name(folder):
    before = {s.id: s.split for s in scan(folder).samples}
    (folder / "dog" / "0.png").rename(folder / "dog" / "9.png")
    after = {s.id: s.split for s in scan(folder).samples}
    assert after["dog/9.png"] == before["dog/0.png"]


def test_equal_files_are_on_one_side(folder):
    for i in range(5):
        (folder / "grey_cat" / f"copy{i}.png").write_bytes((folder / "grey_cat" / f"{i}.png").read_bytes())
    splits = {s.id: s.split for s in scan(folder).samples}
    assert all(splits[f"grey_cat/copy{i}.png"] == splits[f"grey_cat/{i}.png"] for i in range(5))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions_files_give_words(tmp_path, kind):
    for i in range(4):
        picture(tmp_path / f"{i}.png", (i, 9, 9))
    rows = [{"file": f"{i}.png", "text": f"a picture, number {i}"} for i in range(4)]
    if kind == "csv":
        lines = ["file,text", *(f'{row["file"]},"{row["text"]}"' for row in rows)]
    else:
        lines = [json.dumps(row) for row in rows]
    (tmp_path / f"captions.{kind}").write_text("\n".join(lines) + "\n", "utf-8")
    found = scan(tmp_path)
    assert [s.text for s in found.samples] == [row["text"] for row in rows]
    assert sorted(s.split or "" for s in found.samples) == ["test", "train", "train", "train"]
    assert found.left_out == []


def test_labels_of_one_file_each_are_split_together(tmp_path):
    for i in range(5):
        (tmp_path / f"thing-{i}").mkdir()
        picture(tmp_path / f"thing-{i}" / "a.png", (i, 9, 9))
    assert sorted(s.split or "" for s in scan(tmp_path).samples) == ["test", *["train"] * 4]
    assert all(s.split == "train" for s in scan(tmp_path, 0.0).samples)


def test_files_without_words_and_damaged_files_are_named(folder, tmp_path):
    picture(folder / "stray.png", (1, 2, 3))
    (folder / "dog" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (folder / "dog" / "notes.txt").write_text("notes")
    left_out = "\n".join(scan(folder).left_out)
    assert "stray.png: no words" in left_out and "dog/bad.png: " in left_out and "notes.txt: no picture" in left_out


def test_wrong_folders_are_explained(tmp_path, folder):
    with pytest.raises(ValueError, match="expected a folder, got"):
        scan(tmp_path / "absent")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="expected pictures or sounds in named sub-folders"):
        scan(empty)
    (empty / "readme.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"1 files were left out, the first: readme\.txt"):
        scan(empty)
    with pytest.raises(ValueError, match="test share"):
        scan(folder, test_share=1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,text\n0.png,\n", r"captions\.csv, line 2: expected columns 'file' and 'text', got no 'text'"),
        ("name,text\n0.png,a\n", r"line 2: .* got no 'file'"),
        ("file,text\nabsent.png,a\n", r"line 2: expected the file absent\.png"),
    ],
)
def test_a_wrong_captions_file_is_named_with_its_line(tmp_path, content, message):
    picture(tmp_path / "0.png", (1, 1, 1))
    (tmp_path / "captions.csv").write_text(content, "utf-8")
    with pytest.raises(ValueError, match=message):
        scan(tmp_path)


def test_an_existing_manifest_is_not_overwritten(folder, tmp_path):
    found = scan(folder)
    out = write_scan(found, tmp_path / "out")
    with pytest.raises(ValueError, match="expected a directory without a manifest"):
        write_scan(found, out)


def pictures(folder, count=2):
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_a_later_row_adds_a_caption_and_takes_none(tmp_path):
    pictures(tmp_path)
    rows = "".join(f"{i}.png,caption {n} of {i}\n" for n in range(5) for i in range(2))
    (tmp_path / "captions.csv").write_text("image,caption\n" + rows)
    for i, sample in enumerate(scan(tmp_path).samples):
        assert sample.text == f"caption 0 of {i}"
        assert sample.captions == [f"caption {n} of {i}" for n in range(5)]
    (tmp_path / "more.jsonl").write_text('{"file": "0.png", "text": "another", "label": "x"}\n')
    with pytest.raises(
        ValueError, match=r"more\.jsonl, line 1: expected the label None, as in an earlier row of 0\.png"
    ):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [("0.png,a dog, running in snow\n", "line 2: expected 2 cells, got 3; put text with commas"), ("0.png\n", "got 1")],
)
def test_a_ragged_row_is_named_with_its_line(rows, said, tmp_path):
    pictures(tmp_path)
    (tmp_path / "captions.csv").write_text("file,text\n" + rows)
    with pytest.raises(ValueError, match=said):
        scan(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_captions_files_of_other_programs_are_read(encoding, tmp_path):
    pictures(tmp_path)
    long = "é" * 200_000
    (tmp_path / "captions.CSV").write_text(f'file,text\r\n0.png,"{long}"\r\n1.png,"a, b"\r\n', encoding=encoding)
    assert [sample.text for sample in scan(tmp_path).samples] == [long, "a, b"]


def test_another_encoding_is_named_with_its_file(tmp_path):
    pictures(tmp_path)
    (tmp_path / "captions.csv").write_text("file,text\n0.png,caf\u00e9\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"text in .*captions\.csv, got byte 0xe9 at 19; save it as UTF-8"):
        scan(tmp_path)


def test_zero_is_a_label(tmp_path):
    pictures(tmp_path)
    rows = [{"file": f"{i}.png", "text": "t", "label": i} for i in range(2)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [sample.label for sample in scan(tmp_path).samples] == ["0", "1"]


def test_captions_of_another_encoding_are_read_by_its_name(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "captions.CSV").write_bytes("file,text\na.png,Köter\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"captions\.CSV, got byte 0xf6 at 17; save it as UTF-8, or name its encoding"):
        scan(tmp_path / "in")
    assert scan(tmp_path / "in", encoding="cp1252").samples[0].text == "Köter"
    with pytest.raises(ValueError, match="got 'klingon'; name another"):
        scan(tmp_path / "in", encoding="klingon")
    arguments = ["data", "from-folder", str(tmp_path / "in"), str(tmp_path / "out"), "--encoding", "cp1252"]
    assert main(arguments) == 0
    assert "1 image" in capsys.readouterr().out
