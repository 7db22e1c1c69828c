"""Losses of fixed runs, stored once: a change of the loop, an objective or a model that moves them is seen.

Write them anew after a change that is meant: python tests/training/test_curves.py
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from plait.training.logging import read_metrics
from plait.training.loop import train
from plait.training.stages import Options

STORED = Path(__file__).with_name("curves.json")
STEPS = 6


def neighbour(name: str) -> ModuleType:
    """A module of this directory, also where this file runs as a script."""
    root = str(Path(__file__).parents[2])
    if root not in sys.path:
        sys.path.append(root)
    return importlib.import_module(f"tests.training.{name}")


ARMS = ("contrast", "contrast and denoising", "accumulated", "adapters", "captions", "talk")


def curve(name: str, run_dir: Path) -> list[float]:
    """Losses of one arm: ONE-PEACE's contrast, with denoising, accumulated, with adapters; captions; talks."""
    torch.manual_seed(0)
    model, stage = neighbour("test_account").CONFIGURATIONS[name]()
    train(model, [replace(stage, steps=STEPS, warmup=1)], run_dir, device="cpu", options=Options(progress=False))
    return [row["loss"] for row in read_metrics(run_dir / "metrics.jsonl")]


@pytest.mark.parametrize("name", ARMS)
def test_losses_are_those_that_were_stored(name: str, tmp_path: Path) -> None:
    stored: dict[str, Any] = json.loads(STORED.read_text())
    assert set(stored) == set(ARMS)
    found = curve(name, tmp_path)
    assert len(set(found)) >= STEPS - 1  # the rate of the first step is zero
    assert found == pytest.approx(stored[name], rel=5e-3, abs=1e-3)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        made = {name: curve(name, Path(place) / name) for name in ARMS}
    STORED.write_text(json.dumps(made, indent=1) + "\n")
