"""Items read into parts: what a text, a file, a picture, a sample or a mixture of them is made of.

item -> parts_of -> Part(modality, value, weight) ... -> load -> decoded
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from plait.media import kind_of
from plait.media.limits import Packed
from plait.media.values import RATE, is_array, is_picture, medium
from plait.modalities import held, names
from plait.types import Sample, whole_text

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

Limits = Mapping[str, Mapping[str, Any]]
"""Modality -> keyword arguments of its loader."""

Item = Union[str, bytes, Path, "Image", "np.ndarray", "torch.Tensor", Sample, Mapping[Any, Any]]
"""What is embedded into one vector, see `plait.Embedder`."""

NOT_WEIGHT = 0.5
"""Default weight of what stands under `not`: enough to turn a query away, not enough to leave its subject."""

NO_MEDIA = "no picture, video or sound"
"""What is said of a file that is of no kind known here, by its content and by its name."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A part as the tower takes it, with what tells its content from others."""

    value: Any = field(compare=False)
    content: str


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of media with the weight of its unit vector in the sum.

    Attributes:
        modality: its name.
        value: a text, a path, bytes, a PIL image, an array, (samples, their rate), or what a user's own takes.
        weight: negative for what stands under `not`.
    """

    modality: str
    value: Any
    weight: float = 1.0

    @property
    def name(self) -> str:
        """What a message calls it: the path, or a short form of the value.

        A text is cut to 200 characters; what has no name is told by modality and type.
        """
        if isinstance(self.value, str | Path | Packed):
            return str(self.value) if len(str(self.value)) <= 200 else f"{str(self.value)[:197]}..."
        return f"{self.modality} ({type(self.value).__name__})"

    @property
    def key(self) -> object:
        """Equal for parts that give the same vector, so that each is embedded once in a call."""
        # arrays and pictures are told apart by identity
        hashable = isinstance(self.value, str | bytes | Path | Ready)
        several = isinstance(self.value, tuple | list)  # an array and its rate, frames
        return (self.modality, self.value if hashable else tuple(map(id, self.value)) if several else id(self.value))


def check_weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """A copy of `weights`, checked.

    Args:
        weights: modality or "not" -> number; None for none.

    Raises:
        ValueError: for a name that is no modality or `not`, and for what is no finite number.
    """
    allowed = (*names(), "not")
    for name, weight in (weights or {}).items():
        if name not in allowed:
            raise ValueError(f"expected weights for {', '.join(allowed)}, got {name!r}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"expected a finite number as the weight of {name}, got {weight!r}")
    return dict(weights or {})


def parts_of(item: Any, weights: Mapping[str, float] | None = None) -> list[Part]:
    """Read an item into its parts.

    Args:
        item: as in `Embedder.embed`.
        weights: default weights by modality and of `not`; those of the item win.

    Returns:
        At least one part; those of `not` have negative weights.

    Raises:
        ValueError: when it is empty, of an unknown type or of unknown modality.

    Example:
        >>> [(part.modality, part.weight) for part in parts_of({"text": "sea", "not": {"text": "ship"}})]
        [('text', 1.0), ('text', -0.5)]
    """
    weights = check_weights(weights)
    if isinstance(item, str):
        # a mapping says what it is: {"text": "a.jpg"} are those letters
        if ("." in item or os.sep in item) and os.path.isfile(item):
            kind = kind_of(item) or "text"
            raise ValueError(
                f"expected a text, got the name of a file that is here, {item}; pass {{{kind!r}: {item!r}}}"
            )
        return [_part("text", item, weights)]
    if isinstance(item, Path):
        return [_part(kind_of_file(item), item, weights)]
    if isinstance(item, bytes):
        if (kind := kind_of(item)) is None:
            raise ValueError(f"expected the bytes of an image, video or audio file, got {len(item)} of none; pass one")
        return [_part(kind, item, weights)]
    if isinstance(item, Sample):
        # the text of a sample with media is its caption, which would give the answer away
        found = held(item)
        media = [m for m in found if not medium(m).is_words] or list(found)
        if not media:
            raise ValueError(f"expected sample {item.id!r} to hold {', '.join(names())}, got none of them")
        # of a bare array: a file, or a pair (array, rate), says its own
        rate = item.meta.get("sampling_rate")
        rated = {m: rate is not None and medium(m).seconds is not None and is_array(found[m]) for m in media}
        return [_part(m, (found[m], rate) if rated[m] else found[m], weights) for m in media]
    if isinstance(item, Mapping):
        return _parts_of_mapping(item, weights)
    if is_picture(item):
        return [_part("image", item, weights)]
    if is_array(item):
        kind = {1: "audio", 3: "image", 4: "video"}.get(len(item.shape))
        if kind is None:  # a grey picture, or the channels of a sound
            got = f"an array of shape {tuple(item.shape)}"
            raise ValueError(
                f"expected an item that says what it is, got {got}; pass {{'image': it}} or {{'audio': it}}"
            )
        return [_part(kind, item, weights)]
    raise ValueError(
        f"expected an item such as a text, a Path, a Sample or {{'image': 'a.jpg'}}, got {type(item).__name__}"
    )


def _parts_of_mapping(item: Mapping[str, Any], weights: dict[str, float]) -> list[Part]:
    """Parts of a mapping: its media in the shared order, then what stands under `not`."""
    known = (*names(), "not", "weights")
    if unknown := [key for key in item if key not in known]:
        raise ValueError(f"expected the keys {', '.join(known)}, got {unknown[0]!r}")
    weights |= check_weights(item.get("weights"))
    parts = [
        _part(modality, value, weights)
        for modality in names()
        if item.get(modality) is not None
        for value in _values(modality, item[modality])
    ]
    if not parts:
        raise ValueError(f"expected at least one of {', '.join(names())} in an item, got {sorted(item)}")
    others = item["not"] if isinstance(item.get("not"), list) else [item.get("not")]
    for other in (one for one in others if one is not None):
        scale = weights.get("not", NOT_WEIGHT)
        # a `not` inside a `not` starts from the default weight again
        positive = {name: weight for name, weight in weights.items() if name != "not"}
        parts += [replace(p, weight=-scale * p.weight) for p in parts_of(other, positive)]
    return parts


def _part(modality: str, value: Any, weights: Mapping[str, float]) -> Part:
    """One part of a value that has the right type for its modality. Raises ValueError for another type."""
    kind = medium(modality)
    if not kind.accepts(value):
        raise ValueError(f"expected {modality} as {kind.takes}, got {type(value).__name__}")
    if kind.is_words and not whole_text(value).strip():
        raise ValueError(f"expected a text with words in it, got {value!r:.40}; leave it out")
    return Part(modality, value, float(weights.get(modality, 1.0)))


def _values(modality: str, value: Any) -> Sequence[Any]:
    """The values of one key: a list of them, or one. A list of pictures is one film, of which they are the frames."""
    kind = medium(modality)
    return value if isinstance(value, list) and not (kind.frames_of and kind.accepts(value)) else [value]


def kind_of_file(path: Path) -> str:
    """The modality of a media file, read from its content.

    Raises:
        ValueError: when it is missing, no regular file, empty or no media.
    """
    if not path.is_file():
        got = "not a regular file" if path.exists() else "no such file"
        raise ValueError(f"expected a file, got {path}: {got}; check the path")
    kind = kind_of(path)
    if kind is None or medium(kind).is_words:
        raise ValueError(f"expected an image, video or audio file, got {path}: {NO_MEDIA}; pass one")
    return kind


def load(part: Part, sampling_rate: int | None, limits: Limits | None = None) -> Any:
    """Decode a part.

    Args:
        part: text stays as it is.
        sampling_rate: of the model, in samples per second; None takes 16000.
        limits: keyword arguments of the loaders, by modality.

    Returns:
        image: PIL RGB; video: a list of PIL frames, 8 unless `limits` say else; audio: float32 (samples,) at
            `sampling_rate`; what a user's own `load` gives.

    Raises:
        ValueError: one line that names the file, for what is missing or cannot be decoded.
    """
    how = (limits or {}).get(part.modality, {})
    return medium(part.modality).load(part.value, sampling_rate or RATE, **how)
