"""`plait models` lists published checkpoints and the model directories of this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from plait.cli import main
from plait.models import auto, official_rows
from plait.models.catalog import DEPTH, local, official


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "own"))  # what was fetched on this machine is no model of the test
    cached = tmp_path / "cache" / "models--some--clip" / "snapshots" / "abc"
    for place in (tmp_path / "runs" / "a" / "model", cached):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({"model_type": "clip", "modalities": ["text", "image"]}))
        save_file({"x": np.zeros((3, 5), np.float16)}, place / "model.safetensors")
    return tmp_path / "runs"


def test_every_family_has_official_checkpoints_with_size_memory_and_use() -> None:
    rows = official()
    assert {row.family for row in rows} == set(auto.FAMILIES)
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert 1e9 < row.parameters < 2e10
        assert row.memory == {"bfloat16": 2 * row.parameters, "float32": 4 * row.parameters}
        assert row.license and row.does and row.where


def test_parameters_are_those_of_the_key_lists() -> None:
    places = [path / "one_peace" / "keys" / "index.json" for path in Path(__file__).parents[1].glob("goldens")]
    counts = json.loads(places[0].read_text())
    files = {name: row["name"] for name, row in official_rows().items()}
    rows = [replace(row, name=files[row.name]) for row in official() if files[row.name] in counts]
    assert len(rows) == 12
    assert all(row.parameters == counts[row.name]["float_elements"] for row in rows)


def test_local_models_are_shipped_found_and_cached(runs: Path) -> None:
    rows = {row.name: row for row in local([runs])}
    assert set(rows) == {"nano", "nano-mplug2", str(runs / "a" / "model"), "some/clip"}
    assert rows["nano"].license == "apache-2.0"
    assert rows["some/clip"].parameters == 15
    assert rows["some/clip"].does == "takes text, image"


def test_what_is_broken_or_too_deep_is_left_out(runs: Path) -> None:
    deep = runs.joinpath(*"abcdefgh"[: DEPTH + 1])
    for place in (deep, runs / "broken"):
        place.mkdir(parents=True)
        (place / "config.json").write_text("{")
        save_file({"x": np.zeros(3, np.float32)}, place / "model.safetensors")
    assert len(local([runs])) == 4


def test_the_verb_prints_a_table_or_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(runs), "--family", "one_peace"]) == 0
    text = capsys.readouterr().out
    assert "one-peace.pt" in text and "7.2 GiB" in text and "nano" in text and "owl" not in text
    assert main(["models", str(runs), "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)["local"]} >= {"nano", "some/clip"}
    assert main(["models", str(runs / "nowhere")]) == 2
    assert main(["models", "--family", "two_peace"]) == 2
    assert "expected one of the families" in capsys.readouterr().err
