"""How a value of each modality comes in: what it may be, how it is loaded, and what a batch of it has to mind.

value (path | bytes | picture | array | frames | words) -> Medium.accepts -> Medium.load -> what a processor takes

Whoever handles any modality asks this table, and what `plait.modalities` registered, instead of knowing names.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np

from plait.media.audio import load_audio, resample
from plait.media.image import load_image
from plait.media.limits import Packed, exceeds, limit, name_of, open_media
from plait.modalities import Registered, registered

FRAMES = 8
"""Pictures that a video becomes, spread evenly."""
RATE = 16000
"""Samples per second where nobody says another rate."""


@dataclass(frozen=True)
class Medium:
    """One modality as it comes in.

    Attributes:
        takes: what a value may be, in words; accepts: whether it is so.
        load: (value, samples per second, limits of the loader by name) -> a text, a PIL image, a list of frames,
            samples (n,), or a user's own.
        is_words: it passes as it is and, beside other media of a row, says what they show.
        is_drawn: it is prepared one by one: small tensors are kept, not the pixels of a large photograph.
        frames_of: the modality whose images stand in for it in a model that lacks it.
        seconds: of a clip, from which on a batch holds fewer: all are padded to the longest.
        tiny: (samples per second) -> the smallest value there is.
    """

    takes: str
    accepts: Callable[[Any], bool]
    load: Callable[..., Any]
    is_words: bool = False
    is_drawn: bool = False
    frames_of: str | None = None
    seconds: int | None = None
    tiny: Callable[[int], Any] | None = None


def medium(name: str) -> Medium:
    """How values of a modality come in. Raises UsageError for one that nobody registered."""
    if name in MEDIA:
        return MEDIA[name]
    own = registered(name)
    return Medium(
        "what its `load` takes", lambda value: value is not None, lambda value, rate, **limits: _load_own(own, value)
    )


def _load_own(own: Registered, value: Any) -> Any:
    """A value of a user's own modality, as their `load` makes it of a path or of something decoded.

    Files are looked at as those of other media are: ordinary ones of at most `max_bytes` bytes. What is no file of this
    machine (bytes of a request, a file inside a shard) lies in a temporary one while it is loaded.
    """
    if isinstance(value, str | Path) and Path(value).suffix.lower() in own.suffixes:
        with open_media(value, own.name):
            return own.load(value)
    if not isinstance(value, bytes | Packed) or not own.suffixes:
        return own.load(value)
    with open_media(value, own.name) as file, NamedTemporaryFile(suffix=own.suffixes[0]) as aside:
        shutil.copyfileobj(file, aside)
        aside.flush()
        try:
            return own.load(aside.name)
        except ValueError as error:  # by the name that its owner knows
            raise ValueError(str(error).replace(aside.name, name_of(value))) from error


def is_picture(value: Any) -> bool:
    """Whether this is a PIL image."""
    from PIL import Image

    return isinstance(value, Image.Image)


def is_array(value: Any) -> bool:
    """Whether these are numbers, of numpy, of torch or their like."""
    # older Pillows give pictures one too
    return hasattr(value, "__array__") and not is_picture(value)


def _is_file(value: Any) -> bool:
    return isinstance(value, str | Path | bytes | Packed)


def _smallest(rate: int) -> Any:
    from PIL import Image

    return Image.new("RGB", (64, 64))


def _shortest(rate: int) -> bytes:
    """A film of two frames, as its file. Needs PyAV, as whoever opens films does."""
    from io import BytesIO

    from plait.errors import import_extra

    av, file = import_extra("av"), BytesIO()
    with av.open(file, "w", format="mp4") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in (av.VideoFrame.from_image(_smallest(rate)), av.VideoFrame.from_image(_smallest(rate)), None):
            film.mux(stream.encode(frame))
    return file.getvalue()


def _frames(value: Any, rate: int, **limits: Any) -> list[Any]:
    """Pictures of a file, or of frames that are here: spread evenly, since nobody knows when each was seen."""
    if _is_film(value):
        count, length = limits.get("num_frames", FRAMES), len(value)
        if length > (most := limit("max_frames", limits.get("max_frames"))):
            raise exceeds("video", value, f"{length} frames", "max_frames", most, "pass fewer")
        # the middle of equal parts, as of files; one that serves twice is loaded once
        numbers = [int(length * (i + 0.5) / count) for i in range(count)]
        loaded = {i: load_image(value[i], max_pixels=limits.get("max_pixels")) for i in dict.fromkeys(numbers)}
        return [loaded[i] for i in numbers]
    from plait.media.video import load_frames

    return load_frames(value, **{"num_frames": FRAMES, **limits})


def _is_film(value: Any) -> bool:
    """Whether these are frames: pictures or arrays in a list or tuple, or one array (frames, height, width, 3)."""
    if is_array(value):
        return len(value.shape) == 4 and value.shape[0] > 0
    return isinstance(value, list | tuple) and bool(value) and all(is_picture(v) or is_array(v) for v in value)


def _samples(value: Any, rate: int, **limits: Any) -> np.ndarray:
    """Samples (n,) at `rate` of a file, or of an array or pair (array, its rate)."""
    given, own = value if isinstance(value, tuple) else (value, None)
    if not is_array(given):
        return load_audio(given, sampling_rate=rate, **limits)
    clip = np.asarray(given, np.float32)
    if clip.ndim != 1 or not len(clip) or not np.isfinite(clip).all():
        raise ValueError(f"expected a mono clip (samples,) of finite numbers, got an array of shape {clip.shape}")
    return resample(clip, own or rate, rate, f"audio ({type(given).__name__})")


def _is_sound(value: Any) -> bool:
    if isinstance(value, tuple):
        return len(value) == 2 and is_array(value[0])
    return _is_file(value) or is_array(value)


MEDIA: dict[str, Medium] = {
    "text": Medium(
        "a str",
        lambda value: isinstance(value, str),
        lambda value, rate, **limits: value,
        is_words=True,
        tiny=lambda rate: "a",
    ),
    "image": Medium(
        "a path, bytes, a PIL image or an array",
        lambda value: _is_file(value) or is_picture(value) or is_array(value),
        lambda value, rate, **limits: load_image(value, **limits),
        is_drawn=True,
        tiny=_smallest,
    ),
    "video": Medium(
        "a path, bytes, a list of frames or an array of them",
        lambda value: _is_file(value) or _is_film(value),
        _frames,
        frames_of="image",
        tiny=_shortest,
    ),
    "audio": Medium(
        "a path, bytes, an array or (array, sampling rate)",
        _is_sound,
        _samples,
        seconds=15,
        tiny=lambda rate: np.zeros(rate, np.float32),
    ),
}
"""The built-in modalities."""
