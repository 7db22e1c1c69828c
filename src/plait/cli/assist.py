"""The verbs `plait caption`, `answer`, `ground` and `classify`: thin layers over `Assistant`."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from plait.cli.options import (
    AdapterOption,
    BadOption,
    BatchOption,
    DeviceOption,
    DtypeOption,
    LimitOption,
    ModelArgument,
    check_on_bad,
    json_option,
    raise_limits,
)
from plait.errors import UsageError
from plait.terminal import progress_bar
from plait.training.run import refuse_beside

if TYPE_CHECKING:
    from plait.assistant import Assistant, Request, Task

MediaArgument = Annotated[Path, typer.Argument(metavar="MEDIA", help="image, video, sound, folder or manifest")]
BeamsOption = Annotated[int | None, typer.Option(help="beams of the search; the model's own number without it", min=1)]
LengthOption = Annotated[
    int | None, typer.Option(help="most tokens to write; the model's own number without it", min=1)
]
TopOption = Annotated[int | None, typer.Option("-k", "--top", help="labels or answers shown; 5 without it", min=1)]
TOP = 5
JsonOption = Annotated[bool, json_option("print one JSON object per item")]


class How(NamedTuple):
    """What these verbs share, as it was asked for.

    `options` are settings of `generate`, `candidates` what to choose among, `top` how many of these are shown.
    """

    batch_size: int
    device: str | None
    dtype: str | None
    adapter: Path | None
    on_bad: str
    as_json: bool
    options: dict[str, Any] | None = None
    candidates: list[str] | None = None
    top: int = TOP


def _shared(
    batch_size: BatchOption = 8,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    adapter: AdapterOption = None,
    on_bad: BadOption = "fail",
    as_json: JsonOption = False,
    limits: LimitOption = None,
) -> How:
    """What every verb about media takes, declared here once; limits act at once."""
    raise_limits(limits)
    return How(batch_size, device, dtype, adapter, on_bad, as_json)


def asks(batch_size: int = 8) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A verb that takes the options of `_shared` beside its own, by their names, and is handed them as `how`.

    Args:
        batch_size: its default of items per forward pass.
    """

    def with_options(verb: Callable[..., None]) -> Callable[..., None]:
        own, shared = (inspect.signature(one, eval_str=True).parameters for one in (verb, _shared))
        options = [one.replace(kind=one.KEYWORD_ONLY) for one in shared.values()]
        options[0] = options[0].replace(default=batch_size)
        every = [*(one for name, one in own.items() if name != "how"), *options]

        @functools.wraps(verb)
        def run(*args: Any, **kwargs: Any) -> None:
            given: dict[str, Any] = {"batch_size": batch_size}
            given |= {name: kwargs.pop(name) for name in shared if name in kwargs}
            verb(*args, how=_shared(**given), **kwargs)

        # What typer reads: the whole signature, as if it were written out.
        cast("Any", run).__signature__ = inspect.Signature(every, return_annotation=None)
        run.__annotations__ = {one.name: one.annotation for one in every}
        return run

    return with_options


@asks()
def caption(
    model: ModelArgument,
    media: MediaArgument,
    *,
    num_beams: BeamsOption = None,
    max_length: LengthOption = None,
    how: How,
) -> None:
    """Describe images and videos."""
    ask_all("caption", model, media, "", how._replace(options=_given(num_beams, max_length)))


@asks()
def answer(
    model: ModelArgument,
    media: MediaArgument,
    question: Annotated[str, typer.Argument(help="asked of every item; a manifest's own questions come first")] = "",
    *,
    answers: Annotated[
        str | None,
        typer.Option(
            help="choose among these, separated by commas, or @FILE with one per line; free answers without it"
        ),
    ] = None,
    top: TopOption = None,
    num_beams: BeamsOption = None,
    max_length: LengthOption = None,
    how: How,
) -> None:
    """Answer a question about images and videos, freely or from a list of answers."""
    candidates = _listed(answers, "answers")
    options = _given(num_beams, max_length)
    if candidates is None:
        refuse_beside("free answers, of which there is one", **{"--top": top})
    else:
        refuse_beside("--answers, which are ranked and not written", **options)
    how = how._replace(options=options, candidates=candidates, top=top or TOP)
    ask_all("answer" if candidates is None else "rank", model, media, question, how)


@asks()
def ground(
    model: ModelArgument,
    media: MediaArgument,
    phrase: Annotated[str, typer.Argument(help="what to find; a manifest's own phrases come first")] = "",
    *,
    how: How,
) -> None:
    """Find what a phrase names in images: x0 y0 x1 y1 in pixels."""
    ask_all("ground", model, media, phrase, how)


@asks()
def classify(
    model: ModelArgument,
    media: MediaArgument,
    *,
    labels: Annotated[
        str | None, typer.Option(help="labels separated by commas, or @FILE with one per line; default the model's own")
    ] = None,
    top: TopOption = None,
    how: How,
) -> None:
    """Name what images, videos, audio or a manifest's texts show, with probabilities.

    Any model that embeds chooses among --labels (zero-shot); a classifier has labels of its own.
    """
    candidates = _listed(labels, "labels")
    from plait.embedder.towers import is_foreign

    if candidates is not None and is_foreign(model):
        if how.adapter is not None:
            raise UsageError(f"expected a model of Plait beside --adapter, got {model}; merge it with PEFT")
        _classify_by_vectors(model, media, candidates, how._replace(top=top or TOP))
        return
    ask_all("classify", model, media, "", how._replace(candidates=candidates, top=top or TOP))


def _classify_by_vectors(model: Path, media: Path, labels: list[str], how: How) -> None:
    """Zero-shot with a model of others that embeds (CLIP, SigLIP, CLAP and their kin): a line per file."""
    from plait.assistant import requests_under
    from plait.embedder import Embedder

    is_skipping = check_on_bad(how.on_bad)
    requests, _ = requests_under(media)
    embedder = Embedder(model, how.device, how.dtype, how.batch_size)
    wrong = [one.error or "" for one in requests if one.error]
    if wrong and not is_skipping:
        raise ValueError(wrong[0])
    items = [{one.kind: one.value} for one in requests if not one.error]
    names = [one.name for one in requests if not one.error]
    rows = embedder.classify(items, labels, on_bad="skip" if is_skipping else "raise")
    left_out = {one.index: one.reason for one in embedder.skipped}
    for error in [*wrong, *(f"{names[place]}: {reason}" for place, reason in left_out.items())]:
        typer.echo(f"skipped: {error}", err=True)
    kept = (name for place, name in enumerate(names) if place not in left_out)
    for name, row in zip(kept, rows, strict=True):
        told = json.dumps({"name": name} | _as_json("classify", row, how.top))
        print(told if how.as_json else f"{name}\t{_as_line('classify', row, how.top)}")
    if not rows:
        raise ValueError(f"expected something to classify, got nothing that can be read among {len(requests)} items")


def ask_all(
    task: Task,
    model: Path,
    media: Path,
    text: str,
    how: How,
    keep: Callable[[Assistant, Request, Any], Any] | None = None,
) -> None:
    """Ask for a task about everything under `media` and print a line per item, as soon as it is answered.

    keep: also called with every item that was answered; what it returns, if anything, is shown instead.
    """
    is_skipping = check_on_bad(how.on_bad)
    from plait.assistant import Assistant, requests_under, unasked

    def stop_at(error: str | None) -> None:
        if error and not is_skipping:
            raise ValueError(error)

    requests, others = requests_under(media, text)
    # before a model is loaded, which may take minutes
    stop_at(next((error for request in requests if (error := request.error or unasked(task, request))), None))
    assistant = Assistant(model, device=how.device, dtype=how.dtype, batch_size=how.batch_size, adapter=how.adapter)
    if media.is_dir():  # what the model has no sense for is no fault of the folder
        fitting = [one for one in requests if one.error or one.kind in ("text", *assistant.skills.kinds)]
        others, requests = others + len(requests) - len(fitting), fitting
    if others:
        files = "1 file that is" if others == 1 else f"{others} files that are"
        sound = " nor sound" if "audio" in assistant.skills.kinds else ""
        typer.echo(f"passed over {files} neither image nor video{sound}", err=True)
    if task in assistant.tasks:  # else `stream` says what the model can do instead
        requests = assistant.fitting(task, requests)
    stop_at(next((request.error for request in requests if request.error), None))
    skipped = 0
    with progress_bar(task, total=len(requests)) as bar:
        answers = assistant.stream(task, requests, candidates=how.candidates, options=how.options)
        for request, (name, value, error) in zip(requests, answers, strict=True):
            stop_at(error)
            if keep and not error and (shown := keep(assistant, request, value)) is not None:
                value = shown
            if error:
                skipped += 1
                if how.as_json:
                    print(json.dumps({"name": name, "error": error}))
                else:
                    typer.echo(f"skipped: {name}: {error}", err=True)
            elif how.as_json:
                print(json.dumps({"name": name} | _as_json(task, value, how.top)))
            else:
                print(f"{name}\t{_as_line(task, value, how.top)}")
            bar.update()
    if skipped == len(requests):
        raise ValueError(f"expected something to {task}, got nothing that can be read among {skipped} items")


def _as_json(task: Task, value: Any, top: int) -> dict[str, Any]:
    """An answer for machines, under a key that its task names."""
    if task in ("rank", "classify"):
        key = "answers" if task == "rank" else "labels"
        return {key: [{"text": text, "probability": round(share, 6)} for text, share in value[:top]]}
    if task == "detect":
        return {
            "objects": [
                {"label": one.label, "score": round(one.score, 6), "box": [round(x, 2) for x in one.box]}
                for one in value
            ]
        }
    if task == "segment":
        return {"classes": [{"label": label, "share": round(share, 6)} for label, share in value]}
    return {"box": [round(x, 2) for x in value]} if task == "ground" else {task: value}


def _as_line(task: Task, value: Any, top: int) -> str:
    """An answer for people: choices with their shares, a box in pixels, or the text."""
    if task in ("rank", "classify"):
        return ", ".join(f"{text} {share:.3f}" for text, share in value[:top])
    if task == "detect":
        named = (f"{one.label} {one.score:.2f} ({' '.join(f'{x:.0f}' for x in one.box)})" for one in value)
        return ", ".join(named) or "nothing"
    if task == "segment":
        return ", ".join(f"{label} {share:.1%}" for label, share in value)
    return " ".join(f"{x:.1f}" for x in value) if task == "ground" else value


def _given(num_beams: int | None, max_length: int | None) -> dict[str, int]:
    """What was asked for alone: a family has defaults of its own for the rest."""
    options = {"num_beams": num_beams, "max_length": max_length}
    return {name: value for name, value in options.items() if value is not None}


def _listed(text: str | None, name: str) -> list[str] | None:
    """`"a, b"` or `"@file"` -> ["a", "b"]. Raises UsageError for an empty list and a file that cannot be read."""
    if text is None:
        return None
    parts = text.split(",")
    if text.startswith("@"):
        try:
            parts = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = str(error.strerror).lower() if isinstance(error, OSError) else "no UTF-8 text"
            raise UsageError(f"expected a file of {name}, one per line, got {text[1:]}: {why}") from error
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise UsageError(f"expected at least one of --{name}, got an empty list; separate them by commas")
    return found
