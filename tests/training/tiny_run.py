"""A run of a second for the tests: imported as a module, and run as a script where a process has to die.

python tiny_run.py RUN_DIR step:7     die by SIGKILL in the middle of the 7th step
python tiny_run.py RUN_DIR sync:3     die by SIGKILL at the 3rd file that a checkpoint makes durable
python tiny_run.py RUN_DIR world      train under DDP as one of several processes and write what was seen
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.objectives.contrastive import contrastive_loss
from plait.training import checkpoint
from plait.training.data_order import Shuffled
from plait.training.loop import TrainResult, train
from plait.training.parallel import current_world, gather_rows, process_group
from plait.training.stages import Options, Stage

NUM_SAMPLES = 20


@dataclass
class Point:
    """A sample: an id, an input (4,) and its partner (4,)."""

    id: str
    x: Tensor
    y: Tensor


class Net(nn.Module):
    """Two towers over a shared layer, a buffer, and dropout, which draws from torch's global generator."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 6)
        self.image = nn.Sequential(nn.Dropout(dropout), nn.Linear(6, 3))
        self.audio = nn.Sequential(nn.Dropout(dropout), nn.Linear(6, 3))
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.long))

    def embed(self, x: Tensor, tower: str) -> Tensor:
        """x: (batch, 4) -> unit vectors (batch, 3) of the tower `image` or `audio`."""
        return F.normalize(getattr(self, tower)(torch.tanh(self.shared(x))), dim=-1)


def build(dropout: float = 0.2) -> Net:
    """The model, the same in every process."""
    torch.manual_seed(0)
    return Net(dropout)


def points() -> list[Point]:
    """The samples, the same in every process."""
    x, y = torch.randn(2, NUM_SAMPLES, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    return [Point(f"p{n:02d}", x[n], y[n]) for n in range(NUM_SAMPLES)]


def collate(samples: list[Point], rng: np.random.Generator) -> dict[str, Any]:
    """Stacked points with augmentation noise from `rng`."""
    noise = torch.from_numpy(rng.normal(0, 0.01, (len(samples), 4)).astype(np.float32))
    numbers = torch.tensor([int(sample.id[1:]) for sample in samples])
    return {
        "x": torch.stack([sample.x for sample in samples]) + noise,
        "y": torch.stack([sample.y for sample in samples]),
        "numbers": numbers,
    }


def noisy_loss(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """A loss that draws from every generator there is; its metric tells which samples the batch held."""
    assert isinstance(model, Net)
    model.num_calls += 1
    jitter = torch.randn((), generator=generator) + random.random() + np.random.random() + torch.rand(())
    loss = (model.embed(batch["x"], "image") - model.embed(batch["y"], "audio")).square().mean() * (1 + 0.1 * jitter)
    return loss, {"rows": float((2.0 ** batch["numbers"]).sum()), "is_even": step % 2 == 0}


def stages(objective: Any = noisy_loss) -> list[Stage]:
    """Two stages, the second training one tower."""
    common: dict[str, Any] = {"objective": objective, "batches": lambda: Shuffled(points(), collate), "batch_size": 6}
    return [
        Stage(name="first", steps=11, peak_lr=1e-2, warmup=2, **common),
        Stage(name="second", steps=9, peak_lr=1e-2, trainable=("audio.*",), before=(shake,), **common),
    ]


def shake(model: nn.Module) -> None:
    """Draw new weights for the tower that trains, from the global generator."""
    assert isinstance(model, Net)
    nn.init.normal_(model.audio[1].weight)


def run(run_dir: Path, model: nn.Module | None = None, **kwargs: Any) -> TrainResult:
    """Train the two stages with a checkpoint every fourth step."""
    options = kwargs.pop("options", Options(checkpoint_steps=4, progress=False))
    return train(model or build(), kwargs.pop("stages", stages()), run_dir, device="cpu", options=options, **kwargs)


def die_after(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose call number `count` is the death of the process."""
    calls = 0

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    return counted


def pair_loss(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """The contrast against the rows of all processes."""
    assert isinstance(model, Net)
    a, b = model.embed(batch["x"], "image"), model.embed(batch["y"], "audio")
    a_all, offset = gather_rows(a)
    b_all, _ = gather_rows(b)
    loss = contrastive_loss(a, b, 5.0, a_all=a_all, b_all=b_all, offset=offset).loss
    return loss, {"offset": offset}


def lonely_loss(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """Every rank trains another tower, and rank 1 alone is told to stop."""
    assert isinstance(model, Net)
    rank = current_world().rank
    if step == 4 and rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return model.embed(batch["x"], ("image", "audio")[rank])[:, 0].mean(), {}


def pair_stage(objective: Any, accumulation: int = 1) -> Stage:
    """Eight steps of a global batch of 8."""
    return Stage(
        name="pairs",
        steps=8,
        batch_size=8,
        accumulation=accumulation,
        objective=objective,
        batches=lambda: Shuffled(points(), lambda samples, _: collate(samples, np.random.default_rng(0))),
        peak_lr=1e-2,
    )


def world(run_dir: Path) -> None:
    """Everything a launch of two processes can show, in one launch."""
    with process_group("cpu") as (here, device):
        gathered, offset = gather_rows(torch.full((2, 1), float(here.rank), requires_grad=True))
        seen: dict[str, Any] = {
            "gathered": gathered.flatten().tolist(),
            "requires_grad": gathered.requires_grad,
            "offset": offset,
            "mean": here.mean([float(here.rank), 4.0], device),
        }
        model = build(dropout=0.0)
        run(run_dir / "pairs", model, stages=[pair_stage(still(pair_loss))])
        seen["weights"] = {name: value.tolist() for name, value in model.state_dict().items()}
        result = run(run_dir / "lonely", stages=[pair_stage(lonely_loss)])
        seen["lonely"] = [result.steps, result.interrupted]
    (run_dir / f"rank{here.rank}.json").write_text(json.dumps(seen))


def still(objective: Any) -> Any:
    """`objective` on inputs without augmentation noise, which depends on how the batch is split."""

    def quiet(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        x = torch.stack([point.x for point in points()])[batch["numbers"]]
        return objective(model, {**batch, "x": x}, step, generator)

    return quiet


if __name__ == "__main__":
    torch.set_num_threads(1)
    directory, (how, _, when) = Path(sys.argv[1]), sys.argv[2].partition(":")
    if how == "world":
        world(directory)
    elif how == "sync":
        checkpoint.sync = die_after(int(when), checkpoint.sync)
        run(directory)
    else:
        run(directory, stages=stages(die_after(int(when), noisy_loss)))
