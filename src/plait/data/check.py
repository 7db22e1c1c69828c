"""Is a data set whole? Every row read, every file decoded, counts, and no test file that is also a training file."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.data.manifest import MEDIA, Skipped, files_of, more_files_of, no_such_file
from plait.data.packages import sha256
from plait.data.sources import open_samples
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.media.kinds import EXTENSIONS
from plait.media.limits import Packed
from plait.media.values import medium
from plait.modalities import held
from plait.reading import outside
from plait.terminal import progress_bar
from plait.types import Sample

RATE = 16000
"""Samples per second at which clips are decoded to measure their length."""


WORDS = {
    "caption",
    "txt",
    "sentence",
    "sentences",
    "description",
    "alt",
    "alt_text",
    "title",
    "prompt",
    "transcription",
}
"""What other tools call the words of a row."""


@dataclass
class CheckReport:
    """Counts of a data set and everything wrong with it; `problems` is empty when all is well.

    bytes, seconds: of all files of a medium; pixels: smallest width and height, then largest. unread: columns that look
    like media or words and go by other names than fields do. misfits: media outside of the
    data set, and what a model would cut or leave out, no fault of the data.
    """

    path: str
    rows: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    licenses: dict[str, int] = field(default_factory=dict)
    labels: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    pixels: dict[str, list[int]] = field(default_factory=dict)
    bad_rows: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """All findings, one line each."""
        return [*self.bad_rows, *self.missing, *self.damaged, *self.unread, *self.leaks]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"ok": not self.problems}


@dataclass(frozen=True)
class Bounds:
    """What a model takes of a row.

    model: its name; takes: modalities; seconds: of audio, longer clips are cut; tokens: of a text, None for no limit;
    count: text -> its tokens.
    """

    model: str
    takes: Sequence[str]
    seconds: float | None = None
    tokens: int | None = None
    count: Callable[[str], int] = len


def check(path: str | Path, progress: bool = False, bounds: Bounds | None = None) -> CheckReport:
    """Read every row, decode every file, count, and compare files of training and other splits by SHA-256.

    Args:
        path: of any kind that `open_samples` takes. progress: whether a bar is shown.
        bounds: of a model that the rows are meant for.

    Returns:
        The report; what is wrong inside is there.

    Raises:
        ValueError: only when there is no data set.
    """
    skipped = Skipped()
    with outside():  # it opens nothing that it does not tell of
        opened = open_samples(path, on_bad="skip", skipped=skipped)
    samples = list(_good(opened, skipped))
    report = CheckReport(str(path), rows=len(samples), bad_rows=skipped.messages)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    lengths: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for sample in progress_bar("check", samples, show=None if progress else False):
        split = sample.split or "none"
        for modality in held(sample):
            counts[split][modality] += 1
        for name, file in files_of(sample).items():
            before = report.seconds.get(name, 0.0)
            digest = _check_file(sample, name, file, report)
            lengths[name].append((report.seconds.get(name, 0.0) - before, sample.id))
            if digest is not None:
                splits[digest].setdefault(split, sample.id)
        for name, file in more_files_of(sample):
            digest = _check_file(sample, "image", file, report)
            counts[split]["image"] += name == "images"
            if digest is not None and name == "images":  # maps of classes may well be alike
                splits[digest].setdefault(split, sample.id)
        if bounds is not None and bounds.tokens is not None:
            for text in (sample.text, sample.question, *(sample.captions or ())):
                lengths["text"].append((bounds.count(text) if text else 0, sample.id))
    if bounds is not None:
        report.misfits = _misfits(bounds, lengths)
    report.misfits += _outside(samples, Path(path))
    report.unread = _unread(samples, getattr(opened, "unread", ()))
    report.counts = {split: dict(count) for split, count in counts.items()}
    report.licenses = dict(Counter(sample.license or "not stated" for sample in samples))
    report.labels = len({sample.label for sample in samples if sample.label})
    report.leaks = [
        f"{ids[split]} ({split}) is the same file as {ids['train']} (train)"
        for ids in splits.values()
        for split in ids
        # By content: a copy under another name is the same picture.
        if split != "train" and "train" in ids
    ]
    return report


def _outside(samples: Sequence[Sample], place: Path) -> list[str]:
    """A line where rows name media outside of the data set, which a stranger's has no reason to."""
    root = (place if place.is_dir() else place.parent).resolve()
    named = [(sample, file) for sample in samples for file in files_of(sample).values()]
    named += [(sample, path) for sample in samples for _, path in more_files_of(sample)]
    out = [(s.id, file) for s, file in named if isinstance(file, str) and not Path(file).resolve().is_relative_to(root)]
    said = f"{len(out)} media are outside of {root} (the first {out[0][1]}, row {out[0][0]})" if out else ""
    return [f"{said}; a list that Plait did not write here is read and packed with --outside alone"] if out else []


def _misfits(bounds: Bounds, lengths: dict[str, list[tuple[float, str]]]) -> list[str]:
    """A line for each kind of thing that a model does not take whole. lengths: (seconds or tokens, id) by medium."""
    lines = []
    for name, limit, unit in (("audio", bounds.seconds, "s"), ("text", bounds.tokens, "tokens")):
        over = [one for one in lengths[name] if limit is not None and one[0] > limit]
        if over:
            longest, row = max(over)
            words = "text" if name == "text" else "sound"
            lines.append(
                f"{len(over)} {words}{'s are' if len(over) > 1 else ' is'} longer than the {limit:g} {unit} that "
                f"{bounds.model} takes (the longest {longest:.4g} {unit}, row {row}); it is cut there, or refused"
            )
    lines += [
        f"{len(rows)} {name} files: {bounds.model} takes {', '.join(bounds.takes)}; training leaves their rows out"
        for name, rows in lengths.items()
        if name != "text" and rows and name not in bounds.takes
    ]
    return lines


def _good(samples: Sequence[Sample], skipped: Skipped) -> Iterator[Sample]:
    """Rows that can be made; of shards and tables that shows when they are asked for."""
    for number in range(len(samples)):
        try:
            yield samples[number]
        except ValueError as error:
            skipped.messages.append(str(error))


def _unread(samples: Sequence[Sample], columns: Sequence[str]) -> list[str]:
    """A line for each field that no row is read by, though it looks like a medium or like the words of its row.

    columns: those that the reader passed over by itself, since they hold bytes.
    """
    looks: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        for name, value in sample.meta.items():
            field = _looks_like(name, value)
            has_words = field == "text" and (sample.captions or sample.question or sample.messages)
            if field is not None and getattr(sample, field) is None and not has_words:
                looks[name][field] += 1
    lines = [f"column {name!r} holds files and is not read; call it image, audio or video" for name in columns]
    for name, fields in looks.items():
        (wanted, count), *_ = fields.most_common(1)
        lines.append(f"column {name!r} looks like {wanted} in {count} rows and is not read; call it {wanted!r}")
    return lines


def _looks_like(name: str, value: Any) -> str | None:
    """The field that a value of another name seems to be meant for, by its ending or its name."""
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str) or not value.strip():
        return None
    kind = EXTENSIONS.get(value.rpartition(".")[2].lower()) if "." in value[-6:-1] else None
    if kind in MEDIA:
        return kind
    return "text" if name.lower() in WORDS else None


def _check_file(sample: Sample, name: str, file: Any, report: CheckReport) -> str | None:
    """SHA-256 of a file that decodes, counted in the report; otherwise a line there and None."""
    if not isinstance(file, Packed) and not Path(file).is_file():
        report.missing.append(f"{sample.id}: expected the {name} {file}, got {no_such_file(str(file))}")
        return None
    try:
        if name == "image":
            _count_pixels(report.pixels, load_image(file).size)
        elif name == "audio":
            seconds = len(load_audio(file, RATE)) / RATE
        elif name not in MEDIA:
            medium(name).load(file, RATE)
        else:
            from plait.media.video import load_video

            seconds = load_video(file, num_frames=1).seconds
    except ValueError as error:
        report.damaged.append(f"{sample.id}: {error}")
        return None
    if name in ("audio", "video"):
        report.seconds[name] = report.seconds.get(name, 0.0) + seconds
    content = file.read() if isinstance(file, Packed) else None
    size = Path(file).stat().st_size if content is None else len(content)
    report.bytes[name] = report.bytes.get(name, 0) + size
    # Hashed in pieces from disk; of a packed file the bytes are in memory already.
    return sha256(Path(file)) if content is None else hashlib.sha256(content).hexdigest()


def _count_pixels(pixels: dict[str, list[int]], size: tuple[int, int]) -> None:
    """Widen the smallest and largest width and height by one picture."""
    low_x, low_y, high_x, high_y = pixels.get("image", [*size, *size])
    x, y = size
    pixels["image"] = [min(low_x, x), min(low_y, y), max(high_x, x), max(high_y, y)]
