"""What a model says of things that ship with Plait (`plait doctor NAME`): a block of text to paste into a report.

name -> file and its digest, sizes, versions -> vectors and words of three drawings and notes -> what is not a number

Official files are too large for our tests. Whoever has one runs this, and the block tells others what came out; outputs
are words and cosines, which differ in the last digit between machines. `FILES` and `--text` put the example of an
authors' page in place of ours, and then stand beside what is printed there.
"""

from __future__ import annotations

import hashlib
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import plait
from plait.data.manifest import read_manifest
from plait.data.mini import cached_mini
from plait.errors import UsageError
from plait.media import kind_of
from plait.modalities import names
from plait.models import locate
from plait.models.auto import skills_class
from plait.models.catalog import model_info

CONCEPTS = ("bell", "drum", "guitar")
"""Things of which `mini` holds out a drawing and a note."""
QUESTION = "What is in the image?"
_LONGEST = 32
"""Tokens of an answer: enough to see that it is language."""


@dataclass(frozen=True)
class Asked:
    """What a model is shown.

    Attributes:
        texts: words to compare media with.
        files: media, of any kind.
        called: what each file is shown as.
    """

    texts: tuple[str, ...]
    files: tuple[Path, ...]
    called: tuple[str, ...]

    @classmethod
    def shipped(cls) -> Asked:
        """Three held-out drawings and notes of `mini`, with their names."""
        rows = [row for row in read_manifest(cached_mini()) if row.split == "test"]
        chosen = [
            next(row for row in rows if row.label == name and getattr(row, kind))
            for kind in ("image", "audio")
            for name in CONCEPTS
        ]
        called = [f"{row.label}, {'drawing' if row.image else 'note'}" for row in chosen]
        return cls(CONCEPTS, tuple(Path(row.image or row.audio) for row in chosen), tuple(called))

    @classmethod
    def of(cls, files: Sequence[Path], texts: Sequence[str]) -> Asked:
        """A user's own; UsageError for a file of no kind known here, and for one without the other."""
        if bool(files) != bool(texts):
            raise UsageError("expected FILES and --text together, got one of them; both stand in place of our own")
        if odd := next((file for file in files if kind_of(file) is None), None):
            raise UsageError(f"expected images, audio or video, got {odd}; choose another file")
        return cls(tuple(texts), tuple(files), tuple(file.name for file in files)) if files else cls.shipped()


def report(model: str | Path, asked: Asked, *, device: str | None = None, dtype: str | None = None) -> Iterator[str]:
    """The lines of the block, each as soon as it is known.

    Args:
        model: a directory, an official file, or a name.
        asked: what it is shown.
        device, dtype: as in `plait.load`.

    Raises:
        ValueError: for no such model, and for vectors that are no numbers: the block then ends with what was wrong.
    """
    place = locate(model)
    started = time.perf_counter()
    from importlib.metadata import version

    import torch

    yield f"plait doctor {model}"
    stack = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    yield f"plait {plait.__version__}, Python {platform.python_version()}, {stack}, {platform.machine()}"
    yield f"device {device or 'cpu'}, dtype {dtype or 'usual'}, {torch.get_num_threads()} threads"
    yield from _file(place)
    opened = plait.load(place, device=device or "cpu", dtype=dtype)
    yield f"opened as {type(opened[0]).__name__} in {time.perf_counter() - started:.1f} s"
    spoke = False
    for part in (_vectors, _words):
        lines = list(part(opened, asked))
        spoke = spoke or bool(lines)
        yield from lines
    if not spoke:
        yield "it makes neither vectors nor words: nothing was asked of it"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    yield f"{time.perf_counter() - started:.1f} s in all, {peak:.1f} GiB at most"


def _file(place: Path) -> Iterator[str]:
    """Size and digest of a file, or what a directory says of itself."""
    if place.is_file():
        with place.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        yield f"file {place.name}, {place.stat().st_size:,} bytes, sha256 {digest}"
        return
    facts = model_info(place)
    dtypes = ", ".join(facts.dtypes)
    yield f"directory {place.name}: {facts.family}, {facts.parameters:,} parameters in {dtypes}, {facts.bytes:,} bytes"


def _vectors(opened: tuple[Any, Any], asked: Asked) -> Iterator[str]:
    """Cosines of media with texts and with one another; nothing for a model that does not embed."""
    model = opened[0]
    if not hasattr(model, "get_text_features"):
        return
    embedder = plait.Embedder(opened)
    takes = set(getattr(model, "modalities", names()))
    takes |= {"video"} if "image" in takes else set()  # clips by their frames
    shown = [(file, name) for file, name in zip(asked.files, asked.called, strict=True) if kind_of(file) in takes]
    columns = [*(asked.texts if "text" in takes else ()), *(() if "text" in takes else (name for _, name in shown))]
    vectors = embedder.embed([*(asked.texts if "text" in takes else ()), *(file for file, _ in shown)])
    if not np.isfinite(vectors).all():
        raise ValueError(f"expected vectors of numbers from {type(model).__name__}, got some that are not finite")
    table = vectors[len(vectors) - len(shown) :] @ vectors[: len(columns)].T
    yield "cosines, a row for every file:"
    width = max([len(name) for _, name in shown], default=0)
    yield " " * (width + 2) + "".join(f"{name[:10]:>11}" for name in columns)
    for (_, name), row in zip(shown, table, strict=True):
        yield f"  {name:<{width}}" + "".join(f"{value:11.4f}" for value in row)


def _words(opened: tuple[Any, Any], asked: Asked) -> Iterator[str]:
    """What a model writes about the first image: a caption, an answer; nothing for one that writes none."""
    from plait.assistant import Assistant

    images = [file for file in asked.files if kind_of(file) == "image"]
    # asked beforehand: what goes wrong while skills are built is no silence, but what somebody came here to see
    if not images or skills_class(opened[0]) is None:
        return
    assistant, image = Assistant(opened), images[0]
    tasks: Mapping[str, Any] = {
        "caption": lambda: assistant.caption(image, max_length=_LONGEST),
        "answer": lambda: assistant.answer(image, QUESTION, max_length=_LONGEST),
        "classify": lambda: assistant.classify(image)[:3],
    }
    for task, ask in tasks.items():
        is_zero_shot = task == "classify" and hasattr(opened[0], "get_text_features")  # of which the table tells more
        if task not in assistant.tasks or is_zero_shot:
            continue
        try:
            said = ask()
        except ValueError as error:  # a classifier of sounds, a head that wants labels
            said = f"not asked: {error}"
        yield f"{task} of {image.name}{f', {QUESTION}' if task == 'answer' else ''}: {said!r}"
