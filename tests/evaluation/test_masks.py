"""Class masks as data sets number them: ADE20K, COCO-Stuff as published and renumbered; one scale or several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait.errors import UsageError
from plait.evaluation.run import Options, evaluate, used_by
from plait.evaluation.tasks import TASKS, read
from plait.evaluation.tasks.regions import NUMBERINGS, mask_classes


class Knowing:
    """Says what is in the red channel of a picture."""

    name = family = "knowing"
    fingerprint = "0"
    capabilities = ("segment",)
    looks: tuple[bool, ...] = ()

    def segment(self, images: list, multi_scale: bool = False) -> list[np.ndarray]:
        self.looks = (*self.looks, multi_scale)
        return [np.asarray(image)[..., 0] for image in images]


def stuff(root: Path, folder: str, suffix: str, values: list[int], classes: list[int]) -> Path:
    for number, (value, right) in enumerate(zip(values, classes)):
        for place in (root / folder / "val2017", root / "val2017"):
            place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(root / folder / "val2017" / f"{number}{suffix}.png")
        pixels = np.full((8, 8, 3), right, np.uint8)
        Image.fromarray(pixels).save(root / "val2017" / f"{number}.png")
    return root


def test_numbers_of_coco_stuff_are_its_171_classes() -> None:
    table = NUMBERINGS["coco_stuff"]
    # person 1, street sign 12 (no picture has it), stop sign 13, toothbrush 90, banner 92 and wood 182
    assert [table[i] for i in (0, 11, 12, 89, 91, 181, 182, 255)] == [0, 255, 11, 79, 80, 170, 255, 255]
    assert sorted(set(table.tolist()) - {255}) == list(range(171))


@pytest.mark.parametrize(
    ("folder", "suffix", "values"),
    [("stuffthingmaps", "", [0, 12, 181]), ("annotations", "_labelTrainIds", [0, 11, 170])],
)
def test_both_forms_of_coco_stuff_are_read(folder: str, suffix: str, values: list[int], tmp_path: Path) -> None:
    root = stuff(tmp_path, folder, suffix, values, [0, 11, 170])
    items, _, layout = read(root, TASKS["coco_stuff"].layouts, "val")
    assert layout == "coco_stuff" and [item.id for item in items] == ["0", "1", "2"]
    model = Knowing()
    result = evaluate(TASKS["coco_stuff"], model, root, None, Options(show_progress=False))
    assert result["scores"]["mIoU"] == 100 and set(model.looks) == {False}
    evaluate(TASKS["coco_stuff"], model, root, None, Options(show_progress=False, multi_scale=True))
    assert model.looks[-1] is True


def test_ade20k_counts_from_one(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 150]], np.uint8)).save(tmp_path / "a.png")
    assert mask_classes(tmp_path / "a.png").tolist() == [[255, 0, 149]]


def test_several_scales_are_for_segmentation_alone() -> None:
    assert used_by(TASKS["ade20k"], Knowing(), Options(multi_scale=True)) == {"method": "segment", "multi_scale": True}
    skilled = Knowing()
    skilled.capabilities = ("detect",)
    with pytest.raises(UsageError, match="expected a task of segmentation for --multi-scale, got coco_detection"):
        used_by(TASKS["coco_detection"], skilled, Options(multi_scale=True))
