"""Images and frames as mPLUG-Owl was trained on them: squashed to a square, CLIP's mean and deviation.

PIL image -> RGB -> bicubic resize to side x side (training: a random crop, perhaps mirrored) -> (3, side, side)

What goes into mPLUG-Owl: prompts, PIL images and clips -> ids with a place for every position, pixels, labels.

text with <image> and <|video|> -> pieces tokenized apart -> tokens_per_media ids per medium -> padded batch
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from plait.models.mplug_owl.config import MPlugOwlConfig
from plait.models.mplug_owl.conversation import (
    CHAT_TEMPLATE,
    HUMAN,
    IMAGE,
    SYSTEM,
    VIDEO,
    Row,
    Turn,
    clean_answer,
    tokenize,
    training_pieces,
    training_row,
)
from plait.models.mplug_owl.model import IGNORED, IMAGE_RUN, VIDEO_RUN, count_runs, from_runs
from plait.processing.images import CLIP_MEAN, CLIP_STD, normalize, resize, to_tensor

SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)


class Draw(NamedTuple):
    """What one training image was cut to, in pixels, and whether it was mirrored."""

    top: int
    left: int
    height: int
    width: int
    hflip: bool


def pixels(
    image: Image.Image,
    side: int,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    *,
    official: bool = False,
) -> Tensor:
    """An image of any size to (3, side, side) float32, its aspect not kept.

    official: resize before converting to RGB, as released; it differs for palettes and transparency.
    """
    squashed = resize(image if official else image.convert("RGB"), side, side)
    return normalize(to_tensor(squashed.convert("RGB")), mean, std)


def draw(
    width: int,
    height: int,
    generator: torch.Generator | None = None,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> Draw:
    """A random crop of a share `scale` of the area and an aspect in `ratio`, mirrored half of the time.

    Draws as torchvision's RandomResizedCrop and RandomHorizontalFlip do from the same generator.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * float(torch.empty(1).uniform_(*scale, generator=generator))
        aspect = float(torch.exp(torch.empty(1).uniform_(low, high, generator=generator)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return Draw(top, left, h, w, _flip(generator))
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = (width, round(width / aspect)) if width / height < ratio[0] else (round(height * aspect), height)
    return Draw((height - h) // 2, (width - w) // 2, h, w, _flip(generator))


def _flip(generator: torch.Generator | None) -> bool:
    return float(torch.rand(1, generator=generator)) < 0.5


def training_pixels(
    image: Image.Image, side: int, drawn: Draw, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Tensor:
    """The drawn part of an image to (3, side, side)."""
    box = (drawn.left, drawn.top, drawn.left + drawn.width, drawn.top + drawn.height)
    part = resize(image.convert("RGB").crop(box), side, side)
    part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn.hflip else part
    return normalize(to_tensor(part), mean, std)


_KNOWN = {"padding", "truncation", "add_special_tokens", "return_token_type_ids", "return_mm_token_type_ids"}


class MPlugOwlImageProcessor(PilBackend):
    """Images to pixels, squashed to a square; see `images.py`."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers reads plain class attributes)
    size = {"height": 224, "width": 224}  # noqa: RUF012
    resample = PILImageResampling.BICUBIC
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    image_mean = list(CLIP_MEAN)  # noqa: RUF012
    image_std = list(CLIP_STD)  # noqa: RUF012

    def __call__(self, images: Any, **_: Any) -> BatchFeature:  # ty: ignore[incompatible-method-override]
        """One or several images -> pixel_values (images, 3, side, side)."""
        chosen = [images] if isinstance(images, Image.Image) else list(images)
        return BatchFeature({"pixel_values": torch.stack([self.pixels(image) for image in chosen])})

    def pixels(self, image: Image.Image, generator: torch.Generator | None = None, *, training: bool = False) -> Tensor:
        """An image of any size to (3, side, side); training: a random part of it, drawn from `generator`."""
        side = self.size["height"]
        if training:
            return training_pixels(image, side, draw(*image.size, generator), self.image_mean, self.image_std)
        return pixels(image, side, self.image_mean, self.image_std)

    def clip(self, frames: Sequence[Image.Image]) -> Tensor:
        """Frames to (3, frames, side, side)."""
        return torch.stack([self.pixels(frame) for frame in frames], dim=1)


class MPlugOwlProcessor(ProcessorMixin):
    """Tokenizer, image processor and conversation of one model.

    stop_strings: what ends an answer beside its end token, as models write on for the human; tokens_per_media,
    image_token_id, video_token_id: as in the model's configuration; temporal: whether the model takes
    clips, else a video is read as images, one per frame; num_frames: that files are sampled to.
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

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: None = None,
        *,
        max_length: int | None = None,
        padding_side: str = "left",
        return_tensors: str = "pt",
        **unknown: Any,
    ) -> BatchFeature:
        """Prompts with media -> input_ids, attention_mask (batch, seq), pixel_values (images, 3, side, side) and
        pixel_values_videos (videos, 3, frames, side, side).

        images, videos: in reading order of the `<image>` and `<|video|>` placeholders, flat or a list per prompt; a
        video is a list of frames. Raises ValueError for unknown arguments, where media and placeholders do not agree,
        and for prompts longer than max_length.
        """
        if set(unknown) - _KNOWN:
            raise ValueError(f"expected images, text, videos, got {', '.join(sorted(set(unknown) - _KNOWN))}")
        if text is None or audio is not None or return_tensors != "pt":
            raise ValueError(
                "expected text, no audio and return_tensors='pt', got others; images alone: image_processor"
            )
        texts, pictures, clips = self._media([text] if isinstance(text, str) else list(text), images, videos)
        rows = [Row(self.encode(prompt), []) for prompt in texts]
        longest = max(len(row.ids) for row in rows)
        if max_length is not None and longest > max_length:
            raise ValueError(f"expected prompts of at most {max_length} positions, got {longest}; shorten them")
        return BatchFeature(self._padded(rows, padding_side) | self._pixels(pictures, clips))

    def encode(self, text: str) -> list[int]:
        """Text to ids with -1 and -2 on the positions of media. No end token is added."""
        return tokenize(text, self._encode_piece, self.tokenizer.bos_token_id, self.tokens_per_media)

    def _encode_piece(self, piece: str) -> list[int]:
        return self.tokenizer(piece, add_special_tokens=False)["input_ids"]

    def supervised(
        self,
        conversations: Sequence[Sequence[Turn]],
        images: Any = None,
        videos: Any = None,
        *,
        max_length: int = 2048,
        system: str = SYSTEM,
        generator: torch.Generator | None = None,
        training: bool = False,
    ) -> BatchFeature:
        """Training samples: turns (question with placeholders, answer) -> what `__call__` returns, right-padded, and
        labels (batch, seq): answers and their ends, -100 elsewhere.

        Media whose place falls behind max_length are left out. training: random crops of images from `generator`.
        Raises ValueError, naming the conversation, where truncation leaves nothing to learn.
        """
        questions = [question for turns in conversations for question, _ in turns]
        texts, pictures, clips = self._media(questions, images, videos)
        rewritten, held = iter(texts), [list(pictures), list(clips)]
        rows, kept = [], ([], [])
        for i, turns in enumerate(conversations):
            asked = [(next(rewritten), answer) for _, answer in turns]
            pieces = training_pieces(asked, system)
            row = training_row(
                pieces, self._encode_piece, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, max_length,
                self.tokens_per_media,
            )  # fmt: skip
            if all(label == IGNORED for label in row.labels):
                raise ValueError(
                    f"expected an answer within {max_length} positions, got none in conversation {i}; raise max_length"
                )
            rows.append(row)
            for kind, (name, run) in enumerate(((IMAGE, IMAGE_RUN), (VIDEO, VIDEO_RUN))):
                owned = sum(question.count(name) for question, _ in asked)
                mine, held[kind] = held[kind][:owned], held[kind][owned:]
                kept[kind].extend(mine[: count_runs(row.ids, run, self.tokens_per_media)])
        media = self._pixels(kept[0], kept[1], generator, training=training)
        return BatchFeature(self._padded(rows, "right") | media)

    def _media(
        self, texts: list[str], images: Any, videos: Any
    ) -> tuple[list[str], list[Image.Image], list[list[Image.Image]]]:
        """Texts, images and clips; without temporal modules a clip's frames stand among the images."""
        pictures, clips = list(_flat(images)), list(_clips(videos))
        for name, got in ((IMAGE, len(pictures)), (VIDEO, len(clips))):
            wanted = sum(text.count(name) for text in texts)
            if wanted != got:
                kind = name.strip("<|>")
                raise ValueError(
                    f"expected {wanted} {kind}s for {wanted} {name} placeholders, got {got}; "
                    f"pass one {kind} per placeholder"
                )
        if self.temporal or not clips:
            return texts, pictures, clips
        return self._frames_as_images(texts, pictures, clips)

    def _frames_as_images(
        self, texts: list[str], pictures: list[Image.Image], clips: list[list[Image.Image]]
    ) -> tuple[list[str], list[Image.Image], list[list[Image.Image]]]:
        given, films, every, rewritten = iter(pictures), iter(clips), [], []
        for text in texts:
            parts = text.split(VIDEO)
            for i, part in enumerate(parts):
                every += [next(given) for _ in range(part.count(IMAGE))]
                if i + 1 < len(parts):
                    frames = next(films)
                    every += frames
                    parts[i] = part + IMAGE * len(frames)
            rewritten.append("".join(parts))
        return rewritten, every, []

    def _padded(self, rows: Sequence[Row], side: str) -> dict[str, Tensor]:
        width = max(len(row.ids) for row in rows)
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": []}
        for row in rows:
            fill = width - len(row.ids)
            columns["input_ids"].append(_pad(row.ids, fill, pad, side))
            columns["attention_mask"].append(_pad([1] * len(row.ids), fill, 0, side))
            if row.labels:
                columns.setdefault("labels", []).append(_pad(row.labels, fill, IGNORED, side))
        batch = {name: torch.tensor(values) for name, values in columns.items()}
        batch["input_ids"] = from_runs(batch["input_ids"], (self.image_token_id, self.video_token_id))
        return batch

    def _pixels(
        self,
        pictures: Sequence[Image.Image],
        clips: Sequence[Sequence[Image.Image]],
        generator: torch.Generator | None = None,
        *,
        training: bool = False,
    ) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        if pictures:
            images = [self.image_processor.pixels(image, generator, training=training) for image in pictures]
            made["pixel_values"] = torch.stack(images)
        if clips:
            lengths = sorted({len(clip) for clip in clips})
            if len(lengths) > 1:
                raise ValueError(f"expected videos of one number of frames, got {lengths}; sample them alike")
            made["pixel_values_videos"] = torch.stack([self.image_processor.clip(clip) for clip in clips])
        return made

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """Generated ids (batch, new) to answers, special tokens left out."""
        return [self.decode(row, **options) for row in sequences]

    def decode(self, ids: Any, **options: Any) -> str:
        """Ids to text, special tokens and positions of media left out, blanks stripped."""
        size = min(self.image_token_id, self.video_token_id)
        kept = [int(i) for i in ids if 0 <= int(i) < size]
        return clean_answer(self.tokenizer.decode(kept, **{"skip_special_tokens": True, **options}))


def _pad(values: list[int], count: int, fill: int, side: str) -> list[int]:
    return [fill] * count + values if side == "left" else values + [fill] * count


def _flat(images: Any) -> Iterator[Image.Image]:
    if isinstance(images, Image.Image):
        yield images
    elif images is not None:
        for item in images:
            yield from _flat(item)


def _clips(videos: Any) -> Iterator[list[Image.Image]]:
    """Clips out of one clip, a list of them, or a list per prompt; anything with `.frames` is a clip."""
    if videos is None:
        return
    frames = getattr(videos, "frames", videos)
    if len(frames) and isinstance(frames[0], Image.Image):
        yield list(frames)
        return
    for item in frames:
        yield from _clips(item)


def turns_of(messages: Sequence[Mapping[str, str]]) -> list[Turn]:
    """`[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]` to turns. Raises ValueError otherwise."""
    roles = [message.get("from") for message in messages]
    if roles != ["human", "gpt"] * (len(messages) // 2) or not messages:
        raise ValueError(f"expected messages from human and gpt in turn, got {roles}")
    return [(q["value"], a["value"]) for q, a in zip(messages[::2], messages[1::2])]
