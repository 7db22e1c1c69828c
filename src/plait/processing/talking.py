"""What goes into a model that talks about pictures, as far as families agree: media dealt to texts, rows, batches.

texts with placeholders, PIL images, clips -> every text with its own media -> rows of ids -> padded batch

A family adds its conversation, its image rules and its positions per medium.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from plait.processing.images import CLIP_MEAN, CLIP_STD

IGNORED = -100
"""Label of a position where nothing is learned."""

Turn = tuple[str, str | None]
"""A question and its answer, None while it is open."""

Encode = Callable[[str], list[int]]
"""A piece of text to ids."""

_SWALLOWED = {
    "padding", "truncation", "add_special_tokens", "return_token_type_ids", "return_mm_token_type_ids",
}  # fmt: skip
"""Arguments that transformers' chat template passes on; every other unknown one is an error, never ignored."""


@dataclass(frozen=True)
class Shown:
    """A text with its own media in reading order.

    text: with one placeholder per image and per clip; clips: frames of each.
    """

    text: str
    images: list[Image.Image]
    clips: list[list[Image.Image]]


def deal_media(
    texts: Sequence[str], images: Any, videos: Any, *, image: str, video: str, has_clips: bool
) -> list[Shown]:
    """Every text with the media that its placeholders ask for.

    Args:
        texts: prompts or rows.
        images, videos: in reading order, flat or a list per text; None for none.
        image, video: the placeholders.
        has_clips: whether the model reads clips; without, the frames of a video become images that
            stand where it stood.

    Returns:
        One `Shown` per text.

    Raises:
        ValueError: unless there are exactly as many media as placeholders.
    """
    pictures, clips = list(flat_images(images)), list(_clips(videos))
    for name, got in ((image, len(pictures)), (video, len(clips))):
        wanted = sum(text.count(name) for text in texts)
        if wanted != got:  # silently they would pass to the texts that follow
            kind = name.strip("<|>")
            raise ValueError(
                f"expected {wanted} {kind}s for {wanted} {name} placeholders, got {got}; "
                f"pass one {kind} per placeholder"
            )
    # flat over the batch: media are dealt in reading order, whatever lists they came in
    next_picture, next_clip = iter(pictures), iter(clips)
    dealt = []
    for text in texts:
        shown = Shown(text, [], [])
        pieces = re.split(f"({re.escape(image)}|{re.escape(video)})", text)
        for i, piece in enumerate(pieces):
            if piece == image:
                shown.images.append(next(next_picture))
            elif piece == video and has_clips:
                shown.clips.append(next(next_clip))
            elif piece == video:
                frames = next(next_clip)
                shown.images.extend(frames)
                # a model without clips sees a video as so many pictures
                pieces[i] = image * len(frames)
        dealt.append(Shown("".join(pieces), shown.images, shown.clips))
    return dealt


def flat_images(images: Any) -> Iterator[Image.Image]:
    """Images out of one, a list, or a list per text, in order. None gives none."""
    if isinstance(images, Image.Image):
        yield images
    elif images is not None:
        for item in images:
            yield from flat_images(item)


def _clips(videos: Any) -> Iterator[list[Image.Image]]:
    """Clips out of one clip, a list of them, or a list per text; anything with `.frames` is a clip.

    A clip is a list of PIL frames: a list of images is one clip and not several.
    """
    if videos is None:
        return
    frames = getattr(videos, "frames", videos)
    if len(frames) and isinstance(frames[0], Image.Image):
        yield list(frames)
        return
    for item in frames:
        yield from _clips(item)


@dataclass(frozen=True)
class Row:
    """Ids of a prompt or a sample.

    labels: of a sample, as long as the ids; images: those whose places are in the ids.
    """

    ids: list[int]
    labels: list[int] | None = None
    images: list[Image.Image] = field(default_factory=list)


class SquareImages(PilBackend):
    """Images to pixels of a square, with CLIP's mean and deviation; a family's `pixels` says how they become square.

    transformers reads plain class attributes and writes them into the processor's file.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012
    resample = PILImageResampling.BICUBIC
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    image_mean = list(CLIP_MEAN)  # noqa: RUF012
    image_std = list(CLIP_STD)  # noqa: RUF012

    def __call__(self, images: Any, **_: Any) -> BatchFeature:  # ty: ignore[incompatible-method-override]
        """One or several images -> pixel_values (images, 3, side, side)."""
        return BatchFeature({"pixel_values": torch.stack([self.pixels(image) for image in flat_images(images)])})

    def pixels(self, image: Image.Image) -> Tensor:
        """An image of any size to (3, side, side), normalised. A family writes it."""
        raise NotImplementedError


class TalkingProcessor(ProcessorMixin):
    """A tokenizer, an image processor and a conversation; a family writes `__init__`, `__call__` and `supervised`.

    unspoken: ids that stand for media and have no text.
    """

    @property
    def unspoken(self) -> tuple[int, ...]:
        """Ids that stand for media and have no text; a family says it."""
        raise NotImplementedError

    def prompts(self, text: Any, audio: Any, return_tensors: str, unknown: dict[str, Any]) -> list[str]:
        """The texts of a call.

        Args:
            text: one or a list.
            audio: must be None: no family that talks hears.
            return_tensors: must be "pt".
            unknown: the other arguments of the call.

        Raises:
            ValueError: for arguments that `__call__` does not have, and without text.
        """
        # transformers would swallow what it does not know, and a misspelt option would do nothing
        strangers = sorted(set(unknown) - _SWALLOWED)
        if strangers:
            raise ValueError(f"expected images, text, videos, got {', '.join(strangers)}")
        if text is None or audio is not None or return_tensors != "pt":
            raise ValueError(
                "expected text, no audio and return_tensors='pt', got others; images alone: image_processor"
            )
        return [text] if isinstance(text, str) else list(text)

    def padded(self, rows: Sequence[Row], side: str, pad: int) -> dict[str, Tensor]:
        """Rows to a batch.

        Args:
            rows: of any lengths.
            side: left to generate, since the next token is read at the last position; right to train.
            pad: id of padding.

        Returns:
            input_ids, attention_mask and, where rows have them, labels, int64 (batch, longest).
        """
        width = max(len(row.ids) for row in rows)
        columns: dict[str, list[list[int]]] = {}
        for row in rows:
            held = [("input_ids", row.ids, pad), ("attention_mask", [1] * len(row.ids), 0)]
            if row.labels is not None:
                held.append(("labels", row.labels, IGNORED))
            for name, values, filler in held:
                # labels are padded with -100, so that padding is never learned
                fill = [filler] * (width - len(row.ids))
                columns.setdefault(name, []).append(fill + values if side == "left" else values + fill)
        return {name: torch.tensor(values) for name, values in columns.items()}

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """Generated ids to answers, special tokens left out.

        sequences: (batch, new); options: of the tokenizer's decode.
        """
        return [self.decode(row, **options) for row in sequences]

    def decode(self, ids: Any, **options: Any) -> str:
        """Ids to text, special tokens and positions of media left out, blanks stripped.

        ids: (new,); options: of the tokenizer's decode.
        """
        # a tokenizer fails on an id below 0, with which mPLUG-Owl's official ids mark media
        spoken = [int(i) for i in ids if int(i) >= 0 and int(i) not in self.unspoken]
        return self.tokenizer.decode(spoken, **{"skip_special_tokens": True, **options}).strip()
