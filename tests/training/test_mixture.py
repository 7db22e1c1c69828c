"""A run over a mixture of tasks, from shards and filled to a budget, goes on where it was stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plait.data.mixture import Mixture
from plait.data.order import Budgeted
from plait.data.reader import Reader, Reading
from plait.data.shards import pack
from plait.data.sources import open_samples
from plait.training.logging import read_metrics
from plait.training.loop import train
from plait.training.stages import Options, Stage
from plait.types import Sample

TIMING = ("seconds", "samples_per_second", "memory_gib", "data_wait")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty texts of different lengths, one of them without words, in three shards."""
    out = tmp_path_factory.mktemp("data") / "shards"
    rows = [Sample(f"r{n}", text=None if n == 7 else "x" * (1 + n % 9), meta={"number": n}) for n in range(40)]
    pack(rows, out, 30_000)
    return out


def decode(sample: Sample, rng: np.random.Generator) -> tuple[int, float]:
    if sample.text is None:
        raise ValueError("expected text, got none")
    return sample.meta["number"], len(sample.text) + float(rng.random())


def collate(parts: list[tuple[int, float]], rng: np.random.Generator) -> dict[str, Tensor]:
    numbers, values = zip(*parts, strict=True)
    return {"numbers": torch.tensor(numbers), "x": torch.tensor(values)[:, None]}


def source(shards: Path, workers: int) -> Mixture:
    how, filled = Reading(workers, "skip", 2), Budgeted([1 + n % 9 for n in range(40)], 40, 4)
    long, short = (Reader(open_samples(shards), collate, decode, reading=how, order=one) for one in (None, filled))
    return Mixture({"plain": long, "filled": short}, {"plain": 2, "filled": 1})


def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    seen = {"rows": float((2.0 ** batch["numbers"].double()).sum()), "is_filled": batch["task"] == "filled"}
    return model(batch["x"]).square().mean(), seen


def run(shards: Path, run_dir: Path, workers: int, stop_at: int | None = None) -> list[dict[str, Any]]:
    def stop(model: nn.Module, step: int) -> None:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    torch.manual_seed(0)
    model = nn.Linear(1, 3)
    stage = Stage(
        name="mixed", objective=objective, batches=lambda: source(shards, workers), batch_size=4, steps=18,
        after_step=(stop,),
    )  # fmt: skip
    train(model, [stage], run_dir, device="cpu", options=Options(progress=False))
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


@pytest.mark.parametrize("workers", [0, 3])
def test_a_stopped_run_over_a_mixture_goes_on(shards: Path, tmp_path: Path, workers: int) -> None:
    whole = run(shards, tmp_path / "whole", 0)
    assert len(whole) == 18 and sum(row["is_filled"] for row in whole) == 6
    assert len(run(shards, tmp_path / "stopped", workers, stop_at=7)) == 8
    assert run(shards, tmp_path / "stopped", workers) == whole
    skipped = (tmp_path / "stopped" / "bad_samples.txt").read_text().splitlines()
    assert set(skipped) == {"r7: expected text, got none"}
