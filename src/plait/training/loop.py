"""The training loop, top to bottom: stages -> steps -> checkpoints.

rows of the step -> batches (loaded one thread ahead) -> objective -> gradients -> clip -> optimiser -> metrics.jsonl

Everything a step draws follows from (seed, stage, step): the order of samples, augmentation, masks, dropout. A run
that was killed therefore continues from its last checkpoint with the same samples and the same losses, bit for bit.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.training.checkpoint import CheckpointStore, Position
from plait.training.data_order import ahead, step_loader
from plait.training.logging import MetricsLog, ProgressLine, to_floats
from plait.training.optim import AdamW, parameter_groups
from plait.training.parallel import (
    ObjectiveModule,
    World,
    distributed,
    map_tensors,
    process_group,
    seed_everything,
    stop_signals,
    without_gradient_sync,
)
from plait.training.stages import Batch, Options, Source, Stage, freeze

DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
"""Names of the dtype of matrix products (autocast); weights, optimiser and reductions stay in float32."""


class NonFiniteLossError(ValueError):
    """The loss became nan or infinite; the message names the step and its samples."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """steps: done in the whole run; interrupted: the signal that stopped it, None when it finished."""

    steps: int
    seconds: float
    interrupted: signal.Signals | None = None


def train(
    model: nn.Module,
    stages: Sequence[Stage],
    run_dir: str | Path,
    *,
    seed: int = 0,
    device: str | None = None,
    dtype: str = "float32",
    resume: bool = True,
    options: Options | None = None,
) -> TrainResult:
    """Train `model` in place through `stages`, writing metrics.jsonl and checkpoints/ under `run_dir`.

    Continues from the newest checkpoint of `run_dir`; resume=False removes checkpoints and metrics and starts again.
    SIGTERM and the first Ctrl-C save a checkpoint and return, the second Ctrl-C raises KeyboardInterrupt.
    Under torchrun every process calls this with the same arguments. dtype: a name in DTYPES.
    Raises NonFiniteLossError, OSError when a checkpoint cannot be written, ValueError when arguments do not fit.
    """
    if dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
    options, run_dir = options or Options(), Path(run_dir)
    with process_group(device) as (world, place), stop_signals() as signals:
        store = CheckpointStore(run_dir / "checkpoints", options.keep_last)
        if not resume and world.is_main:
            store.clear()
            (run_dir / "metrics.jsonl").unlink(missing_ok=True)
        world.barrier()
        model.to(place).train()
        position, optimizer_state = _restore(store, model, seed)
        log = MetricsLog(run_dir / "metrics.jsonl", position.total, options.tensorboard) if world.is_main else None
        run = _Run(model, store, log, world, place, DTYPES[dtype], options, signals, position)
        try:
            while position.stage < len(stages) and run.stopped_by is None:
                run.stage(stages[position.stage], optimizer_state)
                optimizer_state = None
        finally:
            if log is not None:
                log.close()
        finished = position.stage == len(stages)
        return TrainResult(position.total, position.seconds, None if finished else run.stopped_by)


def _restore(store: CheckpointStore, model: nn.Module, seed: int) -> tuple[Position, Any]:
    newest = store.latest()
    if newest is None:
        return Position(seed=seed), None
    position = store.position(newest)
    if position.seed != seed:
        raise ValueError(
            f"expected seed {position.seed} to continue {store.directory.parent}, got {seed}; pass resume=False"
        )
    store.load_model(newest, model)
    return position, store.load_optimizer(newest)


@dataclass(slots=True)
class _Done:
    """A step whose loss has not been looked at yet: on a GPU its values are still being computed."""

    number: int
    rows: Sequence[int]
    lr: float
    values: dict[str, Any]


@dataclass(slots=True)
class _Current:
    """The stage under way."""

    stage: Stage
    source: Source
    total: int
    optimizer: torch.optim.Optimizer
    module: nn.Module
    parameters: list[nn.Parameter]
    generator: torch.Generator
    line: ProgressLine


@dataclass
class _Run:
    """What stays the same from stage to stage, and what moves: `position` and the steps not looked at yet."""

    model: nn.Module
    store: CheckpointStore
    log: MetricsLog | None
    world: World
    device: torch.device
    dtype: torch.dtype
    options: Options
    signals: list[signal.Signals]
    position: Position
    stopped_by: signal.Signals | None = None
    unseen: list[_Done] = field(default_factory=list)
    last_look: float = 0.0
    last_save: float = 0.0

    def stage(self, stage: Stage, optimizer_state: Any) -> None:
        """Train one stage from `position` to its end, or until a signal."""
        first, now = self.position.step, self._begin(stage, optimizer_state)
        load = step_loader(
            now.source,
            (self.position.seed, self.position.stage),
            batch_size=stage.batch_size,
            accumulation=stage.accumulation,
            rank=self.world.rank,
            world_size=self.world.size,
            finish=(lambda batch: map_tensors(batch, Tensor.pin_memory)) if self.device.type == "cuda" else None,
        )
        every = self.options.log_every or (1 if self.device.type == "cpu" else 10)
        self.last_look = self.last_save = time.monotonic()
        with closing(now.line), ahead(load, range(first, now.total), self.options.prefetch) as batches:
            for step, (rows, parts) in enumerate(batches, start=first):
                lr = _set_learning_rate(now.optimizer, stage, step, now.total)
                values = self._step(now, step, parts)
                for hook in stage.after_step:
                    hook(self.model, step)
                self.position.step, self.position.total = step + 1, self.position.total + 1
                self.unseen.append(_Done(self.position.total, rows, lr, values))
                if self.position.total % every == 0 or step + 1 == now.total:
                    self._look(now, is_end=step + 1 == now.total)
                if self.stopped_by is not None:
                    break

    def _begin(self, stage: Stage, optimizer_state: Any) -> _Current:
        """Freeze what the stage does not train and build its optimiser, restored when the stage goes on."""
        source = stage.batches()
        total = stage.total_steps(len(source))
        if self.position.step >= total:
            raise ValueError(f"expected more than {self.position.step} steps to continue {stage.name!r}, got {total}")
        freeze(self.model, stage.trainable)
        if self.position.step == 0:
            seed_everything(self.position.seed, self.position.stage, *b"before")
            for prepare in stage.before:
                prepare(self.model)
        optimizer = (stage.optimizer or adamw)(self.model, stage)
        if optimizer_state is not None:
            optimizer.load_state_dict(optimizer_state)
        is_shown = self.log is not None and self.options.progress
        return _Current(
            stage,
            source,
            total,
            optimizer,
            distributed(ObjectiveModule(self.model, stage.objective), self.world),
            [p for p in self.model.parameters() if p.requires_grad],
            torch.Generator(self.device),
            ProgressLine(stage.name, total, self.position.step, stage.batch_size, is_shown),
        )

    def _step(self, now: _Current, step: int, parts: list[tuple[int, Batch]]) -> dict[str, Any]:
        """One optimiser step; loss and metrics as means over the micro batches, and the norm of the gradient."""
        now.optimizer.zero_grad(set_to_none=True)
        values: dict[str, Any] = {}
        for micro, (start, batch) in enumerate(parts, start=1):
            now.generator.manual_seed(seed_everything(self.position.seed, self.position.stage, step, start))
            batch = map_tensors(batch, lambda x: x.to(self.device, non_blocking=True))
            with without_gradient_sync(now.module, micro < len(parts)):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loss, metrics = now.module(batch, step, now.generator)
                (loss / len(parts)).backward()
            for name, value in {"loss": loss, **metrics}.items():
                value = value.detach() if isinstance(value, Tensor) else value
                values[name] = values.get(name, 0.0) + value / len(parts)
        values["gradient_norm"] = nn.utils.clip_grad_norm_(now.parameters, now.stage.clip or math.inf)
        now.optimizer.step()
        return values

    def _look(self, now: _Current, is_end: bool) -> None:
        """Fetch the values of the steps since the last look (one wait for the GPU), log the last, save when due."""
        values = to_floats([done.values for done in self.unseen], self.device)
        clock = time.monotonic()
        own = [*(row["loss"] for row in values), float(bool(self.signals)), float(self._is_due(clock))]
        *losses, stops, due = self.world.mean(own, self.device)
        for done, loss, row in zip(self.unseen, losses, values, strict=True):
            self._check_finite(now, done, loss, row["gradient_norm"])
        self.position.seconds += clock - self.last_look
        if self.log is not None:
            rate = len(self.unseen) * now.stage.batch_size / max(clock - self.last_look, 1e-9)
            timing = {"lr": self.unseen[-1].lr, "samples_per_second": rate, "seconds": self.position.seconds}
            self.log.write(
                {"step": self.position.total, "stage": now.stage.name, **values[-1], "loss": losses[-1], **timing}
            )
            self.log.flush()
        now.line.update(self.position.step, losses[-1])
        self.unseen.clear()
        if is_end:
            self.position.stage, self.position.step = self.position.stage + 1, 0
        if stops:
            self.stopped_by = self.signals[0] if self.signals else signal.SIGTERM
        if stops or due or is_end:
            self._save(None if is_end else now.optimizer)
        self.last_look = time.monotonic()

    def _is_due(self, clock: float) -> bool:
        every = self.options.checkpoint_steps
        is_step = every is not None and any(done.number % every == 0 for done in self.unseen)
        return is_step or clock - self.last_save >= self.options.checkpoint_seconds

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        if self.log is not None:
            self.log.sync()
            self.store.save(self.model, optimizer, self.position)
        self.world.barrier()
        self.last_save = time.monotonic()

    def _check_finite(self, now: _Current, done: _Done, loss: float, gradient_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return
        names = now.source.names(done.rows)
        shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
        steps = self.store.steps()
        kept = f"the checkpoint of step {steps[-1]} is intact" if steps else "no checkpoint was written yet"
        raise NonFiniteLossError(
            f"expected a finite loss and gradient, got loss {loss} and gradient norm {gradient_norm} at step "
            f"{done.number} of stage {now.stage.name!r} with samples {shown}; check them or lower the rate; {kept}"
        )


def adamw(model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """The published AdamW over what the stage trains, grouped by decay and layer."""
    groups = parameter_groups(
        model.named_parameters(),
        weight_decay=stage.weight_decay,
        no_decay=stage.no_decay,
        layer_id=stage.layer_id,
        num_layers=stage.num_layers,
        layer_decay=stage.layer_decay,
    )
    return AdamW(groups, stage.peak_lr, betas=stage.betas, eps=stage.eps, weight_decay=stage.weight_decay)


def _set_learning_rate(optimizer: torch.optim.Optimizer, stage: Stage, step: int, total: int) -> float:
    lr = stage.schedule(step, total, peak=stage.peak_lr, floor=stage.floor, warmup=stage.warmup_steps(total))
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr
