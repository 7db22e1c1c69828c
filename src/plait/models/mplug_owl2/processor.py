"""What goes into mPLUG-Owl2: prompts and PIL images -> ids with a place for every image position, pixels, labels.

text with <|image|> -> pieces tokenized apart -> tokens_per_image ids per image -> padded batch
PIL image -> resize (stretch to a square) | pad (square of the mean colour) | crop (borders are lost) -> (3, side, side)
Source: specification mPLUG-Owl2, section 9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.models.mplug_owl2.conversation import (
    CHAT_TEMPLATE,
    IMAGE,
    TEMPLATES,
    VIDEO,
    Template,
    answer_labels,
    image_first,
    official_labels,
    tokenize,
    told,
    turns_of,
)
from plait.models.mplug_owl2.model import IMAGE_PLACEHOLDER
from plait.nn.contract import checked
from plait.processing.images import CLIP_MEAN, CLIP_STD, normalize, pictures_in, resize, to_tensor
from plait.processing.talking import (
    IGNORED,
    IMAGE_APART,
    Fitting,
    Row,
    Shown,
    SquareImages,
    TalkBatch,
    TalkingProcessor,
    Turn,
    deal_media,
)
from plait.types import as_words, spoken

ASPECTS = ("resize", "pad", "crop")
"""How an image becomes square: the mode of the published evaluation, of the released scripts, of CLIP's processor."""


@checked
class MPlugOwl2Processor(TalkingProcessor):
    """Tokenizer, image processor and conversation template of one model.

    Args:
        image_processor: an `MPlugOwl2ImageProcessor`.
        tokenizer: of transformers; a Llama's adds bos in front of every text, which the published prompts count on.
        tokens_per_image, image_token_id: as in the model's configuration.
        template: a name of `conversation.TEMPLATES`.
        answer_end: the text that ends an answer, by default the tokenizer's end token.
        chat_template: of transformers, by default the published conversation.

    Source:
        Specification mPLUG-Owl2, section 9.

    Example:
        >>> processor = MPlugOwl2Processor.from_config(model.config, tokenizer)
        >>> batch = processor(images=[image], text=["USER: <|image|>What is this? ASSISTANT:"])
        >>> ids = model.generate(**batch, max_new_tokens=20)
        >>> processor.decode(ids[0, batch["input_ids"].shape[1] :])
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
        # "square" is the official name of no preparation at all, where CLIP's processor crops the centre.
        aspect = "crop" if config.image_aspect == "square" else config.image_aspect
        size = {"height": config.image_size, "width": config.image_size}
        return cls(
            MPlugOwl2ImageProcessor(size=size, image_aspect=aspect),
            tokenizer,
            tokens_per_image=config.tokens_per_image,
            image_token_id=config.image_token,
            **options,
        )

    @property
    def conversation(self) -> Template:
        """The template with the end of an answer in place: Owl2.1's tokenizer ends elsewhere than its text does."""
        chosen = TEMPLATES[self.template]
        return chosen if chosen.sep2 is None else replace(chosen, sep2=self.answer_end)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end an answer where no token of its own does: to Owl2.1's tokenizer "</s>" is four pieces."""
        return () if self.answer_end == self.tokenizer.eos_token else (self.answer_end,)

    @property
    def unspoken(self) -> tuple[int, ...]:
        """The id of images."""
        return (IMAGE_APART, self.placed(self.image_token_id, IMAGE_APART))

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: None = None,
        **options: Any,
    ) -> BatchFeature:
        """Prompts with media -> input_ids, attention_mask (batch, seq), and pixel_values (images, 3, side, side).

        images: PIL images in reading order of the `<|image|>` placeholders, flat or a list per prompt; videos: for
        `<|video|>`, each a list of frames, which become consecutive images; options: of
        `plait.processing.talking.Fitting`.
        Raises ValueError for unknown options and where media and placeholders do not agree.
        """
        fitting = Fitting.read(options)
        bos = self.tokenizer.bos_token_id if fitting.add_special_tokens else None
        rows = []
        for shown in self._dealt(self.prompts(text, audio), images, videos):
            encode = self._encode_piece if fitting.add_special_tokens else self._encode_words
            rows.append(Row(tokenize(shown.text, encode, bos), None, shown.images))
        return self._batch(rows, fitting)

    def encode(self, text: str) -> list[int]:
        """Text to ids, -200 for every image. Ends with whatever the text ends with: no end token is added."""
        return tokenize(text, self._encode_piece, self.tokenizer.bos_token_id)

    def _encode_piece(self, piece: str) -> list[int]:
        return self.tokenizer(spoken(piece))["input_ids"]

    def _encode_words(self, piece: str) -> list[int]:
        return self.tokenizer(spoken(piece), add_special_tokens=False)["input_ids"]

    def _dealt(self, texts: Sequence[str], images: Any, videos: Any = None) -> list[Shown]:
        return deal_media(texts, images, videos, image=IMAGE, video=VIDEO, has_clips=False)

    def supervised(
        self,
        conversations: Sequence[Sequence[Mapping[str, str]]],
        images: Any = None,
        *,
        max_length: int | None = 2048,
        official: bool = False,
    ) -> BatchFeature:
        """Training samples: `[{"from": "human", "value": "<|image|>..."}, {"from": "gpt", "value": ...}]` each.

        A first message from "system" stands in front of the conversation, as the chat template has it.
        Returns what `__call__` does, right-padded, with labels (batch, seq): answers and their ends, -100 elsewhere.
        Raises ValueError, naming the conversation, where truncation leaves nothing to learn.
        official: rewrite messages and mask labels as the released script, which keeps one image per message.
        """
        systems = [
            messages[0]["value"] if messages[:1] and messages[0]["from"] == "system" else None
            for messages in conversations
        ]
        rest = [messages if one is None else messages[1:] for messages, one in zip(conversations, systems)]
        rewritten = [image_first(messages) if official else list(messages) for messages in rest]
        turns = [told(turns_of(messages)) for messages in rewritten]
        template, bos, pad = self.conversation, self.tokenizer.bos_token_id, self.tokenizer.pad_token_id
        rows = []
        templates = [template if system is None else template.led_by(system) for system in systems]
        prompts = [template.prompt(one) for template, one in zip(templates, turns)]
        for given, template, shown in zip(turns, templates, self._dealt(prompts, images)):
            ids = self.encode(shown.text)
            if official:
                labels = official_labels(ids, shown.text, template, self._encode_piece, bos, pad_token_id=pad)
            else:
                labels = answer_labels(ids, given, template, self._encode_piece, bos)
            rows.append(Row(ids, labels, shown.images))
        # The released collator cuts before images are expanded.
        return self._batch(rows, Fitting(True, max_length=max_length, padding_side="right"), official=official)

    def expanded(self, conversations: Sequence[Sequence[Turn]]) -> BatchFeature:
        """Turns with images' placeholders to ids, mask and labels as in `supervised`, for features from elsewhere."""
        template, bos, rows = self.conversation, self.tokenizer.bos_token_id, []
        for turns in map(told, conversations):
            ids = self.encode(template.prompt(turns))
            rows.append(Row(ids, answer_labels(ids, turns, template, self._encode_piece, bos)))
        return self._batch(rows, Fitting(padding_side="right"))

    def captioned(self, captions: Sequence[str], images: Any = None, *, max_length: int | None = 256) -> BatchFeature:
        """Pretraining samples, an image, its caption and the end: what `supervised` returns, the caption learned.

        images: one PIL image each; without them only ids and labels are made, for pixels from elsewhere.
        """
        pictures = [None] * len(captions) if images is None else list(pictures_in(images))
        if len(pictures) != len(captions):
            raise ValueError(f"expected an image per caption, got {len(pictures)} for {len(captions)} captions")
        silent, rows = {IMAGE_PLACEHOLDER, self.tokenizer.bos_token_id}, []
        for caption, picture in zip(captions, pictures):
            ids = self.encode(IMAGE + as_words(caption) + self.answer_end)
            labels = [IGNORED if i in silent else i for i in ids]
            rows.append(Row(ids, labels, [] if picture is None else [picture]))
        return self._batch(rows, Fitting(True, max_length=max_length, padding_side="right"))

    def _batch(self, rows: Sequence[Row], fitting: Fitting, *, official: bool = False) -> BatchFeature:
        """Every -200 repeated over its image's positions, cut to `max_length` of these, padded, with pixels.

        official: cut before, so that a row may be longer by its images.
        """
        expanded, image_id = [], self.placed(self.image_token_id, IMAGE_APART)
        for number, row in enumerate(rows):
            cut = row.ids[: fitting.max_length] if official else row.ids
            length = sum(self.tokens_per_image if i == IMAGE_PLACEHOLDER else 1 for i in cut)
            limit = None if official else fitting.limit(length)
            ids, labels, num_images = [], [], 0
            for i, label in zip(cut, cut if row.labels is None else row.labels):
                is_image = i == IMAGE_PLACEHOLDER
                count = self.tokens_per_image if is_image else 1
                if limit is not None and len(ids) + count > limit:
                    # half an image would take features of the next
                    break
                num_images += is_image
                ids += [image_id if is_image else i] * count
                labels += [IGNORED if is_image else label] * count
            lost = row.labels is not None and any(label != IGNORED for label in row.labels)
            if lost and not official and all(label == IGNORED for label in labels):
                raise ValueError(
                    f"expected an answer within {limit} positions, got none in conversation {number}; raise max_length"
                )
            # A cut placeholder takes its image along: the released collator keeps it, and the next sample reads it.
            held = row.images[:num_images]
            expanded.append(Row(ids, None if row.labels is None else labels, held))
        batch = self.padded(expanded, fitting, self.tokenizer.pad_token_id or 0)
        pictures = [image for row in expanded for image in row.images]
        if pictures:
            batch["pixel_values"] = torch.stack([self.image_processor.pixels(image) for image in pictures])
        return TalkBatch(batch, media_ids=self.unspoken)


@checked
class MPlugOwl2ImageProcessor(SquareImages):
    """Images to pixels by one of the published modes; see `pixels`.

    Args:
        image_aspect: `resize` (stretch, the published evaluation), `pad` (the released scripts) or `crop`.
        kwargs: of transformers: size, image_mean, image_std.

    Example:
        >>> MPlugOwl2ImageProcessor(size={"height": 64, "width": 64}).pixels(image).shape
        torch.Size([3, 64, 64])
    """

    size = {"height": 448, "width": 448}  # noqa: RUF012 (transformers reads plain class attributes)
    image_aspect = "resize"

    def __init__(self, image_aspect: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.image_aspect = image_aspect or type(self).image_aspect

    def pixels(self, image: Image.Image) -> Tensor:
        """An image of any size to (3, side, side)."""
        return pixels(image, self.size["height"], self.image_aspect, self.image_mean, self.image_std)


def pixels(
    image: Image.Image,
    side: int,
    aspect: str = "resize",
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """An image of any size to pixels.

    Two bicubic steps of Pillow on 8-bit values, square and then shortest edge, as published: one step, or a resize of
    tensors, gives other pixels.

    Args:
        image: in any mode; it is made RGB first.
        side: of the result, in pixels.
        aspect: one of `ASPECTS`.
        mean, std: per channel, of values from 0 to 1; CLIP's.

    Returns:
        (3, side, side) float32, normalised.

    Raises:
        ValueError: for another aspect.

    Source:
        Specification mPLUG-Owl2, section 9.1.
    """
    if aspect not in ASPECTS:
        raise ValueError(f"expected image_aspect among {', '.join(ASPECTS)}, got {aspect!r}")
    image = image.convert("RGB")
    if aspect != "crop":
        image = stretched_square(image) if aspect == "resize" else padded_square(image, mean)
    short, long = sorted(image.size)
    scaled = int(side * long / short)  # cut, not rounded, as CLIP's processor does
    image = resize(image, *((side, scaled) if image.width <= image.height else (scaled, side)))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return normalize(to_tensor(image.crop((left, top, left + side, top + side))), mean, std)


def stretched_square(image: Image.Image) -> Image.Image:
    """Stretch to a square as long as the longer side: the published evaluation mode."""
    side = max(image.size)
    return resize(image, side, side)


def padded_square(image: Image.Image, mean: Sequence[float] = CLIP_MEAN) -> Image.Image:
    """Centre on a square of the mean colour: the mode of the fine-tuning scripts."""
    side = max(image.size)
    # (122, 116, 104) with CLIP's mean: cut, not rounded, as published.
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
