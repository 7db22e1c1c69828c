"""`plait study NAME`: a claim of a paper tried at small scale, trained, measured and written up by one command.

A study is a function `(out: Path, seeds: int, ...typed settings) -> int` that keeps what it finished under `out` and,
run again, continues: its docstring says what is compared with what, and its cost.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from plait.errors import UsageError
from plait.places import at_work
from plait.training.run import parse_settings

STUDIES: dict[str, str] = {
    "mplug2": "plait_studies.mplug2:study",
    "owl": "plait_studies.owl:study",
    "owl2": "plait_studies.owl2:study",
}
"""Name -> `module:function`."""


def study(
    name: Annotated[str | None, typer.Argument(help="Name of a study; without it they are listed.")] = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Directory of the study; runs/NAME without it.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions; 3 give intervals.")] = 1,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one parameter; repeatable.")
    ] = None,
) -> int:
    """Train and measure what a paper claims, at small scale; run the same command again to continue."""
    if name is None:
        for key in STUDIES:
            print(f"{key:<14}{(find(key).__doc__ or '').strip().splitlines()[0]}")
        return 0
    function = find(name)
    out = out or Path("runs") / name
    arguments = parse_settings(function, [f"out={out}", f"seeds={seeds}", *(settings or [])], seed=0)
    with at_work(out):
        return int(function(**arguments) or 0)


def find(name: str) -> Any:
    """The function of a study.

    Args:
        name: a key of `STUDIES`.

    Raises:
        UsageError: for a name that does not exist.
    """
    if name not in STUDIES:
        raise UsageError(f"expected a study among {', '.join(STUDIES)}, got {name!r}")
    module, _, attribute = STUDIES[name].partition(":")
    return getattr(import_module(module), attribute)
