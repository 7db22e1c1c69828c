"""What goes into mPLUG-Owl: prompts, images and clips -> ids with a place for every position, pixels, labels.

text with <image> and <|video|> -> pieces tokenized apart -> tokens_per_media ids per medium -> padded batch
PIL image -> RGB -> bicubic resize to side x side (training: a random crop, perhaps mirrored) -> (3, side, side)
Source: specification mPLUG-Owl, section 8; the paper (arXiv 2304.14178) says nothing of it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from plait.models.mplug_owl.config import MPlugOwlConfig
from plait.models.mplug_owl.conversation import (
    CHAT_TEMPLATE,
    HUMAN,
    IMAGE,
    SYSTEM,
    VIDEO,
    Turn,
    clean_answer,
    tokenize,
    training_pieces,
    training_row,
)
from plait.models.mplug_owl.model import IMAGE_RUN, VIDEO_RUN, count_runs, from_runs
from plait.nn.contract import checked
from plait.processing.images import CLIP_MEAN, CLIP_STD, normalize, resize, to_tensor
from plait.processing.talking import (
    IGNORED,
    IMAGE_APART,
    VIDEO_APART,
    Fitting,
    Row,
    Shown,
    SquareImages,
    TalkBatch,
    TalkingProcessor,
    deal_media,
    in_order,
)
from plait.types import spoken

SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)
"""Share of the area and aspect of a training crop, as released."""


@checked
class MPlugOwlProcessor(TalkingProcessor):
    """Tokenizer, image processor and conversation of one model.

    `stop_strings` is what ends an answer beside its end token, as models write on for the human.

    Args:
        image_processor: an `MPlugOwlImageProcessor`.
        tokenizer: of transformers; no special ids of its own are used between media.
        tokens_per_media, image_token_id, video_token_id: as in the model's configuration.
        temporal: whether the model takes clips, else a video is read as images, one per frame.
        num_frames: that files are sampled to, 4 as published.
        chat_template: of transformers, by default the published conversation.

    Source:
        Specification mPLUG-Owl, section 8.

    Example:
        >>> processor = MPlugOwlProcessor.from_config(model.config, tokenizer)
        >>> batch = processor(images=[image], text=["Human: <image>\\nHuman: What is this?\\nAI:"])
        >>> ids = model.generate(**batch, max_new_tokens=20)
        >>> processor.decode(ids[0, batch["input_ids"].shape[1] :])
    """

    stop_strings = (HUMAN.rstrip(),)

    def __init__(
        self,
        image_processor: MPlugOwlImageProcessor,
        tokenizer: Any,
        tokens_per_media: int = 65,
        image_token_id: int = 32000,
        video_token_id: int = 32001,
        temporal: bool = False,
        num_frames: int = 4,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.tokens_per_media, self.temporal, self.num_frames = tokens_per_media, temporal, num_frames
        self.image_token_id, self.video_token_id = image_token_id, video_token_id
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE, **kwargs)

    @classmethod
    def from_config(cls, config: MPlugOwlConfig, tokenizer: Any, **options: Any) -> MPlugOwlProcessor:
        """The processor of a model of `config` with its tokenizer; options: of the constructor."""
        image_id, video_id = config.media_ids
        return cls(
            MPlugOwlImageProcessor(size={"height": config.image_size, "width": config.image_size}),
            tokenizer,
            tokens_per_media=config.tokens_per_media,
            image_token_id=image_id,
            video_token_id=video_id,
            temporal=config.temporal,
            **options,
        )

    @property
    def unspoken(self) -> tuple[int, ...]:
        """The ids of media."""
        return IMAGE_APART, VIDEO_APART, *self._media_ids

    @property
    def _media_ids(self) -> tuple[int, int]:
        return self.placed(self.image_token_id, IMAGE_APART), self.placed(self.video_token_id, VIDEO_APART)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: None = None,
        **options: Any,
    ) -> BatchFeature:
        """Prompts with media -> input_ids, attention_mask (batch, seq), pixel_values (images, 3, side, side) and
        pixel_values_videos (videos, 3, frames, side, side).

        images, videos: in reading order of the `<image>` and `<|video|>` placeholders, flat or a list per prompt; a
        video is a list of frames. options: of `plait.processing.talking.Fitting`. Raises ValueError for unknown ones,
        where media and placeholders do not agree, and for prompts longer than max_length that may not be cut.
        """
        fitting = Fitting.read(options)
        dealt = self._dealt(self.prompts(text, audio), images, videos)
        bos = self.tokenizer.bos_token_id if fitting.add_special_tokens else None
        whole = [tokenize(shown.text, self._encode_piece, bos, self.tokens_per_media) for shown in dealt]
        rows, kept = [], []
        for ids, shown in zip(whole, dealt):
            row, shown = self._cut(ids, shown, fitting.limit(len(ids)))
            rows.append(row)
            kept.append(shown)
        # The released processor pads on the right, with the end id, and then continues prompts behind their padding.
        return self._batch(rows, kept, fitting)

    def _cut(self, ids: list[int], shown: Shown, limit: int | None) -> tuple[Row, Shown]:
        """A prompt of at most `limit` positions, with the media that keep a place; half a medium would take features
        of the next one."""
        end = 0
        while limit is not None and end < len(ids):
            size = self.tokens_per_media if ids[end] in (IMAGE_RUN, VIDEO_RUN) else 1
            if end + size > limit:
                break
            end += size
        ids = ids if limit is None else ids[:end]
        pictures, clips = (count_runs(ids, run, self.tokens_per_media) for run in (IMAGE_RUN, VIDEO_RUN))
        return Row(ids), Shown("", shown.images[:pictures], shown.clips[:clips])

    def encode(self, text: str) -> list[int]:
        """Text to ids with -1 and -2 on the positions of media. No end token is added."""
        return tokenize(text, self._encode_piece, self.tokenizer.bos_token_id, self.tokens_per_media)

    def _encode_piece(self, piece: str) -> list[int]:
        return self.tokenizer(spoken(piece), add_special_tokens=False)["input_ids"]

    def supervised(
        self,
        conversations: Sequence[Sequence[Turn]],
        images: Any = None,
        videos: Any = None,
        *,
        max_length: int = 2048,
        system: str | Sequence[str] = SYSTEM,
        generator: torch.Generator | None = None,
        training: bool = False,
    ) -> BatchFeature:
        """Training samples: turns (question with placeholders, answer) -> what `__call__` returns, right-padded, and
        labels (batch, seq): answers and their ends, -100 elsewhere.

        Media whose place falls behind max_length are left out. system: of all conversations, or one of each. training:
        random crops of images from `generator`.
        Raises ValueError, naming the conversation, where truncation leaves nothing to learn.
        """
        wholes = ["".join(question for question, _ in turns) for turns in conversations]
        images = in_order(wholes, images, IMAGE)
        videos = in_order(wholes, videos, VIDEO)
        systems = [system] * len(conversations) if isinstance(system, str) else system
        questions = iter(self._dealt([question for turns in conversations for question, _ in turns], images, videos))
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        rows, kept = [], []
        for i, turns in enumerate(conversations):
            asked = [(next(questions), answer) for _, answer in turns]
            pieces = training_pieces([(shown.text, answer) for shown, answer in asked], systems[i])
            row = training_row(pieces, self._encode_piece, bos, eos, max_length, self.tokens_per_media)
            if all(label == IGNORED for label in row.labels or ()):  # the released loss is NaN then
                raise ValueError(
                    f"expected an answer within {max_length} positions, got none in conversation {i}; raise max_length"
                )
            rows.append(row)
            # Truncation may have cut places away: their media would shift to the conversations that follow.
            places = [count_runs(row.ids, run, self.tokens_per_media) for run in (IMAGE_RUN, VIDEO_RUN)]
            pictures = [image for shown, _ in asked for image in shown.images]
            clips = [clip for shown, _ in asked for clip in shown.clips]
            kept.append(Shown("", pictures[: places[0]], clips[: places[1]]))
        return self._batch(rows, kept, Fitting(padding_side="right"), generator, training=training)

    def answered(self, question: str, answers: Sequence[str], images: Any = None, videos: Any = None) -> BatchFeature:
        """A question with every answer, a row each: what `supervised` returns, but for media, which are there once."""
        shown = self._dealt([question], images, videos)
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        made = [training_pieces([(shown[0].text, answer)]) for answer in answers]
        rows = [training_row(one, self._encode_piece, bos, eos, sys.maxsize, self.tokens_per_media) for one in made]
        return self._batch(rows, shown, Fitting(padding_side="right"))

    def _dealt(self, texts: Sequence[str], images: Any, videos: Any) -> list[Shown]:
        return deal_media(texts, images, videos, image=IMAGE, video=VIDEO, has_clips=self.temporal)

    def _batch(
        self,
        rows: Sequence[Row],
        dealt: Sequence[Shown],
        fitting: Fitting,
        generator: torch.Generator | None = None,
        *,
        training: bool = False,
    ) -> BatchFeature:
        """Padded rows, ids in our notation, and the pixels of their media."""
        pad = self.tokenizer.pad_token_id
        batch = self.padded(rows, fitting, self.tokenizer.eos_token_id if pad is None else pad)
        batch["input_ids"] = from_runs(batch["input_ids"], self._media_ids)
        pictures = [image for shown in dealt for image in shown.images]
        clips = [clip for shown in dealt for clip in shown.clips]
        if pictures:
            images = [self.image_processor.pixels(image, generator, training=training) for image in pictures]
            batch["pixel_values"] = torch.stack(images)
        lengths = sorted({len(clip) for clip in clips})
        if len(lengths) > 1:
            raise ValueError(f"expected videos of one number of frames, got {lengths}; sample them alike")
        if clips:
            batch["pixel_values_videos"] = torch.stack([self.image_processor.clip(clip) for clip in clips])
        return TalkBatch(batch, media_ids=self.unspoken)

    def decode(self, ids: Any, **options: Any) -> str:
        """Ids to text, special tokens, their spelled names and positions of media left out, blanks stripped."""
        return clean_answer(super().decode(ids, **options))


@checked
class MPlugOwlImageProcessor(SquareImages):
    """Images to pixels, squashed to a square: the aspect is lost, nothing is cropped away.

    Args:
        kwargs: of transformers: size, image_mean, image_std.

    Source:
        Specification mPLUG-Owl, section 8.

    Example:
        >>> MPlugOwlImageProcessor(size={"height": 64, "width": 64}).pixels(image).shape
        torch.Size([3, 64, 64])
    """

    size = {"height": 224, "width": 224}  # noqa: RUF012 (transformers reads plain class attributes)

    def pixels(self, image: Image.Image, generator: torch.Generator | None = None, *, training: bool = False) -> Tensor:
        """An image of any size to (3, side, side); training: a random part of it, drawn from `generator`."""
        side = self.size["height"]
        if training:
            return training_pixels(image, side, draw(*image.size, generator), self.image_mean, self.image_std)
        return pixels(image, side, self.image_mean, self.image_std)

    def clip(self, frames: Sequence[Image.Image]) -> Tensor:
        """Frames to (3, frames, side, side)."""
        return torch.stack([self.pixels(frame) for frame in frames], dim=1)


def pixels(
    image: Image.Image,
    side: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    *,
    official: bool = False,
) -> Tensor:
    """An image of any size to pixels, its aspect not kept.

    Args:
        image: in any mode.
        side: of the result, in pixels.
        mean, std: per channel, of values from 0 to 1; CLIP's.
        official: resize before converting to RGB, as released: a palette is then resized by nearest neighbours, and
            transparency premultiplied. RGB and grey images come out alike.

    Returns:
        (3, side, side) float32, normalised.
    """
    squashed = resize(image if official else image.convert("RGB"), side, side)
    return normalize(to_tensor(squashed.convert("RGB")), mean, std)


class Draw(NamedTuple):
    """What one training image is cut to, in pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    hflip: bool


def draw(
    width: int,
    height: int,
    generator: torch.Generator | None = None,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> Draw:
    """A random crop of a share `scale` of the area and an aspect in `ratio`, mirrored half of the time.

    Draws as torchvision's RandomResizedCrop and RandomHorizontalFlip do from the same generator.

    Args:
        width, height: of the image, in pixels.
        generator: of torch, None for its own.
        scale: least and most share of the area.
        ratio: least and most width / height; the logarithm of the aspect is uniform between them.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):  # torchvision's bound; then the largest centred crop of an allowed aspect
        area = height * width * float(torch.empty(1).uniform_(*scale, generator=generator))
        aspect = float(torch.exp(torch.empty(1).uniform_(low, high, generator=generator)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            break
    else:
        aspect = min(max(width / height, ratio[0]), ratio[1])
        w, h = (width, round(width / aspect)) if width / height < ratio[0] else (round(height * aspect), height)
        top, left = (height - h) // 2, (width - w) // 2
    return Draw(top, left, h, w, hflip=float(torch.rand(1, generator=generator)) < 0.5)


def training_pixels(
    image: Image.Image, side: int, drawn: Draw, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Tensor:
    """The drawn part of an image to (3, side, side) float32, normalised by mean and std of CLIP.

    The crop is cut before it is resized, so pixels next to it do not bleed in.
    """
    box = (drawn.left, drawn.top, drawn.left + drawn.width, drawn.top + drawn.height)
    part = resize(image.convert("RGB").crop(box), side, side)
    part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn.hflip else part
    return normalize(to_tensor(part), mean, std)


def turns_of(messages: Sequence[Mapping[str, str]]) -> list[Turn]:
    """`[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]` to turns. Raises ValueError otherwise."""
    roles = [message.get("from") for message in messages]
    if roles != ["human", "gpt"] * (len(messages) // 2) or not messages:
        raise ValueError(f"expected messages from human and gpt in turn, got {roles}")
    return [(q["value"], a["value"]) for q, a in zip(messages[::2], messages[1::2])]
