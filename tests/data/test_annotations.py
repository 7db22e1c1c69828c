"""COCO and LLaVA files become data sets; what belongs together is never split."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from plait.cli import main
from plait.data.annotations import scan_annotations
from plait.data.check import check
from plait.data.folder import scan
from plait.data.manifest import read_manifest


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(10):
        Image.new("RGB", (20, 10), (number * 20, 0, 0)).save(folder / f"{number}.png")
    return folder


def coco(path, extra=()):
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(10)]
    captions = [
        {"id": 10 * n + k, "image_id": n, "caption": f"picture {n} again {k} "} for n in range(10) for k in (0, 1)
    ]
    boxes = [{"id": 500 + n, "image_id": n, "bbox": [1, 2, 5, 6], "category_id": n % 2} for n in range(10)]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    rows = {"images": [*images, *extra], "annotations": [*captions, *boxes], "categories": categories}
    path.write_text(json.dumps(rows))
    return path


def test_coco_gives_captions_and_boxes(media, tmp_path, capsys):
    file = coco(tmp_path / "coco.json")
    assert main(["data", "from-folder", str(file), str(tmp_path / "out"), "--media", str(media)]) == 0
    assert "0 leaks by hash" in capsys.readouterr().out
    rows = {s.id: s for s in read_manifest(tmp_path / "out")}
    assert rows["image-3"].captions == ["picture 3 again 0", "picture 3 again 1"]
    assert (rows["box-503"].boxes, rows["box-503"].text) == ([[1, 2, 6, 8]], "dog")
    sides = {}
    for row in rows.values():
        sides.setdefault(row.image, set()).add(row.split)
    assert all(len(one) == 1 for one in sides.values()) and {"train"} in sides.values() and {"test"} in sides.values()
    assert check(tmp_path / "out").problems == []


def test_llava_gives_messages_and_the_first_question(media, tmp_path):
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A red one."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ]
    written = [{"id": f"c{n}", "image": f"{n}.png", "conversations": turns} for n in range(10)]
    written.append({"id": "gone", "image": "gone.png", "conversations": turns})
    written += [{"id": f"t{n}", "conversations": [{**turn, "value": f"{n}"} for turn in turns]} for n in range(5)]
    (media / "chat.json").write_text(json.dumps(written))
    found = scan_annotations(media / "chat.json")
    talks = [sample for sample in found.samples if sample.id.startswith("t")]
    assert {t.split for t in talks} == {"train", "test"} and all(t.image is None and t.messages for t in talks)
    found.samples = [sample for sample in found.samples if sample not in talks]
    first = found.samples[0]
    assert (first.question, first.answers) == ("What is it?", ["A red one."])
    assert [m["role"] for m in first.messages] == ["user", "assistant"] * 2
    assert first.messages[0]["content"].startswith("<image>")
    assert len(found.samples) == 10 and found.left_out[0].startswith("gone: expected a picture")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{", "expected a JSON file of annotations"),
        ("[]", "expected COCO .* or LLaVA"),
        ('[{"image": "0.png"}]', "entry 0: expected conversations, got none"),
        ('[{"image": ["0.png", "1.png"], "conversations": []}]', "entry 0: expected one image or video by name, got"),
        ('{"images": [{"id": 1}]}', "expected COCO annotations in .*, got one without 'file_name'"),
        ('{"images": []}', "expected rows of .* got 0 left out"),
    ],
)
def test_other_files_are_one_line(media, written, message):
    (media / "x.json").write_text(written)
    with pytest.raises(ValueError, match=message):
        scan_annotations(media / "x.json")


def test_media_belongs_to_annotations_only(media, tmp_path):
    assert main(["data", "from-folder", str(media), str(tmp_path / "out"), "--media", str(media)]) == 2


def test_a_group_is_never_split_nor_is_a_copy(media):
    """Frames of one scene share a group; a copy of a frame in another scene ties the two together."""
    with (media / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "text", "label", "group"])
        for number in range(10):
            rows.writerow([f"{number}.png", "x", "y", f"scene-{number // 2}"])
        (media / "copy.png").write_bytes((media / "0.png").read_bytes())
        rows.writerow(["copy.png", "x", "y", "scene-4"])
    sides = {}
    for sample in scan(media, 0.4).samples:
        sides.setdefault(sample.meta["group"], set()).add(sample.split)
    assert all(len(one) == 1 for one in sides.values())
    assert sides["scene-0"] == sides["scene-4"] and set.union(*sides.values()) == {"train", "test"}


def test_annotations_with_a_byte_order_mark_and_ids_from_zero(tmp_path):
    for i in range(2):
        Image.new("RGB", (40, 40), (90 * i, 0, 0)).save(tmp_path / f"{i}.png")
    written = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(2)],
        "categories": [{"id": 0, "name": "dog"}],
        "annotations": [{"id": i, "image_id": i, "category_id": 0, "bbox": [1, 1, 5, 5]} for i in range(2)],
    }
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(written), encoding="utf-8-sig")
    assert sorted(sample.id for sample in scan_annotations(file).samples) == ["box-0", "box-1"]
    assert {sample.label for sample in scan_annotations(file).samples} == {"dog"}
    written["annotations"][1]["bbox"] = [1, 1, 0, 5]
    file.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"annotation 1: expected a box, got an empty one \[1, 1, 0, 5\]"):
        scan_annotations(file)


def test_ids_are_text_or_numbers_and_crowds_are_no_thing(tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    written = {
        "images": [{"id": "0", "file_name": "a.png"}],
        "categories": [{"id": 0, "name": "cat"}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": "0", "bbox": [0, 0, 5, 5]},
            {"id": 1, "image_id": "0", "category_id": 0, "bbox": [0, 0, 9, 9], "iscrowd": 1,
             "segmentation": {"size": [20, 20], "counts": [0, 400]}},
            {"id": 2, "image_id": 0, "caption": "one"},
            {"id": 3, "image_id": "0", "caption": "two"},
        ],
    }  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(written), "utf-8")
    samples = {sample.id: sample for sample in scan_annotations(tmp_path / "coco.json").samples}
    assert set(samples) == {"image-0", "box-0"}
    assert samples["image-0"].captions == ["one", "two"]
    assert samples["box-0"].label == "cat"
    written["annotations"] = [{"id": 7, "image_id": 0, "category_id": 0, "bbox": []}]
    (tmp_path / "coco.json").write_text(json.dumps(written), "utf-8")
    with pytest.raises(ValueError, match="annotation 7: expected a box, got an empty one"):
        scan_annotations(tmp_path / "coco.json")
    written["images"][0]["file_name"] = "https://example.com/a.png"
    (tmp_path / "coco.json").write_text(
        json.dumps(written | {"annotations": [{"image_id": 0, "caption": "a"}]}), "utf-8"
    )
    with pytest.raises(ValueError, match="expected the name of a file, got a URL"):
        scan_annotations(tmp_path / "coco.json")
