"""What goes into a model that talks about pictures, as far as families agree: media dealt to texts, rows, batches.

texts with placeholders, PIL images, clips -> every text with its own media -> rows of ids -> padded batch

A family adds its conversation, its image rules and its positions per medium.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from plait.nn.contract import OpensAlone, checked
from plait.processing.images import CLIP_MEAN, CLIP_STD, pictures_in
from plait.types import as_words

IGNORED = -100
"""Label of a position where nothing is learned."""

IMAGE_APART, VIDEO_APART = 1 << 30, (1 << 30) + 1
"""Ids of media where a tokenizer has grown over those behind its first vocabulary: no table grows this far."""

Turn = tuple[str, str | None]
"""A question and its answer, None while it is open."""

Encode = Callable[[str], list[int]]
"""A piece of text to ids."""

_SIDES = ("left", "right")
_PADDING = {True: "longest", None: "longest", False: "do_not_pad"}
_CUT = {True: True, "longest_first": True, "only_first": True, False: False, None: False, "do_not_truncate": False}


class TalkBatch(BatchFeature):
    """A batch whose labels never name a position of media, however they got into it.

    Trainers of other libraries write `batch["labels"] = batch["input_ids"].clone()` and, like TRL, may compute the loss
    without the model's `forward`, which would have left these positions out: no logits stand for them.

    Args:
        data: name -> tensor.
        media_ids: that stand on positions of media.
    """

    media_ids: tuple[int, ...] = ()

    def __init__(self, data: dict[str, Any] | None = None, *args: Any, media_ids: tuple[int, ...] = ()) -> None:
        self.media_ids = media_ids
        super().__init__(data, *args)

    def __setitem__(self, key: str, item: Any) -> None:
        """As a dict does. Labels: (batch, seq)."""
        if key == "labels" and isinstance(item, Tensor):
            item = item.masked_fill(torch.isin(item, torch.tensor(self.media_ids, device=item.device)), IGNORED)
        super().__setitem__(key, item)


@dataclass(frozen=True)
class Fitting:
    """How prompts become one tensor, in the words of transformers, each of which acts.

    truncation: whether what is longer than max_length is cut; max_length: positions, those of media included; padding:
    longest, max_length or do_not_pad; padding_side: left or right; pad_to_multiple_of: of the width;
    add_special_tokens: whether a prompt begins with the tokenizer's start token.
    """

    truncation: bool = False
    padding: str = "longest"
    max_length: int | None = None
    padding_side: str = "left"
    pad_to_multiple_of: int | None = None
    add_special_tokens: bool = True

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> Fitting:
        """The arguments of a call, nested ones too. Raises ValueError for those that nothing here obeys."""
        given = {**options}
        for nested in ("common_kwargs", "text_kwargs"):
            given |= given.pop(nested, None) or {}
        # Of these only one value can be obeyed; transformers' chat template passes some of them on.
        for name, only in _FIXED.items():
            if given.pop(name, only) not in (only, None):
                raise ValueError(f"expected {name}={only!r}, got {options.get(name)!r}; leave it out")
        given = {name: value for name, value in given.items() if not (name.endswith("_kwargs") and not value)}
        if strangers := sorted(set(given) - set(cls.__dataclass_fields__)):
            raise ValueError(f"expected images, text, videos, got {', '.join(strangers)}")
        padding, cut = given.get("padding"), given.get("truncation")
        padding = _PADDING.get(padding, padding)
        if padding not in ("longest", "max_length", "do_not_pad"):
            raise ValueError(f"expected padding among longest, max_length, do_not_pad, got {padding!r}")
        if cut not in _CUT:
            raise ValueError(f"expected truncation of True or False, got {cut!r}")
        longest, side = given.get("max_length"), given.get("padding_side") or "left"
        if side not in _SIDES:
            raise ValueError(f"expected padding_side among {', '.join(_SIDES)}, got {side!r}")
        if longest is None and (padding == "max_length" or _CUT[cut]):
            what = "padding='max_length'" if padding == "max_length" else "truncation"
            raise ValueError(f"expected max_length with {what}, got none; say how many positions")
        multiple, special = given.get("pad_to_multiple_of"), given.get("add_special_tokens", True)
        return cls(_CUT[cut], padding, longest, side, multiple, bool(special))

    def limit(self, length: int) -> int | None:
        """Where a row of `length` positions is cut, None for nowhere. Raises ValueError where it is too long."""
        if self.max_length is None or length <= self.max_length:
            return None
        if not self.truncation:
            raise ValueError(
                f"expected prompts of at most {self.max_length} positions, got {length}; "
                "shorten them, or cut them with truncation=True"
            )
        return self.max_length

    def width(self, lengths: Sequence[int]) -> int:
        """Positions of the tensor. Raises ValueError for ragged rows that may not be padded."""
        longest = max(lengths)
        if self.padding == "do_not_pad" and min(lengths) != longest:
            raise ValueError(f"expected prompts of one length without padding, got {min(lengths)} to {longest}")
        wide = self.max_length if self.padding == "max_length" and self.max_length is not None else longest
        return wide if not self.pad_to_multiple_of else -(-wide // self.pad_to_multiple_of) * self.pad_to_multiple_of


_FIXED = {"return_tensors": "pt", "return_token_type_ids": False, "return_mm_token_type_ids": False}


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
    pictures, clips = in_order(texts, images, image), in_order(texts, videos, video)
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


def in_order(texts: Sequence[str], media: Any, placeholder: str) -> list[Any]:
    """Images, or clips, of all texts in reading order. media: one, several, or a list (None for nothing) per text.

    Raises ValueError unless every placeholder has its medium, in the text that it was given to: silently media would
    pass to the texts that follow.
    """
    kind = placeholder.strip("<|>")
    read: Callable[[Any], list[Any]] = lambda one: list(_clips(one) if kind == "video" else pictures_in(one))  # noqa: E731
    if not _is_per_text(media, kind):
        found, wanted = read(media), sum(text.count(placeholder) for text in texts)
        if wanted != len(found):
            raise ValueError(
                f"expected {wanted} {kind}s for {wanted} {placeholder} placeholders, got {len(found)}; "
                f"pass one {kind} per placeholder"
            )
        return found
    if len(media) != len(texts):
        raise ValueError(f"expected {kind}s of {len(texts)} prompts, got {len(media)} lists; give one list per prompt")
    own = [read(one) for one in media]
    for number, (text, held) in enumerate(zip(texts, own)):
        if text.count(placeholder) != len(held):
            raise ValueError(
                f"expected {text.count(placeholder)} {kind}s in prompt {number}, got {len(held)}; "
                f"pass one {kind} per placeholder {placeholder}"
            )
    return [one for held in own for one in held]


def _is_per_text(media: Any, kind: str) -> bool:
    """Whether media came as a list per text; frames of a clip are a list of their own."""
    if not isinstance(media, list | tuple) or not media:
        return False
    if kind == "image":
        return any(one is None or isinstance(one, list | tuple) for one in media)
    return any(
        one is None or (isinstance(one, list | tuple) and (not one or isinstance(one[0], list | tuple)))
        for one in media
    )


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


@checked
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
        return BatchFeature({"pixel_values": torch.stack([self.pixels(image) for image in pictures_in(images)])})

    def pixels(self, image: Image.Image) -> Tensor:
        """An image of any size to (3, side, side), normalised. A family writes it."""
        raise NotImplementedError


@checked
class TalkingProcessor(OpensAlone, ProcessorMixin):
    """A tokenizer, an image processor and a conversation; a family writes `__init__`, `__call__` and `supervised`.

    unspoken: ids that stand for media and have no text.
    """

    @property
    def unspoken(self) -> tuple[int, ...]:
        """Ids that stand for media and have no text; a family says it."""
        raise NotImplementedError

    def placed(self, media_id: int, apart: int) -> int:
        """The id on positions of media: `media_id`, until added tokens have taken it."""
        return apart if len(self.tokenizer) > media_id else media_id

    def prompts(self, text: Any, audio: Any) -> list[str]:
        """The texts of a call. Raises ValueError without any, and for audio."""
        texts: list[str] = [text] if isinstance(text, str) else list(text or ())
        if not texts or audio is not None:
            raise ValueError(
                "expected text, no audio and at least one prompt, got others; images alone: image_processor"
            )
        return texts

    def apply_chat_template(  # ty: ignore[incompatible-method-override]
        self, conversation: Any, chat_template: str | None = None, **options: Any
    ) -> Any:
        """As in transformers. Words of a part, and of answers, stay words where they spell a placeholder.

        Text parts of answers and of a system message are joined, as templates have room for one. Raises ValueError for
        roles and types of parts that a template would drop or take for others.
        """
        is_batch = bool(conversation) and isinstance(conversation[0], list | tuple)
        many = [[_message(one) for one in talk] for talk in (conversation if is_batch else [conversation])]
        return super().apply_chat_template(many if is_batch else many[0], chat_template, **options)

    def padded(self, rows: Sequence[Row], fitting: Fitting, pad: int) -> dict[str, Tensor]:
        """Rows to a batch.

        Args:
            rows: of any lengths.
            fitting: width and side: left to generate, since the next token is read at the last position; right to
                train.
            pad: id of padding.

        Returns:
            input_ids, attention_mask and, where rows have them, labels, int64 (batch, width).
        """
        width, side = fitting.width([len(row.ids) for row in rows]), fitting.padding_side
        columns: dict[str, list[list[int]]] = {}
        for row in rows:
            held = [("input_ids", row.ids, pad), ("attention_mask", [1] * len(row.ids), 0)]
            if row.labels is not None:
                held.append(("labels", row.labels, IGNORED))
            for name, values, filler in held:
                # labels are padded with -100, so that padding is never learned
                fill = [filler] * (width - len(row.ids))
                columns.setdefault(name, []).append(fill + values if side == "left" else values + fill)
        if not width:
            raise ValueError("expected prompts of at least one token, got empty ones; write something")
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


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"expected messages of system, user or assistant, got one of {role!r}; give it one of these")
    if isinstance(content, str):
        # people write placeholders into a text of their own, models do not
        return {**message, "content": content if role == "user" else as_words(content)}
    parts = [{**part, "text": as_words(part["text"])} if part.get("type") == "text" else part for part in content or ()]
    kinds = {"text", "image", "video"} if role == "user" else {"text"}
    if strangers := [str(part.get("type")) for part in parts if part.get("type") not in kinds]:
        raise ValueError(
            f"expected parts of type {', '.join(sorted(kinds))} in a message of {role}, got {', '.join(strangers)}"
        )
    return {**message, "content": parts if role == "user" else "".join(part["text"] for part in parts)}
