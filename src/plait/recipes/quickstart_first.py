"""The first hit: something real to look at within seconds, before anything trains, with the model that ships.

shipped data | FOLDER -> first/manifest.jsonl -> plait index add ... --model nano -> plait search
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from plait.data.manifest import write_manifest
from plait.errors import UsageError
from plait.media import kind_of
from plait.places import claim
from plait.recipes.quickstart_steps import Settings, Step
from plait.types import Sample

MODEL = "nano"
FILES = 60
"""Files of a folder that are looked at: some seconds, whatever their size."""
LOOKED_AT = 5000
"""Files of a folder among which those are chosen."""
SOUND = "bird"
WORD = "trumpet"
"""What is asked of the shipped data: two of the things that the shipped model knows well."""


def first_steps(settings: Settings) -> list[Step]:
    """Index some pictures with the shipped model and search them. UsageError where FOLDER holds no media."""
    samples, queries = _of_mini(settings.data) if settings.folder is None else _of_folder(settings.folder)
    place = settings.out / "first"
    claim(settings.out)
    claim(place)
    write_manifest(place / "manifest.jsonl", samples)
    index = str(place / "index.lance")
    steps = [
        Step(
            "first-index",
            "first",
            f"{len(samples)} files, and the model that ships with Plait",
            ("index", "add", index, str(place / "manifest.jsonl"), "--model", MODEL),
            Path(index),
            Path(index),
            needs=("data",) if settings.folder is None else (),
            is_whole_or_nothing=True,
        )
    ]
    for number, (title, *query) in enumerate(queries, 1):
        argv = ("search", index, *query, "-k", "5", "--html", str(settings.out / f"first-{number}.html"))
        steps.append(Step(f"first-search-{number}", "first", title, argv, is_always=True))
    return steps


def _of_mini(data: Path) -> tuple[list[Sample], list[tuple[str, ...]]]:
    """The held-out drawings, and two queries: a word and a held-out note."""
    from plait.evaluation.emergent import HeldOut, concept

    held_out = HeldOut.read(data.resolve())
    notes = [str(note.audio) for note in held_out.notes if concept(note) == SOUND]
    return held_out.drawings, [
        (f"which drawings show a {WORD}?", "--text", WORD),
        (f"which drawings sound like this? (a {SOUND})", "--audio", notes[0]),
    ]


def _of_folder(folder: Path) -> tuple[list[Sample], list[tuple[str, ...]]]:
    """Pictures and sounds of a folder, evenly chosen, and what looks (or sounds) like the first of them."""
    if not folder.is_dir():
        raise UsageError(f"expected a folder, got {folder}: {'a file' if folder.exists() else 'no such folder'}")
    found = [(path, kind) for path in _files(folder) if (kind := kind_of(path)) in ("image", "audio")]
    if not found:
        raise UsageError(f"expected pictures or sounds in {folder}, got none; pass a folder that holds some")
    count = min(FILES, len(found))
    chosen = [found[i * len(found) // count] for i in range(count)]
    samples = [Sample.from_row({"id": str(path), kind: str(path)}) for path, kind in chosen]
    path, kind = min(chosen, key=lambda pair: pair[1] != "image")
    verb = "look" if kind == "image" else "sound"
    return samples, [(f"which of your files {verb} like {path.name}?", f"--{kind}", str(path))]


def _files(folder: Path) -> Iterator[Path]:
    """The first files below `folder`, hidden ones and indices left out."""

    def walk() -> Iterator[Path]:
        for place, names, files in os.walk(folder):
            names[:] = sorted(name for name in names if not name.startswith(".") and not name.endswith(".lance"))
            yield from (Path(place, name).resolve() for name in sorted(files) if not name.startswith("."))

    return itertools.islice(walk(), LOOKED_AT)


def caveat(is_shipped_data: bool) -> str:
    """What the first hits do and do not say."""
    if is_shipped_data:
        return (
            "These drawings were held out of its training; of all notes 27 % find their drawing within five of 300, "
            "by chance 1.7 %."
        )
    return "The shipped model knows drawings: on photographs it sees little more than colours and shapes."
