"""Batches for contrast: pictures with words and sounds with words, of different concepts, changed a little each time.

rows -> decoded (kept where there is room) -> composed, augmented, captioned -> arrays, tokens, identities

Pictures of two things are two drawings on white, side by side; some pairs training never sees together. Every draw
follows from the seed and the step, so a resumed run sees the same batches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from plait.data.manifest import digest
from plait.data.order import Spread
from plait.data.reader import Reader, Reading
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.processing.videos import random_crop
from plait.types import Sample

OBJECT_SHARE = 6.5
"""Held-out pictures per everyday object: naming the object alone leaves that many to choose from."""


def compose(left: Image.Image, right: Image.Image, size: int | None = None, *, seed: int = 0) -> Image.Image:
    """One `size` x `size` RGB image that shows `left` and `right` side by side on white.

    Each drawing takes 44 to 50 % of the width and moves a little, up to a quarter of the height, as drawn from `seed`.
    `size` is in pixels and defaults to the larger side of `left`.
    """
    size = max(left.size) if size is None else size
    if size < 8:
        raise ValueError(f"expected a size of at least 8 pixels, got {size}")
    rng = np.random.default_rng(seed)
    page = Image.new("RGB", (size, size), "white")
    for column, drawing in enumerate((left, right)):
        side = round(size * rng.uniform(0.44, 0.5))
        free_x, free_y = size // 2 - side, size - side
        x = column * (size - size // 2) + round(rng.uniform(0, free_x))
        y = round(free_y * rng.uniform(0.25, 0.75))
        page.paste(drawing.convert("RGB").resize((side, side), Image.Resampling.BILINEAR), (x, y))
    return page


def held_out_pairs(
    sounding: Collection[str], others: Collection[str], count: int = 160, seed: int = 0
) -> list[tuple[str, str]]:
    """`count` different pairs (sounding thing, everyday object) that are never composed in training.

    The same names give the same pairs, in whatever order they come; names in `sounding` are no everyday objects. Each
    sounding thing and each chosen object is in nearly equally many pairs, and a few objects are chosen rather than all,
    so that neither the audio nor the object alone tells the image. Fewer than `count` exist: all are given.
    """
    if count < 1:
        raise ValueError(f"expected a count of at least 1, got {count}")
    rng = np.random.default_rng(seed)
    things = _shuffled(set(sounding), rng)
    objects = _shuffled(set(others) - set(things), rng)
    if not things or not objects:
        return []
    # Rounded up: with too few objects a thing could not have its share of different pairs.
    per_thing = -(-count // len(things))
    objects = objects[: max(per_thing, round(count / OBJECT_SHARE))]
    shares = np.full(len(things), count // len(things))
    shares[: count % len(things)] += 1
    pairs: list[tuple[str, str]] = []
    for thing, share in zip(things, np.minimum(shares, len(objects))):
        start = len(pairs)
        pairs += [(thing, objects[(start + i) % len(objects)]) for i in range(share)]
    return pairs


def _shuffled(names: set[str], rng: np.random.Generator) -> Sequence[str]:
    """Names in an order that depends on them and on `rng` alone: a set has none that lasts."""
    ordered = sorted(names)
    return [ordered[i] for i in rng.permutation(len(ordered))]


Tokenize = Callable[[Sequence[str]], dict[str, Tensor]]
"""Captions -> tensors with at least `input_ids` (batch, tokens)."""

# RandomResizedCrop(scale=(0.9, 1)) of the released stage 1 (specification ONE-PEACE, 5.2); it mirrors nothing.
AREA = (0.9, 1.0)

KEEP_BYTES = 256 << 20
"""Decoded media that are kept: all of a few thousand small files, which are met hundreds of times in a run and would
cost more to decode each time than a step of a small model does; of a large data set the part that fits."""


def concept_of(sample: Sample) -> int:
    """What a row is of, as a number: its label, or its text where there is none."""
    return digest(sample.label or sample.text or sample.id) >> 1  # signed


class PicturesWithWords(Reader):
    """Image-text batches with pairwise different concepts.

    Args:
        samples: rows with `image` and `text`; rows of one `label` show one concept. A batch larger than the number of
            concepts repeats some; `ids` say which rows belong together.
        tokenize: captions -> tensors. image_size: side in pixels. mean, std: (3,) of the image encoder.
        augmentation: 0 (none) to 1 (scale 0.75-1.2, rotation +-17 degrees, colour shifts, cut-out, mirror); None for
            the crops that ONE-PEACE was pretrained with, 0.9 to 1 of the area, without a mirror.
        composed: share of rows that become images of two things, captioned "X and Y"; pairs in `held_out` never are.
        bare_names: share of captions that are the name alone; the others add some of the row's `captions` as keywords.
        reading: workers, and what becomes of bad samples.

    Raises:
        ValueError: without samples.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokenize: Tokenize,
        image_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: float | None = 0.5,
        composed: float = 0.0,
        bare_names: float = 0.5,
        held_out: Collection[tuple[str, str]] = (),
        reading: Reading | None = None,
    ) -> None:
        if not samples:
            raise ValueError("expected training rows with an image and a text, got none; check the manifest's splits")
        self.tokenize, self.size = tokenize, (image_size, image_size)
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        self.augmentation, self.composed, self.bare_names = augmentation, composed, bare_names
        self.held_out = {frozenset(pair) for pair in held_out}
        self.spread = Spread(np.fromiter(map(concept_of, samples), np.int64, len(samples)))
        # What is cropped anew each time is not kept.
        room = 0 if augmentation is None else KEEP_BYTES
        super().__init__(samples, self.collated, self.decoded, order=self.spread, reading=reading, keep_bytes=room)

    def decoded(self, sample: Sample, rng: np.random.Generator) -> tuple[Sample, np.ndarray]:
        """A row and its image (side, side, 3) uint8, a crop of it where that is the augmentation."""
        picture, box = load_image(sample.image), None
        if self.augmentation is None:
            crop = random_crop(picture.height, picture.width, random.Random(int(rng.integers(1 << 62))), scale=AREA)
            box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        return sample, np.asarray(picture.resize(self.size, box=box).convert("RGB"))

    def collated(self, parts: list[tuple[Sample, np.ndarray]], rng: np.random.Generator) -> dict[str, Tensor]:
        """-> pixel_values (batch, 3, side, side), input_ids (batch, tokens), ids (batch,)."""
        pages = [picture for _, picture in parts]
        captions = []
        for sample, _ in parts:
            words, caption = list(sample.captions or ()), sample.text or ""
            if words and rng.random() >= self.bare_names:
                count = int(rng.integers(1, min(3, len(words)) + 1))
                caption = ", ".join([caption, *(words[i] for i in rng.permutation(len(words))[:count])])
            captions.append(caption)
        # Numbers of concepts, so rows of one concept are no negatives of each other.
        ids = torch.tensor([self.spread.number(concept_of(sample)) for sample, _ in parts])
        for i in np.flatnonzero(rng.random(len(parts)) < self.composed):
            first, left = parts[i]
            # Decoded through the reader's own store; key 0, since decoding draws nothing.
            second, right = self._part((int(rng.integers(len(self.samples))), 0))
            if first.label == second.label or frozenset((first.label, second.label)) in self.held_out:
                continue
            both = compose(Image.fromarray(left), Image.fromarray(right), seed=int(rng.integers(1 << 31)))
            pages[i] = np.asarray(both.resize(self.size))
            captions[i] = f"{first.text} and {second.text}"
            ids[i] = -1 - int(i)  # a concept of its own
        pixels = torch.from_numpy(np.stack(pages)).permute(0, 3, 1, 2).float().div_(255)
        pixels = augment(pixels, self.augmentation, rng) if self.augmentation else pixels
        return {"pixel_values": (pixels - self.mean) / self.std, "ids": ids, **self.tokenize(captions)}


class SoundsWithWords(Reader):
    """Audio-text batches, balanced over concepts; rows of one concept share their text.

    Args:
        samples: rows with `audio` and `text`. tokenize: captions -> tensors.
        sampling_rate: samples per second to which clips are resampled.
        prepare: waveform -> model input (samples,), such as `prepare_waveform`.
        augmentation: 0 (none) to 1 (shift by up to a quarter of the clip, noise 20 dB below it).
        shuffle_seed: give every clip the label of another clip (the control that must end at chance).
        reading: workers, and what becomes of bad samples.

    Raises:
        ValueError: without samples.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokenize: Tokenize,
        *,
        sampling_rate: int,
        prepare: Callable[[np.ndarray], np.ndarray],
        augmentation: float = 0.0,
        shuffle_seed: int | None = None,
        reading: Reading | None = None,
    ) -> None:
        if not samples:
            raise ValueError("expected training rows with audio and a text, got none; check the manifest's splits")
        if shuffle_seed is not None:
            samples = Relabelled(samples, np.random.default_rng(shuffle_seed).permutation(len(samples)))
        self.tokenize, self.sampling_rate, self.prepare = tokenize, sampling_rate, prepare
        self.augmentation = augmentation
        self.spread = Spread(np.fromiter(map(concept_of, samples), np.int64, len(samples)))
        super().__init__(
            samples, self.collated, self.decoded, order=self.spread, reading=reading, keep_bytes=KEEP_BYTES
        )

    def decoded(self, sample: Sample, rng: np.random.Generator) -> tuple[Sample, np.ndarray]:
        """A row and its waveform (samples,)."""
        return sample, self.prepare(load_audio(sample.audio, self.sampling_rate)).astype(np.float32)

    def collated(self, parts: list[tuple[Sample, np.ndarray]], rng: np.random.Generator) -> dict[str, Any]:
        """-> input_values (batch, samples), audio_mask (batch, samples) or None, input_ids, ids (batch,)."""
        waves = []
        for _, wave in parts:
            if self.augmentation:
                shifted = np.roll(wave, int(rng.uniform(-0.25, 0.25) * self.augmentation * len(wave)))
                noise = rng.standard_normal(len(wave), dtype=np.float32)
                wave = shifted + np.float32(0.1 * self.augmentation * rng.random()) * noise
            waves.append(torch.from_numpy(wave))
        lengths = torch.tensor([len(wave) for wave in waves])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return {
            "input_values": torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
            "audio_mask": None if mask.all() else mask,
            "ids": torch.tensor([self.spread.number(concept_of(sample)) for sample, _ in parts]),
            **self.tokenize([sample.text or "" for sample, _ in parts]),
        }


class Relabelled(Sequence[Sample]):
    """Rows with the words and labels of other rows: `others` (rows,) says of which."""

    def __init__(self, samples: Sequence[Sample], others: np.ndarray) -> None:
        self.samples, self.others = samples, others

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: Any) -> Any:
        own, other = self.samples[number], self.samples[int(self.others[number])]
        return replace(own, text=other.text, label=other.label)


def augment(
    images: Tensor, strength: float, rng: np.random.Generator, *, frames: int = 1, mirrors: bool = True
) -> Tensor:
    """Random affine, colour, mirror and cut-out on white.

    Args:
        images: (batch, 3, side, side) in [0, 1].
        strength: 0 (none) to 1. rng: of all draws.
        frames: so many images in a row belong to one clip and get the same changes.
        mirrors: whether half are mirrored; False where left and right have a meaning.

    Returns:
        Like `images`.
    """
    batch, _, side, _ = images.shape
    clips = batch // frames

    def draw(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.from_numpy(rng.uniform(low, high, (clips, *shape)).astype(np.float32))
        return drawn if frames == 1 else drawn.repeat_interleave(frames, 0)

    scale = draw(1 - 0.25 * strength, 1 + 0.2 * strength)
    angle = draw(-0.3 * strength, 0.3 * strength)
    mirror = torch.where(draw(0, 1) < 0.5, -1.0, 1.0) if mirrors else torch.ones(batch)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    shift = draw(-0.12 * strength, 0.12 * strength, 2)
    theta = torch.stack([cos * mirror, -sin, shift[:, 0], sin * mirror, cos, shift[:, 1]], dim=1).view(batch, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Inverted, so that the zeros beyond the edge become white, as the pages are.
    out = 1 - F.grid_sample(1 - images, grid, align_corners=False)
    mix = torch.eye(3) + draw(-0.22 * strength, 0.22 * strength, 3, 3)
    out = (1 - torch.einsum("bij,bjhw->bihw", mix, 1 - out)).clamp_(0, 1)
    size = max(1, int(side * 0.25 * strength))
    for i in np.flatnonzero(rng.random(clips) < 0.5 * strength):
        top, left = rng.integers(0, side - size, 2)
        out[i * frames : (i + 1) * frames, :, top : top + size, left : left + size] = 1.0
    return out
