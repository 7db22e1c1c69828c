"""What an assistant looks at: paths, folders, manifests and pictures -> requests -> decoded, a batch ahead.

path | PIL image | frames | Sample -> request_of -> Request(kind, value) -> decoded in threads -> skills.prepare
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from plait.assistant.skills import Kind
from plait.data.manifest import manifest_path, read_manifest
from plait.media import kind_of
from plait.media.image import load_image
from plait.media.video import load_video
from plait.types import Sample

_LOADERS = 4


@dataclass(frozen=True, slots=True)
class Request:
    """One item with the text that goes with it. `error` stands where nothing could be made of it."""

    name: str
    kind: Kind
    value: Any
    text: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A request with what the model takes: `prepared`, the picture size in pixels, or why there is none."""

    request: Request
    prepared: Any = None
    size: tuple[int, int] = (0, 0)
    error: str | None = None


def request_of(item: Any, text: str = "") -> Request:
    """A path (image or video, by content), PIL image, list of PIL frames or `Sample` -> a request.

    Raises ValueError (one line) for what is missing, empty, sound alone or no media.
    """
    from PIL.Image import Image

    if isinstance(item, Request):
        return item
    if isinstance(item, Sample):
        return _of_sample(item, text)
    if isinstance(item, str | Path):
        path = Path(item)
        return Request(str(path), _kind_of_file(path), path, text)
    if isinstance(item, Image):
        return Request("an image in memory", "image", item, text)
    if isinstance(item, Sequence) and item and all(isinstance(frame, Image) for frame in item):
        return Request(f"a clip of {len(item)} frames in memory", "video", list(item), text)
    raise ValueError(f"expected a path, a PIL image, a list of PIL frames or a Sample, got {type(item).__name__}")


def requests_under(path: Path, text: str = "") -> tuple[list[Request], int]:
    """The requests of a file, a folder or a manifest, and how many files of a folder are neither image nor video.

    A file or row that is no image or video becomes a request with an `error`; a manifest's `question` takes the
    place of `text`. Raises ValueError for a path that does not exist and for a folder with nothing to look at.
    """
    if not path.exists():
        raise ValueError(f"expected a file, folder or manifest, got {path}: no such file or folder")
    if path.is_dir() and not any((path / name).is_file() for name in ("manifest.jsonl", "manifest.jsonl.gz")):
        return _of_folder(path, text)
    if path.is_dir() or path.name.endswith((".jsonl", ".jsonl.gz")):
        samples = read_manifest(manifest_path(path))
        if not samples:
            raise ValueError(f"expected a manifest with rows, got none in {path}")
        return [_or_error(sample, text, f"sample {sample.id}") for sample in samples], 0
    return [_or_error(path, text, str(path))], 0


def _of_folder(folder: Path, text: str) -> tuple[list[Request], int]:
    requests, others = [], 0
    for root, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for path in (Path(root, name) for name in sorted(files) if not name.startswith(".")):
            request = _or_error(path, text, str(path))
            if request.error and path.stat().st_size and kind_of(path) in (None, "text", "audio"):
                others += 1
            else:
                requests.append(request)
    if not requests:
        raise ValueError(f"expected images or videos in {folder}, got {others or 'no'} other files")
    return requests, others


def _or_error(item: Any, text: str, name: str) -> Request:
    try:
        return request_of(item, text)
    except (ValueError, OSError) as error:
        return Request(name, "image", None, text, str(error))


def _of_sample(sample: Sample, text: str) -> Request:
    text = sample.question or text
    for kind in ("video", "image"):
        value = getattr(sample, kind)
        if value is not None:
            return Request(f"sample {sample.id}", kind, Path(value) if isinstance(value, str) else value, text)
    if sample.text is not None:
        return Request(f"sample {sample.id}", "text", sample.text, text)
    raise ValueError(f"expected an image, a video or a text, got sample {sample.id} with none of them")


def _kind_of_file(path: Path) -> Kind:
    if not path.is_file():
        raise ValueError(f"expected a file, got {path}: {'not a regular file' if path.exists() else 'no such file'}")
    if path.stat().st_size == 0:
        raise ValueError(f"expected an image or video, got {path}: an empty file; check the file")
    kind = kind_of(path)
    if kind == "image" or kind == "video":  # noqa: PLR1714 (a type checker narrows this, not a tuple)
        return kind
    got = {"audio": "a sound file", "text": "a text file"}.get(kind or "", "its content is neither")
    raise ValueError(f"expected an image or video, got {path}: {got}; pass a picture or a clip")


def decoded(
    requests: Iterable[Request], prepare: Callable[[Kind, Any], Any], num_frames: int, ahead: int
) -> Iterator[Ready]:
    """Decode and prepare in order, `ahead` items in advance, in a few threads; what fails carries its `error`."""
    waiting: deque[Future[Ready]] = deque()
    source = iter(requests)
    with ThreadPoolExecutor(_LOADERS) as pool:
        try:
            while True:
                for request in islice(source, max(0, ahead - len(waiting))):
                    waiting.append(pool.submit(_ready, request, prepare, num_frames))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _ready(request: Request, prepare: Callable[[Kind, Any], Any], num_frames: int) -> Ready:
    if request.error:
        return Ready(request, error=request.error)
    try:
        value, size = _load(request, num_frames)
        return Ready(request, prepare(request.kind, value), size)
    except (ValueError, OSError) as error:
        return Ready(request, error=" ".join(str(error).split()))


def _load(request: Request, num_frames: int) -> tuple[Any, tuple[int, int]]:
    if request.kind == "text":
        return request.value, (0, 0)
    if request.kind == "image":
        image = load_image(request.value)
        return image, image.size
    frames = request.value if isinstance(request.value, list) else load_video(request.value, num_frames).frames
    return frames, frames[0].size
