"""Published training stages, one Python function each: typed settings -> `plait.training.stages.Recipe`.

The function's docstring holds data, cost and the number to expect; its parameters are what `--set key=value` sets.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from plait.errors import UsageError
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
    "one_peace.stage2": "plait.recipes.one_peace:stage2",
}
"""Name -> `module:function`, imported when the recipe runs."""


def find_recipe(name: str) -> Callable[..., Recipe]:
    """The function of the recipe `name`. Raises UsageError, naming the nearest recipe."""
    if name not in RECIPES:
        raise UsageError(f"expected the name of a recipe, got {name!r}; {nearest(name, list(RECIPES))}")
    module, _, attribute = RECIPES[name].partition(":")
    return getattr(import_module(module), attribute)
