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
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from plait.errors import UsageError
from plait.terminal import progress_bar
from plait.training.account import mean_seconds, peak_memory
from plait.training.checkpoint import CheckpointStore, Position
from plait.training.data_order import Waiting, ahead, step_loader, use_idle_cores
from plait.training.logging import MetricsLog, NonFiniteLossError, note_bad, to_floats
from plait.training.optim import LossScale, adamw, clip_gradients, set_learning_rate
from plait.training.parallel import (
    ObjectiveModule,
    World,
    compiled,
    distributed,
    map_tensors,
    process_group,
    recomputed,
    seed_everything,
    shard,
    stop_signals,
    sync_whole_gradients,
    without_gradient_sync,
)
from plait.training.stages import Batch, Options, Source, Stage, freeze
from plait.weights.dtypes import resolve_dtype

SHARE_SECONDS = 30.0
"""Between two looks at how busy the cores are: the system's load is a mean of about a minute."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How far `train` came.

    Attributes:
        steps: done in the whole run, earlier starts included.
        seconds: trained in the whole run.
        interrupted: the signal that stopped it, None when it finished.
    """

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

    SIGTERM and the first Ctrl-C save a checkpoint and return, the second Ctrl-C raises KeyboardInterrupt.
    Under torchrun every process calls this with the same arguments.

    Args:
        model: on the CPU; moved to the device, or spread over processes with `Options.parallel` "fsdp".
        stages: trained one after the other.
        run_dir: of this run alone.
        seed: every random draw follows from it, the stage and the step.
        device: as in `plait.training.parallel.process_group`; None takes a GPU where there is one.
        dtype: a name that `plait.weights.dtypes.resolve_dtype` knows, of matrix products under autocast.
            Weights, optimiser and reductions stay in float32; float16 scales its loss.
        resume: continue from the newest checkpoint of `run_dir`; False removes checkpoints and metrics first.
        options: how the run proceeds: checkpoints, logging, memory, processes.

    Returns:
        `TrainResult`.

    Raises:
        NonFiniteLossError: when a loss or gradient is nan or infinite; no checkpoint is written of it.
        OSError: when a checkpoint cannot be written.
        ValueError: when arguments do not fit each other, the model or what is in `run_dir`.

    Example:
        >>> stage = Stage(name="all", objective=objective, batches=lambda: source, batch_size=2, steps=3)
        >>> train(model, [stage], "runs/first", device="cpu").steps
        3
    """
    # of matrix products (autocast): weights, optimiser and reductions stay in float32
    precision = resolve_dtype(dtype)
    options, run_dir = options or Options(), Path(run_dir)
    with process_group(device) as (world, place), stop_signals() as signals, ExitStack() as undo:
        store = CheckpointStore(run_dir / "checkpoints", options.keep_last, world=world, is_async=True)
        if not resume and world.is_main:
            store.clear()
            (run_dir / "metrics.jsonl").unlink(missing_ok=True)
        world.barrier()
        # counted while every process still has the plain, whole model
        costs = [mean_seconds(model, stage, place, precision, world.size) for stage in stages]
        # recomputation inside compilation inside shards: each wraps what is there, so the order matters
        undo.enter_context(recomputed(model, options.recompute))
        undo.enter_context(compiled(model, options.compile))
        whole = ObjectiveModule(model, stages[0].objective)
        model.train()
        if options.parallel == "ddp" or world.size == 1:
            model.to(place)
        else:
            shard(whole, world, place, precision)
        # only now: a sharded model reads its own rows
        newest, position = _restore(store, model, seed)
        log = MetricsLog(run_dir / "metrics.jsonl", position.total, options.tensorboard) if world.is_main else None
        scale = LossScale(precision == torch.float16, position.loss_scale, position.good_steps)
        run = _Run(
            model=model, whole=whole, store=store, log=log, world=world, device=place, dtype=precision,
            options=options, signals=signals, position=position, scale=scale, peak_seconds=costs,
        )  # fmt: skip
        try:
            while position.stage < len(stages) and run.stopped_by is None:
                run.stage(stages[position.stage], newest)
                newest = None
        finally:
            store.wait()
            if log is not None:
                log.close()
        finished = position.stage == len(stages)
        return TrainResult(position.total, position.seconds, None if finished else run.stopped_by)


def _restore(store: CheckpointStore, model: nn.Module, seed: int) -> tuple[int | None, Position]:
    """Load the newest checkpoint's weights and say where it stands; the beginning where there is none."""
    newest = store.latest()
    if newest is None:
        return None, Position(seed=seed)
    position = store.position(newest)
    if position.seed != seed:
        raise ValueError(
            f"expected seed {position.seed} to continue {store.directory.parent}, got {seed}; pass resume=False"
        )
    store.load_model(newest, model)
    return newest, position


@dataclass(slots=True)
class _Done:
    """A step whose loss has not been looked at yet: on a GPU its values are still being computed."""

    number: int
    rows: Sequence[int]
    lr: float
    values: dict[str, Any]


@dataclass(slots=True)
class _Current:
    """The stage under way: what is built when it begins and dropped when it ends."""

    stage: Stage
    source: Source
    first: int
    total: int
    optimizer: torch.optim.Optimizer
    module: nn.Module
    parameters: list[nn.Parameter]
    generator: torch.Generator
    bar: Any
    peak_seconds: float | None
    waiting: Waiting = field(default_factory=Waiting)


@dataclass
class _Run:
    """What stays the same from stage to stage, and what moves: `position` and the steps not looked at yet.

    scores: the chosen metric since the last checkpoint; metrics: all names seen so far, in their order;
        last_look, last_save, last_share: by the monotonic clock, in seconds.
    """

    model: nn.Module
    whole: ObjectiveModule
    store: CheckpointStore
    log: MetricsLog | None
    world: World
    device: torch.device
    dtype: torch.dtype
    options: Options
    signals: list[signal.Signals]
    position: Position
    scale: LossScale
    peak_seconds: list[float | None]
    stopped_by: signal.Signals | None = None
    scores: list[float] = field(default_factory=list)
    metrics: dict[str, None] = field(default_factory=dict)
    unseen: list[_Done] = field(default_factory=list)
    last_look: float = 0.0
    last_save: float = 0.0
    last_share: float = 0.0

    def stage(self, stage: Stage, newest: int | None) -> None:
        """Train one stage from `position` to its end, or until a signal.

        newest: step of the checkpoint that the stage goes on from, None where it begins.
        """
        first, now = self.position.step, self._begin(stage, newest)
        load = step_loader(
            now.source,
            (self.position.seed, self.position.stage),
            batch_size=stage.batch_size,
            accumulation=stage.accumulation,
            rank=self.world.rank,
            world_size=self.world.size,
            finish=(lambda batch: map_tensors(batch, Tensor.pin_memory)) if self.device.type == "cuda" else None,
        )
        # a look waits for a GPU, which costs a CPU nothing
        every = self.options.log_every or (1 if self.device.type == "cpu" else 10)
        self.last_look = self.last_save = self.last_share = time.monotonic()
        with closing(now.bar), ahead(load, range(first, now.total), self.options.prefetch, now.waiting) as batches:
            for step, (rows, parts) in enumerate(batches, start=first):
                lr = set_learning_rate(now.optimizer, stage, step, now.total)
                values = self._step(now, step, parts)
                for hook in stage.after_step:
                    hook(self.model, step)
                self.position.step, self.position.total = step + 1, self.position.total + 1
                self.unseen.append(_Done(self.position.total, rows, lr, values))
                if self.position.total % every == 0 or step + 1 == now.total:
                    self._look(now, is_end=step + 1 == now.total)
                if self.stopped_by is not None:
                    break

    def _begin(self, stage: Stage, newest: int | None) -> _Current:
        """Freeze what the stage does not train and build its optimiser; both go on from a checkpoint in mid-stage.

        Raises ValueError when the stage is shorter now than the checkpoint is far.
        """
        source = stage.batches()
        total = stage.total_steps(len(source))
        if self.position.step >= total:
            raise ValueError(f"expected more than {self.position.step} steps to continue {stage.name!r}, got {total}")
        freeze(self.model, stage.trainable)
        # the six bytes make a longer key than a step has, so these draws are no step's
        seed_everything(self.position.seed, self.position.stage, *b"before")
        for prepare in stage.before if self.position.step == 0 else ():
            prepare(self.model)
        optimizer = (stage.optimizer or adamw)(self.model, stage)
        if newest is not None and self.position.step > 0:
            self.store.load_optimizer(newest, self.model, optimizer)
        is_shown = self.log is not None and self.options.progress
        bar = progress_bar(
            stage.name, total=total, done=self.position.step, unit="step", show=None if is_shown else False
        )
        bar.leave = True  # the last line of a stage says how it ended
        self.whole.objective[0] = stage.objective
        return _Current(
            stage=stage,
            source=source,
            first=self.position.step,
            total=total,
            optimizer=optimizer,
            module=distributed(self.whole, self.world),
            parameters=[p for p in self.model.parameters() if p.requires_grad],
            generator=torch.Generator(self.device),
            bar=bar,
            peak_seconds=self.peak_seconds[self.position.stage],
        )

    def _step(self, now: _Current, step: int, parts: list[tuple[int, Batch]]) -> dict[str, Any]:
        """One optimiser step on `parts`, pairs of (place in the global batch, micro batch on the host).

        Returns loss and metrics as means over the micro batches, and the norm of the gradient, as tensors where
        they are on a GPU that is not waited for.
        """
        now.optimizer.zero_grad(set_to_none=True)
        values: dict[str, Any] = {}
        shares, own = self._shares(now, step, parts)
        for micro, (start, batch) in enumerate(parts, start=1):
            # by the place in the global batch: micro batches and processes draw differently
            now.generator.manual_seed(seed_everything(self.position.seed, self.position.stage, step, start))
            batch = map_tensors(batch, lambda x: x.to(self.device, non_blocking=True))
            with without_gradient_sync(now.module, micro < len(parts)):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loss, metrics = now.module(batch, step, now.generator)
                (loss * self.scale.factor * shares[micro - 1]).backward()
            values["loss"] = values.get("loss", 0.0) + loss.detach() * shares[micro - 1]
            for name, value in metrics.items():
                # of this process alone, as the loss of all is their mean
                value = value.detach() if isinstance(value, Tensor) else value
                values[name] = values.get(name, 0.0) + value * own[micro - 1]
        if isinstance(now.module, FSDPModule):
            # FSDP leaves single numbers whole and their gradients alone
            sync_whole_gradients(now.parameters, self.world)
        factor = self.scale.factor
        norm = values["gradient_norm"] = clip_gradients(now.parameters, now.stage.clip, factor)
        if self.scale.is_on:
            values["loss_scale"] = factor
        if self.scale.takes(norm):
            now.optimizer.step()
        return values

    def _shares(self, now: _Current, step: int, parts: list[tuple[int, Batch]]) -> tuple[Any, list[float]]:
        """What each micro batch counts in the mean over processes, and in the mean of this process alone.

        Gradients and losses are averaged over processes, so a share is its part of the whole step times their
        number. Raises ValueError when no process has anything to learn.
        """
        even = [1 / len(parts)] * len(parts)
        if now.stage.weight is None:
            return even, even
        weights = [float(now.stage.weight(batch)) for _, batch in parts]
        total = torch.tensor(sum(weights), dtype=torch.float32, device=self.device)
        if self.world.size > 1:
            torch.distributed.all_reduce(total)
        if not sum(weights) and not total:  # looked at only here: a GPU would be waited for
            raise ValueError(
                f"expected something to learn in the batch of step {step}, got none; raise max_length or look at "
                f"{' '.join(now.source.names(now.source.rows(self.position.seed, step, now.stage.batch_size))[:4])}"
            )
        shares = torch.tensor(weights, dtype=torch.float32, device=self.device) * self.world.size / total
        return shares, [weight / max(1.0, sum(weights)) for weight in weights] if sum(weights) else even

    def _look(self, now: _Current, is_end: bool) -> None:
        """Fetch the values of the steps since the last look (one wait for the GPU), log the last, save when due."""
        values = to_floats([done.values for done in self.unseen], self.device)
        clock = time.monotonic()
        for row in values:
            self.metrics |= dict.fromkeys(row)
        best = self.options.best
        flags = [
            bool(self.signals), self._is_due(clock), self.store.is_written(), self.store.failed(),
            best is not None and best not in self.metrics,
        ]  # fmt: skip
        own = [*(row["loss"] for row in values), *(float(flag) for flag in flags)]
        # one reduction for all: every process comes to the same decision at the same step
        *losses, stops, due, written, failed, unknown = self.world.mean(own, self.device)
        # the marker and the new name need all processes, so it is done where all meet anyway
        if written == 1 or failed:
            self.store.wait()
        for done, loss, row in zip(self.unseen, losses, values, strict=True):
            # an overflow of float16 is expected: the step was not taken
            is_skipped = self.scale.is_on and self.scale.value > self.scale.smallest
            if not math.isfinite(loss) or not (math.isfinite(row["gradient_norm"]) or is_skipped):
                self.store.wait()
                names, steps = now.source.names(done.rows), self.store.steps()
                raise NonFiniteLossError(loss, row["gradient_norm"], done.number, now.stage.name, names, steps)
        # a name may be another stage's, or of a kind of step that comes later in the period
        is_last_stage = self.position.stage + 1 == len(self.peak_seconds)
        if unknown == 1 and is_last_stage and (self.position.step >= now.first + now.stage.period or is_end):
            self.store.wait()
            raise UsageError(
                f"expected one of the metrics {', '.join(self.metrics)} for the best checkpoint, got {best!r}; "
                "choose one of them and run again"
            )
        if self.options.share_cores and self.device.type == "cpu" and clock - self.last_share > SHARE_SECONDS:
            use_idle_cores(torch.get_num_threads())
            self.last_share = clock
        self._log(now, {**values[-1], "loss": losses[-1]}, clock - self.last_look)
        self.scores += [row[best] for row in values if best in row]
        self.unseen.clear()
        if is_end:
            self.position.stage, self.position.step = self.position.stage + 1, 0
        if stops:
            self.stopped_by = self.signals[0] if self.signals else signal.SIGTERM
        if stops or due or is_end:
            self._save(now, is_end)
        self.last_look = time.monotonic()

    def _log(self, now: _Current, values: dict[str, float], seconds: float) -> None:
        """Write the last of the steps looked at, with timings of all of them, which took `seconds`."""
        self.position.seconds += seconds
        seconds = max(seconds, 1e-9)
        memory = peak_memory(self.device)
        rate = sum(len(done.rows) for done in self.unseen) / seconds
        timing = {"samples_per_second": rate, "memory_gib": memory, "seconds": self.position.seconds}
        timing["data_wait"] = min(1.0, now.waiting.taken() / seconds)
        if now.peak_seconds is not None:
            timing["mfu"] = len(self.unseen) * now.peak_seconds / seconds
        if self.log is not None:
            row = {"step": self.position.total, "stage": now.stage.name, **values, "lr": self.unseen[-1].lr}
            self.log.write({**row, **timing})
            self.log.flush()
        note_bad(self.store.directory.parent, self.world.rank, now.source)
        mfu = f", MFU {100 * timing['mfu']:.0f}%" if "mfu" in timing else ""
        said = f"loss {values['loss']:.4g}, {rate:.0f} samples/s{mfu}, {memory:.2g} GiB"
        now.bar.set_postfix_str(said, refresh=False)
        now.bar.update(len(self.unseen))

    def _is_due(self, clock: float) -> bool:
        """Whether a step since the last look, or the clock (seconds), asks for a checkpoint."""
        every = self.options.checkpoint_steps
        is_step = every is not None and any(done.number % every == 0 for done in self.unseen)
        return is_step or clock - self.last_save >= self.options.checkpoint_seconds

    def _save(self, now: _Current, is_end: bool) -> None:
        """Begin a checkpoint; at the end of a stage without what only that stage needs."""
        # first the lines, then the checkpoint: a run that goes on finds every line up to its step
        if self.log is not None:
            self.log.sync()
        position = self.position
        position.loss_scale, position.good_steps = self.scale.value, self.scale.good_steps
        position.score = sum(self.scores) / len(self.scores) if self.scores else None
        self.scores.clear()
        self.store.save(self.model, None if is_end else now.optimizer, position)
        self.last_save = time.monotonic()
