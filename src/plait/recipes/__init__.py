"""Published training stages, one Python function each: typed settings -> `plait.training.stages.Recipe`.

The function's docstring holds data, cost and the number to expect; its parameters are what `--set key=value` sets.
"""

from __future__ import annotations

RECIPES: dict[str, str] = {
    "one_peace.stage1": "plait.recipes.one_peace:stage1",
    "one_peace.stage2": "plait.recipes.one_peace:stage2",
}
"""Name -> `module:function`, imported when the recipe runs."""
