"""What can be embedded: an item is read into weighted parts, a part into something a processor takes.

    item -> parts_of -> [Part(modality, value, weight)] -> load -> text | PIL image | frames | waveform

An item is a string (text), a `pathlib.Path` (a media file, its kind sniffed), a PIL image, a `Sample` (its media, or
its text when it has none) or a mapping. A mapping fuses: each of `text image video audio` holds one value or a list of
them, `not` holds an item (or a list of items) to move away from, `weights` overrides the weights of the call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.media import kind_of
from plait.media.audio import load_audio, resample
from plait.media.image import load_image
from plait.types import MODALITIES, Modality, Sample

NOT_WEIGHT = 0.5
"""Default weight of what stands under `not`: enough to turn a query away, not enough to leave its subject."""

VIDEO_FRAMES = 8
NO_MEDIA = "no picture, video or sound"
"""What is said of a file that is of no kind known here, by its content and by its name."""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of media with the weight of its unit vector in the sum."""

    modality: Modality
    value: Any
    weight: float = 1.0
    sampling_rate: int | None = None

    @property
    def name(self) -> str:
        """What a message calls it: the path, or a short form of the value."""
        if isinstance(self.value, str | Path):
            return str(self.value) if len(str(self.value)) <= 200 else f"{str(self.value)[:197]}..."
        return f"{self.modality} ({type(self.value).__name__})"

    @property
    def key(self) -> object:
        """Equal for parts that give the same vector."""
        hashable = isinstance(self.value, str | bytes | Path)
        return (self.modality, self.value if hashable else id(self.value), self.sampling_rate)


def check_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """A copy of `weights`. Raises ValueError for a name that is no modality or `not`, and for what is no number."""
    allowed = (*MODALITIES, "not")
    for name, weight in (weights or {}).items():
        if name not in allowed:
            raise ValueError(f"expected weights for {', '.join(allowed)}, got {name!r}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"expected a finite number as the weight of {name}, got {weight!r}")
    return dict(weights or {})


def parts_of(item: Any, weights: Mapping[str, float] | None = None) -> list[Part]:
    """Read an item into its parts. Raises ValueError when it is empty, of an unknown type or of unknown modality."""
    weights = check_weights(weights)
    if isinstance(item, str):
        return [_part("text", item, weights)]
    if isinstance(item, Path):
        return [_part(kind_of_file(item), item, weights)]
    if isinstance(item, Sample):
        return _parts_of_sample(item, weights)
    if isinstance(item, Mapping):
        return _parts_of_mapping(item, weights)
    if _is_image(item):
        return [_part("image", item, weights)]
    raise ValueError(
        f"expected an item such as a text, a Path, a Sample or {{'image': 'a.jpg'}}, got {type(item).__name__}"
    )


def _parts_of_sample(sample: Sample, weights: Mapping[str, float]) -> list[Part]:
    media = [m for m in sample.modalities if m != "text"] or list(sample.modalities)
    if not media:
        raise ValueError(f"expected sample {sample.id!r} to hold text, image, video or audio, got none of them")
    rate = sample.meta.get("sampling_rate") if isinstance(sample.audio, np.ndarray) else None
    return [_part(m, getattr(sample, m), weights, rate if m == "audio" else None) for m in media]


def _parts_of_mapping(item: Mapping[str, Any], weights: dict[str, float]) -> list[Part]:
    known = (*MODALITIES, "not", "weights")
    if unknown := [key for key in item if key not in known]:
        raise ValueError(f"expected the keys {', '.join(known)}, got {unknown[0]!r}")
    weights |= check_weights(item.get("weights"))
    parts = [
        _part(modality, value, weights)
        for modality in MODALITIES
        if item.get(modality) is not None
        for value in _as_list(item[modality])
    ]
    if not parts:
        raise ValueError(f"expected at least one of {', '.join(MODALITIES)} in an item, got {sorted(item)}")
    for other in _as_list(item["not"]) if item.get("not") is not None else []:
        scale = weights.get("not", NOT_WEIGHT)
        positive = {name: weight for name, weight in weights.items() if name != "not"}
        parts += [Part(p.modality, p.value, -scale * p.weight, p.sampling_rate) for p in parts_of(other, positive)]
    return parts


def _part(modality: Modality, value: Any, weights: Mapping[str, float], rate: int | None = None) -> Part:
    if modality == "audio" and isinstance(value, tuple):
        if len(value) != 2 or not isinstance(value[0], np.ndarray):
            raise ValueError(f"expected audio as a path, bytes, array or (array, sampling rate), got {value!r:.80}")
        value, rate = value
    kinds: tuple[type, ...] = (str,) if modality == "text" else (str, Path, bytes)
    decoded = (modality == "image" and _is_image(value)) or (modality == "audio" and isinstance(value, np.ndarray))
    if not isinstance(value, kinds) and not decoded:
        raise ValueError(f"expected {modality} as {_accepted(modality)}, got {type(value).__name__}")
    return Part(modality, value, float(weights.get(modality, 1.0)), rate)


def _accepted(modality: Modality) -> str:
    decoded = {"image": ", bytes or a PIL image", "audio": ", bytes or a float array", "video": " or bytes"}
    return "a str" if modality == "text" else f"a path{decoded[modality]}"


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _is_image(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, Image.Image)


def kind_of_file(path: Path) -> Modality:
    """The modality of a media file, read from its content. ValueError when it is missing, empty or no media."""
    if not path.is_file():
        got = "not a regular file" if path.exists() else "no such file"
        raise ValueError(f"expected a file, got {path}: {got}; check the path")
    kind = kind_of(path)
    if kind is None or kind == "text":
        raise ValueError(f"expected an image, video or audio file, got {path}: {NO_MEDIA}; pass one")
    return kind


def load(part: Part, sampling_rate: int | None) -> Any:
    """Decode a part: text stays; image -> PIL RGB; audio -> float32 (samples,) at `sampling_rate`; video -> frames.

    Raises ValueError (one line, naming the file) for what is missing or cannot be decoded.
    """
    if part.modality == "text":
        return part.value
    if part.modality == "image":
        return load_image(part.value)
    if part.modality == "audio":
        return _load_audio(part, sampling_rate or 16000)
    from plait.media.video import load_frames

    return load_frames(part.value, VIDEO_FRAMES)


def _load_audio(part: Part, sampling_rate: int) -> np.ndarray:
    if not isinstance(part.value, np.ndarray):
        return load_audio(part.value, sampling_rate=sampling_rate)
    clip = np.asarray(part.value, np.float32)
    if clip.ndim != 1 or not len(clip) or not np.isfinite(clip).all():
        raise ValueError(f"expected a mono clip (samples,) of finite numbers, got an array of shape {clip.shape}")
    return resample(clip, part.sampling_rate or sampling_rate, sampling_rate, part.name)
