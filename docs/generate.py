"""Pages that are written by the code they tell of: `python docs/generate.py` writes recipes.md and models.md."""

from __future__ import annotations

import inspect
from itertools import groupby
from pathlib import Path

from plait.models.catalog import official
from plait.recipes import RECIPES, described, find_recipe
from plait.report.tables import format_bytes, format_count, markdown_code, markdown_row

PLACE = Path(__file__).parent


def recipes() -> str:
    """Every recipe: what it says of itself, and its settings with types, defaults and meanings."""
    lines = [
        "# Recipes",
        "",
        "A recipe is a published training stage. `plait train RECIPE` runs it, `--set NAME=VALUE` changes a setting,",
        "`plait train RECIPE --help` prints what stands here. [Training](training.md) tells what all of them share.",
        "Published values and where they come from stand in the words of each recipe.",
    ]
    for name in RECIPES:
        function = find_recipe(name)
        lines += ["", f"## {name}", "", (inspect.getdoc(function) or "").partition("\n\nArgs:")[0], ""]
        lines += ["| setting: type = without it | meaning |", "|---|---|"]
        for meaning, group in groupby(described(function), key=lambda one: one.meaning):
            names = "<br>".join(markdown_code(f"{one.name}: {one.kind} = {one.default}") for one in group)
            lines.append(f"| {names} | {meaning.replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def models() -> str:
    """The official files that Plait knows, as `plait models` lists them."""
    lines = [
        "# Models",
        "",
        "Official files that load by name (`plait get NAME`, then NAME in every verb). Memory is that of the weights",
        "in bfloat16. Licences are those of the authors' repositories; those of base models were not checked.",
        "",
        markdown_row(("name", "family", "parameters", "memory", "licence", "what it does")),
        "|---|---|---|---|---|---|",
    ]
    for row in official():
        sizes = (format_count(row.parameters), format_bytes(row.memory["bfloat16"]))
        lines.append(markdown_row((row.name, row.family, *sizes, row.license, row.does)))
    return "\n".join(lines) + "\n"


PAGES = {"recipes.md": recipes, "models.md": models}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (PLACE / page).write_text(make(), encoding="utf-8")
