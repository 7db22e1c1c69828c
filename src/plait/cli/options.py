"""What several verbs ask for, each declared once: arguments, options, and how their values are checked.

`json_option` and `settings_option` take the words of the verb, since what comes out differs from verb to verb.
`with_plugins` gives `--plugin FILE` to every verb that opens a model or runs a recipe (`plait.cli.Verb.opens`).
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from plait.errors import UsageError
from plait.media.limits import set_limits

MODEL_HELP = "model directory or official checkpoint"
OUTSIDE_HELP = "manifests may name files outside of their directory, which those of strangers have no reason to"
READS_LISTS = {
    *["caption", "answer", "ground", "classify", "detect", "segment", "train", "plan", "eval", "embed", "add"]
}
"""Verbs, and sub-verbs of `plait index`, that read manifests."""
PLUGIN_HELP = "a Python file of your own, run first: it adds modalities, a family or recipes; repeatable"

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
NewDirectory = Annotated[Path, typer.Argument(help="Model directory to write; must not exist.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="where the model runs, for example cuda or cpu; without it the GPU where there is one"),
]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; int8 on a CPU; that of the weights without it")
]
AdapterOption = Annotated[Path | None, typer.Option(help="directory of a LoRA trained on the model; none without it")]
BatchOption = Annotated[int, typer.Option(help="items per forward pass", min=1)]
BadOption = Annotated[str, typer.Option("--on-bad", help="what cannot be read: fail, or skip and report")]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=NUMBER",
        help="what one media file may cost: max_seconds, max_pixels, max_frames or max_bytes; repeatable",
    ),
]


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


def with_plugins(name: str, command: Any) -> Any:
    """A command, or every command of a group, that takes `--plugin FILE` and, where it reads lists, `--outside`.

    The options never reach the verb's function: who calls that from Python calls `plait.use` and
    `plait.reading.outside` as well.
    """
    from typer.main import get_command

    # typer makes the option, since its own class differs by version
    declared = typer.Typer(add_completion=False)
    declared.command()(_plugins)
    for verb, one in getattr(command, "commands", {name: command}).items():
        shared = ("plugin", "outside") if verb in READS_LISTS else ("plugin",)
        one.params += [option for option in get_command(declared).params if option.name in shared]
    return command


def _use(files: list[str] | None) -> None:
    """Run the files of `--plugin`. Raises UsageError, with its line, for one that fails."""
    from plait.models.plugins import use

    for file in files or ():
        try:
            use(file)
        except UsageError:
            raise
        except Exception as error:  # whatever the user's own code raises
            place = str(Path(file).resolve())
            lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == place]
            where = f", line {lines[-1]}" if lines else ""
            said = " ".join(str(error).split())
            raise UsageError(
                f"expected a plug-in that runs, got {type(error).__name__}: {said} in {file}{where}; correct the file"
            ) from error


def _allow(is_given: bool) -> None:
    """What `--outside` does."""
    if is_given:
        from plait.reading import allow_outside

        allow_outside()


def _plugins(
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", callback=_use, is_eager=True, expose_value=False, help=PLUGIN_HELP),
    ] = None,
    outside: Annotated[
        bool,
        typer.Option("--outside", callback=_allow, is_eager=True, expose_value=False, help=OUTSIDE_HELP),
    ] = False,
) -> None:
    """Declares the options `--plugin` and `--outside`."""


def raise_limits(given: Sequence[str] | None) -> None:
    """Let the media of this command cost what `--limit` says; `plait.cli.run_verb` ends it with the command.

    Raises:
        UsageError: for what is no NAME=NUMBER of a limit.
    """
    for pair in given or ():
        name, _, number = pair.partition("=")
        try:
            set_limits(**{name.strip(): float(number)})
        except ValueError as error:
            said = error if number.strip() and "expected" in str(error) else f"expected NAME=NUMBER, got {pair!r}"
            raise UsageError(f"{str(said).partition(';')[0]}; write --limit max_seconds=3600") from error
