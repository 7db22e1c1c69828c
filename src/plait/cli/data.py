"""The verbs `plait data check | from-folder | from-benchmark | pack`, and those of packages (`plait data build`)."""

from __future__ import annotations

import json
from collections import Counter
from importlib.metadata import entry_points
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plait.cli.options import LimitOption, check_on_bad, json_option, raise_limits
from plait.errors import UsageError

if TYPE_CHECKING:
    from plait.data.check import Bounds, CheckReport

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Build, check and import data sets.")

LISTED = 20
"""Lines about problems that are printed at most."""


@app.command()
def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help="a data set's directory or manifest, or mini")] = "mini",
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="model directory: also say what will not fit it")
    ] = None,
    *,
    as_json: Annotated[bool, json_option()] = False,
    limits: LimitOption = None,
) -> None:
    """Read every row, decode every file, count, and look for test files that are also training files.

    With MODEL: which audio and texts are longer than it takes, and which media it does not take.
    """
    raise_limits(limits)
    from plait.data.check import check as check_data_set
    from plait.data.mini import cached_mini

    bounds = None if model is None else _bounds(model)
    path = cached_mini() if data == "mini" else Path(data)
    report = check_data_set(path, progress=not as_json, bounds=bounds)
    if as_json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        print(f"{path}: {report.rows} rows, {report.labels} labels; {counts_in_words(report.counts)}")
        if report.bytes:
            print(_media(report))
        print("licences: " + ", ".join(f"{name} {count}" for name, count in sorted(report.licenses.items())))
        for line in [*report.misfits, *report.problems[:LISTED]]:
            print(line)
    if report.problems:
        raise ValueError(
            f"expected a whole data set, got {len(report.bad_rows)} bad rows, {len(report.missing)} missing and "
            f"{len(report.damaged)} damaged files, {len(report.unread)} columns that are not read, "
            f"{len(report.leaks)} leaks from training; correct {path}"
        )
    if not as_json:
        print("every file decodes; no file of another split is also a training file")


def _bounds(model: Path) -> Bounds:
    """What the processor of a model says of it; nothing of its weights is read."""
    from plait.data.check import Bounds
    from plait.models import locate
    from plait.models.auto import load_processor
    from plait.models.catalog import model_info

    place = locate(model)
    processor = load_processor(place)
    most: dict[str, float] = getattr(processor, "longest", {})
    tokens = most.get("text")
    known = {"text": "text", "image": "images", "video": "videos", "audio": "audio"}
    asked = signature(processor.__call__).parameters
    takes = model_info(place).modalities or [name for name, argument in known.items() if argument in asked]
    return Bounds(
        str(model), takes, most.get("audio"), None if tokens is None else int(tokens),
        lambda text: len(processor.tokenizer(text, verbose=False)["input_ids"]),
    )  # fmt: skip


@app.command("from-folder")
def from_folder(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="media in named sub-folders or with captions.csv; COCO, LLaVA .json; Owl .jsonl"
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="directory for the manifest")],
    *,
    test_share: Annotated[float, typer.Option(help="share held out for testing, from 0 to 1")] = 0.2,
    media: Annotated[Path | None, typer.Option(help="folder of the files that a .json names; default its own")] = None,
    encoding: Annotated[str | None, typer.Option(help="of captions files, such as cp1252; UTF-8 without it")] = None,
    limits: LimitOption = None,
) -> None:
    """Make a data set of a folder of your own, or of annotations. Files stay where they are."""
    raise_limits(limits)
    from plait.data.annotations import scan_annotations
    from plait.data.check import check as check_data_set
    from plait.data.folder import scan, write_scan

    is_json = folder.is_file() and folder.suffix in (".json", ".jsonl")
    if media is not None and not is_json:
        raise UsageError(f"expected --media beside a .json of annotations, got {folder}")
    if encoding is not None and is_json:
        raise UsageError(f"expected --encoding beside a folder, got {folder}; JSON is UTF-8")
    found = scan_annotations(folder, media, test_share) if is_json else scan(folder, test_share, True, encoding)
    done = write_scan(found, out)
    report = check_data_set(done)
    print(f"{done}: {counts_in_words(report.counts)}; {len(report.leaks)} leaks by hash")
    for line in found.left_out[:LISTED]:
        print(f"left out {line}")
    if len(found.left_out) > LISTED:
        print(f"left out {len(found.left_out) - LISTED} more files")


@app.command("from-benchmark")
def from_benchmark(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a task of plait eval --list")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="its official annotation files, with the media below")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="directory for the manifest")],
    *,
    train: Annotated[str, typer.Option(help="split that trains, as the benchmark calls it, or TASK:SPLIT")] = "train",
    test: Annotated[str | None, typer.Option(help="split or fold held out; the published one without it")] = None,
    media: Annotated[
        str | None, typer.Option(help="how media files are called, such as clips/{stem}.flac; as listed without it")
    ] = None,
    limits: LimitOption = None,
) -> None:
    """Make a data set of a public benchmark, as plait train finetune reads it. Files stay where they are."""
    raise_limits(limits)
    from plait.data.folder import Scan, write_scan
    from plait.evaluation.manifests import Splits, rows_of
    from plait.evaluation.tasks import task_named

    rows, notes = rows_of(task_named(name), folder, out, Splits(train, test), media)
    done = write_scan(Scan(rows), out)
    counts = Counter(row.split for row in rows)
    print(f"{done}: train {counts['train']}, test {counts['test']}")
    for note in notes:
        print(note)


@app.command()
def pack(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="manifest, parquet, saved data set or other shards")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="directory to write; must not exist")],
    *,
    shard_mb: Annotated[int, typer.Option(help="size of a shard, in MB", min=1)] = 256,
    on_bad: Annotated[str, typer.Option(help="rows that cannot be read: raise, or skip and list")] = "raise",
    outside: Annotated[bool, typer.Option("--outside", help="also pack files from outside the data set")] = False,
    limits: LimitOption = None,
) -> None:
    """Put a data set with its media into a few tar files and an index, from which any row is read with one seek."""
    raise_limits(limits)
    from plait.data.sources import pack_data

    rows, left_out = pack_data(data, out, shard_mb << 20, skip=check_on_bad(on_bad, error="raise"), outside=outside)
    print(f"{out}: {rows} rows in {len(list(out.glob('*.tar')))} shards")
    if left_out:
        print(f"left out {len(left_out)}:")
    for line in left_out[:LISTED]:
        print(f"  {line}")


def _media(report: CheckReport) -> str:
    """One line about media: seconds where they have some, smallest to largest picture, megabytes."""
    parts = []
    for name, size in report.bytes.items():
        words = [f"{report.seconds[name]:.1f} s"] if name in report.seconds else []
        if name in report.pixels:
            low_x, low_y, high_x, high_y = report.pixels[name]
            words.append(f"{low_x} x {low_y} to {high_x} x {high_y} pixels")
        parts.append(f"{name} {', '.join([*words, f'{size / 1e6:.1f} MB'])}")
    return "media: " + "; ".join(parts)


def counts_in_words(counts: dict[str, dict[str, int]]) -> str:
    """`train 3 image, 2 audio; test 1 image` of {split: {kind: count}}."""
    parts = (f"{split} " + ", ".join(f"{n} {name}" for name, n in c.items()) for split, c in counts.items())
    return "; ".join(parts)


for _entry in entry_points(group="plait.verbs"):  # sub-verbs of installed packages, such as `data.build`
    if _entry.name.startswith("data."):
        app.command(_entry.name.removeprefix("data."))(_entry.load().load())
