"""What goes into mPLUG-2 and what comes out: texts, images and videos -> tensors, ids -> texts.

texts -> input_ids, attention_mask     images -> pixel_values     videos -> pixel_values_videos
training rows -> read_row (decoded) -> Collator -> batch of a task class

In use a video is sampled by presentation time: the frames on screen in the middle of `num_frames`
equal parts. In training each part gives a frame at a random time.
Source: specification mPLUG-2, section 11.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from plait.media.image import load_image
from plait.media.video import load_video
from plait.models.mplug2.composition import instruct
from plait.models.mplug2.config import MPlug2Config
from plait.nn.contract import OpensAlone, checked
from plait.processing import wordpiece
from plait.processing.images import CLIP_MEAN, CLIP_STD, grounding, pictures_in, square
from plait.processing.videos import (
    Resample,
    evaluation_clip,
    pretraining_clip,
    random_times,
    stack_frames,
    training_clip,
    training_image,
)
from plait.processing.wordpiece import Target
from plait.types import Sample

Picture = Image | str | Path | bytes
Clip = str | Path | bytes | Tensor | Sequence[Image]
"""A video file, or its frames: PIL images, or uint8 (time, height, width, 3)."""


# PilBackend: the default backend of transformers needs torchvision, which Plait never requires.
@checked
class MPlug2ImageProcessor(PilBackend):
    """Square bicubic resize without regard to aspect ratio, then CLIP's mean and deviation.

    Args:
        size: `{"height": side, "width": side}` in pixels, 224 by default.
        image_mean, image_std: per channel, of pixels in [0, 1].

    `MPlug2Processor` holds one, and reads its size, mean and deviation.

    Source: the released test transform of images (specification mPLUG-2, section 11).
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers reads plain class attributes)
    size = {"height": 224, "width": 224}  # noqa: RUF012
    resample = PILImageResampling.BICUBIC
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    image_mean = list(CLIP_MEAN)  # noqa: RUF012
    image_std = list(CLIP_STD)  # noqa: RUF012


@checked
class MPlug2Processor(OpensAlone, ProcessorMixin):
    """Tokenizer and image processor of one model, and how it reads videos.

    Args:
        image_processor, tokenizer: of the model.
        num_frames: that are sampled from a video file.
        video_resample: `nearest` as published, or `bicubic` with antialiasing.
        max_text_tokens: of a question or phrase with [CLS] and [SEP]; more is an error.
        official: targets and decoded texts as the released code has them.

    Raises:
        ValueError: for less than one frame.

    Example:
        >>> from PIL import Image
        >>> processor = MPlug2Processor.from_config(MPlug2Config.preset("tiny"))
        >>> batch = processor(images=Image.new("RGB", (64, 48)), text="What is this?")
        >>> batch["pixel_values"].shape, sorted(batch)
        (torch.Size([1, 3, 12, 12]), ['attention_mask', 'input_ids', 'pixel_values'])

    Source: specification mPLUG-2, section 11.
    """

    def __init__(
        self,
        image_processor: MPlug2ImageProcessor,
        tokenizer: PreTrainedTokenizerFast,
        num_frames: int = 16,
        video_resample: Resample = "nearest",
        max_text_tokens: int = 64,
        official: bool = False,
        **kwargs: Any,
    ) -> None:
        if num_frames < 1:
            raise ValueError(f"expected at least one frame, got num_frames {num_frames}")
        super().__init__(image_processor, tokenizer, **kwargs)
        self.num_frames, self.video_resample = num_frames, video_resample
        self.max_text_tokens, self.official = max_text_tokens, official

    @classmethod
    def build(cls, image_size: int, vocabulary: Sequence[str] | None = None, **options: Any) -> MPlug2Processor:
        """A processor for square inputs.

        Args:
            image_size: side in pixels.
            vocabulary: pieces in the order of their ids, by default uncased BERT's.
            options: of the class, such as `num_frames`.
        """
        size = {"height": image_size, "width": image_size}
        return cls(MPlug2ImageProcessor(size=size), wordpiece.build_tokenizer(vocabulary), **options)

    @classmethod
    def from_config(cls, config: MPlug2Config, **options: Any) -> MPlug2Processor:
        """A processor that makes what a model of this configuration takes.

        Args:
            config: its image size, frames, positions and `official` are read.
            options: as in `build`; they win over the configuration.
        """
        own: dict[str, Any] = {
            "num_frames": config.num_frames,
            "max_text_tokens": min(64, config.max_positions),
            "official": bool(config.official),
        }
        return cls.build(config.image_size, **{**own, **options})

    @property
    def longest(self) -> dict[str, float]:
        """Tokens of a question or phrase from which on it is refused."""
        return {"text": self.max_text_tokens}

    @property
    def image_size(self) -> int:
        """Side of the images and frames made, in pixels."""
        return self.image_processor.size["height"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Clip | Sequence[Clip] | None = None,
        *,
        text_pair: str | Sequence[str] | None = None,
        truncation: bool = False,
        return_tensors: str = "pt",
        **unknown: Any,
    ) -> BatchFeature:
        """Any mixture of modalities -> a batch of each.

        Args:
            images: one or several, as PIL images, paths or bytes.
            text: one or several, cleaned as published.
            videos: one or several, as files, PIL frames or uint8 (time, height, width, 3).
            text_pair: a second text for each, as `[CLS] text [SEP] pair [SEP]`.
            truncation: whether texts over the limit are cut.
            return_tensors: `pt` only.
            unknown: `padding` is accepted, since texts are always padded; anything else is refused.

        Returns:
            input_ids and attention_mask (batch, tokens), with token_type_ids where there is a pair;
                pixel_values (batch, 3, side, side); pixel_values_videos (batch, 3, frames, side,
                side).

        Raises:
            ValueError: for arguments it does not know, no input at all, and texts over the limit.
        """
        # A tensor holds nothing ragged, and no text is filled up beyond the longest: any other wish would be ignored.
        if (padding := unknown.pop("padding", True)) not in (True, None, "longest"):
            raise ValueError(f"expected padding=True, got {padding!r}; texts are padded to the longest of them")
        if unknown:
            raise ValueError(f"expected images, text, videos, got {', '.join(sorted(unknown))}")
        if return_tensors != "pt":
            raise ValueError(f"expected return_tensors='pt', got {return_tensors!r}")
        batch: dict[str, Tensor] = {}
        if text is not None:
            pairs = None if text_pair is None else _listed(text_pair, str)
            batch |= self.tokenize(_listed(text, str), pairs, truncation=truncation)
        if images is not None:
            batch["pixel_values"] = torch.stack([self.pixels(picture) for picture in pictures_in(images)])
        if videos is not None:
            batch["pixel_values_videos"] = torch.stack([self.clip(one) for one in _clips(videos)])
        if not batch:
            raise ValueError("expected images, text or videos, got none")
        return BatchFeature(batch)

    def pixels(self, picture: Picture) -> Tensor:
        """One image, decoded where it is a file.

        Returns:
            (3, side, side), normalised.
        """
        processor = self.image_processor
        return square(load_image(picture), self.image_size, processor.image_mean, processor.image_std)

    def clip(self, video: Clip) -> Tensor:
        """One video, sampled where it is a file; frames given as such are all taken.

        Args:
            video: a file, PIL frames, or uint8 (time, height, width, 3).

        Returns:
            (3, frames, side, side), normalised; `num_frames` of them from a file.

        Raises:
            ValueError: for frames of another type or shape.
        """
        if isinstance(video, str | Path | bytes):
            video = load_video(video, self.num_frames).frames
        frames = video if isinstance(video, Tensor) else stack_frames(video)
        if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 3:
            raise ValueError(
                f"expected frames uint8 (time, height, width, 3), got {frames.dtype} {tuple(frames.shape)}"
            )
        processor = self.image_processor
        return evaluation_clip(frames, self.image_size, self.video_resample, processor.image_mean, processor.image_std)

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, truncation: bool = False
    ) -> dict[str, Tensor]:
        """Texts, cleaned as published, to ids.

        Args:
            texts: to read.
            pairs: a second text for each.
            truncation: whether texts over the limit are cut.

        Returns:
            input_ids and attention_mask (batch, tokens), with `pairs` also token_type_ids.

        Raises:
            ValueError: for a text over `max_text_tokens`, unless `truncation`.
        """
        # No limit in words: what is too long is refused by tokens below, not cut in silence.
        cleaned = [wordpiece.clean_question(text, max_words=10**6) for text in texts]
        others = () if pairs is None else ([wordpiece.clean_question(text, max_words=10**6) for text in pairs],)
        cut = {"truncation": True, "max_length": self.max_text_tokens} if truncation else {}
        rows = self.tokenizer(cleaned, *others, return_token_type_ids=pairs is not None, **cut)
        for text, ids in zip(texts, rows["input_ids"], strict=True):
            if len(ids) > self.max_text_tokens:
                raise ValueError(
                    f"expected a text of at most {self.max_text_tokens} tokens, got {len(ids)} in {text[:40]!r}...; "
                    "shorten it (from Python truncation=True cuts it)"
                )
        padded = self.tokenizer.pad(rows, return_tensors="pt")
        return {name: torch.as_tensor(padded[name]) for name in rows}

    def answers(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Answers as a decoder learns to write them, [CLS] in front and the end token behind.

        Args:
            texts: answers of any length in words.

        Returns:
            input_ids, attention_mask and labels (answers, length). `official` ends them twice, as
                the released data (specification 11).
        """
        backend = self.tokenizer.backend_tokenizer
        cleaned = [wordpiece.clean_caption(text, max_words=10**6) for text in texts]
        return self.collate([wordpiece.answer_target(backend, text, official=self.official) for text in cleaned])

    def captions(self, texts: Sequence[str], prompt: str = "", max_length: int = 20) -> dict[str, Tensor]:
        """Captions as a decoder learns to write them.

        Args:
            texts: of which 80 words are kept, as released.
            prompt: in front of every caption; `official` puts no space behind it.
            max_length: ids that are kept, 20 as released.

        Returns:
            input_ids, attention_mask and labels (batch, length); labels leave out prompt and
                padding.
        """
        backend = self.tokenizer.backend_tokenizer
        targets = [
            wordpiece.caption_target(
                backend, wordpiece.clean_caption(text, max_words=80), prompt, max_length=max_length,
                official=self.official,
            )
            for text in texts
        ]  # fmt: skip
        return self.collate(targets)

    def collate(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Targets of different lengths to one batch, right-padded.

        Args:
            targets: ids, and how many of them belong to the prompt.

        Returns:
            input_ids, attention_mask (bool, True = real) and labels (batch, length); labels are not
                shifted, -100 at prompt and padding.
        """
        width = max(len(target.ids) for target in targets)
        ids = torch.full((len(targets), width), self.tokenizer.pad_token_id)
        labels = torch.full_like(ids, -100)
        for target, id_row, label_row in zip(targets, ids, labels, strict=True):
            length = len(target.ids)
            id_row[:length] = torch.tensor(target.ids)
            label_row[target.prompt_length : length] = id_row[target.prompt_length : length]
        lengths = torch.tensor([len(target.ids) for target in targets])
        return {"input_ids": ids, "attention_mask": torch.arange(width) < lengths[:, None], "labels": labels}

    def batch_decode(self, sequences: Any, **options: Any) -> list[str]:
        """Ids to texts, as in transformers; -100, which fills labels and Trainer's predictions, is left out.

        sequences: (batch, seq); options: of the tokenizer.
        """
        return super().batch_decode([[int(i) for i in row if int(i) >= 0] for row in sequences], **options)

    def decode_text(self, ids: Sequence[int] | Tensor) -> str:
        """Generated ids to text.

        Args:
            ids: (length,), with or without [CLS] in front; negative ones are padding.

        Returns:
            The text up to the first [SEP]; `official` deletes special tokens and keeps what
                follows.
        """
        row = [i for i in (ids.tolist() if isinstance(ids, Tensor) else list(ids)) if i >= 0]
        start = 1 if row[:1] == [self.tokenizer.cls_token_id] else 0
        end = self.tokenizer.sep_token_id
        # The released search lets finished beams grow on behind [SEP], and its loop deletes the
        # token alone (specification 7.1, 8).
        if not self.official and end in row:
            row = row[: row.index(end)]
        return self.tokenizer.decode(row[start:], skip_special_tokens=True).strip()


def _listed(value: Any, single: Any) -> list[Any]:
    """One value of type `single` as a list of one; a sequence of them as a list."""
    return [value] if isinstance(value, single) else list(value)


def _clips(value: Any) -> list[Clip]:
    """A batch of clips: a list of them, or one: a file, a tensor of frames, a list of PIL frames."""
    if isinstance(value, Tensor):
        # Four dimensions are one video (time, height, width, 3); five are a batch of them.
        return [value] if value.dim() == 4 else list(value)
    if isinstance(value, str | Path | bytes):
        return [value]
    frames = list(value)
    return [frames] if frames and isinstance(frames[0], Image) else frames


class Row(NamedTuple):
    """A training row and what was decoded of it.

    Attributes:
        sample: the row of the data.
        seen: a PIL image, a list of them, frames uint8 (time, height, width, 3), or None for text
            alone.
    """

    sample: Sample
    seen: Any = None

    @property
    def medium(self) -> str:
        """image, video or text; an image wins where a row has both."""
        return "image" if self.sample.image is not None else "video" if self.sample.video is not None else "text"


def read_row(num_frames: int, sample: Sample, rng: np.random.Generator) -> Row:
    """Decode the medium of a row.

    Frames lie at random times, one in each part of the video, as in the released training.

    Args:
        num_frames: that are taken of a video.
        sample: the row.
        rng: every draw comes from it.

    Returns:
        The row with an image, several images, frames, or nothing but its text.
    """
    if sample.meta.get("images"):
        return Row(sample, [load_image(name) for name in sample.meta["images"]])
    if sample.image is not None:
        return Row(sample, load_image(sample.image))
    if sample.video is None:
        return Row(sample)
    # One frame is decoded to learn the length; the times drawn from it are decoded next.
    draw, seconds = random.Random(int(rng.integers(1 << 62))), load_video(sample.video, 1).seconds
    return Row(sample, stack_frames(load_video(sample.video, at=random_times(seconds, num_frames, draw)).frames))


class Collator:
    """Rows -> a batch of one of mPLUG-2's task classes, with the published training transforms and texts as targets.

    Every draw comes from the generator that is handed in. A batch holds images or videos, never
    both.

    Args:
        processor: of the model.
        instructions: whether the model is told what to do.
        labels: of classes, in the order of their numbers.
        prompt: what captions stand behind.
        pretraining: with its crops, and in `pairs` what to write and the instruction as well.
        reads_words: whether `classes` has the words of a row; those beside an image are not for every head.
        tasks: of `mixture`, all that rows have what for without it.

    Source: specification mPLUG-2, sections 7 and 11.
    """

    def __init__(
        self,
        processor: MPlug2Processor,
        *,
        instructions: bool = False,
        labels: Sequence[str] = (),
        prompt: str = "",
        pretraining: bool = False,
        reads_words: bool = True,
        tasks: Sequence[str] = (),
    ) -> None:
        self.processor, self.instructions, self.pretraining = processor, instructions, pretraining
        self.labels, self.prompt, self.reads_words, self.tasks = list(labels), prompt, reads_words, tuple(tasks)

    def pixels(self, rows: Sequence[Row], rng: np.random.Generator) -> dict[str, Tensor]:
        """What rows show, cropped and changed as the release does in training.

        Args:
            rows: all of images, all of several images each, or all of videos.
            rng: of all draws.

        Returns:
            pixel_values (batch, 3, side, side), or (batch, images, 3, side, side) where rows have
                several images; or pixel_values_videos (batch, 3, time, side, side).

        Raises:
            ValueError: for a mixture of media.
        """
        draw, size = random.Random(int(rng.integers(1 << 62))), self.processor.image_size
        media = {row.medium for row in rows}
        if all(isinstance(row.seen, list) for row in rows):
            several = [torch.stack([training_image(picture, size, draw) for picture in row.seen]) for row in rows]
            return {"pixel_values": torch.stack(several)}  # every picture is changed for itself
        if media == {"image"}:
            # Least and most of the area that a crop keeps, in pretraining and in finetuning (specification 11).
            scale = (0.2, 1.0) if self.pretraining else (0.5, 1.0)
            return {"pixel_values": torch.stack([training_image(row.seen, size, draw, scale=scale) for row in rows])}
        if media == {"video"}:
            clip = pretraining_clip if self.pretraining else training_clip
            return {"pixel_values_videos": torch.stack([clip(row.seen, size, draw) for row in rows])}
        raise ValueError(f"expected a batch of images or of videos, got {', '.join(sorted(media))}; keep them apart")

    def written(self, texts: Sequence[str], prompt: str | None = None) -> dict[str, Tensor]:
        """Texts as a decoder learns to write them.

        Args:
            texts: answers, or captions where there is a prompt.
            prompt: in front of every caption, "" for none; None for answers.

        Returns:
            decoder_input_ids, decoder_attention_mask and labels, (texts, length) each; labels are
                not shifted.
        """
        made = self.processor.answers(texts) if prompt is None else self.processor.captions(texts, prompt)
        return {
            "decoder_input_ids": made["input_ids"],
            "decoder_attention_mask": made["attention_mask"],
            "labels": made["labels"],
        }

    def pairs(self, rows: list[Row], rng: np.random.Generator) -> dict[str, Tensor]:
        """Images or videos, each with one of its texts.

        Args:
            rows: of one medium.
            rng: of all draws.

        Returns:
            Pixels, input_ids and attention_mask (batch, tokens), and ids (batch,), equal where rows
                show the same; in pretraining also what is to be written, and with instructions what
                asks for it.
        """
        texts = [caption_of(row.sample, rng) for row in rows]
        # The same file is the same thing: its other captions are partners, never negatives.
        shown = [str(row.sample.image if row.sample.image is not None else row.sample.video) for row in rows]
        known = {name: number for number, name in enumerate(dict.fromkeys(shown))}
        batch = {
            **self.pixels(rows, rng),
            **self.processor.tokenize(texts, truncation=True),
            "ids": torch.tensor([known[name] for name in shown]),
        }
        if self.pretraining:
            batch |= self.written(texts)
            if self.instructions:
                told = self.processor.tokenize([instruct("caption", rows[0].medium)] * len(rows))
                batch |= {"instruction_ids": told["input_ids"], "instruction_mask": told["attention_mask"]}
        return batch

    def texts(self, rows: list[Row], rng: np.random.Generator) -> dict[str, Tensor]:
        """Texts alone, for masked language modelling; nothing is hidden yet.

        rng: draws one text of every row. Returns input_ids and attention_mask (batch, tokens).
        """
        return self.processor.tokenize([caption_of(row.sample, rng) for row in rows], truncation=True)

    def captions(self, rows: list[Row], rng: np.random.Generator) -> dict[str, Tensor]:
        """Images or videos, and a caption to be written behind the prompt.

        Args:
            rows: of one medium.
            rng: of all draws.

        Returns:
            Pixels and targets; with instructions also input_ids and attention_mask, so that a
                caption is asked for as an answer is.
        """
        made = self.written([caption_of(row.sample, rng) for row in rows], self.prompt)
        told = [instruct("caption", rows[0].medium)] * len(rows)
        return {**self.pixels(rows, rng), **(self.processor.tokenize(told) if self.instructions else {}), **made}

    def referenced(self, rows: list[Row], rng: np.random.Generator) -> dict[str, Any]:
        """Images or videos, and all captions of each, for self-critical training.

        Returns pixels, and `references`: (batch) lists of texts.
        """
        return {**self.pixels(rows, rng), "references": [captions_of(row.sample) for row in rows]}

    def answers(self, rows: list[Row], rng: np.random.Generator) -> dict[str, Tensor]:
        """Questions with all their answers, each weighted by how many annotators gave it.

        Args:
            rows: of one medium, with `question` and `answers`.
            rng: of all draws.

        Returns:
            Pixels, input_ids and attention_mask (batch, tokens), targets (answers, length),
                answers_per_question (batch,) and answer_weights (answers,), which sum to 1 per
                question.

        Source: mPLUG's image VQA (specification mPLUG-2, 7.3).
        """
        given = [Counter(row.sample.answers or ()) for row in rows]
        asked = [instruct("answer", row.medium, row.sample.question or "", enabled=self.instructions) for row in rows]
        return {
            **self.pixels(rows, rng),
            **self.processor.tokenize(asked, truncation=True),
            **self.written([text for one in given for text in one]),
            "answers_per_question": torch.tensor([len(one) for one in given]),
            "answer_weights": torch.tensor([count / one.total() for one in given for count in one.values()]),
        }

    def mixture(self, rows: list[Row], rng: np.random.Generator) -> list[dict[str, Tensor]]:
        """Rows of any media, each with one of the tasks that it has what for, drawn evenly.

        Half of the texts to be matched are another row's. Without `instructions` the text encoder reads the question,
        phrase or text alone, or nothing.

        Args:
            rows: of any media, for each of which `offers` names a task of `self.tasks`.
            rng: of all draws.

        Returns:
            A part for what is written about images, about videos and about texts alone, as
                `MPlug2ForConditionalGeneration.forward` takes it, and one of phrases to be found, as that of
                `MPlug2ForGrounding`; parts without rows are left out.
        """
        parts: dict[str, list[tuple[Row, str, str]]] = {}
        for row in rows:
            able = [task for task in offers(row.sample, row.medium) if not self.tasks or task in self.tasks]
            task = able[int(rng.integers(len(able)))]
            if task == "ground":
                parts.setdefault("ground", []).append((row, "", ""))
                continue
            text, answer = self._asked(task, row, rows, rng)
            told = instruct(task, row.medium, text, enabled=self.instructions)
            parts.setdefault(row.medium, []).append((row, told, answer))
        batch = []
        for name, asked in parts.items():
            shown = [row for row, _, _ in asked]
            if name == "ground":
                # Beside answers the question is another task's.
                own = [row._replace(sample=replace(row.sample, question=None)) if row.sample.answers else row
                       for row in shown]  # fmt: skip
                batch.append(self.boxes(own, rng))
                continue
            batch.append({
                **({} if name == "text" else self.pixels(shown, rng)),
                **self.processor.tokenize([told for _, told, _ in asked], truncation=True),
                **self.written([answer for _, _, answer in asked]),
            })  # fmt: skip
        return batch

    def _asked(self, task: str, row: Row, rows: Sequence[Row], rng: np.random.Generator) -> tuple[str, str]:
        """The text that an instruction of `task` is about, empty where it is about the medium alone, and the answer.

        rows: of the batch, whose texts do not fit `row`. rng: of all draws.
        """
        sample = row.sample
        if task == "answer":
            given = sample.answers or []
            return sample.question or "", given[int(rng.integers(len(given)))]
        if task == "classify":
            return (sample.text or "") if row.medium == "text" else "", sample.label or ""
        if task == "complete":
            words = [text.split() for text in captions_of(sample) if " " in text.strip()]
            chosen = words[int(rng.integers(len(words)))]
            cut = int(rng.integers(1, len(chosen)))
            return " ".join(chosen[:cut]), " ".join(chosen[cut:])
        if task == "match":
            own = set(captions_of(sample))
            others = [text for other in rows if offers(other.sample, other.medium) for text in _texts(other.sample)]
            wrong = [text for text in others if text not in own]
            if wrong and rng.integers(2):
                return wrong[int(rng.integers(len(wrong)))], "no"
            return caption_of(sample, rng), "yes"
        return "", caption_of(sample, rng)

    def boxes(self, rows: list[Row], rng: np.random.Generator) -> dict[str, Tensor]:
        """Images, phrases and the first box of each row.

        No crop and no flip: both would change what is left of what.

        Args:
            rows: with `boxes` as x0, y0, x1, y1 in pixels, and the phrase as question or text.
            rng: not read.

        Returns:
            pixel_values (batch, 3, side, side), input_ids and attention_mask (batch, tokens), and
                boxes (batch, 4) as (cx, cy, w, h), fractions of the sides.

        Raises:
            ValueError: for a row without a box of four numbers.
        """
        found = []
        for row in rows:
            corners = torch.tensor((row.sample.boxes or [[]])[0], dtype=torch.float32)
            if corners.shape != (4,):
                raise ValueError(f"expected a box x0, y0, x1, y1 in row {row.sample.id!r}, got {row.sample.boxes}")
            x0, y0, x1, y1 = grounding(row.seen, corners[None], self.processor.image_size).boxes[0].tolist()
            found.append([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
        phrases = [row.sample.question or row.sample.text or "" for row in rows]
        phrases = [instruct("ground", "image", phrase, enabled=self.instructions) for phrase in phrases]
        return {
            "pixel_values": torch.stack([self.processor.pixels(row.seen) for row in rows]),
            **self.processor.tokenize(phrases, truncation=True),
            "boxes": torch.tensor(found).clamp(0, 1),
        }

    def classes(self, rows: list[Row], rng: np.random.Generator) -> dict[str, Tensor]:
        """What is to be classified, and numbers of labels.

        That is images, videos, texts, pairs of texts (`meta["text_pair"]`), or a text about images
        or a video.

        Args:
            rows: all alike; the first one tells what there is.
            rng: of all draws.

        Returns:
            Pixels and ids of what rows have, and labels (batch,) int64.

        Raises:
            ValueError: for a label that is not among `labels`.
        """
        samples = [row.sample for row in rows]
        batch = {"labels": torch.tensor([self.labels.index(sample.label or "") for sample in samples])}
        if rows[0].seen is not None:
            batch |= self.pixels(rows, rng)
        if samples[0].text and self.reads_words:
            pair = [str(sample.meta["text_pair"]) for sample in samples] if "text_pair" in samples[0].meta else None
            batch |= self.processor.tokenize([sample.text or "" for sample in samples], pair, truncation=True)
        return batch


def offers(sample: Sample, medium: str) -> list[str]:
    """The tasks of `composition.TEMPLATES` that a row has what for.

    Args:
        sample: the row.
        medium: that is looked at or read: text, image or video.

    Example:
        >>> offers(Sample("a", image="a.png", text="cat", label="animal"), "image")
        ['caption', 'match', 'classify']
    """
    texts, found = _texts(sample), []
    if medium != "text":
        found += ["caption", "match"] if texts else []
        found += ["answer"] if sample.question and sample.answers else []
    found += ["classify"] if sample.label and (medium != "text" or sample.text) else []
    if medium == "image" and sample.boxes and (sample.text or (sample.question and not sample.answers)):
        found.append("ground")
    return [*found, "complete"] if any(" " in text.strip() for text in texts) else found


def _texts(sample: Sample) -> list[str]:
    """Captions of the row, or its text; none where it has neither."""
    return list(sample.captions or ([sample.text] if sample.text else []))


def captions_of(sample: Sample) -> list[str]:
    """The row's captions, or its text as the only one.

    Raises:
        ValueError: naming the row, where it has neither.
    """
    texts = _texts(sample)
    if not texts:
        raise ValueError(f"expected text or captions in row {sample.id!r}, got neither")
    return texts


def caption_of(sample: Sample, rng: np.random.Generator) -> str:
    """One of the row's captions, drawn evenly. Raises as `captions_of`.

    rng: of the draw.
    """
    texts = captions_of(sample)
    return texts[int(rng.integers(len(texts)))]
