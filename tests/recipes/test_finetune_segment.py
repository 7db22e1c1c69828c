"""Classes of pixels of one's own: a folder of pictures and masks -> finetune -> `plait eval`, in one command each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait.cli import main
from plait.data.annotations import scan_masks
from plait.recipes.finetune import class_map, score, trivial


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures, blue above green, in ADE20K's layout; the lowest row of pixels is unlabelled."""
    root, rng = tmp_path_factory.mktemp("masks"), np.random.default_rng(0)
    for number in range(8):
        split = "validation" if number > 5 else "training"
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        edge = int(rng.integers(10, 30))
        mask = np.full((40, 40), 2, np.uint8)
        mask[:edge], mask[-1] = 1, 0
        pixels = np.array([(0, 0, 0), (60, 60, 250), (20, 220, 20)], np.uint8)[mask]
        Image.fromarray(pixels).save(root / "images" / split / f"{number}.jpg")
        Image.fromarray(mask).save(root / "annotations" / split / f"{number}.png")
    (root / "classes.txt").write_text("sky\ngrass\n")
    return root


def command(data: Path, out: Path) -> list[str]:
    words = {"model": "nano", "data": data, "task": "segment", "steps": 2, "batch_size": 2, "image_size": 64}
    settings = [word for key, value in words.items() for word in ("--set", f"{key}={value}")]
    return ["train", "finetune", *settings, "--out", str(out), "--device", "cpu"]


def test_a_segmenter_is_trained_and_measured(data: Path, tmp_path: Path) -> None:
    assert main(command(data, tmp_path / "run")) == 0
    found = json.loads((tmp_path / "run" / "finetune.json").read_text())
    assert found["rows"] == {"train": 6, "test": 2} and found["after"]["metric"] == "mIoU"
    assert 0 <= found["after"]["value"] <= 1 and found["trivial"]["about"].endswith("everywhere")
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "sky", "1": "grass"} and config["per_layer_bias"]
    # ADE20K's layout is what `plait eval` reads, too.
    assert (
        main(["eval", "ade20k", str(tmp_path / "run" / "model"), "--data", str(data), "--out", str(tmp_path / "e")])
        == 0
    )


def test_perfect_maps_score_one_and_unlabelled_pixels_do_not_count(data: Path) -> None:
    test = [sample for sample in scan_masks(data) if sample.split == "test"]
    assert [sample.meta["classes"] for sample in test] == [["sky", "grass"]] * 2
    perfect = [class_map(sample).astype(int) - 1 for sample in test]
    assert score("segment", perfect, test)["value"] == 1.0
    assert trivial("segment", test, test)["value"] < 0.6


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("size", "expected a grey mask of (40, 40) pixels, got L of (20, 40); make it as large as its picture"),
        ("class", "expected classes up to 2, got 3; name it in"),
        ("picture", "expected a picture 0 in"),
        ("mode", "got RGB of (40, 40)"),
        ("none", "expected grey PNG under masks or annotations in"),
    ],
)
def test_wrong_masks_end_in_one_line(
    data: Path, tmp_path: Path, fault: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    wrong = tmp_path / "data"
    shutil.copytree(data, wrong)
    place = wrong / "annotations" / "training" / "0.png"
    if fault == "none":
        shutil.rmtree(wrong / "annotations")
    elif fault == "picture":
        (wrong / "images" / "training" / "0.jpg").unlink()
    else:
        shape = {"size": (40, 20), "mode": (40, 40, 3)}.get(fault, (40, 40))
        Image.fromarray(np.full(shape, 3, np.uint8)).save(place)
    assert main(command(wrong, tmp_path / "run")) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("plait:")]
    assert message in line
