"""`plait plan RECIPE`: what its stages train and need; `plait plan FAMILY TASK`: what a task runs and costs, and
`plait plan FAMILY --all` the same for every task of its paper."""

from __future__ import annotations

import json
from dataclasses import asdict
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any

import typer

from plait.cli.options import json_option, settings_option
from plait.errors import UsageError
from plait.recipes.plan import StagePlan, describe, describe_paper, describe_task, plan_stage, with_cost
from plait.training.run import refuse_beside


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe such as one_peace.stage1, or a family.")],
    task: Annotated[str | None, typer.Argument(help="With a family: a task (caption) or a stage (stage1).")] = None,
    settings: Annotated[list[str] | None, settings_option("A setting of the recipe; may be repeated.")] = None,
    dtype: Annotated[str, typer.Option(help="Of matrix products: float32, bfloat16 or float16.")] = "float32",
    processes: Annotated[int, typer.Option(help="Of a training on several, each with its share.", min=1)] = 1,
    recompute: Annotated[
        int, typer.Option(help="1: keep only inputs of layers, n: of every n-th, as plait train does.", min=0)
    ] = 0,
    every: Annotated[bool, typer.Option("--all", help="With a family: every task of its paper.")] = False,
    as_json: Annotated[bool, json_option("Print JSON for machines.")] = False,
) -> None:
    """Print what a recipe's stages train, or what a family's task runs, its memory and FLOPs, before it starts."""
    if every or (task is not None and task_planner(recipe, task) is not None):
        what = f"{recipe} --all" if every else f"{recipe} {task}"
        refuse_beside(
            f"{what}, whose table has no such choice",
            **{
                "TASK": task if every else None,
                "--dtype": None if dtype == "float32" else dtype,
                "--processes": None if processes == 1 else processes,
                "--recompute": recompute or None,
            },
        )
        print(_tasks(recipe, None if every else task, dict(_setting(text) for text in settings or []), as_json))
        return
    check_family(recipe, task)
    plans = plan_recipe(
        f"{recipe}.{task}" if task else recipe, settings or [], dtype=dtype, processes=processes, recompute=recompute
    )
    if as_json:
        print(json.dumps([asdict(one) for one in plans], indent=2))
        return
    print("\n\n".join(describe(one) for one in plans))


def _tasks(family: str, task: str | None, settings: dict[str, Any], as_json: bool) -> str:
    """Plans of a task of a family, or without one of every task of its paper, as text or JSON."""
    if task is not None:
        tasks = task_planner(family, task).plan_tasks(task, settings)
        return (
            json.dumps([asdict(one) for one in tasks], indent=2) if as_json else "\n\n".join(map(describe_task, tasks))
        )
    from plait.models.auto import FAMILIES

    planners: dict[str, Any] = {name: getattr(import_module(at), "PLANNER", None) for name, at in FAMILIES.items()}
    known = [name for name, planner in planners.items() if hasattr(planner, "plan_paper")]
    if family not in known:
        raise UsageError(f"expected a family with a table of tasks ({', '.join(known)}) beside --all, got {family!r}")
    rows = planners[family].plan_paper(settings)
    if not as_json:
        return describe_paper(rows)
    return json.dumps([{**asdict(one), "plan": plan and asdict(plan)} for one, plan in rows], indent=2)


def task_planner(family: str, task: str) -> Any:
    """The planner of a family that knows this task, or None: then it is one of its recipes."""
    from plait.models.auto import FAMILIES

    planner = getattr(import_module(FAMILIES[family]), "PLANNER", None) if family in FAMILIES else None
    return planner if planner is not None and task in planner.TABLE else None


def check_family(family: str, task: str | None) -> None:
    """Raise UsageError, listing what the family has, where it has no such recipe; nothing for what is no family."""
    from plait.models.auto import FAMILIES
    from plait.recipes import RECIPES, own_recipes

    recipes = [*RECIPES, *own_recipes()]
    if family not in FAMILIES or f"{family}.{task}" in recipes:
        return
    tasks = list(getattr(getattr(import_module(FAMILIES[family]), "PLANNER", None), "TABLE", ()))
    stages = [name.partition(".")[2] for name in recipes if name.startswith(f"{family}.")]
    wanted = f"one of the recipes of {family} ({', '.join(stages)})"
    if tasks:
        wanted = f"a task of {family} ({', '.join(tasks)}) or one of its recipes ({', '.join(stages)})"
    first, *_ = names = [*tasks, *stages]
    if task is None:
        raise UsageError(f"expected {wanted}, got none; add one, such as plait plan {family} {first}")
    close = get_close_matches(task, names, n=1, cutoff=0.4)
    raise UsageError(f"expected {wanted}, got {task!r}; " + (f"did you mean {close[0]!r}?" if close else "choose one"))


def _setting(text: str) -> tuple[str, Any]:
    """`KEY=VALUE` of a task, whose planner has no annotations: JSON where it is some, else a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"expected KEY=VALUE, got {text}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value  # a word


def plan_recipe(name: str, settings: list[str], **how: Any) -> list[StagePlan]:
    """The plan of every stage of the recipe `name`. how: as `with_cost`. Raises ValueError for an unknown one."""
    from plait.recipes import find_recipe
    from plait.training.parallel import shapes_of
    from plait.training.run import call_recipe, parse_settings

    function = find_recipe(name)
    chosen = call_recipe(function, parse_settings(function, settings, seed=0))
    # Without memory: a plan of 7B must fit on a small machine.
    model = shapes_of(chosen.model_builder)
    return [with_cost(plan_stage(model, stage), model, stage, **how) for stage in chosen.stages]
