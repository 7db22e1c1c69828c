"""Pictures of two things: two drawings on white, side by side, and the pairs that training never sees together.

Batches of pairs held in memory: pictures with words, sounds with words.

    manifest -> PicturesWithWords | SoundsWithWords -> rows of a step -> augmented arrays, captions, identities

Made for data sets of some thousand small files, which then cost nothing to read; every draw follows from the seed and
the step, so a resumed run sees the same batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.types import Sample

OBJECT_SHARE = 6.5
"""Held-out pictures per everyday object: naming the object alone leaves that many to choose from."""


def compose(left: Image.Image, right: Image.Image, size: int | None = None, *, seed: int = 0) -> Image.Image:
    """One `size` x `size` RGB picture that shows `left` and `right` side by side on white.

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
    so that neither the sound nor the object alone tells the picture. Fewer than `count` exist: all are given.
    """
    if count < 1:
        raise ValueError(f"expected a count of at least 1, got {count}")
    rng = np.random.default_rng(seed)
    things = _shuffled(set(sounding), rng)
    objects = _shuffled(set(others) - set(things), rng)
    if not things or not objects:
        return []
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
    ordered = sorted(names)
    return [ordered[i] for i in rng.permutation(len(ordered))]


Tokenize = Callable[[Sequence[str]], dict[str, Tensor]]
"""Captions -> tensors with at least `input_ids` (batch, tokens)."""


class PicturesWithWords:
    """Image-text batches with pairwise different concepts, so that no negative is a hidden positive.

    samples: rows with `image` and `text`; rows of one `label` show one concept. A batch larger than the number of
        concepts repeats some; `ids` say which rows belong together.
    augmentation: 0 (none) to 1 (scale 0.75-1.2, rotation +-17 degrees, colour shifts, cut-out, mirror).
    composed: share of rows that become pictures of two things, captioned "X and Y"; pairs in `held_out` never are.
    bare_names: share of captions that are the name alone; the others add some of the row's `captions` as keywords.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokenize: Tokenize,
        image_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: float = 0.5,
        composed: float = 0.0,
        bare_names: float = 0.5,
        held_out: Collection[tuple[str, str]] = (),
    ) -> None:
        if not samples:
            raise ValueError("expected training rows with an image and a text, got none; check the manifest's splits")
        self.samples = list(samples)
        self.tokenize = tokenize
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        self.augmentation, self.composed, self.bare_names = augmentation, composed, bare_names
        self.held_out = {frozenset(pair) for pair in held_out}
        self.pictures = [load_image(sample.image).resize((image_size, image_size)) for sample in self.samples]
        self.pixels = torch.stack([_to_tensor(picture) for picture in self.pictures])  # (n, 3, side, side) uint8
        self.concepts = concept_rows(self.samples)
        self.concept_of = {row: i for i, rows in enumerate(self.concepts) for row in rows}

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """A drawing each of `batch_size` concepts in the order of the step."""
        rng = np.random.default_rng((seed, step))
        chosen = spread_choice(len(self.concepts), batch_size, rng)
        return [int(rng.choice(self.concepts[concept])) for concept in chosen]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Tensor]:
        """-> pixel_values (batch, 3, side, side), input_ids (batch, tokens), ids (batch,)."""
        pixels = self.pixels[list(rows)].clone()
        captions = [self._caption(self.samples[row], rng) for row in rows]
        ids = torch.tensor([self.concept_of[row] for row in rows])
        for i in np.flatnonzero(rng.random(len(rows)) < self.composed):
            other = int(rng.integers(len(self.samples)))
            first, second = self.samples[rows[i]], self.samples[other]
            if first.label == second.label or frozenset((first.label, second.label)) in self.held_out:
                continue
            picture = compose(self.pictures[rows[i]], self.pictures[other], seed=int(rng.integers(1 << 31)))
            pixels[i] = _to_tensor(picture.resize((pixels.shape[3], pixels.shape[2])))
            captions[i] = f"{first.text} and {second.text}"
            ids[i] = -1 - int(i)
        images = (
            augment(pixels.float().div_(255), self.augmentation, rng) if self.augmentation else pixels.float().div_(255)
        )
        return {"pixel_values": (images - self.mean) / self.std, "ids": ids, **self.tokenize(captions)}

    def _caption(self, sample: Sample, rng: np.random.Generator) -> str:
        words = list(sample.captions or ())
        if not words or rng.random() < self.bare_names:
            return sample.text or ""
        count = int(rng.integers(1, min(3, len(words)) + 1))
        return ", ".join([sample.text or "", *(words[i] for i in rng.permutation(len(words))[:count])])

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of these rows."""
        return [self.samples[row].id for row in rows]


class SoundsWithWords:
    """Audio-text batches, balanced over concepts; rows of one concept share their text.

    prepare: waveform -> model input (samples,), such as `prepare_waveform`.
    shuffle_seed: give every clip the label of another clip (the control that must end at chance).
    augmentation: 0 (none) to 1 (shift by up to a quarter of the clip, noise 20 dB below it).
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
    ) -> None:
        if not samples:
            raise ValueError("expected training rows with audio and a text, got none; check the manifest's splits")
        self.samples = list(samples)
        self.tokenize = tokenize
        self.augmentation = augmentation
        self.waves = [prepare(load_audio(sample.audio, sampling_rate)).astype(np.float32) for sample in self.samples]
        order = np.arange(len(self.samples))
        if shuffle_seed is not None:
            order = np.random.default_rng(shuffle_seed).permutation(order)
        self.texts = [self.samples[i].text or "" for i in order]
        self.concepts = concept_rows([self.samples[i] for i in order])
        self.concept_of = {row: i for i, rows in enumerate(self.concepts) for row in rows}

    def __len__(self) -> int:
        return len(self.samples)

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """Clips of evenly chosen concepts in the order of the step."""
        rng = np.random.default_rng((seed, step))
        chosen = spread_choice(len(self.concepts), batch_size, rng)
        return [int(rng.choice(self.concepts[concept])) for concept in chosen]

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
        """-> input_values (batch, samples), attention_mask (batch, samples) or None, input_ids, ids (batch,)."""
        waves = [torch.from_numpy(self._augmented(self.waves[row], rng)) for row in rows]
        lengths = torch.tensor([len(wave) for wave in waves])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        batch = {
            "input_values": torch.nn.utils.rnn.pad_sequence(waves, batch_first=True),
            "audio_mask": None if mask.all() else mask,
            "ids": torch.tensor([self.concept_of[row] for row in rows]),
        }
        return batch | self.tokenize([self.texts[row] for row in rows])

    def _augmented(self, wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not self.augmentation:
            return wave
        shift = int(rng.uniform(-0.25, 0.25) * self.augmentation * len(wave))
        shifted = np.roll(wave, shift)
        noise = rng.standard_normal(len(wave), dtype=np.float32)
        return shifted + np.float32(0.1 * self.augmentation * rng.random()) * noise

    def names(self, rows: Sequence[int]) -> list[str]:
        """Ids of these rows."""
        return [self.samples[row].id for row in rows]


def concept_rows(samples: Sequence[Sample]) -> list[list[int]]:
    """Row numbers by concept (label, or text where there is none), concepts in order of first appearance."""
    rows: dict[str, list[int]] = defaultdict(list)
    for i, sample in enumerate(samples):
        rows[sample.label or sample.text or sample.id].append(i)
    return list(rows.values())


def spread_choice(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """`size` of `count` numbers, none repeated more often than it must be."""
    rounds = [rng.permutation(count) for _ in range(-(-size // count))]
    return np.concatenate(rounds)[:size]


def augment(
    images: Tensor, strength: float, rng: np.random.Generator, *, frames: int = 1, mirrors: bool = True
) -> Tensor:
    """Random affine, colour, mirror and cut-out on white. images: (batch, 3, side, side) in [0, 1] -> like it.

    frames: so many images in a row belong to one clip and get the same changes; mirrors: whether half are mirrored.
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
    out = 1 - F.grid_sample(1 - images, grid, align_corners=False)
    mix = torch.eye(3) + draw(-0.22 * strength, 0.22 * strength, 3, 3)
    out = (1 - torch.einsum("bij,bjhw->bihw", mix, 1 - out)).clamp_(0, 1)
    size = max(1, int(side * 0.25 * strength))
    for i in np.flatnonzero(rng.random(clips) < 0.5 * strength):
        top, left = rng.integers(0, side - size, 2)
        out[i * frames : (i + 1) * frames, :, top : top + size, left : left + size] = 1.0
    return out


def _to_tensor(picture: Any) -> Tensor:
    return torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)
