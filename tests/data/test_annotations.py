"""COCO and LLaVA files become data sets; what belongs together is never split."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait.cli import main
from plait.data.annotations import scan_annotations
from plait.data.check import check
from plait.data.conversation import read_talk
from plait.data.folder import scan
from plait.data.manifest import read_manifest
from plait.models.mplug_owl.conversation import training_pieces, training_row
from plait.parity.run import runner_module

GOLDENS = Path(__file__).parents[1] / "goldens"
fake_encode = runner_module("mplug_owl_data").fake_encode


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
        ("[]", "expected COCO .* LLaVA .* or mPLUG-Owl"),
        ('[{"image": "0.png"}]', "entry 0: expected conversations, got none"),
        ('[{"image": ["0.png", 1], "conversations": []}]', "entry 0: expected images or a video by name, got"),
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


SAID = "Intro.\nHuman: <image>\nHuman: <image>\nHuman: same as OpenAI: says?\nAI: no\nHuman: why?\nAI: colour"
"""A line of mPLUG-Owl's training files; the released cut at "AI: " would open an answer inside the question."""


def owl_lines(path, *rows):
    path.write_text("".join(json.dumps({"task_type": "llava_sft", **row}) + "\n" for row in rows))
    return path


def test_lines_of_mplug_owl_become_conversations_of_several_images(media, tmp_path, capsys):
    rows = [{"text": SAID, "image": [f"{n}.png", f"{n + 1}.png"]} for n in range(0, 8)]
    file = owl_lines(tmp_path / "sft.jsonl", *rows, {"text": "Human: hi\nAI: hello", "task_type": "quora_chat_sft"})
    assert main(["data", "from-folder", str(file), str(tmp_path / "out"), "--media", str(media)]) == 0
    found = read_manifest(tmp_path / "out")
    assert [message["content"] for message in found[0].messages] == [
        "Intro.", "<image><image>same as OpenAI: says?", "no", "why?", "colour"
    ]  # fmt: skip
    assert found[0].meta["images"] == [str((media / f"{n}.png").resolve()) for n in (0, 1)]
    assert [sample.meta["task_type"] for sample in found[-2:]] == ["llava_sft", "quora_chat_sft"]
    # each image links a row to the next: all of them are one group
    assert len({sample.split for sample in found[:-1]}) == 1
    talk = read_talk(found[0], np.random.default_rng(0), describe="", num_frames=2)
    assert len(talk.pictures) == 2 and talk.turns[1]["value"].count("<image>") == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "no speaker"}, "line 1: expected lines that begin with 'Human: ' and 'AI: '"),
        ({"prompt": "Human: a"}, "line 1: expected text and task_type"),
        ({"text": SAID, "image": [3]}, "line 1: expected images or a video by name, got"),
        ({"text": SAID, "image": ["../0.png"]}, "pass the folder of the files as --media"),
    ],
)
def test_wrong_lines_of_mplug_owl_are_one_line(row, said, media, tmp_path, capsys):
    file = owl_lines(tmp_path / "sft.jsonl", row)
    assert main(["data", "from-folder", str(file), str(tmp_path / "out"), "--media", str(media)]) in (1, 2)
    (shown,) = capsys.readouterr().err.strip().splitlines()
    assert said in shown


def test_converted_lines_have_the_released_ids(tmp_path):
    """Golden ids, but for their padding, of every text whose answers are whole: cut ones end otherwise here."""
    cases = json.loads((GOLDENS / "mplug_owl" / "tokenize_training" / "data.json").read_text())
    told = [case for case in cases if case["text"].startswith("Intro.") and case["seq_length"] <= case["max_length"]]
    file = owl_lines(tmp_path / "sft.jsonl", *({"text": case["text"]} for case in told))
    assert len(told) >= 4
    for case, sample in zip(told, scan_annotations(file).samples, strict=True):
        opening, *said = [message["content"] for message in sample.messages]
        pieces = training_pieces(list(zip(said[::2], said[1::2], strict=True)), opening)
        row = training_row(pieces, fake_encode, 1, 2, case["max_length"] + 1)
        assert row.ids == case["input_ids"][: case["seq_length"]]
        learned = [label != -100 for label in row.labels[1:]]
        assert learned == [bool(one) for one in case["prompt_mask"][: len(learned)]]
