"""`plait plan RECIPE`: which modules every stage trains, and the memory that parameters, gradients and optimiser take.

recipe -> its model on the meta device (no memory) -> per stage: part of the model, trainable, frozen, bytes
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.inspect.info import part_of
from plait.inspect.table import format_bytes, format_count, format_table

if TYPE_CHECKING:
    from torch import nn

    from plait.training.stages import Stage

ADAM_BYTES = 8
"""Two float32 moments for every trainable parameter."""


@dataclass
class StagePlan:
    """What one stage does to the parameters. Counts are parameters; activations come on top of `bytes`."""

    stage: str
    batch_size: int
    length: str
    trainable: dict[str, int] = field(default_factory=dict)
    frozen: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe such as one_peace.stage1, or a family.")],
    task: Annotated[str | None, typer.Argument(help="With a family: its stage, such as stage1.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the recipe; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Print what each stage of a recipe trains and the memory it needs, without building the model."""
    plans = plan_recipe(f"{recipe}.{task}" if task else recipe, settings or [])
    if as_json:
        print(json.dumps([asdict(one) for one in plans], indent=2))
        return
    print("\n\n".join(describe(one) for one in plans))


def plan_recipe(name: str, settings: list[str]) -> list[StagePlan]:
    """The plan of every stage of the recipe `name`. Raises ValueError for an unknown recipe or setting."""
    import torch

    from plait.training.commands import find_recipe, parse_settings

    function = find_recipe(name)
    chosen = function(**parse_settings(function, settings, seed=0))
    with torch.device("meta"):
        model = chosen.model_builder()
    return [plan_stage(model, stage) for stage in chosen.stages]


def plan_stage(model: nn.Module, stage: Stage) -> StagePlan:
    """Count what `stage` trains in `model`; its parameters are marked trainable or frozen accordingly."""
    from plait.training.stages import freeze

    freeze(model, stage.trainable)
    trainable: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts, nbytes = trainable if parameter.requires_grad else frozen, parameter.numel() * parameter.element_size()
        counts[part_of(name)] += parameter.numel()
        sizes["parameters"] += nbytes
        sizes["gradients"] += nbytes if parameter.requires_grad else 0
        sizes["optimiser"] += ADAM_BYTES * parameter.numel() if parameter.requires_grad else 0
    length = f"{stage.steps} steps" if stage.steps is not None else f"{stage.epochs:g} epochs"
    return StagePlan(stage.name, stage.batch_size, length, dict(trainable), dict(frozen), dict(sizes))


def describe(one: StagePlan) -> str:
    """A stage as a table for people."""
    parts = dict.fromkeys([*one.trainable, *one.frozen])
    rows = [(part, _count(one.trainable.get(part)), _count(one.frozen.get(part))) for part in parts]
    rows.append(("all", _count(sum(one.trainable.values())), _count(sum(one.frozen.values()))))
    memory = ", ".join(f"{name} {format_bytes(size)}" for name, size in one.bytes.items())
    return "\n".join(
        [
            f"{one.stage}: {one.length}, batches of {one.batch_size}",
            format_table(("part", "trainable", "frozen"), rows),
            f"memory: {memory}; {format_bytes(sum(one.bytes.values()))} before activations",
        ]
    )


def _count(number: Any) -> str:
    return format_count(number) if number else "-"
