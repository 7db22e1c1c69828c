"""`plait plan RECIPE`: which modules every stage trains, and the memory that parameters, gradients and optimiser take;
`plait plan FAMILY TASK`: which modules a task of a family with a composition table runs, and what that costs.

recipe -> its model on the meta device (no memory) -> per stage: part of the model, trainable, frozen, bytes
family, task -> its planner -> per medium: part of the model, parameters, FLOPs, weights left behind
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from plait.errors import UsageError
from plait.models.catalog import part_of
from plait.report.tables import format_bytes, format_count, format_table

if TYPE_CHECKING:
    from torch import nn

    from plait.training.stages import Stage

ADAM_BYTES = 8
"""Two float32 moments for every trainable parameter."""


@dataclass
class StagePlan:
    """What one stage does to the parameters and costs. Counts are parameters; bytes and flops are of one process.

    Args:
        stage, batch_size, length: its name, rows of a step over all processes, steps or epochs in words.
        trainable, frozen: part of the model -> parameters.
        bytes: of parameters, gradients, optimiser and, where `flops` is set, of what a micro batch keeps for the
            backward pass (activations).
        flops: of one optimiser step, forward and backward.
        peak: bytes in use at once at most, which is less than the sum: gradients come while activations go.
        note: why what a batch costs is not known.
    """

    stage: str
    batch_size: int
    length: str
    trainable: dict[str, int] = field(default_factory=dict)
    frozen: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    flops: int | None = None
    peak: int | None = None
    note: str = ""


def describe_task(one: Any) -> str:
    """What a task needs and leaves behind, as a table for people.

    Args:
        one: a plan of the family's planner, such as mPLUG-2's.
    """
    rows = [
        (part, format_count(count), f"{one.flops[part] / 1e9:.1f} G" if part in one.flops else "-")
        for part, count in one.parameters.items()
    ]
    rows.append(("all", format_count(one.total), f"{sum(one.flops.values()) / 1e9:.1f} G"))
    memory = f"memory: {format_bytes(4 * one.total)} in float32, {format_bytes(2 * one.total)} in bfloat16"
    if one.cross_bytes:
        memory += f"; keys of what the decoder looks at: {format_bytes(one.cross_bytes)} per item in float32"
    lines = [f"{one.task} {one.medium}: {one.about}", format_table(("part", "parameters", "FLOPs"), rows), memory]
    if one.official_total:
        lines.append(f"official file of this size: {one.official_total / 1e6:,.1f} M parameters; not loaded of it:")
        left = {**{f"{part}, which this task does without": n for part, n in one.unneeded.items()}, **one.dead}
        lines += [f"  {format_count(count):>9}  {reason}" for reason, count in left.items()]
    return "\n".join(lines)


def describe_paper(rows: list[tuple[Any, Any]]) -> str:
    """Every task of a family's paper in a table for people, tasks without a path below it.

    Args:
        rows: (task, plan or None) of the family's planner, such as mPLUG-2's `plan_paper`.
    """
    lines = [
        (
            one.name,
            f"{one.task} {one.medium}",
            " ".join(plan.parameters),
            format_count(plan.total),
            f"{sum(plan.flops.values()) / 1e9:.1f} G",
            one.evaluation or "-",
            one.recipe or "-",
        )
        for one, plan in rows
        if plan is not None
    ]
    heads = ("task", "composition", "modules", "parameters", "FLOPs", "plait eval", "plait train")
    return "\n".join([format_table(heads, lines), *(f"{one.name}: {one.about}" for one, plan in rows if plan is None)])


def with_cost(
    one: StagePlan, model: nn.Module, stage: Stage, *, dtype: str = "float32", processes: int = 1, recompute: int = 0
) -> StagePlan:
    """The plan with activations and FLOPs of the stage's first step, counted on one batch and shapes alone.

    A step that needs values (a cut of the batch by them) is not counted; `note` says why.

    Args:
        one: the plan of `plan_stage`. model: on the meta device. stage: gives the batch.
        dtype: of the computation. processes: that share a batch.
        recompute: 0 keeps all activations, n drops those of every n-th layer.

    Raises:
        UsageError: where the batch cannot be divided evenly.
    """
    from plait.training.account import step_cost
    from plait.weights.dtypes import resolve_dtype

    precision = resolve_dtype(dtype)
    if stage.batch_size % (processes * stage.accumulation):
        raise UsageError(
            f"expected a batch_size that {processes} processes x {stage.accumulation} micro batches divide, got "
            f"{stage.batch_size}"
        )
    how: dict[str, Any] = {"dtype": precision, "processes": processes, "recompute": recompute}
    try:
        cost = step_cost(model, stage, stage.batches(), 0, **how)
    except ValueError as error:
        return replace(one, note=" ".join(str(error).split()))
    # the moments are there from the second step on, gradients go before a step begins
    peak = one.bytes["parameters"] + one.bytes["optimiser"] + max(cost.peak, one.bytes["gradients"])
    return replace(one, bytes={**one.bytes, "activations": cost.activations}, flops=cost.flops, peak=peak)


def plan_stage(model: nn.Module, stage: Stage) -> StagePlan:
    """Count what `stage` trains in `model`; its parameters are marked trainable or frozen accordingly.

    Args:
        model: on any device; a rounded parameter counts the numbers that it stands for, and the bytes that it takes.
        stage: gives trainable patterns and length.
    """
    from plait.training.parallel import size_of
    from plait.training.stages import freeze

    freeze(model, stage.trainable)
    trainable: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        number, nbytes = size_of(parameter)
        counts = trainable if parameter.requires_grad else frozen
        counts[part_of(name)] += number
        sizes["parameters"] += nbytes
        # A gradient has the type of its parameter; the moments are float32 whatever that is.
        sizes["gradients"] += nbytes if parameter.requires_grad else 0
        sizes["optimiser"] += ADAM_BYTES * number if parameter.requires_grad else 0
    length = f"{stage.steps} steps" if stage.steps is not None else f"{stage.epochs:g} epochs"
    return StagePlan(stage.name, stage.batch_size, length, dict(trainable), dict(frozen), dict(sizes))


def describe(one: StagePlan) -> str:
    """A stage as a table for people."""
    parts = dict.fromkeys([*one.trainable, *one.frozen])
    rows = [(part, _count(one.trainable.get(part)), _count(one.frozen.get(part))) for part in parts]
    rows.append(("all", _count(sum(one.trainable.values())), _count(sum(one.frozen.values()))))
    memory = ", ".join(f"{name} {format_bytes(size)}" for name, size in one.bytes.items())
    known = f"{format_bytes(sum(one.bytes.values()))} before activations"
    total = known if one.peak is None else f"{format_bytes(one.peak)} at once at most"
    lines = [
        f"{one.stage}: {one.length}, batches of {one.batch_size}",
        format_table(("part", "trainable", "frozen"), rows),
        f"memory: {memory}; {total}",
    ]
    if one.flops is not None:
        lines.append(f"compute: {one.flops / 1e9:,.1f} GFLOPs a step")
    return "\n".join(lines + ([f"activations and FLOPs are not known: {one.note}"] if one.note else []))


def _count(number: Any) -> str:
    """A count for people, - for none."""
    return format_count(number) if number else "-"
