"""What a plan says before a run is what the run then takes: bytes within 10 %, FLOPs exactly."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from plait.data.order import rows_of_step
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.pretraining import OnePeaceForPreTraining
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.objectives.contrastive import contrastive_loss
from plait.recipes.mplug2 import supervised
from plait.recipes.mplug_owl2 import answer_loss
from plait.recipes.one_peace import NOT_AUDIO, Objective, no_decay
from plait.recipes.plan import plan_stage, with_cost
from plait.training.account import mean_flops, step_cost
from plait.training.loop import train
from plait.training.lora import add_lora
from plait.training.optim import adamw
from plait.training.parallel import World, chunk_of, recomputed
from plait.training.stages import Options, Stage, freeze
from plait.weights.dtypes import DTYPES

from ..models.mplug_owl2.tiny import images as owl2_images
from ..models.mplug_owl2.tiny import model_and_processor as owl2_model_and_processor


class Drawn:
    """A source of random pictures and ids of the shapes of a model."""

    def __init__(self, make: Callable[[int, torch.Generator], dict[str, Tensor]]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 64

    def rows(self, seed: int, step: int, batch_size: int) -> Any:
        return rows_of_step(len(self), batch_size, seed, step)

    def load(self, rows: Any, rng: np.random.Generator) -> dict[str, Tensor]:
        return self.make(len(rows), torch.Generator().manual_seed(0))

    def names(self, rows: Any) -> list[str]:
        return [str(row) for row in rows]


def one_peace_batch(rows: int, drawing: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(5, 260, (rows, 7), generator=drawing)
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(rows, 3, 64, 64, generator=drawing),
        "ids": torch.arange(rows),
    }


def one_peace(denoise_every: int, **changes: Any) -> tuple[nn.Module, Stage]:
    config = OnePeaceConfig.preset("nano", vocab_size=264)
    objective = Objective(
        "image", OnePeaceProcessor.from_config(config), denoise_every, "contrast" if denoise_every else None
    )
    stage = Stage(
        name="pictures", objective=objective, batches=lambda: Drawn(one_peace_batch), batch_size=8, steps=4,
        trainable=NOT_AUDIO, no_decay=no_decay, period=max(1, denoise_every), **changes,
    )  # fmt: skip
    return OnePeaceForPreTraining(config), stage


def adapted() -> tuple[nn.Module, Stage]:
    model, stage = one_peace(0)
    return model, Stage(**{**vars(stage), "trainable": add_lora(model, 4, targets=["model.trunk.*.attn.*"])})


def captions() -> tuple[nn.Module, Stage]:
    config = MPlug2Config.preset("tiny")

    def make(rows: int, drawing: torch.Generator) -> dict[str, Tensor]:
        ids = torch.randint(5, 100, (rows, 6), generator=drawing)
        side = config.vision_sizes.image_size
        pixels = torch.randn(rows, 3, side, side, generator=drawing)
        mask = torch.ones_like(ids)
        return {"pixel_values": pixels, "decoder_input_ids": ids, "decoder_attention_mask": mask, "labels": ids}

    stage = Stage(name="captions", objective=supervised, batches=lambda: Drawn(make), batch_size=8, steps=4)
    return MPlug2ForConditionalGeneration(MPlug2Config.preset("tiny", task="caption")), stage


def talk() -> tuple[nn.Module, Stage]:
    """mPLUG-Owl2 with adapters, on talks with and without a picture."""
    model, processor = owl2_model_and_processor()

    def make(rows: int, drawing: torch.Generator) -> dict[str, Tensor]:
        asked = ["<|image|>what?" if i % 2 else "a longer question?" for i in range(rows)]
        turns = [[{"from": "human", "value": q}, {"from": "gpt", "value": "an answer"}] for q in asked]
        return dict(processor.supervised(turns, owl2_images()[: rows // 2]))

    patterns = add_lora(model, 2, targets=["*.decoder.layers.*"])
    stage = Stage(
        name="talk", objective=answer_loss, batches=lambda: Drawn(make), batch_size=4, steps=4, trainable=patterns
    )
    return model, stage


CONFIGURATIONS: dict[str, Callable[[], tuple[nn.Module, Stage]]] = {
    "contrast": lambda: one_peace(0),
    "contrast and denoising": lambda: one_peace(1),
    "accumulated": lambda: one_peace(0, accumulation=2),
    "adapters": adapted,
    "captions": captions,
    "talk": talk,
}


def counted(model: nn.Module, stage: Stage, dtype: str) -> dict[str, int]:
    """What one real step holds: every gradient, moment and saved tensor, each storage once."""
    freeze(model, stage.trainable)
    model.train()
    optimizer = (stage.optimizer or adamw)(model, stage)
    source = stage.batches()
    rows = list(source.rows(0, 0, stage.batch_size))[: stage.batch_size // stage.accumulation]
    batch = source.load(rows, np.random.default_rng(0))
    weights = {x.untyped_storage()._cdata for x in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Any] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept.setdefault(storage._cdata, storage)
        return x

    with FlopCounterMode(display=False) as counter:
        enabled = dtype != "float32"
        with saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", DTYPES[dtype], enabled=enabled):
            loss, _ = stage.objective(model, batch, 0, torch.Generator())
        loss.backward()
    optimizer.step()
    moments = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return {
        "parameters": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in model.parameters() if p.grad is not None),
        "optimiser": sum(v.nbytes for v in moments),
        "activations": sum(storage.nbytes() for storage in kept.values()),
        "flops": counter.get_total_flops() * stage.accumulation,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_a_plan_is_within_a_tenth_of_the_tensors_counted(name: str, dtype: str) -> None:
    model, stage = CONFIGURATIONS[name]()
    planned = with_cost(plan_stage(model, stage), model, stage, dtype=dtype)
    found = counted(model, stage, dtype)
    assert planned.note == "" and planned.flops == found.pop("flops")
    for what, size in found.items():
        assert planned.bytes[what] == pytest.approx(size, rel=0.1), what
    assert sum(planned.bytes.values()) == pytest.approx(sum(found.values()), rel=0.05)


class Live(TorchDispatchMode):
    """Bytes of the storages that results of operators hold now, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor)):
            if storage._cdata not in self.known | old:
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def forget(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.live -= size


def held(model: nn.Module, stage: Stage) -> int:
    """Bytes of real tensors at most beyond weights and batch during one real step forward and backward."""
    freeze(model, stage.trainable)
    model.train()
    source = stage.batches()
    batch = source.load(list(source.rows(0, 0, stage.batch_size)), np.random.default_rng(0))
    with Live() as live:
        loss, _ = stage.objective(model, batch, 0, torch.Generator())
        loss.backward()
    return live.peak


@pytest.mark.parametrize("name", ["contrast", "adapters", "talk"])
def test_the_peak_is_within_a_tenth_of_what_a_step_holds(name: str) -> None:
    model, stage = CONFIGURATIONS[name]()
    planned = step_cost(model, stage, stage.batches(), 0).peak
    assert planned == pytest.approx(held(model, stage), rel=0.1)


def test_a_plan_without_values_equals_one_with_them() -> None:
    model, stage = one_peace(1)
    with torch.device("meta"):
        shapes, _ = one_peace(1)
    source = stage.batches()
    assert step_cost(shapes, stage, source, 0) == step_cost(model, stage, source, 0)


def test_recomputing_layers_keeps_less_and_the_model_as_it_was() -> None:
    model, stage = one_peace(0)
    source = stage.batches()
    whole, every, half = (step_cost(model, stage, source, 0, recompute=n).activations for n in (0, 1, 2))
    assert every < 0.4 * whole and every < half < whole
    with recomputed(model, 1):
        assert step_cost(model, stage, source, 0).activations == whole  # the plan undoes what the run has set


def test_steps_of_a_period_are_averaged() -> None:
    model, stage = one_peace(4)
    source = stage.batches()
    dear, cheap = (step_cost(model, stage, source, step).flops for step in (0, 1))
    assert dear > 2 * cheap
    assert mean_flops(model, stage, source) == (dear + 3 * cheap) / 4


class Largest(TorchDispatchMode):
    """The most numbers in one result as wide as `columns`."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns, self.numbers = columns, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.ndim == 2 and x.shape[1] == self.columns:
                self.numbers = max(self.numbers, x.numel())
        return out


def test_gathered_logits_do_not_grow_with_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, 64 rows a process: chunks get as much shorter as there are more columns."""
    found = {}
    for processes in (1, 4, 16):
        monkeypatch.setattr("plait.training.parallel.current_world", lambda size=processes: World(0, size))
        a, b = (torch.randn(64, 4, requires_grad=True) for _ in range(2))
        everybody = [x.detach().repeat(processes, 1) for x in (a, b)]
        with Largest(64 * processes) as largest:
            out = contrastive_loss(a, b, 5.0, a_all=everybody[0], b_all=everybody[1], chunk_size=chunk_of(64))
            out.loss.backward()
        found[processes] = largest.numbers
    assert set(found.values()) == {64 * 64}


def test_processes_share_a_batch() -> None:
    model, stage = one_peace(0)
    whole, shared = (step_cost(model, stage, stage.batches(), 0, processes=n) for n in (1, 4))
    assert shared.flops < 0.3 * whole.flops and shared.activations < 0.3 * whole.activations


def test_an_objective_that_needs_values_is_named() -> None:
    model, stage = one_peace(0)

    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        loss, _ = stage.objective(model, batch, step, generator)
        return loss * float(loss), {}

    looking = Stage(name="looking", objective=objective, batches=stage.batches, batch_size=4, steps=1)
    with pytest.raises(ValueError, match="expected the objective of stage 'looking' to run without values"):
        step_cost(model, looking, looking.batches(), 0)
    assert "run without values" in with_cost(plan_stage(model, looking), model, looking).note


def test_a_step_after_the_plan_is_the_step_without_it(tmp_path: Path) -> None:
    weights = []
    for planned in (False, True):
        torch.manual_seed(0)
        model, stage = one_peace(0)
        if planned:
            step_cost(model, stage, stage.batches(), 0)
        train(model, [stage], tmp_path / str(planned), device="cpu", options=Options(progress=False))
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
