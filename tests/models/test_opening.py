"""Directories that we save open with transformers alone, and `import plait` is enough for it to know them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText

import plait
from plait.models import mplug2, one_peace

from .mplug_owl import tiny as owl_tiny
from .mplug_owl2 import tiny as owl2_tiny
from .test_contract import SIZES


def saved(family: str, place: Path) -> Path:
    if family == "one_peace":
        model: Any = one_peace.OnePeaceModel(one_peace.OnePeaceConfig(**SIZES))
        processor: Any = one_peace.OnePeaceProcessor.from_config(model.config)
    elif family == "mplug2":
        model = mplug2.MPlug2ForConditionalGeneration(mplug2.MPlug2Config.preset("tiny"))
        processor = mplug2.MPlug2Processor.from_config(model.config)
    else:
        model, processor = (owl_tiny if family == "owl" else owl2_tiny).model_and_processor()
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


FRESH = """
import sys, json, pathlib
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
root = pathlib.Path(sys.argv[1])
assert "plait" not in sys.modules
processor = AutoProcessor.from_pretrained(root / "owl2", trust_remote_code=True)  # before any model of the family
for name, auto in (("owl2", AutoModelForImageTextToText), ("one_peace", AutoModel)):
    model = auto.from_pretrained(root / name, trust_remote_code=True)
    assert type(model).__module__.startswith("plait.models."), type(model)
    model.save_pretrained(root / "again" / name)
    AutoConfig.from_pretrained(root / name, trust_remote_code=True).save_pretrained(root / "config" / name)
processor.save_pretrained(root / "again" / "owl2")
"""


def run(code: str, *args: object, path: str | None = None) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ) if path is None else {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)


@pytest.mark.slow
def test_a_process_that_never_imported_plait_opens_and_saves_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for family in ("owl2", "one_peace"):
        saved(family, tmp_path / family)
    done = run(FRESH, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for family in ("owl2", "one_peace"):
        first, again = tmp_path / family, tmp_path / "again" / family
        assert [file.name for file in again.glob("*.py")] == ["plait_model.py"]
        assert (again / "plait_model.py").read_text() == (first / "plait_model.py").read_text()
        assert json.loads((again / "config.json").read_text()) == json.loads((first / "config.json").read_text())
        assert (tmp_path / "config" / family / "plait_model.py").exists()


@pytest.mark.parametrize("family", ["one_peace", "mplug2", "owl", "owl2"])
def test_the_loader_is_a_few_lines_and_no_field_of_the_configuration(family: str, tmp_path: Path) -> None:
    place = saved(family, tmp_path)
    written = json.loads((place / "config.json").read_text())
    assert all(one.startswith("plait_model.") for one in written["auto_map"].values())
    assert "AutoProcessor" in json.loads((place / "processor_config.json").read_text())["auto_map"]
    assert len((place / "plait_model.py").read_text().splitlines()) < 12
    model, processor = plait.load(place)
    assert not hasattr(model.config, "auto_map")
    assert not hasattr(processor, "auto_map")
    type(model.config).register_for_auto_class()
    type(processor).register_for_auto_class()
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    assert [file.name for file in (tmp_path / "again").glob("*.py")] == ["plait_model.py"]


@pytest.mark.slow
def test_importing_plait_is_enough_for_auto_classes_in_either_order(tmp_path: Path) -> None:
    place = saved("owl2", tmp_path / "owl2")
    code = (
        "import sys{first}; import plait; assert 'torch' not in sys.modules or {has_torch}\n"
        "from transformers import AutoProcessor, AutoConfig\n"
        "AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=False)\n"
        "AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=False)\n"
    )
    for first, has_torch in (("", False), ("; from transformers import AutoConfig", True)):
        done = run(code.format(first=first, has_torch=has_torch), place)
        assert done.returncode == 0, done.stderr[-2000:]


def test_options_of_from_pretrained_reach_the_language_model(tmp_path: Path) -> None:
    place = saved("owl", tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(place, use_cache=False)
    assert not model.config.use_cache
    assert not model.config.text_config.use_cache


@pytest.mark.parametrize("family", ["owl", "owl2"])
def test_a_model_without_its_processor_is_told_in_one_line(family: str, tmp_path: Path) -> None:
    (owl_tiny if family == "owl" else owl2_tiny).model_and_processor()[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected the processor beside the model"):
        plait.load(tmp_path)
