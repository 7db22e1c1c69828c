"""Objects of one's own: COCO JSON or manifest -> finetune -> `plait detect`, in one command each."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import plait
from plait.cli import main
from plait.processing.regions import Objects
from plait.recipes.finetune import objects_in, score, trivial
from plait.recipes.one_peace_dense import jittered
from plait.types import Sample

pytest.importorskip("pycocotools")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of 48 x 32 with a red or a blue rectangle each, as a COCO instances file with polygons."""
    root = tmp_path_factory.mktemp("objects")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    images, annotations = [], []
    for number in range(10):
        pixels = rng.integers(0, 60, (32, 48, 3), dtype=np.uint8)
        x, y, w, h = (int(value) for value in rng.integers((2, 2, 12, 10), (20, 14, 24, 16)))
        pixels[y : y + h, x : x + w] = (250, 0, 0) if number % 2 else (0, 0, 250)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "split": "test" if number > 7 else "train"})
        polygon = [x, y, x + w - 1, y, x + w - 1, y + h - 1, x, y + h - 1]
        annotations.append({"id": number, "image_id": number, "category_id": 3 + number % 2, "bbox": [x, y, w, h],
                            "segmentation": [polygon], "iscrowd": 0, "area": w * h})  # fmt: skip
    written = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "blue"}, {"id": 4, "name": "red"}],
    }
    (root / "instances.json").write_text(json.dumps(written))
    return root


def test_a_detector_is_trained_measured_and_used(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    words = {
        "model": "nano",
        "data": data / "instances.json",
        "task": "detect",
        "steps": 2,
        "batch_size": 2,
        "image_size": 32,
    }
    settings = [word for key, value in words.items() for word in ("--set", f"{key}={value}")]
    assert main(["train", "finetune", *settings, "--out", str(run), "--device", "cpu"]) == 0
    found = json.loads((run / "finetune.json").read_text())
    assert found["before"] is None and found["rows"] == {"train": 8, "test": 2}
    assert 0 <= found["after"]["value"] <= 1 and "mask AP" in found["after"] and found["trivial"]["metric"] == "box AP"
    capsys.readouterr()
    coco, drawings = tmp_path / "results.json", tmp_path / "drawn"
    options = ["--threshold", "0.0", "--coco", str(coco), "--draw", str(drawings), "--device", "cpu"]
    looked_at = tmp_path / "looked_at"
    looked_at.mkdir()
    for number in (8, 9):
        (looked_at / f"{number}.png").write_bytes((data / "images" / f"{number}.png").read_bytes())
    assert main(["detect", str(run / "model"), str(looked_at), "--json", *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and {one["label"] for one in lines[0]["objects"]} <= {"blue", "red"}
    written = coco.read_bytes()
    assert main(["detect", str(run / "model"), str(looked_at), "--coco", str(coco)]) == 2  # somebody's, for all we know
    assert "expected no file at --coco" in capsys.readouterr().err and coco.read_bytes() == written
    rows = json.loads(written)
    assert {row["image_id"] for row in rows} == {8, 9} and {row["category_id"] for row in rows} <= {1, 2}
    assert rows[0]["segmentation"]["size"] == [32, 48]
    assert sorted(path.name for path in drawings.iterdir()) == [f"{number}.png" for number in (8, 9)]
    assistant = plait.Assistant(run / "model", device="cpu")
    assert assistant.tasks == ("detect",)
    (best, *_), (other, *_) = assistant.detect([data / "images" / "1.png", data / "images" / "2.png"], 0.0)
    assert best.mask.shape == (32, 48) and best.box.x1 <= 48 and other.score <= 1
    assert main(["detect", str(run / "model"), str(data / "instances.json")]) == 1
    assert main(["detect", "nano", str(data / "images")]) == 1
    assert "expected a model that can detect, got OnePeaceModel" in capsys.readouterr().err


def test_perfect_boxes_and_masks_score_one(data: Path) -> None:
    from plait.data.annotations import scan_objects

    samples = [sample for sample in scan_objects(data / "instances.json") if sample.split == "test"]
    perfect = [
        [{**row, "segmentation": _runs(row["segmentation"]), "score": 0.9} for row in objects_in(sample)]
        for sample in samples
    ]
    found = score("detect", perfect, samples)
    assert found["value"] == pytest.approx(1.0) and found["mask AP"] == pytest.approx(1.0)
    assert 0 <= trivial("detect", samples, samples)["value"] < 1


def _runs(polygons: list[list[float]]) -> dict:
    """Run lengths of polygons in a picture of 48 x 32, as the tool makes them."""
    from pycocotools import mask

    runs = mask.merge(mask.frPyObjects(polygons, 32, 48))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def test_rows_of_a_manifest_have_one_class_without_labels() -> None:
    rows = objects_in(Sample("a", boxes=[[1, 2, 5, 9]]))
    assert rows == [{"label": "object", "bbox": [1, 2, 4, 7], "iscrowd": 0, "segmentation": None}]
    with pytest.raises(ValueError, match=r"expected 1 box_labels, segmentations and crowds for the boxes of row 'a'"):
        objects_in(Sample("a", boxes=[[1, 2, 5, 9]], meta={"box_labels": ["x", "y"]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 9}, "expected a category of the file, got none"),
        ({"image_id": 99}, "expected a picture of the file, got none"),
        ({"bbox": [1, 2]}, "expected a bbox of four numbers of the file, got none"),
        ({"bbox": [40, 1, 20, 5]}, "expected a box inside of 48 x 32 pixels"),
        ({"iscrowd": 1}, "expected an object that is no crowd, got crowds alone"),
        (
            {"segmentation": {"size": [5, 5], "counts": [25]}},
            r"expected a mask of \(32, 48\) pixels, got one of \(5, 5\)",
        ),
    ],
)
def test_wrong_annotations_end_in_one_line(
    data: Path, tmp_path: Path, change: dict, message: str, capsys: pytest.CaptureFixture
) -> None:
    written = json.loads((data / "instances.json").read_text())
    written["annotations"][0] |= change
    wrong = data / f"wrong-{abs(hash(message))}.json"
    wrong.write_text(json.dumps(written))
    settings = ["model=nano", f"data={wrong}", "task=detect", "steps=8", "batch_size=2", "image_size=32"]
    words = [word for one in settings for word in ("--set", one)]
    assert main(["train", "finetune", *words, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("plait:")]
    assert re.search(message, line)


def test_a_detector_is_evaluated_as_coco_is(data: Path, tmp_path: Path) -> None:
    run, root = tmp_path / "run", tmp_path / "coco"
    words = {"model": "nano", "data": data / "instances.json", "task": "detect", "steps": 1, "batch_size": 2}
    settings = [word for key, value in (words | {"image_size": 32}).items() for word in ("--set", f"{key}={value}")]
    assert main(["train", "finetune", *settings, "--out", str(run), "--device", "cpu"]) == 0
    written = json.loads((data / "instances.json").read_text())
    written["images"] = [one | {"width": 48, "height": 32} for one in written["images"] if one["split"] == "test"]
    kept = {one["id"] for one in written["images"]}
    written["annotations"] = [one for one in written["annotations"] if one["image_id"] in kept]
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(written))
    (root / "val2017").mkdir()
    for one in written["images"]:
        (root / "val2017" / one["file_name"]).write_bytes((data / "images" / one["file_name"]).read_bytes())
    out = tmp_path / "eval"
    assert main(["eval", "coco_detection", str(run / "model"), "--data", str(root), "--out", str(out)]) == 0
    (result,) = [json.loads(path.read_text()) for path in out.rglob("*result*.json")]
    assert {"AP", "mask AP"} <= result["scores"].keys()


@pytest.mark.parametrize(("box", "anchor"), [(60, 8), (46, 8), (44, 4), (24, 4), (12, 2), (11, 1), (3, 1)])
def test_anchors_are_as_small_as_small_boxes_need(
    box: int, anchor: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from plait.recipes.one_peace_dense import anchor_for

    Image.new("RGB", (128, 64)).save(tmp_path / "a.png")
    crowd = {"crowds": [False, False, True]}
    rows = [
        Sample("a", image=str(tmp_path / "a.png"), boxes=[[0, 0, box, box], [0, 0, 60, 60], [0, 0, 1, 1]], meta=crowd)
    ]
    rows += [Sample("b", image=str(tmp_path / "a.png"), boxes=[[1, 1, box + 1, box + 1]])] * 4
    assert anchor_for(rows, 64) == anchor  # pictures are halved
    said = capsys.readouterr().err
    assert (f"the finest anchors are {4 * anchor} pixels instead of 32" in said) == (anchor < 8)
    assert ("a larger image_size" in said) == (anchor < 8 and box / 2 < 8)
    gone = [Sample("gone", image=str(tmp_path / "gone.png"), boxes=[[0, 0, 1, 1]])]
    assert anchor_for(gone, 64) == 8  # the reader tells of it


def test_small_boxes_make_a_detector_of_small_anchors_that_keeps_them(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for model, run in (("nano", first), (first / "model", second)):
        words = {"model": model, "data": data / "instances.json", "task": "detect", "steps": 1, "batch_size": 2}
        # Rectangles of 10 to 24 pixels at 32 / 48 of their size; a detector goes on at its own size.
        words |= {"image_size": 32} if model == "nano" else {}
        settings = [word for key, value in words.items() for word in ("--set", f"{key}={value}")]
        assert main(["train", "finetune", *settings, "--out", str(run), "--device", "cpu"]) == 0
        held = plait.load(run / "model")[0]
        assert held.config.detection["anchor"] == held.detector.proposals.sizes.anchor < 8


def test_boxes_without_masks_are_enough(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    written = json.loads((data / "instances.json").read_text())
    written["annotations"] = [{k: v for k, v in one.items() if k != "segmentation"} for one in written["annotations"]]
    boxes = data / "boxes.json"
    boxes.write_text(json.dumps(written))
    words = {"model": "nano", "data": boxes, "task": "detect", "steps": 1, "batch_size": 2, "image_size": 32}
    settings = [word for key, value in words.items() for word in ("--set", f"{key}={value}")]
    assert main(["train", "finetune", *settings, "--out", str(run), "--device", "cpu"]) == 0
    found = json.loads((run / "finetune.json").read_text())
    assert "mask AP" not in found["after"] and not plait.load(run / "model")[0].config.detection["has_masks"]
    options = ["--threshold", "0", "--draw", str(tmp_path / "drawn"), "--coco", str(tmp_path / "coco.json")]
    assert main(["detect", str(run / "model"), str(data / "images" / "8.png"), *options, "--device", "cpu"]) == 0
    assert "segmentation" not in json.loads((tmp_path / "coco.json").read_text())[0]
    assert (tmp_path / "drawn" / "8.png").is_file()


def test_jitter_is_as_wide_as_published_and_mirrors_half() -> None:
    picture = Image.new("RGB", (80, 80), "white")
    objects = Objects(np.array([[0, 0, 20, 40]], np.float32), np.zeros(1, np.int64))
    rng = np.random.default_rng(0)
    sides, mirrored = [], []
    for _ in range(300):
        one = jittered(picture, objects, 64, 1.0, rng)
        sides.append(one.size[0] / 64)
        if one.size[0] < 64:  # nothing is cut away, so the box tells which way round the picture is
            mirrored.append(bool(one.objects.boxes[0, 0] > 1))
    # From a tenth on, every size as likely as its double; those above 1 fill the square: log 2 of log 20.
    assert 0.09 < min(sides) < 0.12 and np.mean(np.array(sides) == 1) == pytest.approx(0.23, abs=0.08)
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.1)
    still = jittered(picture, objects, 64, 0.0, rng)
    assert still.size == (64, 64) and still.objects.boxes.tolist() == [[0, 0, 16, 32]]
