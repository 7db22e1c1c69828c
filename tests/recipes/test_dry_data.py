"""What every recipe reads first: the batches and losses that were stored when the one data path was made.

Write them anew after a change that is meant: python tests/recipes/test_dry_data.py
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from plait.cli import main
from plait.training.logging import read_metrics

if __name__ == "__main__":  # as a script it has no package to be relative to
    sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.recipes.tiny_world import RUNS, command, write_data, write_models

STORED = Path(__file__).with_name("dry_data")
NUM_BATCHES, NUM_LOSSES = 4, 3


def dry_data(name: str, data: Path, models: Path) -> dict[str, Any]:
    """What `plait train ... --dry-data` prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([*command(name, data, models), "--dry-data", str(NUM_BATCHES), "--json"]) == 0
    return json.loads(said.getvalue())


def losses(name: str, data: Path, models: Path, out: Path) -> list[float]:
    """Losses of the first steps."""
    assert main([*command(name, data, models), "--out", str(out)]) == 0
    return [row["loss"] for row in read_metrics(out / "metrics.jsonl")][:NUM_LOSSES]


@pytest.mark.parametrize("name", RUNS)
def test_first_batches_are_those_that_were_stored(name: str, world: tuple[Path, Path], tmp_path: Path) -> None:
    """Ids, names, shapes, types and whole numbers alike; values that are computed may differ in their last bits."""
    stored = json.loads((STORED / f"{name}.json").read_text())
    found = dry_data(name, *world)
    for old, new in zip(stored["batches"], found["batches"], strict=True):
        assert new["samples"] == old["samples"]
        given = {one["name"]: one for one in new["tensors"]}
        assert given.keys() == {one["name"] for one in old["tensors"]}
        for before in old["tensors"]:
            after = given[before["name"]]
            exact = [key for key in before if key not in ("sha256", "sum") or "sum" not in before]
            assert {key: after[key] for key in exact} == {key: before[key] for key in exact}
            if "sum" in before:
                assert after["sum"] == pytest.approx(before["sum"], rel=1e-5, abs=1e-3)
    assert losses(name, *world, tmp_path / "run") == pytest.approx(stored["losses"], rel=5e-3, abs=1e-3)


def test_a_batch_that_differs_is_seen(world: tuple[Path, Path]) -> None:
    """The digest follows the values, not the shapes alone."""
    argv = [*command("one_peace.stage1", *world, augmentation=0), "--dry-data", "1", "--json"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(argv) == 0
    plain = {t["name"]: t for t in json.loads(said.getvalue())["batches"][0]["tensors"]}
    drawn = {t["name"]: t for t in dry_data("one_peace.stage1", *world)["batches"][0]["tensors"]}
    assert plain["pixel_values"]["sha256"] != drawn["pixel_values"]["sha256"]
    assert plain["pixel_values"]["sum"] != pytest.approx(drawn["pixel_values"]["sum"], rel=1e-5, abs=1e-3)
    assert plain["ids"] == drawn["ids"]


def test_nothing_is_trained_and_nothing_written(world: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    argv = [*command("mplug2.answering", *world), "--out", str(tmp_path / "run"), "--dry-data", "2"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "answering, step 1: " in said and "pixel_values" in said and "float32" in said
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    torch.set_num_threads(1)
    STORED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for part in ("data", "models"):
            (root / part).mkdir()
        write_data(root / "data")
        write_models(root / "models")
        for run in RUNS:
            if not sys.argv[1:] or any(word in run for word in sys.argv[1:]):
                made = dry_data(run, root / "data", root / "models")
                made["losses"] = losses(run, root / "data", root / "models", root / run)
                (STORED / f"{run}.json").write_text(json.dumps(made, indent=1) + "\n")
