"""Images as mPLUG-Owl2 was trained and evaluated on them: square -> shortest edge, crop -> CLIP's mean and deviation.

PIL image -> resize (stretch to a square) | pad (square of the mean colour) | crop (borders are lost) -> (3, side, side)
Two bicubic steps of Pillow on 8-bit values, as published (section 9.1).

Tokenizers of the published models, rebuilt from their own files with today's tokenizers library.

tokenizer.model (SentencePiece, Llama) | qwen.tiktoken (Qwen) -> PreTrainedTokenizerFast

What goes into mPLUG-Owl2: prompts and PIL images -> ids with a place for every image position, pixels, labels.

text with <|image|> -> pieces tokenized apart -> tokens_per_image ids per image -> padded batch
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.models.mplug_owl2.conversation import (
    CHAT_TEMPLATE,
    IMAGE,
    TEMPLATES,
    VIDEO,
    Template,
    Turn,
    answer_labels,
    image_first,
    official_labels,
    tokenize,
    turns_of,
)
from plait.models.mplug_owl2.model import IGNORED, IMAGE_PLACEHOLDER
from plait.processing.images import CLIP_MEAN, CLIP_STD, normalize, resize, to_tensor
from plait.processing.tokenizers import llama_tokenizer

ASPECTS = ("resize", "pad", "crop")


def stretched_square(image: Image.Image) -> Image.Image:
    """Stretch to a square as long as the longer side: the published evaluation mode."""
    side = max(image.size)
    return resize(image, side, side)


def padded_square(image: Image.Image, mean: Sequence[float] = CLIP_MEAN) -> Image.Image:
    """Centre on a square of the mean colour: the mode of the fine-tuning scripts."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def pixels(
    image: Image.Image,
    side: int,
    aspect: str = "resize",
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """An image to (3, side, side) float32. Raises ValueError for an aspect that is none of `ASPECTS`."""
    if aspect not in ASPECTS:
        raise ValueError(f"expected image_aspect among {', '.join(ASPECTS)}, got {aspect!r}")
    image = image.convert("RGB")
    if aspect != "crop":
        image = stretched_square(image) if aspect == "resize" else padded_square(image, mean)
    return normalize(to_tensor(_centre(image, side)), mean, std)


def _centre(image: Image.Image, side: int) -> Image.Image:
    """Shortest edge to `side`, then the middle."""
    short, long = sorted(image.size)
    scaled = int(side * long / short)
    image = resize(image, *((side, scaled) if image.width <= image.height else (scaled, side)))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


def qwen_tokenizer(directory: str | Path) -> Any:
    """The Qwen tokenizer of a directory with qwen.tiktoken: no bos, `<|endoftext|>` ends and pads."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    backend = TikTokenConverter(
        str(Path(directory) / "qwen.tiktoken"), pattern=QWEN_PATTERN, extra_special_tokens=list(QWEN_SPECIAL)
    ).converted()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=QWEN_SPECIAL[0], pad_token=QWEN_SPECIAL[0], padding_side="left"
    )


def find_tokenizer(directory: Path) -> Any:
    """The tokenizer that lies in a model directory, None where there is none."""
    if (directory / "tokenizer.json").exists():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory, trust_remote_code=False)
    if (directory / "tokenizer.model").exists():
        return llama_tokenizer(directory)
    return qwen_tokenizer(directory) if (directory / "qwen.tiktoken").exists() else None


Row = tuple[list[int], list[int] | None, list[Image.Image]]
"""Ids with -200 for every image, labels or None, the images."""

_KNOWN = {"padding", "truncation", "add_special_tokens", "padding_side", "return_token_type_ids"}


class MPlugOwl2ImageProcessor(PilBackend):
    """Images to pixels by one of the published modes, `resize` (stretch), `pad` or `crop`; see `images.py`."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers reads plain class attributes)
    size = {"height": 448, "width": 448}  # noqa: RUF012
    image_aspect = "resize"
    resample = PILImageResampling.BICUBIC
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    image_mean = list(CLIP_MEAN)  # noqa: RUF012
    image_std = list(CLIP_STD)  # noqa: RUF012

    def __init__(self, image_aspect: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_aspect = image_aspect or type(self).image_aspect

    def __call__(self, images: Any, **_: Any) -> BatchFeature:  # ty: ignore[incompatible-method-override]
        """One or several images -> pixel_values (images, 3, side, side)."""
        chosen = [images] if isinstance(images, Image.Image) else list(images)
        return BatchFeature({"pixel_values": torch.stack([self.pixels(image) for image in chosen])})

    def pixels(self, image: Image.Image) -> Tensor:
        """An image of any size to (3, side, side)."""
        return pixels(image, self.size["height"], self.image_aspect, self.image_mean, self.image_std)


class MPlugOwl2Processor(ProcessorMixin):
    """Tokenizer, image processor and conversation template of one model.

    tokens_per_image, image_token_id: as in the model's configuration; template: a name of `conversation.TEMPLATES`;
    answer_end: the text that ends an answer, by default the tokenizer's end token.
    """

    def __init__(
        self,
        image_processor: MPlugOwl2ImageProcessor,
        tokenizer: Any,
        tokens_per_image: int = 65,
        image_token_id: int = 32000,
        template: str = "mplug_owl2",
        answer_end: str | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.tokens_per_image, self.image_token_id = tokens_per_image, image_token_id
        self.template, self.answer_end = template, answer_end or tokenizer.eos_token
        chat_template = chat_template or CHAT_TEMPLATE.replace("'</s>'", repr(self.answer_end))
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    @classmethod
    def from_config(cls, config: MPlugOwl2Config, tokenizer: Any, **options: Any) -> MPlugOwl2Processor:
        """The processor of a model of `config` with its tokenizer; options: of the constructor."""
        side = {"height": config.image_size, "width": config.image_size}
        aspect = "crop" if config.image_aspect == "square" else config.image_aspect
        return cls(
            MPlugOwl2ImageProcessor(size=side, image_aspect=aspect),
            tokenizer,
            tokens_per_image=config.tokens_per_image,
            image_token_id=config.image_token,
            **options,
        )

    @property
    def conversation(self) -> Template:
        """The template with the end of an answer in place."""
        chosen = TEMPLATES[self.template]
        return chosen if chosen.sep2 is None else replace(chosen, sep2=self.answer_end)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end an answer where no token of its own does, as in Owl2.1."""
        return () if self.answer_end == self.tokenizer.eos_token else (self.answer_end,)

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
        """Prompts with media -> input_ids, attention_mask (batch, seq), and pixel_values (images, 3, side, side).

        images: PIL images in reading order of the `<|image|>` placeholders, flat or a list per prompt; videos: for
        `<|video|>`, each a list of frames, which become consecutive images; max_length: of the ids before images are
        expanded, the rest is cut on the right together with the images that stand there.
        Raises ValueError for unknown arguments and where media and placeholders do not agree.
        """
        if set(unknown) - _KNOWN:
            raise ValueError(f"expected images, text, videos, got {', '.join(sorted(set(unknown) - _KNOWN))}")
        if text is None or audio is not None or return_tensors != "pt":
            raise ValueError(
                "expected text, no audio and return_tensors='pt', got others; images alone: image_processor"
            )
        texts = [text] if isinstance(text, str) else list(text)
        rows: list[Row] = [(self.encode(prompt), None, held) for prompt, held in _with_media(texts, images, videos)]
        return self._batch(rows, max_length, padding_side)

    def encode(self, text: str) -> list[int]:
        """Text to ids, -200 for every image. Ends with whatever the text ends with: no end token is added."""
        return tokenize(text, self._encode_piece, self.tokenizer.bos_token_id)

    def _encode_piece(self, piece: str) -> list[int]:
        return self.tokenizer(piece)["input_ids"]

    def supervised(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        images: Any = None,
        *,
        max_length: int | None = 2048,
        official: bool = False,
    ) -> BatchFeature:
        """Training samples: `[{"from": "human", "value": "<|image|>..."}, {"from": "gpt", "value": ...}]` each.

        Returns what `__call__` does, right-padded, with labels (batch, seq): answers and their ends, -100 elsewhere.
        official: rewrite messages and mask labels as the released script, which keeps one image per message.
        """
        rewritten = [image_first(messages) if official else list(messages) for messages in conversations]
        turns = [turns_of(messages) for messages in rewritten]
        template, bos = self.conversation, self.tokenizer.bos_token_id
        rows: list[Row] = []
        for given, (text, held) in zip(turns, _with_media([template.prompt(t) for t in turns], images, None)):
            ids = self.encode(text)
            if official:
                labels = official_labels(
                    ids, text, template, self._encode_piece, bos, pad_token_id=self.tokenizer.pad_token_id
                )
            else:
                labels = answer_labels(ids, given, template, self._encode_piece, bos)
            rows.append((ids, labels, held))
        return self._batch(rows, max_length, "right")

    def expanded(self, conversations: Sequence[Sequence[Turn]]) -> BatchFeature:
        """Turns with images' placeholders to ids, mask and labels as in `supervised`, for features from elsewhere."""
        template, bos, rows = self.conversation, self.tokenizer.bos_token_id, []
        for turns in conversations:
            ids = self.encode(template.prompt(turns))
            rows.append((ids, answer_labels(ids, turns, template, self._encode_piece, bos), []))
        return self._batch(rows, None, "right")

    def captioned(self, captions: Sequence[str], images: Any = None, *, max_length: int | None = 256) -> BatchFeature:
        """Pretraining samples, an image, its caption and the end: what `supervised` returns, the caption learned.

        images: one PIL image each; without them only ids and labels are made, for pixels from elsewhere.
        """
        rows: list[Row] = []
        pictures = [None] * len(captions) if images is None else list(_flat(images))
        if len(pictures) != len(captions):
            raise ValueError(f"expected an image per caption, got {len(pictures)} for {len(captions)} captions")
        for caption, picture in zip(captions, pictures):
            ids = self.encode(IMAGE + caption + self.answer_end)
            silent = {IMAGE_PLACEHOLDER, self.tokenizer.bos_token_id}
            rows.append((ids, [IGNORED if i in silent else i for i in ids], [] if picture is None else [picture]))
        return self._batch(rows, max_length, "right")

    def _batch(self, rows: Sequence[Row], max_length: int | None, side: str) -> BatchFeature:
        expanded = [self._expand(row, max_length) for row in rows]
        width = max(len(ids) for ids, _, _ in expanded)
        pad = self.tokenizer.pad_token_id or 0
        columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": []}
        for ids, labels, _ in expanded:
            fill = width - len(ids)
            columns["input_ids"].append(_pad(ids, fill, pad, side))
            columns["attention_mask"].append(_pad([1] * len(ids), fill, 0, side))
            if labels is not None:
                columns.setdefault("labels", []).append(_pad(labels, fill, IGNORED, side))
        batch = {name: torch.tensor(values) for name, values in columns.items()}
        pictures = [image for _, _, held in expanded for image in held]
        if pictures:
            batch["pixel_values"] = torch.stack([self.image_processor.pixels(image) for image in pictures])
        return BatchFeature(batch)

    def _expand(self, row: Row, max_length: int | None) -> Row:
        ids, labels, held = row
        ids = ids[:max_length]
        labels = None if labels is None else labels[:max_length]
        held = held[: ids.count(IMAGE_PLACEHOLDER)]
        targets = ids if labels is None else labels
        long, learned = [], []
        for i, target in zip(ids, targets):
            count = self.tokens_per_image if i == IMAGE_PLACEHOLDER else 1
            long += [self.image_token_id if i == IMAGE_PLACEHOLDER else i] * count
            learned += [IGNORED if i == IMAGE_PLACEHOLDER else target] * count
        return long, None if labels is None else learned, held

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """Generated ids (batch, new) to answers, special tokens left out."""
        return [self.decode(row, **options) for row in sequences]

    def decode(self, ids: Any, **options: Any) -> str:
        """Ids to text, special tokens left out and blanks stripped."""
        kept = [int(i) for i in ids if int(i) not in (self.image_token_id, IMAGE_PLACEHOLDER)]
        return self.tokenizer.decode(kept, **{"skip_special_tokens": True, **options}).strip()


def _pad(values: list[int], count: int, fill: int, side: str) -> list[int]:
    return [fill] * count + values if side == "left" else values + [fill] * count


def _with_media(texts: Sequence[str], images: Any, videos: Any) -> Iterator[tuple[str, list[Image.Image]]]:
    """Every text with videos turned into images, and its images. Raises ValueError unless all media have a place."""
    pictures, clips = list(_flat(images)), [list(frames) for frames in videos or ()]
    if clips and isinstance(clips[0][0], list):
        clips = [clip for row in clips for clip in row]
    wanted = {name: sum(text.count(name) for text in texts) for name in (IMAGE, VIDEO)}
    for name, got in ((IMAGE, len(pictures)), (VIDEO, len(clips))):
        if wanted[name] != got:
            kind = name.strip("<|>")
            raise ValueError(
                f"expected {wanted[name]} {kind}s for {wanted[name]} {name} placeholders, got {got}; "
                f"pass one {kind} per placeholder"
            )
    pictures.reverse()
    clips.reverse()
    for text in texts:
        held: list[Image.Image] = []
        pieces = re.split(f"({re.escape(IMAGE)}|{re.escape(VIDEO)})", text)
        for i, piece in enumerate(pieces):
            if piece == IMAGE:
                held.append(pictures.pop())
            elif piece == VIDEO:
                frames = clips.pop()
                held += frames
                pieces[i] = IMAGE * len(frames)
        yield "".join(pieces), held


def _flat(images: Any) -> Iterator[Image.Image]:
    if isinstance(images, Image.Image):
        yield images
    elif images is not None:
        for item in images:
            yield from _flat(item)
