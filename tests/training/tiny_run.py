"""A run of a second for the tests: imported as a module, and run as a script where a process has to die.

python tiny_run.py RUN_DIR step:7     die by SIGKILL in the middle of the 7th step
python tiny_run.py RUN_DIR sync:3     die by SIGKILL at the 3rd file that a checkpoint makes durable
python tiny_run.py RUN_DIR time:0.08  die by SIGKILL so many seconds after training began, wherever that is
python tiny_run.py RUN_DIR world      train under DDP as one of several processes and write what was seen
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.data.reader import Reader, as_it_is
from plait.objectives.contrastive import contrastive_loss
from plait.training import checkpoint
from plait.training.account import step_cost
from plait.training.loop import TrainResult, train
from plait.training.parallel import check_shared, chunk_of, current_world, gather_rows, gathered_state, process_group
from plait.training.run import run_recipe
from plait.training.stages import Options, Recipe, Stage

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


class Layer(nn.Module):
    """A residual layer with weights of its own for each tower."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleDict({tower: nn.Linear(6, 6) for tower in ("image", "audio")})

    def forward(self, x: Tensor, tower: str) -> Tensor:
        """x: (batch, 6) -> (batch, 6)."""
        return x + torch.tanh(self.ways[tower](x))


class DeepNet(Net):
    """The towers over shared layers, and a single number that no process can cut."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(5.0))
        self.register_buffer("shift", torch.linspace(0, 1, 6), persistent=False)

    def embed(self, x: Tensor, tower: str) -> Tensor:
        """x: (batch, 4) -> unit vectors (batch, 3)."""
        x = torch.tanh(self.shared(x)) + self.get_buffer("shift")
        for layer in self.layers:
            x = layer(x, tower)
        return F.normalize(getattr(self, tower)(x), dim=-1)


def build_deep() -> DeepNet:
    """The deep model: with its values in the first process, with shapes alone elsewhere."""
    torch.manual_seed(0)
    with torch.device("cpu" if current_world().is_main else "meta"):
        return DeepNet()


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


def slow_loss(*args: Any) -> tuple[Tensor, dict[str, Any]]:
    """`noisy_loss` in steps of ten milliseconds, so that a moment drawn at random falls into most parts of a run."""
    time.sleep(0.01)
    return noisy_loss(*args)


def stages(objective: Any = noisy_loss) -> list[Stage]:
    """Two stages, the second training one tower."""
    common: dict[str, Any] = {
        "objective": objective,
        "batches": lambda: Reader(points(), collate, as_it_is),
        "batch_size": 6,
    }
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
    scale = model.scale if isinstance(model, DeepNet) else 5.0
    loss = contrastive_loss(a, b, scale, a_all=a_all, b_all=b_all, offset=offset, chunk_size=chunk_of(len(a))).loss
    return loss, {"offset": offset}


def mixed_loss(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """The first half of the global batch has pictures alone, the second sounds alone."""
    assert isinstance(model, Net)
    half = len(batch["x"]) * current_world().size // 2
    towers = ("image", "audio") if half < len(batch["x"]) else (("image", "audio")[current_world().rank],)
    parts = [model.embed(x, t)[:, 0].square().mean() for x, t in zip(batch["x"].split(half), towers, strict=True)]
    return torch.stack(parts).mean(), {}


def one_peace() -> nn.Module:
    """A ONE-PEACE of three modalities whose layers count in thousands of numbers."""
    from plait.models.one_peace.config import OnePeaceConfig
    from plait.models.one_peace.model import OnePeaceModel

    torch.manual_seed(0)
    sizes = {"dim": 16, "num_heads": 2, "num_layers": 2, "mlp_dim": 16, "vocab_size": 30, "layer_scale": 0.5}
    return OnePeaceModel(OnePeaceConfig.preset("nano", **sizes, audio_position_groups=4))


def text_or_image_loss(
    model: nn.Module, batch: Any, step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Any]]:
    """Process 0 has text alone, process 1 images alone; one process has both."""
    world = current_world()
    drawing = torch.Generator().manual_seed(step)
    ids, pixels = torch.randint(3, 30, (2, 5), generator=drawing), torch.randn(2, 3, 64, 64, generator=drawing)
    parts = []
    if world.rank == 0:
        parts.append(model.get_text_features(ids)[:, 0].mean())
    if world.rank == world.size - 1:
        parts.append(model.get_image_features(pixels)[:, 0].mean())
    return torch.stack(parts).mean(), {}


def stops_at(count: int) -> Any:
    """An after_step that asks for a stop when `count` steps are done."""

    def stop(model: nn.Module, step: int) -> None:
        if step + 1 == count:
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


def lonely_loss(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """Every rank trains another tower, and rank 1 alone is told to stop."""
    assert isinstance(model, Net)
    rank = current_world().rank
    if step == 4 and rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return model.embed(batch["x"], ("image", "audio")[rank])[:, 0].mean(), {}


def pair_stage(objective: Any, accumulation: int = 1, steps: int = 8, **changes: Any) -> Stage:
    """Steps of a global batch of 8."""
    return Stage(
        name="pairs",
        steps=steps,
        batch_size=8,
        accumulation=accumulation,
        objective=objective,
        batches=lambda: Reader(points(), lambda samples, _: collate(samples, np.random.default_rng(0)), as_it_is),
        peak_lr=1e-2,
        **changes,
    )


FSDP = Options(checkpoint_steps=4, progress=False, parallel="fsdp")


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
        if here.is_main:  # a plan is made by one process and waits for no other
            stage = pair_stage(pair_loss)
            seen["planned"] = step_cost(build(dropout=0.0), stage, stage.batches(), 0, processes=2).flops
        model = build(dropout=0.0)
        run(run_dir / "pairs", model, stages=[pair_stage(still(pair_loss))])
        seen["weights"] = {name: value.tolist() for name, value in model.state_dict().items()}
        result = run(run_dir / "lonely", stages=[pair_stage(lonely_loss)])
        seen |= sharded(run_dir)
        seen["recipe"] = spread_recipe(run_dir)
        try:
            check_shared(run_dir / f"node{here.rank}", here)
        except ValueError as error:
            seen["unshared"] = str(error)
        seen["lonely"] = [result.steps, result.interrupted]
    (run_dir / f"rank{here.rank}.json").write_text(json.dumps(seen))


def sharded(run_dir: Path) -> dict[str, Any]:
    """FSDP2: pairs, other modalities in every process, frozen stages, and runs that other worlds begin or end."""
    seen: dict[str, Any] = {}
    pairs, mixed = still(pair_loss), still(mixed_loss)
    for name, stages in {
        "fsdp-pairs": [pair_stage(pairs)],
        "fsdp-accumulated": [pair_stage(mixed, accumulation=2)],
        "fsdp-mixed": [pair_stage(mixed)],
        "fsdp-frozen": [pair_stage(pairs), pair_stage(pairs, trainable=("audio.*", "layers.*.audio.*", "scale"))],
        "two-to-one": [pair_stage(pairs, after_step=(stops_at(4),))],
        "one-to-two": [pair_stage(pairs)],
    }.items():
        model = build_deep()
        run(run_dir / name, model, stages=stages, options=FSDP)
        seen[name] = {key: value.tolist() for key, value in gathered_state(model, current_world()).items()}
    for name, options in {"one-peace-fsdp": FSDP, "one-peace-ddp": Options(progress=False)}.items():
        run(run_dir / name, one_peace(), stages=[pair_stage(text_or_image_loss, steps=3)], options=options)
    torch.manual_seed(0)
    model = DeepNet()
    run(run_dir / "ddp-mixed", model, stages=[pair_stage(mixed)])
    seen["ddp-mixed"] = {key: value.tolist() for key, value in model.state_dict().items()}
    return seen


def spread_recipe(run_dir: Path) -> str:
    """A recipe under FSDP whose builder gives one model every time; where this process had built it."""
    model: list[nn.Module] = []
    places: list[str] = []

    def build() -> nn.Module:
        if not model:
            torch.manual_seed(0)
            model.append(DeepNet())
            places.append(str(next(model[0].parameters()).device))
        return model[0]

    def save(trained: nn.Module, directory: Path) -> None:
        weights = {name: value.tolist() for name, value in trained.state_dict().items()}
        (directory / "weights.json").write_text(json.dumps(weights))

    recipe = Recipe(build, [pair_stage(still(pair_loss))], save)
    run_recipe(lambda: recipe, run_dir / "recipe", device="cpu", options=FSDP)
    return places[0]


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
    elif how == "time":
        threading.Timer(float(when), os.kill, (os.getpid(), signal.SIGKILL)).start()
        run(directory, stages=stages(slow_loss))
    elif how == "sync":
        checkpoint.sync = die_after(int(when), checkpoint.sync)
        run(directory)
    else:
        run(directory, stages=stages(die_after(int(when), noisy_loss)))
