"""docs/training.md shows one manifest going through every family; here its commands run, at debug size."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from plait.cli import main
from plait.training.logging import read_metrics

from .tiny_world import SAVED, write_data, write_models

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the directories that the guide names: one manifest of pictures, and models."""
    data, models = write_data(tmp_path_factory.mktemp("data")), write_models(tmp_path_factory.mktemp("models"))
    return {
        "photos": str(data / "images.jsonl"),
        "one-peace-dir": str(models / "one_peace"),
        "llm-dir": str(models / "llm"),
        "mplug2-dir": str(models / "mplug2"),
        "owl-dir": str(SAVED / "mplug_owl"),
        "owl2-dir": str(SAVED / "mplug_owl2"),
    }


def shown() -> list[str]:
    section = GUIDE.read_text("utf-8").split("## One manifest, every family", 1)[1].split("\n## ", 1)[0]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [line for line in block[1].splitlines() if line.startswith("plait train")]


@pytest.mark.parametrize("line", shown())
def test_the_commands_of_the_guide_train_on_one_manifest(line: str, places: dict[str, str], tmp_path: Path) -> None:
    words = shlex.split(line, comments=True)[1:]
    for name, place in places.items():
        words = [re.sub(rf"={name}$", f"={place}", word) for word in words]
    small = ["steps=2", "batch_size=2"] + (["tower=tiny"] if "mplug_owl.stage1" in words else [])
    small += ["queue_size=8", "batch_size=4"] if "mplug2.retrieval" in words else []
    small += ["image_size=16"] if "mplug_owl2.pretrain" in words else []
    words += [part for setting in small for part in ("--set", setting)]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    losses = [row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 2 and json.loads((tmp_path / "run" / "config.json").read_text())["recipe"] == words[1]


def test_every_family_is_shown() -> None:
    recipes = {line.split()[2].partition(".")[0] for line in shown()}
    assert recipes >= {"one_peace", "mplug2", "mplug_owl", "mplug_owl2", "finetune"}
