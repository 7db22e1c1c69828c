"""A folder of one's own trains every recipe whose medium it has, and rows of other media are left out by name."""

from __future__ import annotations

import json

import pytest

from plait.cli import main
from plait.recipes import RECIPES

from .tiny_world import COLOURS, SAVED, write_data, write_models

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A data set that `plait data from-folder` made of pictures, sounds and clips in named sub-folders; models."""
    written, folder = write_data(tmp_path_factory.mktemp("written")), tmp_path_factory.mktemp("folder")
    for name in COLOURS:
        (folder / name).mkdir()
        for file in (*written.glob(f"{name}-*.png"), *written.glob(f"{name}-*.wav"), written / f"{name}.mkv"):
            (folder / name / file.name).write_bytes(file.read_bytes())
    data, models = tmp_path_factory.mktemp("data") / "mine", write_models(tmp_path_factory.mktemp("models"))
    assert main(["data", "from-folder", str(folder), str(data)]) == 0
    return {
        "data": str(data), "one_peace": str(models / "one_peace"), "mplug2": str(models / "mplug2"),
        "mplug_owl": str(SAVED / "mplug_owl"), "mplug_owl2": str(SAVED / "mplug_owl2"),
    }  # fmt: skip


TAKEN = {
    "one_peace.stage1": ("", "left out: 8 with audio, 4 with video"),
    "one_peace.stage2": ("", "left out: 8 with image, 4 with video"),
    "mplug2.pretraining": ("queue_size=8 batch_size=4", "12 rows with image or video or text; left out: 8 with audio"),
    "mplug2.captioning": ("", "left out: 8 with audio"),
    "mplug2.self_critical": ("", "left out: 8 with audio"),
    "mplug2.mixture": ("", "left out: 8 with audio"),
    "mplug2.retrieval": ("queue_size=8 batch_size=4", "left out: 8 with audio"),
    "mplug2.classification": ("", "left out: 8 with audio"),
    "mplug_owl.stage1": ("", "left out: 8 with audio"),
    "mplug_owl2.pretrain": ("image_size=16", "left out: 8 with audio, 4 with video"),
    "mplug_owl2.joint": ("frames=2", "left out: 8 with audio"),
}
"""Recipe -> further settings, and what is said of the rows."""
ASKS = {
    "finetune": "a task", "mplug2.answering": "question, answers", "mplug2.grounding": "boxes",
    "mplug2.comparison": "images, text, label", "mplug_owl.stage2": "messages, question and answers",
}  # fmt: skip
"""Recipes of rows that a folder does not give."""
OWN = {"one_peace.add_modality", "one_peace.distil", "one_peace.fuse"}
"""Recipes that take more than rows (a modality of one's own, a teacher, two media), which have tests of theirs."""


@pytest.mark.parametrize("recipe", TAKEN)
def test_a_folder_trains_the_recipes_of_its_media(recipe: str, places: dict[str, str], capsys: Capture) -> None:
    more, words = TAKEN[recipe]
    settings = [f"data={places['data']}", "batch_size=2", *more.split()]
    settings += [f"init={places[recipe.partition('.')[0]]}"] if recipe != "one_peace.stage1" else []
    sets = [part for one in settings for part in ("--set", one)]
    assert main(["train", recipe, *sets, "--dry-data", "2", "--json"]) == 0
    said = capsys.readouterr()
    assert words in said.err
    read = [name for batch in json.loads(said.out)["batches"] for name in batch["samples"]]
    assert (read and not any(name.endswith(".wav") for name in read)) or recipe == "one_peace.stage2"


@pytest.mark.parametrize("recipe", [name for name in ASKS if name != "finetune"])
def test_a_recipe_of_other_rows_says_what_it_needs(recipe: str, places: dict[str, str], capsys: Capture) -> None:
    sets = ["--set", f"data={places['data']}", "--set", f"init={places[recipe.partition('.')[0]]}"]
    assert main(["train", recipe, *sets, "--dry-data", "1"]) == 1
    assert f"expected rows with {ASKS[recipe]}" in capsys.readouterr().err


def test_every_recipe_is_here() -> None:
    assert set(TAKEN) | set(ASKS) | OWN == set(RECIPES)
