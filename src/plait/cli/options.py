"""What several verbs ask for, each declared once: arguments, options, and how their values are checked.

`json_option` and `settings_option` take the words of the verb, since what comes out differs from verb to verb.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from plait.errors import UsageError

MODEL_HELP = "model directory or official checkpoint"

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
NewDirectory = Annotated[Path, typer.Argument(help="Model directory to write; must not exist.")]
DeviceOption = Annotated[str | None, typer.Option(help="where the model runs, for example cuda or cpu")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16")]
AdapterOption = Annotated[Path | None, typer.Option(help="directory of a LoRA trained on the model")]
BatchOption = Annotated[int, typer.Option(help="items per forward pass", min=1)]
BadOption = Annotated[str, typer.Option("--on-bad", help="what cannot be read: fail, or skip and report")]


def json_option(words: str = "print JSON") -> Any:
    """The flag `--json`; words: what is printed then."""
    return typer.Option("--json", help=words)


def settings_option(words: str) -> Any:
    """The repeatable `--set KEY=VALUE`, read by `plait.training.run.parse_settings`."""
    return typer.Option("--set", metavar="KEY=VALUE", help=words)


def check_on_bad(value: str, error: str = "fail") -> bool:
    """Whether bad items are skipped; `error` is this verb's word for stopping at one. UsageError for any other word."""
    if value not in (error, "skip"):
        raise UsageError(f"expected --on-bad {error} or skip, got {value!r}; choose one of them")
    return value == "skip"
