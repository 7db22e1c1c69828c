"""Sub-verbs of `plait index` that look at an index rather than fill it: similar, duplicates, watch; and all others."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from plait.cli.options import DeviceOption, LimitOption, raise_limits
from plait.cli.search import IndexPath, JsonOption, ModelOption, app, print_problems, say_windowed
from plait.errors import UsageError

__all__ = ["app"]


@app.command()
def similar(
    index: IndexPath,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a picture, video or sound; it may be a row itself")],
    k: Annotated[int, typer.Option("-k", "--k", help="number of results", min=1)] = 10,
    within: Annotated[
        float | None, typer.Option(help="cosine distance at most, for example 0.2; any without it")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="only results of this kind; all without it")] = None,
    as_json: JsonOption = False,
    limits: LimitOption = None,
) -> None:
    """What is most like a file, the file itself left out."""
    raise_limits(limits)
    from plait.search.index import Index
    from plait.search.likeness import similar as find_similar
    from plait.search.page import table, to_json

    hits = find_similar(Index.open(index), file, k, within=within, modality=modality).hits
    print(json.dumps([to_json(hit) for hit in hits], indent=2) if as_json else table(hits))


@app.command()
def duplicates(
    index: IndexPath,
    within: Annotated[float, typer.Option(help="cosine distance of vectors of pairs that are compared closely")] = 0.1,
    modality: Annotated[
        str | None, typer.Option(help="only rows of this kind: image, video, audio; all without it")
    ] = None,
    as_json: JsonOption = False,
    limits: LimitOption = None,
) -> None:
    """List copies (scaled, compressed, cut into another format) and series of images. Nothing is ever deleted.

    Two clips are copies where several frames spread over them and their length agree.
    """
    raise_limits(limits)
    from plait.search.index import Index
    from plait.search.likeness import duplicates as find_duplicates
    from plait.search.likeness import size_of

    groups = find_duplicates(Index.open(index), within, modality=modality)
    if as_json:
        rows = [{"kind": g.kind, "similarity": g.similarity, "paths": g.paths,
                 "bytes": [size_of(path) for path in g.paths]} for g in groups]  # fmt: skip
        print(json.dumps(rows, indent=2))
        return
    for group in groups:
        print(f"{group.kind}, {len(group.paths)} files, cosine {group.similarity:.3f} and more:")
        for path in group.paths:
            print(f"  {size_of(path) or 0:>12,} bytes  {path}")
    counts = [sum(group.kind == kind for group in groups) for kind in ("copy", "series")]
    said = f"{counts[0]} group{'' if counts[0] == 1 else 's'} of copies, {counts[1]} series"
    print(f"{index}: {said}; nothing was deleted")


@app.command()
def watch(
    index: IndexPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="its files, and all below")],
    *,
    poll: Annotated[float, typer.Option(help="seconds between two looks", min=0.1)] = 5.0,
    still: Annotated[float, typer.Option(help="seconds for which a file has to stay unchanged", min=0.0)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="one look, then end")] = False,
    model: ModelOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    limits: LimitOption = None,
) -> None:
    """Keep an index up to date with a folder: new, changed, moved and deleted files, until Ctrl-C.

    With --model the index is made when it is not there. A folder that is gone (a disk not mounted) deletes nothing.
    """
    raise_limits(limits)
    from plait.embedder import Embedder
    from plait.search.index import Index
    from plait.search.watch import Change, Watch

    def tell(change: Change) -> None:
        report = change.report
        if report.added or report.replaced:
            say_windowed(opened.embedder)
        if as_json:
            counts = {"added": report.added, "replaced": report.replaced, "deleted": change.deleted}
            left_out = [problem._asdict() for problem in report.skipped]
            print(json.dumps(counts | {"waiting": change.waiting, "skipped": left_out}), flush=True)
            return
        print_problems("skipped", report.skipped)
        counted = f"{report.added} added, {report.replaced} replaced or moved, {len(change.deleted)} deleted"
        print(f"{time.strftime('%H:%M:%S')} {index}: {counted}, {len(opened)} in all", flush=True)

    if model is None and not Index.exists(index):
        raise UsageError(f"expected an index, got {index}: none there; give --model to make it")
    embedder = Embedder(model, device=device) if model else None
    is_new = embedder is not None and not Index.exists(index)
    opened = Index.create(index, embedder) if is_new and embedder else Index.open(index, embedder)
    following = Watch(opened, folder, still=still)
    if once:
        tell(following.look())
        return
    print(f"watching {folder}; Ctrl-C ends it", flush=True)
    while True:
        try:
            change = following.look()
            if not change.is_empty:
                tell(change)
        except ValueError as error:
            # another process is writing, or a manifest is half written: the next look sees
            typer.echo(f"later: {error}", err=True)
        time.sleep(poll)
