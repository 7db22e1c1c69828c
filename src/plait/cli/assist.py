"""The verbs `plait caption`, `answer`, `ground` and `classify`: thin layers over `Assistant`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.errors import UsageError

if TYPE_CHECKING:
    from plait.assistant import Result, Task

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="model directory or official checkpoint")]
MediaArgument = Annotated[Path, typer.Argument(metavar="MEDIA", help="image, video, folder or manifest")]
DeviceOption = Annotated[str | None, typer.Option(help="where the model runs, for example cuda or cpu")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16")]
AdapterOption = Annotated[Path | None, typer.Option(help="directory of a LoRA trained on the model")]
BatchOption = Annotated[int, typer.Option(help="items per forward pass", min=1)]
BeamsOption = Annotated[int | None, typer.Option(help="beams of the search", min=1)]
LengthOption = Annotated[int | None, typer.Option(help="most tokens to write", min=1)]
BadOption = Annotated[str, typer.Option("--on-bad", help="what cannot be read: fail, or skip and report")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object per item")]
TopOption = Annotated[int, typer.Option("-k", "--top", help="labels or answers shown", min=1)]


def caption(
    model: ModelArgument,
    media: MediaArgument,
    *,
    num_beams: BeamsOption = None,
    max_length: LengthOption = None,
    batch_size: BatchOption = 8,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    adapter: AdapterOption = None,
    on_bad: BadOption = "fail",
    as_json: JsonOption = False,
) -> None:
    """Describe images and videos."""
    options = _given(num_beams=num_beams, max_length=max_length)
    _run("caption", model, media, "", on_bad, as_json, (batch_size, device, dtype, adapter), options=options)


def answer(
    model: ModelArgument,
    media: MediaArgument,
    question: Annotated[str, typer.Argument(help="asked of every item; a manifest's own questions come first")] = "",
    *,
    answers: Annotated[
        str | None, typer.Option(help="choose among these, separated by commas, or @FILE with one per line")
    ] = None,
    top: TopOption = 5,
    num_beams: BeamsOption = None,
    max_length: LengthOption = None,
    batch_size: BatchOption = 8,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    adapter: AdapterOption = None,
    on_bad: BadOption = "fail",
    as_json: JsonOption = False,
) -> None:
    """Answer a question about images and videos, freely or from a list of answers."""
    candidates = _listed(answers, "answers")
    options = _given(num_beams=num_beams, max_length=max_length)
    task: Task = "answer" if candidates is None else "rank"
    places = (batch_size, device, dtype, adapter)
    _run(task, model, media, question, on_bad, as_json, places, candidates, options, top)


def ground(
    model: ModelArgument,
    media: MediaArgument,
    phrase: Annotated[str, typer.Argument(help="what to find; a manifest's own phrases come first")] = "",
    *,
    batch_size: BatchOption = 8,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    adapter: AdapterOption = None,
    on_bad: BadOption = "fail",
    as_json: JsonOption = False,
) -> None:
    """Find what a phrase names in images: x0 y0 x1 y1 in pixels."""
    _run("ground", model, media, phrase, on_bad, as_json, (batch_size, device, dtype, adapter))


def classify(
    model: ModelArgument,
    media: MediaArgument,
    *,
    labels: Annotated[
        str | None, typer.Option(help="labels separated by commas, or @FILE with one per line; default the model's own")
    ] = None,
    top: TopOption = 5,
    batch_size: BatchOption = 8,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    adapter: AdapterOption = None,
    on_bad: BadOption = "fail",
    as_json: JsonOption = False,
) -> None:
    """Name what images, videos or a manifest's texts show, with probabilities."""
    candidates = _listed(labels, "labels")
    _run("classify", model, media, "", on_bad, as_json, (batch_size, device, dtype, adapter), candidates, top=top)


def _run(
    task: Task,
    model: Path,
    media: Path,
    text: str,
    on_bad: str,
    as_json: bool,
    places: tuple[int, str | None, str | None, Path | None],
    candidates: list[str] | None = None,
    options: dict[str, int] | None = None,
    top: int = 5,
) -> None:
    if on_bad not in ("fail", "skip"):
        raise UsageError(f"expected --on-bad fail or skip, got {on_bad!r}")
    from plait.assistant import Assistant, progress, requests_under

    requests, others = requests_under(media, text)
    if on_bad == "fail" and (bad := next((r for r in requests if r.error), None)):
        raise ValueError(bad.error)
    if others:
        files = "1 file that is" if others == 1 else f"{others} files that are"
        typer.echo(f"passed over {files} neither image nor video", err=True)
    batch_size, device, dtype, adapter = places
    assistant = Assistant(model, device=device, dtype=dtype, batch_size=batch_size, adapter=adapter)
    if task in assistant.tasks:
        requests = assistant.fitting(task, requests)
    if on_bad == "fail" and (bad := next((r for r in requests if r.error), None)):
        raise ValueError(bad.error)
    skipped = 0
    with progress(len(requests), task, None) as bar:
        for result in assistant.stream(task, requests, candidates=candidates, options=options):
            if result.error is not None and on_bad == "fail":
                raise ValueError(result.error)
            skipped += result.error is not None
            _print(task, result, top, as_json)
            bar.update()
    if skipped == len(requests):
        raise ValueError(f"expected something to {task}, got nothing that can be read among {skipped} items")


def _print(task: Task, result: Result, top: int, as_json: bool) -> None:
    name, value, error = result
    if as_json:
        print(json.dumps({"name": name, "error": error} if error else {"name": name} | _as_json(task, value, top)))
    elif error:
        typer.echo(f"skipped: {name}: {error}", err=True)
    else:
        print(f"{name}\t{_as_line(task, value, top)}")


def _as_json(task: Task, value: Any, top: int) -> dict[str, Any]:
    if task in ("rank", "classify"):
        key = "answers" if task == "rank" else "labels"
        return {key: [{"text": text, "probability": round(share, 6)} for text, share in value[:top]]}
    return {"box": [round(x, 2) for x in value]} if task == "ground" else {task: value}


def _as_line(task: Task, value: Any, top: int) -> str:
    if task in ("rank", "classify"):
        return ", ".join(f"{text} {share:.3f}" for text, share in value[:top])
    return " ".join(f"{x:.1f}" for x in value) if task == "ground" else value


def _given(**options: int | None) -> dict[str, int]:
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
            raise UsageError(f"expected a file of {name}, one per line, got {text[1:]}: {error}") from error
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise UsageError(f"expected at least one of --{name}, got an empty list; separate them by commas")
    return found
