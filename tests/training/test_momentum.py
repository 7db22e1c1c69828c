"""What an objective keeps: a twin that follows, queues that go round, both in the checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.training.logging import read_metrics
from plait.training.parallel import MomentumObjective, Queues, Twin, twins
from plait.training.stages import Options, Stage


def test_a_twin_follows_slowly_and_without_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    twin = Twin(model, 0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model[1].num_batches_tracked += 5
    for count in (1, 2):
        twin.update(model)
        for name, value in twin.module.named_parameters():
            torch.testing.assert_close(value, before[name] + (1 - 0.9**count))
    assert int(twin.module.state_dict()["1.num_batches_tracked"]) == 5  # whole numbers are copied
    assert not any(p.requires_grad for p in twin.parameters())
    with pytest.raises(ValueError, match=r"expected a momentum in \[0, 1\), got 1"):
        Twin(model, 1)
    assert list(twins(nn.ModuleDict({"a": nn.ModuleDict({"b": model})}), ["a.b"], 0.5)) == ["a-b"]


def test_queues_go_round_and_move_together() -> None:
    torch.manual_seed(0)
    queues = Queues(5, {"image": 2, "ids": 0})
    torch.testing.assert_close(queues.rows("image").norm(dim=1), torch.ones(5))
    assert queues.rows("ids").tolist() == [-100] * 5
    for first in (0, 3):
        rows = torch.arange(first, first + 3)
        queues.push(image=rows[:, None].expand(3, 2).float(), ids=rows)
    assert queues.rows("ids").tolist() == [5, 1, 2, 3, 4]
    assert queues.rows("image")[:, 0].tolist() == [5, 1, 2, 3, 4]
    for wrong in ({"ids": torch.arange(2)}, {"image": torch.ones(2, 2), "ids": torch.arange(3)}):
        with pytest.raises(ValueError, match="expected as many rows of each of image, ids, up to 5"):
            queues.push(**wrong)


class Contrast(MomentumObjective):
    """Against a queue of what the twin said, as MoCo does."""

    def begin(self, model: nn.Module) -> None:
        self.twin = Twin(model, 0.9)
        self.queues = Queues(16, {"y": 3})

    def forward(
        self, model: nn.Module, batch: Any, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Any]]:
        a = model.embed(batch["x"], "image")
        self.seen = self.twin.module.embed(batch["y"], "audio").detach()
        logits = 5 * a @ torch.cat([self.seen, self.queues.rows("y")]).T
        return F.cross_entropy(logits, torch.arange(len(a))), {}

    def after(self, model: nn.Module, step: int) -> None:
        self.twin.update(model)
        self.queues.push(y=self.seen)


def test_a_stopped_run_goes_on_with_its_twin_and_its_queues(tiny: ModuleType, tmp_path: Path) -> None:
    def stage(*after: Any) -> Stage:
        return tiny.pair_stage(Contrast(), after_step=after)

    quiet, finals = Options(progress=False, checkpoint_steps=3), []
    tiny.run(tmp_path / "whole", tiny.build(), stages=[stage()], options=quiet)
    tiny.run(tmp_path / "stopped", tiny.build(), stages=[stage(tiny.stops_at(4))], options=quiet)
    assert len(read_metrics(tmp_path / "stopped" / "metrics.jsonl")) == 4
    assert list((tmp_path / "stopped").glob("checkpoints/step-00000004/objective-*.safetensors"))
    resumed = stage()
    tiny.run(tmp_path / "stopped", tiny.build(), stages=[resumed], options=quiet)
    finals = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "stopped")]
    assert finals[0] == finals[1] and len(set(finals[0])) == 8


def test_a_twin_is_refused_when_the_model_is_spread(tiny: ModuleType) -> None:
    from plait.training.parallel import World, place_model

    stages = [tiny.pair_stage(Contrast())]
    with pytest.raises(
        ValueError, match="expected --parallel ddp for a stage with a momentum twin or queues, got fsdp"
    ):
        place_model(tiny.build(), stages, Options(parallel="fsdp"), World(0, 2), torch.device("cpu"), torch.float32)
