"""A finetuned classifier says its classes through every door: pictures, sounds and texts, and in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from plait import Assistant, Sample
from plait.cli import main
from plait.models import shipped
from plait.models.auto import load, load_processor
from plait.recipes.finetune import how_to_load
from plait.recipes.one_peace_tasks import with_head
from plait.training.stages import save_pair

LABELS = ["low", "high", "quiet"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, hertz in (("low", 200), ("high", 2000)):
        wave = np.sin(np.arange(8000) / 8000 * 2 * np.pi * hertz).astype(np.float32)
        soundfile.write(folder / f"{name}.wav", wave, 8000)
        Image.new("RGB", (32, 48), (hertz // 10, 10, 10)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module", params=["image", "audio", "text"])
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    place = shipped("nano")
    assert place is not None
    directory = tmp_path_factory.mktemp(request.param) / "model"
    save_pair(load_processor(place), with_head(place, LABELS, request.param).eval(), directory)
    return request.param, directory


def test_it_classifies_items_of_its_medium_alone(
    classifier: tuple[str, Path], files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    medium, directory = classifier
    assistant = Assistant(directory)
    assert assistant.tasks == ("classify",)
    if medium == "text":
        rows = assistant.classify([Sample("a", text="a low one"), Sample("b", text="a high one")])
        assert {one.text for one in rows[0]} == set(LABELS)
        return
    ending = {"image": "png", "audio": "wav"}[medium]
    rows = assistant.classify([files / f"low.{ending}", files / f"high.{ending}"])
    assert all(sum(one.probability for one in row) == pytest.approx(1, abs=1e-4) for row in rows)
    assert main(["classify", str(directory), str(files / f"low.{ending}"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["labels"]
    assert [one["text"] for one in said] == [one.text for one in rows[0]]
    other = files / ("low.wav" if medium == "image" else "low.png")
    assert main(["classify", str(directory), str(other)]) == 1
    wrong = "audio" if medium == "image" else "image"
    assert f"expected {medium} to classify, got {wrong}" in capsys.readouterr().err


def test_its_card_names_the_class_of_transformers_for_its_medium(
    classifier: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    medium, directory = classifier
    monkeypatch.chdir(directory.parent)
    lines = how_to_load(load("model")[0], "model", medium)
    name = {"image": "Image", "audio": "Audio", "text": "Sequence"}[medium]
    assert lines[1] == f"from transformers import AutoModelFor{name}Classification"
    found: dict[str, object] = {}
    exec("\n".join(lines), found)
    assert type(found["model"]).__name__ == "OnePeaceForClassification"


def test_sounds_beside_pictures_are_passed_over_by_what_only_sees(
    classifier: tuple[str, Path], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    medium, directory = classifier
    if medium != "image":
        pytest.skip("hears")
    assert main(["classify", str(directory), str(files)]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert "passed over 2 files that are neither image nor video" in said.err
