"""The verbs `plait embed`, `plait index ...` and `plait search`: thin layers over `Embedder` and `Index`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from plait.cli.options import (
    MODEL_HELP,
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
from plait.modalities import registered
from plait.terminal import printable
from plait.types import MODALITIES

if TYPE_CHECKING:
    from plait.embedder import Embedder
    from plait.search.finding import Found
    from plait.search.index import Index
    from plait.search.ledger import AddReport
    from plait.search.sources import Problem

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Build and change an index on disk.")

IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="directory of the index, for example photos.lance")]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        help="model directory: Plait, CLIP / SigLIP / CLAP-like or sentence-transformers; that of the index without it"
    ),
]
WhereOption = Annotated[
    str | None,
    typer.Option(help="SQL filter, for example \"label = 'dog' AND meta.style = 'noto'\"; no filter without it"),
]
JsonOption = Annotated[bool, json_option()]

FEW = 3
LINES = 20
"""Problems printed: so many lines at most, and one for more than a few files with the same reason."""


def embed(
    model: ModelArgument,
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[PATHS]...", help="files, folders, manifests")] = None,
    *,
    out: Annotated[Path, typer.Option(help="vectors.npy (rows beside it in .jsonl), .parquet or .lance")] = Path(
        "vectors.parquet"
    ),
    text: Annotated[list[str] | None, typer.Option(help="a text to embed; may be given several times")] = None,
    batch_size: BatchOption = 32,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    adapter: AdapterOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace OUT")] = False,
    on_bad: BadOption = "skip",
    as_json: JsonOption = False,
    limits: LimitOption = None,
) -> None:
    """Turn files and texts into vectors. An interrupted run continues from OUT.partial when it is started again."""
    raise_limits(limits)
    from plait.embedder import Embedder
    from plait.search.sources import check_there
    from plait.search.vectors import check_output, embed_to_file

    if not paths and not text:
        raise UsageError("expected files, folders, manifests or --text to embed, got none")
    is_skipping = check_on_bad(on_bad)
    check_output(out, overwrite=overwrite)
    check_there(paths or (), may_be_remote=True)
    embedder = Embedder(model, device=device, dtype=dtype, batch_size=batch_size, adapter=adapter)
    report = embed_to_file(embedder, paths or [], out, texts=text or (), overwrite=overwrite, strict=not is_skipping)
    _print_report(report, out, "{added} embedded", as_json, paths or [], out=str(out), dim=embedder.dim)
    say_windowed(embedder)


@app.command()
def create(
    index: IndexPath,
    model: Annotated[Path, typer.Option(help=MODEL_HELP)],
    device: DeviceOption = None,
    adapter: AdapterOption = None,
) -> None:
    """Make a new, empty index for a model."""
    from plait.embedder import Embedder
    from plait.search.index import Index, check_new

    check_new(index)
    made = Index.create(index, Embedder(model, device=device, adapter=adapter))
    print(f"{index}: an empty index of {made.description['dim']} dimensions")


@app.command()
def add(
    index: IndexPath,
    paths: Annotated[list[Path], typer.Argument(metavar="PATHS...", help="files, folders, manifests")],
    *,
    model: ModelOption = None,
    device: DeviceOption = None,
    adapter: AdapterOption = None,
    keep_duplicates: Annotated[bool, typer.Option("--keep-duplicates", help="add equal content again")] = False,
    engine: Annotated[
        str | None,
        typer.Option(help="ray, or torchrun where it is started by that: several processes embed; one without it"),
    ] = None,
    workers: Annotated[int, typer.Option(help="processes of --engine ray", min=1)] = 2,
    every: Annotated[
        str | None, typer.Option(help="index moments of videos too, each so long, for example 5s; none without it")
    ] = None,
    as_json: JsonOption = False,
    limits: LimitOption = None,
) -> None:
    """Add files, folders or manifests. With --model the index is created when it is not there.

    A video counts as the mean of the image vectors of its frames when the model has no video of its own.
    """
    raise_limits(limits)
    from plait.embedder import Embedder
    from plait.search.bulk import add_with
    from plait.search.index import Index
    from plait.search.moments import add_moments, seconds_of
    from plait.search.sources import check_there

    check_there(paths, may_be_remote=engine is None)
    length = None if every is None else seconds_of(every)  # before a model is read
    if adapter is not None and model is None:
        raise UsageError("expected --model beside --adapter, got none; pass the model it was trained on")
    if model is None and not Index.exists(index):
        raise UsageError(
            f"expected an index, got {index}: none there; give --model nano, or a model you have, to make it"
        )
    if model and not Index.exists(index):
        opened = Index.create(index, Embedder(model, device=device, adapter=adapter))
    else:
        opened = opened_with(index, model, device, adapter)
    if engine is None:
        report = opened.add(paths, deduplicate=not keep_duplicates)
    else:
        report = add_with(
            index, paths, cast("Any", engine), workers=workers, deduplicate=not keep_duplicates, model=model
        )
        if int(os.environ.get("RANK", "0")) and engine == "torchrun":
            return  # the first rank commits and reports
    moments = None if length is None else add_moments(opened, length)
    line = f"{{added}} added, {{replaced}} replaced, {{unchanged}} there already, {len(opened)} in all"
    more = {}
    if moments is not None:
        report.skipped += moments.skipped
        more = {"moments": moments.moments, "clips": moments.clips, "clips_unchanged": moments.unchanged}
        line += f"; {moments.moments} moments of {moments.clips} clips, {moments.unchanged} clips had theirs"
    _print_report(report, index, line, as_json, paths, rows=len(opened), **more)
    say_windowed(opened.embedder)


@app.command()
def delete(
    index: IndexPath,
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[PATHS]...", help="files or folders")] = None,
    where: WhereOption = None,
) -> None:
    """Delete rows by path, folder or filter (files themselves are not touched)."""
    from plait.search.index import Index

    if not paths and not where:
        raise UsageError("expected paths or --where, got neither; --where true deletes every row")
    opened = Index.open(index)
    count = opened.delete(where, paths=paths)
    named = ", ".join([*map(str, paths or ()), *([f"--where {where}"] if where else [])])
    none = "" if count else f"; no row is of {named}: plait index list shows what there is"
    print(f"{index}: {count} deleted, {len(opened)} left{none}")


@app.command()
def check(
    index: IndexPath,
    contents: Annotated[bool, typer.Option("--contents", help="read every file and compare its checksum")] = False,
    as_json: JsonOption = False,
) -> None:
    """Are the files of all rows still there (and the same)? Exit code 1 where some are not."""
    from plait.search.index import Index
    from plait.search.sources import Problem
    from plait.search.upkeep import check as check_files

    state = check_files(Index.open(index), contents=contents)
    if as_json:
        print(json.dumps({"whole": state.whole, "gone": state.gone, "changed": state.changed}, indent=2))
    else:
        print_problems("gone", [Problem(path, "the file is gone") for path in state.gone])
        print_problems("changed", [Problem(path, "the file holds something else now") for path in state.changed])
        print(f"{index}: {state.whole} rows are whole, {len(state.gone)} gone, {len(state.changed)} changed")
    if state.gone or state.changed:
        raise ValueError(
            f"expected the files of all rows of {index}, got {len(state.gone)} gone and {len(state.changed)} changed; "
            "plait index move tells where they are, add embeds changed ones anew, prune forgets what is gone"
        )


@app.command()
def prune(index: IndexPath, as_json: JsonOption = False) -> None:
    """Delete the rows of files that are gone; plait index check lists them before."""
    from plait.search.index import Index
    from plait.search.sources import Problem
    from plait.search.thumbnails import sweep
    from plait.search.upkeep import prune as prune_files

    opened = Index.open(index)
    gone = prune_files(opened)
    sweep(opened)
    if as_json:
        print(json.dumps({"deleted": gone, "rows": len(opened)}, indent=2))
        return
    print_problems("deleted", [Problem(path, "the file is gone") for path in gone])
    print(f"{index}: {len(gone)} deleted, {len(opened)} left")


@app.command()
def move(
    index: IndexPath,
    old: Annotated[Path, typer.Argument(metavar="OLD", help="where a file, or all below a folder, was")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="where it is now")],
) -> None:
    """Let rows follow a file or folder that was moved or renamed; nothing is embedded anew."""
    from plait.search.index import Index
    from plait.search.upkeep import move as move_rows

    print(f"{index}: {move_rows(Index.open(index), old, new)} rows moved to {new}")


@app.command()
def update(
    index: IndexPath,
    where: Annotated[str, typer.Option(help="SQL filter: which rows")],
    caption: Annotated[str | None, typer.Option(help="new caption; kept without it")] = None,
    label: Annotated[str | None, typer.Option(help="new label; kept without it")] = None,
) -> None:
    """Write caption or label of the rows under a filter. For files that changed, run add again."""
    from plait.search.index import Index

    print(f"{index}: {Index.open(index).update(where, caption=caption, label=label)} updated")


@app.command("list")
def list_rows(
    index: IndexPath,
    where: WhereOption = None,
    limit: Annotated[int | None, typer.Option(help="at most this many rows; all without it")] = None,
    as_json: JsonOption = False,
) -> None:
    """List rows: kind, caption and path, or JSON lines."""
    from plait.search.index import Index

    for row in Index.open(index).list(where, limit=limit):
        print(
            json.dumps(row) if as_json else f"{row['modality']:6} {row['caption'] or '-':30} {row['path'] or row['id']}"
        )


@app.command()
def dedup(index: IndexPath, as_json: JsonOption = False) -> None:
    """Delete rows whose content (checksum) another row of the same kind has; the first one stays."""
    from plait.search.index import Index

    opened = Index.open(index)
    found = opened.deduplicate()
    if as_json:
        print(json.dumps({"deleted": [problem._asdict() for problem in found], "rows": len(opened)}, indent=2))
        return
    print_problems("duplicate", found)
    print(f"{index}: {len(found)} deleted, {len(opened)} left")


@app.command()
def stats(index: IndexPath, as_json: JsonOption = False) -> None:
    """Rows, size, model and how queries are answered."""
    from plait.search.index import Index
    from plait.search.moments import count_moments

    opened = Index.open(index)
    found = opened.stats() | {"moments": count_moments(opened)}
    print(json.dumps(found, indent=2) if as_json else "\n".join(f"{key:18} {value}" for key, value in found.items()))


@app.command()
def optimize(index: IndexPath) -> None:
    """Merge small files and, when the index is large, build or extend the approximate search."""
    from plait.search.index import Index

    Index.open(index).optimize()


WordsOption = Annotated[
    str | None,
    typer.Option(
        help="words of captions, labels, file names, dates, places; joined with the rest, or alone; none without it"
    ),
]
MinScoreOption = Annotated[
    str | None,
    typer.Option(help="lowest score, or auto: what absent things score counts as nothing found; none without it"),
]
RerankOption = Annotated[
    Path | None,
    typer.Option(help="model that looks at the best hits again: one that matches or answers; none without it"),
]
ModalityOption = Annotated[
    str | None,
    typer.Option(help="only results of this kind: text, image, video, audio, or one that was added; all without it"),
]
HtmlOption = Annotated[
    Path | None, typer.Option(metavar="OUT", help="also write a page with pictures and players; none without it")
]


def search(
    index: IndexPath,
    *,
    text: Annotated[list[str] | None, typer.Option(help="a text; may be given several times")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="an image file")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="an audio file")] = None,
    video: Annotated[
        list[Path] | None, typer.Option(help="a video file; its frames when the model has no video")
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME=FILE", help="a file of a modality that --plugin added"),
    ] = None,
    without: Annotated[list[str] | None, typer.Option("--not", help="a text to move away from")] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="number of results", min=1)] = 10,
    weights: Annotated[
        str | None, typer.Option(help="weights of the parts, for example text=1,audio=0.5; equal without it")
    ] = None,
    where: WhereOption = None,
    modality: ModalityOption = None,
    words: WordsOption = None,
    min_score: MinScoreOption = None,
    false_alarms: Annotated[float, typer.Option(help="share of absent things that auto may find, from 0 to 1")] = 0.1,
    rerank: RerankOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    adapter: AdapterOption = None,
    as_json: JsonOption = False,
    html: HtmlOption = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help='a file of queries, a line each: a text, or JSON such as {"image": "a.jpg"}; one query without it'
        ),
    ] = None,
    limits: LimitOption = None,
) -> None:
    """Find what is nearest to a text, image, audio, video or any mixture of them."""
    raise_limits(limits)
    from plait.places import check_replaceable
    from plait.report.page import SIGN
    from plait.search.finding import find
    from plait.search.page import table, to_json
    from plait.search.sources import check_there

    media: dict[str, Any] = {"text": text, "image": image, "video": video, "audio": audio}
    query = _query({name: list(values) for name, values in media.items() if values}, others, without, weights)
    if queries is not None:
        beside = {**media, "with": others, "not": without, "weights": weights, "words": words, "html": html}
        beside |= {"min-score": min_score, "rerank": rerank}
        return _search_all(beside, opened_with(index, model, device, adapter), queries, k, where, modality, as_json)
    if not query and not words:
        raise UsageError("expected a query, got none; give --text, --image, --audio, --video, --with or --words")
    if not query and (rerank or min_score):
        raise UsageError("expected a query beside --words for --rerank and --min-score, got none; add --text")
    lowest = _lowest(min_score)
    if html:
        check_replaceable(html, SIGN)  # before the model is read
    check_there(path for paths in (image, video, audio) for path in paths or ())
    opened = opened_with(index, model, device, adapter)
    second = None
    if rerank:
        from plait.assistant import Assistant

        second = Assistant(rerank, device=device)
    found = find(
        opened, query or None, k, words=words, where=where, modality=modality, min_score=lowest,
        false_alarms=false_alarms, second=second,
    )  # fmt: skip
    hits = found.hits
    say_windowed(opened.embedder if query else None)
    print(json.dumps([to_json(hit) for hit in hits], indent=2) if as_json else table(hits))
    if found.floors is not None:
        typer.echo(_said(found), err=True)
    if html:
        _write_page(html, opened, query or None, words, hits)


def _write_page(html: Path, opened: Index, query: Any, words: str | None, hits: Any) -> None:
    """A page of the hits, with what was asked and of which model."""
    from plait.models import name_of_shipped
    from plait.search.page import write_contact_sheet

    source = opened.embedder.source if query else None
    name = "words" if not query else "a model in memory" if source is None else name_of_shipped(source) or source
    note = f"{len(hits)} of {len(opened)} items in {opened.path}, by {name}"
    shown = query if query else words
    write_contact_sheet(html, [(shown, hits)], note=note, index=opened)


def _search_all(
    beside: dict[str, Any],
    index: Index,
    queries: Path,
    k: int,
    where: str | None,
    modality: str | None,
    as_json: bool,
) -> None:
    """Print the hits of every query of a file: a table each, or a line of JSON each.

    beside: options that go with one query alone; UsageError where one is given.
    """
    from plait.data.manifest import decoded
    from plait.reading import check_regular
    from plait.search.page import table, to_json

    if idle := [f"--{name}" for name, given in beside.items() if given]:
        raise UsageError(f"expected --queries alone, got {', '.join(idle)} beside it; leave one out")
    check_regular(queries)
    lines = [line.strip() for line in decoded(queries.read_bytes(), queries).splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"expected a query a line in {queries}, got none; write some")
    items = [_item(line, f"{queries}, query {number}") for number, line in enumerate(lines, 1)]
    for line, hits in zip(lines, index.search_many(items, k, where=where, modality=modality), strict=True):
        found = {"query": line, "hits": [to_json(hit) for hit in hits]}
        print(json.dumps(found) if as_json else f"{line}\n{table(hits)}")
    say_windowed(index.embedder)


def _item(line: str, place: str) -> Any:
    """A line of a file of queries as an item: a mapping in JSON, else a text."""
    if not line.startswith("{"):
        return line
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"expected a text or JSON in {place}, got {line[:60]}: {error}; correct it") from error


def opened_with(index: Path, model: Path | None, device: str | None, adapter: Path | None) -> Index:
    """The index, with another model, device or LoRA than it would take by itself where one is given."""
    from plait.embedder import Embedder
    from plait.search.index import Index

    opened = Index.open(index)
    if not (model or device or adapter):
        return opened
    # The index remembers the LoRA of its own model; another model comes without.
    adapter = adapter or (None if model else opened.description.get("adapter"))
    return Index.open(index, Embedder(model or opened.model_path, device=device, adapter=adapter))


def _query(
    query: dict[str, Any], others: Sequence[str] | None, without: Sequence[str] | None, weights: str | None
) -> dict[str, Any]:
    """Media, what is moved away from and weights as one item. UsageError where there are no media for the rest."""
    for one in [*query.get("text", ()), *(without or ())]:
        if not one.strip():
            raise UsageError("expected words to search with, got an empty text; leave it out")
    query = query | parse_others(others or ())
    if not query and (without or weights):
        raise UsageError("expected a query for --not and --weights, got none; give --text, --image, --audio or --video")
    if without:
        query["not"] = [{"text": one} for one in without]
    if weights:
        query["weights"] = parse_weights(weights)
        asked = ", ".join(name for name in query if name != "weights")
        if idle := [name for name in query["weights"] if name not in query]:
            raise UsageError(
                f"expected weights of what is asked with ({asked}), got {', '.join(idle)}; leave "
                f"{'it' if len(idle) == 1 else 'them'} out, or add {' and '.join(idle)}"
            )
    return query


def _lowest(text: str | None) -> float | Literal["auto"] | None:
    """The value of --min-score. Raises UsageError for what is neither a number nor auto."""
    if text is None or text == "auto":
        return "auto" if text else None
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"expected --min-score auto or a number, got {text!r}; cosines are from -1 to 1") from error


def _said(found: Found) -> str:
    """What `--min-score auto` did, in words."""
    assert found.floors is not None
    lowest = ", ".join(f"{score:.3f} for {kind}" for kind, score in found.floors.by_kind.items())
    nearest = "" if found.nearest is None else f"; the nearest row scores {found.nearest:.3f}"
    share = f"{found.floors.false_alarms:.0%} of {found.floors.queries} searches for other things find something"
    return f"lowest score {lowest or 'of no row'}: {share}{nearest}"


def parse_others(pairs: Sequence[str]) -> dict[str, list[Path]]:
    """`["depth=a.npy"]` -> {"depth": [Path("a.npy")]}. Raises UsageError for another form, and an unknown name."""
    found: dict[str, list[Path]] = {}
    for pair in pairs:
        name, is_pair, file = pair.partition("=")
        if not is_pair or not file:
            raise UsageError(f"expected --with NAME=FILE such as depth=room.npy, got {pair!r}")
        if name in MODALITIES:
            raise UsageError(f"expected a modality that was added, got {name}; write --{name} {file}")
        registered(name)
        found.setdefault(name, []).append(Path(file))
    return found


def parse_weights(text: str) -> dict[str, float]:
    """`"text=1,audio=0.5"` -> {"text": 1.0, "audio": 0.5}. Raises UsageError for anything else."""
    from plait.embedder.parts import check_weights

    weights: dict[str, float] = {}
    for pair in text.split(","):
        name, _, number = pair.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError as error:
            raise UsageError(f"expected weights such as text=1,audio=0.5, got {pair!r}; correct --weights") from error
    try:
        return check_weights(weights)
    except ValueError as error:
        raise UsageError(f"{error}; correct --weights") from error


def _print_report(report: AddReport, target: Path, line: str, as_json: bool, paths: list[Path], **more: Any) -> None:
    """Counts and what was left out, for people or machines. ValueError (one line) where nothing was taken."""
    counts = {"added": report.added, "replaced": report.replaced, "unchanged": report.unchanged}
    if as_json:
        left_out = {"duplicates": report.duplicates, "skipped": report.skipped}
        listed = {name: [problem._asdict() for problem in problems] for name, problems in left_out.items()}
        print(json.dumps(counts | listed | more, indent=2))
    report.refuse_nothing(paths)
    if as_json:
        return
    for name, problems in (("duplicate", report.duplicates), ("skipped", report.skipped)):
        print_problems(name, problems)
    print(f"{target}: {line.format(**counts)}")


def say_windowed(embedder: Embedder | None) -> None:
    """Say which clips were longer than the model takes, on standard error; None embedded nothing."""
    told = (None if embedder is None else embedder.windowed) or {}
    for name, count in list(told.items())[:LINES]:
        typer.echo(f"windowed: {printable(name)}: longer than the model takes, the mean of {count} windows", err=True)
    told.clear()


def print_problems(name: str, problems: list[Problem]) -> None:
    """A line each; of more than a few with the same reason one line. At most twenty lines."""
    groups: dict[str, list[str]] = {}
    for problem in problems:
        groups.setdefault(problem.reason, []).append(problem.shown)
    alone = [(f"{path}: {reason}", 1) for reason, paths in groups.items() if len(paths) <= FEW for path in paths]
    together = [
        (f"{len(paths)} files: {reason} ({', '.join(paths[:FEW])}, ...)", len(paths))
        for reason, paths in groups.items()
        if len(paths) > FEW
    ]
    lines = [*together, *alone]
    for line, _ in lines[:LINES]:
        typer.echo(f"{name}: {line}", err=True)
    if rest := sum(count for _, count in lines[LINES:]):
        typer.echo(f"{name}: and {rest} more; --json lists all", err=True)
