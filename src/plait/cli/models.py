"""The verb `info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from plait.models.catalog import model_info
from plait.report.tables import format_bytes, format_count, format_table


def info(
    model: Annotated[Path, typer.Argument(help="A model directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Print family, modalities, parameters, dtype and licence of a model directory, without loading its weights."""
    facts = model_info(model)
    if as_json:
        print(json.dumps(facts.to_dict(), indent=2))
        return
    print(f"{facts.path}: {facts.family} ({', '.join(facts.architectures) or 'architecture not named'})")
    print(f"modalities  {', '.join(facts.modalities) or 'not named'}")
    print(f"parameters  {facts.parameters:,} ({format_count(facts.parameters)})")
    print(f"dtype       {', '.join(facts.dtypes)}   {format_bytes(facts.bytes)} on disk")
    print(f"licence     {facts.license or 'not named in README.md'}\n")
    rows = [(part, format_count(n), f"{n / facts.parameters:.1%}") for part, n in facts.parts.items()]
    print(format_table(("part", "parameters", "share"), rows))
