"""Published training stages, one Python function each: typed settings -> `plait.training.stages.Recipe`.

The function's docstring holds data, cost and the number to expect; its parameters are what `--set key=value` sets.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from importlib import import_module
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from plait.errors import UsageError, installed
from plait.models.plugins import used
from plait.training.run import nearest, settings_of

if TYPE_CHECKING:
    from plait.training.stages import Recipe

RECIPES: dict[str, str] = {
    "finetune": "plait.recipes.finetune:finetune",
    "mplug2.pretraining": "plait.recipes.mplug2:pretraining",
    "mplug2.captioning": "plait.recipes.mplug2:captioning",
    "mplug2.self_critical": "plait.recipes.mplug2:self_critical",
    "mplug2.answering": "plait.recipes.mplug2:answering",
    "mplug2.mixture": "plait.recipes.mplug2:mixture",
    "mplug2.retrieval": "plait.recipes.mplug2:retrieval",
    "mplug2.grounding": "plait.recipes.mplug2:grounding",
    "mplug2.classification": "plait.recipes.mplug2:classification",
    "mplug2.comparison": "plait.recipes.mplug2:comparison",
    "mplug_owl.stage1": "plait.recipes.mplug_owl:stage1",
    "mplug_owl.stage2": "plait.recipes.mplug_owl:stage2",
    "mplug_owl2.pretrain": "plait.recipes.mplug_owl2:pretrain",
    "mplug_owl2.joint": "plait.recipes.mplug_owl2:joint",
    "one_peace.stage1": "plait.recipes.one_peace:stage1",
    "one_peace.add_modality": "plait.recipes.adding:add_modality",
    "one_peace.stage2": "plait.recipes.one_peace:stage2",
    "one_peace.distil": "plait.recipes.teaching:distil",
    "one_peace.fuse": "plait.recipes.teaching:fuse",
}
"""Name -> `module:function`, imported when the recipe runs; a package's entry points `plait.recipes` look the same."""


def find_recipe(name: str) -> Callable[..., Recipe]:
    """The function of a recipe: of Plait, of a file that was used, or of an installed package (`plait.recipes`).

    Raises UsageError, naming the nearest recipe, and where two have this name.
    """
    if name in (own := own_recipes()):
        return own[name]
    home = RECIPES.get(name) or installed("plait.recipes", name)
    if home is None:
        raise UsageError(f"expected the name of a recipe, got {name!r}; {nearest(name, [*RECIPES, *own])}")
    module, _, attribute = home.partition(":")
    return getattr(import_module(module), attribute)


def own_recipes() -> dict[str, Callable[..., Recipe]]:
    """Recipes of files that were used (`plait.use`). Raises UsageError for a name that is taken."""
    found: dict[str, Callable[..., Recipe]] = {}
    for module in used():
        for name, function in getattr(module, "RECIPES", {}).items():
            if name in RECIPES or name in found:
                raise UsageError(f"expected a new name for a recipe in {module.__file__}, got {name!r}; rename it")
            found[name] = function
    return found


COMMON = {
    "init": "model directory to go on from.",
    "data": "manifest, tar shards, parquet, a saved data set or a folder of media with names.",
    "steps": "optimiser steps.",
    "epochs": "passes over the rows; steps count where both are given.",
    "batch_size": "rows of a step over all processes.",
    "accumulation": "micro batches that a step is split into.",
    "lr": "peak rate.",
    "floor": "last rate.",
    "warmup": "steps, or a share of the run below 1.",
    "max_length": "tokens of a row.",
    "seed": "of what the recipe draws by itself; `plait train --seed`.",
}
"""What these settings mean in a recipe that says nothing else of them."""


class Setting(NamedTuple):
    """One setting of a recipe.

    Attributes:
        name: as in `--set NAME=VALUE`.
        kind: its type in words, choices with bars between.
        default: as it is written, "required" without one.
        meaning: in a sentence.
    """

    name: str
    kind: str
    default: str
    meaning: str


def described(function: Callable[..., Any]) -> list[Setting]:
    """Every setting of a recipe with its type, default and meaning, in the order of its parameters.

    Meanings are read from the `Args` of the function and of the dataclasses among its parameters.

    Args:
        function: as `find_recipe` gives it.

    Example:
        >>> described(find_recipe("one_peace.stage2"))[0].meaning
        'model directory of stage 1.'
    """
    known = settings_of(function)
    meanings, names = dict(COMMON), {*known, *inspect.signature(function).parameters}
    for source in [*filter(is_dataclass, get_type_hints(function).values()), function]:
        for kind in reversed(getattr(source, "__mro__", (source,))):
            meanings |= dict(_explained(inspect.getdoc(kind) or "", names))
    return [
        Setting(name, _said(kind), "required" if default is inspect.Parameter.empty else str(default), meanings[name])
        for name, (kind, default) in known.items()
    ]


def _explained(text: str, known: set[str]) -> Iterator[tuple[str, str]]:
    """(name, meaning) of the `Args` of a docstring, where one line may tell of several: `a, b: of both. c: of it.`"""
    _, found, rest = text.partition("\nArgs:\n")
    if not found:
        return
    flat = " ".join(re.split(r"\n(?=\S)", rest)[0].split())
    names = r"((?:\w+, )*\w+): "
    # only words that are settings begin an entry: a sentence may hold a colon too
    starts = [one for one in re.finditer(rf"(?:^|(?<=[.;] )){names}", flat) if set(one[1].split(", ")) <= known]
    for one, after in zip(starts, [*starts[1:], None], strict=True):
        meaning = flat[one.end() : after.start() if after else None].strip().rstrip(";")
        yield from ((name, meaning) for name in one[1].split(", "))


def _said(kind: Any) -> str:
    """A type as a reader of the help knows it."""
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if isinstance(kind, UnionType):
        return " | ".join(_said(one) for one in get_args(kind) if one is not type(None))
    return kind.__name__ if get_origin(kind) is None else str(kind).replace("typing.", "")
