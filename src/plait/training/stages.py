"""What a run trains, as data: a recipe is a model, its stages and how to save it. Nothing here imports torch.

Recipe -> Stage (which parameters, which batches, which objective, which schedule) -> `plait.training.loop.train`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.data.reader import Source
from plait.training.schedules import cosine

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Batch = Any
"""What a source loads and an objective reads: tensors on the CPU in any nest of dicts, lists and tuples."""

Metrics = Mapping[str, "Tensor | float"]
Objective = Callable[["nn.Module", Batch, int, "torch.Generator"], tuple["Tensor", Metrics]]
"""`(model, batch, step, generator) -> (loss, metrics)`.

`step` counts from 0 within the stage. The loss is a scalar, a mean over the rows of the batch; metrics are scalars and
may differ from step to step. Draw with `generator` (on the device of the model) or with torch's global generator:
both are seeded afresh at every step from (seed, stage, step), so a resumed run draws the same numbers."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One phase of training, as data: which parameters learn from which batches, by which objective and schedule.

    Args:
        name: in messages, in metrics.jsonl and on the progress line.
        objective: `(model, batch, step, generator) -> (loss, metrics)`, see `Objective`.
        batches: () -> a source, called when the stage begins.
        batch_size: samples of an optimiser step over all processes; each process loads
            batch_size / (world * accumulation) at a time.
        steps, epochs: length of the stage; set one of them.
        peak_lr, floor: highest and lowest learning rate.
        warmup: steps, or a fraction of the stage when below 1.
        betas, eps, weight_decay: of the published AdamW.
        clip: largest gradient norm, 0 for none.
        no_decay, layer_id, num_layers, layer_decay: as in `plait.training.optim.parameter_groups`.
        accumulation: micro batches of a step in each process.
        trainable: patterns of parameter names (see `freeze`), empty for all.
        before: called once with the model when the stage begins, never on resume.
        after_step: called with (model, step) after every optimiser step; what it keeps belongs in the model,
            where checkpoints find it.
        optimizer: `(model, stage) -> optimizer`, None for the published AdamW; a group's "lr_scale" multiplies
            its rate.
        schedule: `cosine` or `linear` of `plait.training.schedules`, or a function like them.
        period: steps after which the kinds of step repeat, the first unlike the others (denoising every 8th
            step: 8).
        weight: what a batch counts among those of a step, such as the positions that it learns; None counts
            rows. The loss of a step is then one mean over all its batches, whatever the number of processes and
            micro batches.

    Raises:
        ValueError: for steps beside epochs or neither, layer_decay without layer_id, and numbers that are not
            positive.

    Example:
        >>> def objective(model, batch, step, generator):
        ...     return model(batch).square().mean(), {}
        >>> stage = Stage(name="all", objective=objective, batches=lambda: source, batch_size=2, steps=100)
        >>> stage.warmup_steps(100)
        4
    """

    name: str
    objective: Objective
    batches: Callable[[], Source]
    batch_size: int
    steps: int | None = None
    epochs: float | None = None
    peak_lr: float = 1e-3
    floor: float = 0.0
    warmup: float = 0.04
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 3.0
    no_decay: Callable[[str, Tensor], bool] | None = None
    layer_id: Callable[[str], int] | None = None
    num_layers: int = 0
    layer_decay: float = 1.0
    accumulation: int = 1
    trainable: tuple[str, ...] = ()
    before: tuple[Callable[[nn.Module], None], ...] = ()
    after_step: tuple[Callable[[nn.Module, int], None], ...] = ()
    optimizer: Callable[[nn.Module, Stage], torch.optim.Optimizer] | None = None
    schedule: Callable[..., float] = cosine
    period: int = 1
    weight: Callable[[Batch], float] | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"expected steps or epochs for stage {self.name!r}, got {self.steps} and {self.epochs}; set one"
            )
        if self.layer_decay != 1 and self.layer_id is None:
            raise ValueError(f"expected layer_id beside layer_decay for stage {self.name!r}, got none; pass both")
        for field in ("steps", "epochs", "batch_size", "accumulation"):
            value = getattr(self, field)
            if value is not None and value <= 0:
                raise ValueError(f"expected a positive {field} for stage {self.name!r}, got {value}")

    def total_steps(self, num_samples: int) -> int:
        """Optimiser steps of this stage over a source of `num_samples`, at least 1.

        An epoch has whole batches only: what fills none is dropped.
        """
        if self.steps is not None:
            return self.steps
        # `__post_init__` lets nothing else through
        assert self.epochs is not None
        return max(1, round(self.epochs * (num_samples // self.batch_size)))

    def warmup_steps(self, total: int) -> int:
        """`warmup` in steps, of a stage of `total` steps."""
        return int(self.warmup) if self.warmup >= 1 else round(self.warmup * total)


@dataclass(frozen=True)
class Recipe:
    """What `plait train` runs: a model, its stages and how to save it.

    Attributes:
        model_builder: () -> model, called once with every generator seeded.
        stages: trained in this order.
        save: `(model, directory)` writes the final model directory, processor and card included. One callable,
            because only the recipe knows what belongs beside the weights.
        before: `(model, run directory)`, called in the main process when the model is built, also by a run that
            goes on.
        after: the same when it is trained; what it returns is saved.

    Example:
        >>> def save(model, directory):
        ...     torch.save(model.state_dict(), directory / "weights.pt")
        >>> recipe = Recipe(lambda: model, [stage], save)
        >>> run_recipe(lambda: recipe, Path("runs/first"), device="cpu")
    """

    model_builder: Callable[[], nn.Module]
    stages: Sequence[Stage]
    save: Callable[[nn.Module, Path], None]
    before: Callable[[nn.Module, Path], None] | None = None
    after: Callable[[nn.Module, Path], nn.Module] | None = None


def save_pair(processor: Any, model: Any, directory: Path) -> None:
    """What most recipes save: weights, configuration and processor as one model directory.

    Args:
        processor: bound first (`partial(save_pair, processor)`), as recipes make it before the model.
        model: a transformers model. directory: to write into.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


@dataclass(frozen=True, slots=True)
class Options:
    """How a run proceeds, never what it computes.

    Attributes:
        checkpoint_seconds, checkpoint_steps: a checkpoint is due after either, whichever comes first; it is
            written in the background.
        keep_last: checkpoints to keep.
        best: name of a metric, low is good; the checkpoint before which its mean was lowest is kept too.
        log_every: steps between two looks at the loss; None is every step on the CPU and every tenth on a GPU,
            which is not waited for in between.
        prefetch: steps whose batches are loaded before they are needed.
        progress: whether to show the progress line.
        tensorboard: write event files as well.
        compile: a torch backend for every layer, such as inductor.
        recompute: 1 to keep only the inputs of every layer for the backward pass, n of every n-th, 0 of none.
        parallel: what several processes share, "ddp" the gradients, "fsdp" also weights and optimiser.
        share_cores: on a CPU, use the cores that others leave idle and look anew every half minute; sums of other
            numbers of threads differ in their last digits.

    Raises:
        ValueError: for another `parallel`, or a negative `recompute`.
    """

    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None
    keep_last: int = 2
    best: str | None = None
    log_every: int | None = None
    prefetch: int = 2
    progress: bool = True
    tensorboard: bool = False
    compile: str | None = None
    recompute: int = 0
    parallel: str = "ddp"
    share_cores: bool = False

    def __post_init__(self) -> None:
        if self.parallel not in ("ddp", "fsdp"):
            raise ValueError(f"expected parallel to be ddp or fsdp, got {self.parallel!r}")
        if self.recompute < 0:
            raise ValueError(f"expected recompute of 0 (no layer), 1 (every layer) or more, got {self.recompute}")


def freeze(model: nn.Module, patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    r"""Let only the parameters train whose name matches a pattern, in place.

    Args:
        model: its parameters' `requires_grad` is set; frozen ones lose their gradient.
        patterns: shell patterns over the whole dotted name (`*.audio.*`), or regular expressions after `re:`
            that are searched in it (`re:layers\.[01]\.`). None of them: everything trains.

    Returns:
        (trainable, frozen) names.

    Raises:
        ValueError: for a pattern that matches nothing, with the nearest name.

    Example:
        >>> freeze(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["1.*"])
        (['1.weight', '1.bias'], ['0.weight', '0.bias'])
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            close = get_close_matches(pattern.removeprefix("re:"), names, n=1, cutoff=0.3)
            hint = f"; the nearest name is {close[0]!r}" if close else ""
            raise ValueError(f"expected trainable pattern {pattern!r} to match a parameter, got none{hint}")
    trainable, frozen = [], []
    for name, parameter in model.named_parameters():
        trains = not patterns or any(_matches(name, pattern) for pattern in patterns)
        parameter.requires_grad_(trains)
        if not trains:
            parameter.grad = None
        (trainable if trains else frozen).append(name)
    return trainable, frozen


def _matches(name: str, pattern: str) -> bool:
    """Whether a dotted name matches a shell pattern, or a regular expression after `re:`."""
    if pattern.startswith("re:"):
        return re.search(pattern[3:], name) is not None
    return fnmatchcase(name, pattern)
