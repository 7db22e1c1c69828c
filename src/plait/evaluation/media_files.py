"""Where the media of a data set lie: names as annotations imply them -> files under a directory, all checked first.

A name is looked for as it is, then by the end of its path anywhere below the directory, then with another ending of
the same kind (.avi for .mp4, .flac for .wav): annotation files and downloads disagree about folders and endings.
"""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from plait.evaluation.readers import Item
from plait.evaluation.readers.item import Media
from plait.types import Modality

ENDINGS: dict[Modality, tuple[str, ...]] = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".JPEG"),
    "video": (".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif", ".mpg"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".mp4"),
}
SHOWN = 8


class MediaFiles:
    """The files below `root`. template: how the user's files are called, such as `clips/{stem}.flac` (`{name}` the name
    itself, `{stem}` the name without folder and ending); None for the published names."""

    def __init__(self, root: str | Path, template: str | None = None) -> None:
        self.root, self.template = Path(root), template
        self._by_stem: dict[str, list[str]] | None = None

    def find(self, name: Media, modality: Modality) -> Path | bytes | None:
        """The file of a name, the bytes that an annotation held itself, or None where there is no such file.

        Raises ValueError for a name that leaves the directory and for one that fits several files.
        """
        if isinstance(name, bytes):
            return name
        if self.template is not None:
            name = self.template.format(name=name, stem=PurePosixPath(name).stem)
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"expected a media name inside {self.root}, got {name!r}; mend the annotation file")
        if (self.root / name).is_file():
            return self.root / name
        return self._elsewhere(PurePosixPath(name), modality)

    def _elsewhere(self, name: PurePosixPath, modality: Modality) -> Path | None:
        has_ending = name.suffix in {e for endings in ENDINGS.values() for e in endings}
        stem = name.stem if has_ending else name.name
        folder = "" if name.parent == PurePosixPath(".") else f"/{name.parent.as_posix()}"
        known = self._index().get(stem, [])
        exact = [path for path in known if f"/{path}".endswith(f"/{name.as_posix()}")]
        close = [path for path in known if PurePosixPath(path).suffix in ENDINGS[modality]]
        close = [path for path in close if f"/{PurePosixPath(path).parent.as_posix()}".endswith(folder)] or close
        found = exact or sorted(close, key=lambda path: ENDINGS[modality].index(PurePosixPath(path).suffix))
        if len(exact) > 1:
            raise ValueError(f"expected one file {name} in {self.root}, got {', '.join(found[:4])}; remove the copies")
        return self.root / found[0] if found else None

    def _index(self) -> dict[str, list[str]]:
        if self._by_stem is None:
            self._by_stem = defaultdict(list)
            for folder, below, files in os.walk(self.root):
                below.sort()
                for file in sorted(files):
                    path = (Path(folder) / file).relative_to(self.root)
                    self._by_stem[path.stem].append(path.as_posix())
        return self._by_stem


def media_of(item: Item, modalities: Iterable[Modality]) -> list[tuple[Modality, Media]]:
    """The media an item names, of the given modalities."""
    named: list[tuple[Modality, Media]] = []
    for modality in modalities:
        if modality == "image":
            named += [("image", picture) for picture in item.pictures]
        elif (value := getattr(item, modality, None)) is not None and modality != "text":
            named.append((modality, value))
    return named


def missing_media(items: Iterable[Item], files: MediaFiles, modalities: Iterable[Modality]) -> list[str]:
    """Names without a file, in order and each once."""
    modalities = list(modalities)
    gone: dict[str, None] = {}
    for item in items:
        for modality, name in media_of(item, modalities):
            if files.find(name, modality) is None:
                gone[str(name)] = None
    return list(gone)


def missing_line(missing: list[str], root: Path) -> str:
    """One line that lists missing media."""
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    shown = ", ".join(missing[:SHOWN])
    return (
        f"expected the media of every item below {root}, got none for {len(missing)}: {shown}{more}; "
        "add them, name them with --media, or count them as wrong with --skip-missing"
    )


def frames_of(file: Path | bytes, count: int) -> list[Any]:
    """`count` RGB frames spread evenly over a video, or over an animated GIF (TGIF's videos are such files).

    Raises ValueError (one line) for what cannot be read.
    """
    from plait.media.video import load_frames

    if isinstance(file, bytes):
        head = file[:4]
    else:
        with file.open("rb") as opened:
            head = opened.read(4)
    return _gif_frames(file, count) if head == b"GIF8" else load_frames(file, count)


def _gif_frames(file: Path | bytes, count: int) -> list[Any]:
    from PIL import Image

    from plait.media.limits import MAX_FRAMES, MAX_PIXELS

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=("GIF",)) as animation:
            total = getattr(animation, "n_frames", 1)
            if animation.width * animation.height > MAX_PIXELS or total > MAX_FRAMES:
                raise ValueError(f"more than {MAX_FRAMES} frames of {MAX_PIXELS} pixels")
            frames = []
            for i in range(count):
                animation.seek(min(total - 1, int((i + 0.5) * total / count)))
                frames.append(animation.convert("RGB"))
            return frames
    except (OSError, ValueError, EOFError) as error:
        name = "bytes" if isinstance(file, bytes) else str(file)
        raise ValueError(f"expected an animated picture, got {name}: {error}") from error
