"""`plait train RECIPE`: settings from the command line -> the recipe's typed function -> a run directory.

run directory: config.json (what was asked), metrics.jsonl, checkpoints/, model/
"""

from __future__ import annotations

import inspect
import json
import signal
import textwrap
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from plait.cli.options import LimitOption, json_option, raise_limits, settings_option
from plait.errors import UsageError
from plait.recipes import RECIPES, Setting, described, find_recipe
from plait.training.run import call_recipe, check_run_dir, claim_run_dir, is_main, parse_settings, run_recipe

if TYPE_CHECKING:
    from plait.training.stages import Recipe


INTERRUPTED = 130  # as `plait.cli.INTERRUPTED`


class RecipeCommand(TyperCommand):
    """`plait train RECIPE --help` tells of that recipe and its settings, `plait train --help` of the options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words of the command, since `--help` is answered before any of them is read."""
        ctx.meta["plait.words"] = list(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The page of the recipe among the words; the options and the names of recipes where there is no word."""
        words = [word for word in ctx.meta.get("plait.words", ()) if not word.startswith("-")]
        if words:
            formatter.write(recipe_page(next((word for word in words if word in RECIPES), words[0])) + "\n")
            return
        super().format_help(ctx, formatter)
        formatter.write(textwrap.fill("Recipes: " + ", ".join(RECIPES), 100) + "\n")


def recipe_page(name: str) -> str:
    """What a recipe does, was published with and can be set to, as text for a terminal.

    Raises:
        UsageError: for no recipe of this name.
    """
    function = find_recipe(name)
    words = inspect.getdoc(function) or ""
    lines = [f"plait train {name}", "", words.partition("\n\nArgs:")[0], "", "Settings (--set NAME=VALUE):", ""]
    for settings in grouped(described(function)):
        lines += [f"  {one.name}: {one.kind} = {one.default}" for one in settings]
        lines.append(textwrap.fill(settings[0].meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join([*lines, "", "Options of every recipe: plait train --help"])


def grouped(settings: list[Setting]) -> list[list[Setting]]:
    """Neighbours that are explained together."""
    return [list(group) for _, group in groupby(settings, key=lambda one: one.meaning)]


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, such as one_peace.stage1.")],
    *,
    settings: Annotated[list[str] | None, settings_option("Set one parameter of the recipe; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/RECIPE without it.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order, masks and dropout.")] = 0,
    resume: Annotated[bool, typer.Option(help="Continue a run that exists, or begin it again.")] = True,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one without it.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16 for mixed precision.")] = "float32",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files as well.")] = False,
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between two checkpoints.", min=0)] = 60.0,
    keep_last: Annotated[int, typer.Option(help="Checkpoints to keep.", min=1)] = 2,
    best: Annotated[
        str | None, typer.Option(help="Metric whose lowest checkpoint is kept too; none without it.")
    ] = None,
    compile: Annotated[
        str | None, typer.Option(help="Torch backend for every layer, such as inductor; none without it.")
    ] = None,
    recompute: Annotated[int, typer.Option(help="1: keep only inputs of layers, n: of every n-th.", min=0)] = 0,
    parallel: Annotated[str, typer.Option(help="Under torchrun: ddp, or fsdp to shard the model.")] = "ddp",
    share_cores: Annotated[
        bool, typer.Option("--share-cores", help="On a CPU, leave busy cores to others; looked at every half minute.")
    ] = False,
    dry_data: Annotated[int, typer.Option(help="Train nothing: digests of the first N batches.", min=0)] = 0,
    as_json: Annotated[bool, json_option("Print JSON for machines, with --dry-data.")] = False,
    limits: LimitOption = None,
) -> int:
    """Train a recipe; run the same command again to continue a run that was stopped. RECIPE --help: its settings."""
    raise_limits(limits)
    function = find_recipe(recipe)
    arguments = parse_settings(function, settings or [], seed)
    if dry_data:
        show_batches(recipe, call_recipe(function, arguments), seed, dry_data, as_json)
        return 0
    if as_json:
        raise UsageError("expected --dry-data beside --json, got none; a run writes metrics.jsonl for machines")
    run_dir = out or Path("runs") / recipe
    config = {"recipe": recipe, "seed": seed, "dtype": dtype, "arguments": arguments}
    from plait.report.run import run_page
    from plait.training.stages import Options

    options = Options(
        tensorboard=tensorboard, checkpoint_seconds=checkpoint_seconds, keep_last=keep_last, best=best,
        compile=compile, recompute=recompute, parallel=parallel, share_cores=share_cores,
    )  # fmt: skip
    check_run_dir(run_dir, config, resume)  # before data sets are read, which may take minutes

    def build() -> Recipe:
        recipe = call_recipe(function, arguments)
        claim_run_dir(run_dir, config, resume)  # now that the settings are known to be good
        return recipe

    result = run_recipe(build, run_dir, seed=seed, device=device, dtype=dtype, resume=resume, options=options)
    if result.interrupted is not None and is_main():
        print(f"stopped and saved at step {result.steps}; run the same command again to continue {run_dir}")
    if result.interrupted is not None:
        # SIGTERM is how a cluster takes a machine back: the run is saved and the command did what it should.
        return INTERRUPTED if result.interrupted == signal.SIGINT else 0
    if is_main():
        run_page(run_dir)
        # forgotten with the checkpoints
        took = f" in {result.seconds:.0f} s" if result.seconds else ""
        print(f"trained {result.steps} steps{took}; the model is in {run_dir / 'model'}")
    return 0


def show_batches(name: str, recipe: Recipe, seed: int, count: int, as_json: bool) -> None:
    """Print what the first batches of every stage hold."""
    from plait.training.data_order import dry_data

    batches = dry_data(recipe.stages, seed, count)
    if as_json:
        print(json.dumps({"recipe": name, "seed": seed, "batches": batches}, indent=1))
        return
    for batch in batches:
        print(f"{batch['stage']}, step {batch['step']}: {len(batch['samples'])} samples: {' '.join(batch['samples'])}")
        for one in batch["tensors"]:
            print(f"  {one['name']:<28} {one['dtype']:<8} {tuple(one['shape'])!s:<20} {one['sha256'][:16]}")
