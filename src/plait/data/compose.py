"""Pictures of two things: two drawings on white, side by side, and the pairs that training never sees together."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image

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
