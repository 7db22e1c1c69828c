"""Published training stages, one Python function each: typed settings -> `plait.training.stages.Recipe`.

The function's docstring holds data, cost and the number to expect; its parameters are what `--set key=value` sets.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from plait.errors import UsageError, installed
from plait.models.plugins import used
from plait.training.run import nearest

if TYPE_CHECKING:
    from plait.training.stages import Recipe

RECIPES: dict[str, str] = {
    "finetune": "plait.recipes.finetune:finetune",
    "mplug2.pretraining": "plait.recipes.mplug2:pretraining",
    "mplug2.captioning": "plait.recipes.mplug2:captioning",
    "mplug2.self_critical": "plait.recipes.mplug2:self_critical",
    "mplug2.answering": "plait.recipes.mplug2:answering",
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
