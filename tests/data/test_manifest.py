"""Manifests: what is written is read back, and what is wrong is named with file, line and field."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from plait.data.manifest import Skipped, _sample, read_manifest, write_manifest
from plait.reading import outside
from plait.types import Sample


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest.jsonl.gz"])
def test_samples_survive_the_way_to_disk_and_back(tmp_path, name):
    rows = [
        Sample("a", text="ein Bär", image=str(tmp_path / "images" / "a.webp"), meta={"style": "noto"}),
        Sample("b", audio="sounds/b.flac", captions=["x", "y"], boxes=[[0, 1, 2, 3.5]], split="test"),
    ]
    write_manifest(tmp_path / name, rows)
    back = read_manifest(tmp_path)
    assert back[0].image == str(tmp_path / "images" / "a.webp")
    assert back[0].text == "ein Bär" and back[0].meta == {"style": "noto"}
    assert back[1].audio == str(tmp_path / "sounds" / "b.flac") and back[1].boxes == [[0, 1, 2, 3.5]]
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "rt", encoding="utf-8") as file:
        assert json.loads(file.readline())["image"] == "images/a.webp"


def test_the_same_samples_make_the_same_bytes(tmp_path):
    rows = [Sample("a", text="x")]
    first = write_manifest(tmp_path / "one.jsonl.gz", rows).read_bytes()
    assert write_manifest(tmp_path / "two.jsonl.gz", rows).read_bytes() == first


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "broken JSON"),
        ("[1]", "expected one JSON object, got list"),
        ({"text": "no id"}, "field 'id'"),
        ({"id": "x", "text": 3}, "field 'text': expected a string, got int"),
        ({"id": "x", "image": ""}, "field 'image': expected a path"),
        ({"id": "x", "captions": "one"}, "field 'captions': expected a list"),
        ({"id": "x", "boxes": [[1, 2, 3]]}, "field 'boxes'"),
        ({"id": "x", "meta": 1}, "field 'meta'"),
        ({"id": "good"}, "'good' is already on line 1"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, row, message):
    path = write(tmp_path / "m.jsonl", {"id": "good", "text": "a"}, row)
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2: ") as caught:
        read_manifest(path)
    assert message in str(caught.value)


def test_skip_counts_and_lists_bad_rows(tmp_path):
    path = write(tmp_path / "m.jsonl", {"id": "a"}, "{", {"id": "b", "label": 7}, {"id": "c"})
    skipped = Skipped()
    assert [sample.id for sample in read_manifest(path, on_bad="skip", skipped=skipped)] == ["a", "c"]
    assert len(skipped) == 2 and "line 2" in skipped.messages[0] and "'label'" in skipped.messages[1]


def test_skip_without_a_list_warns(tmp_path):
    path = write(tmp_path / "m.jsonl", "{", {"id": "a"})
    with pytest.warns(UserWarning, match="skipped 1 bad rows"):
        assert len(read_manifest(path, on_bad="skip")) == 1


def test_what_is_no_manifest_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"expected a manifest file or a directory with manifest\.jsonl"):
        read_manifest(tmp_path)
    (tmp_path / "m.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="expected UTF-8 JSON lines"):
        read_manifest(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="on_bad"):
        read_manifest(tmp_path / "m.jsonl", on_bad="ignore")  # ty: ignore[invalid-argument-type]


def test_media_that_are_no_paths_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="sample 'a', field 'image'"):
        write_manifest(tmp_path / "m.jsonl", [Sample("a", image=object())])
    assert not (tmp_path / "m.jsonl").exists()


@given(st.text(max_size=60) | st.from_regex(r'\{"(id|image|boxes|meta)": .{0,20}\}'))
def test_any_line_is_a_sample_or_a_value_error(tmp_path_factory, line):
    with contextlib.suppress(ValueError):
        assert _sample(line, tmp_path_factory.getbasetemp()).id


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("plait.data.manifest.MAX_LINE", 100)
    write(tmp_path / "m.jsonl", {"id": "a"}, {"id": "b", "text": "x" * 100})
    with pytest.raises(ValueError, match="more than 100 characters in line 2"):
        read_manifest(tmp_path / "m.jsonl")


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    rows = b"".join(json.dumps({"id": str(i), "text": "a"}).encode() + b"\r\n" for i in range(3))
    (tmp_path / "manifest.jsonl").write_bytes(b"\xef\xbb\xbf" + rows)
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + rows))
    for path in (tmp_path, tmp_path / "packed.jsonl.gz"):
        assert [sample.id for sample in read_manifest(path, on_bad="skip")] == ["0", "1", "2"]


def test_zero_is_an_id_and_no_text_is_a_text(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"id": 0, "text": ""}\n{"id": 1, "label": "0", "text": "b"}\n')
    samples = read_manifest(tmp_path)
    assert [(sample.id, sample.text, sample.label) for sample in samples] == [("0", "", None), ("1", "b", "0")]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused_with_their_line(number, tmp_path):
    path = tmp_path / "manifest.jsonl"
    path.write_text(f'{{"id": "a", "text": "x"}}\n{{"id": "b", "text": "y", "score": {number}}}\n')
    with pytest.raises(ValueError, match=f"line 2: .*the number {number}, which is not finite"):
        read_manifest(path)


@pytest.mark.parametrize(
    "name", ["a.png", "./a.png", "b/../a.png", "b//a.png", "b/./a.png", "/abs/a.png", "b/", "..a/.b"]
)
def test_media_paths_are_those_of_pathlib(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "m.jsonl", {"id": "a", "image": name})
    with outside():
        assert read_manifest(tmp_path / "m.jsonl")[0].image == str(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        assert read_manifest("m.jsonl")[0].image == str(Path("m.jsonl").parent / name)


def test_several_images_of_a_row_are_found_beside_the_manifest(tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", {"id": "a", "images": ["a.png", "in/b.png"]})
    (sample,) = read_manifest(tmp_path / "m.jsonl")
    assert sample.meta["images"] == [str(tmp_path / "a.png"), str(tmp_path / "in" / "b.png")]
    write_manifest(tmp_path / "again.jsonl", [sample])
    assert json.loads((tmp_path / "again.jsonl").read_text())["images"] == ["a.png", "in/b.png"]
    write(tmp_path / "m.jsonl", {"id": "a", "images": "a.png"})
    with pytest.raises(ValueError, match="line 1: field 'images': expected a list of str values"):
        read_manifest(tmp_path / "m.jsonl")


def test_a_map_of_classes_lies_beside_its_manifest(tmp_path: Path) -> None:
    for name in ("a.png", "classes.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    rows = [
        {"id": "a", "image": "a.png", "mask": "classes.png"},
        {"id": "b", "text": "a mask", "mask": "classes"},  # a word of a person's own
    ]
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_manifest(path)
    assert first.meta["mask"] == str(tmp_path / "classes.png") and second.meta["mask"] == "classes"
    write_manifest(tmp_path / "again.jsonl", [first, second])
    assert [json.loads(line)["mask"] for line in (tmp_path / "again.jsonl").read_text().splitlines()] == [
        "classes.png", "classes",
    ]  # fmt: skip
