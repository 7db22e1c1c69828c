"""Where media stand in a sequence: official runs of -1 and -2 -> our ids -> features put into the embeddings.

ids with runs -> from_runs -> image_id and video_id on every position -> place -> (batch, seq, dim)
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

IMAGE_RUN, VIDEO_RUN = -1, -2
IGNORED = -100


def from_runs(input_ids: Tensor, media_ids: tuple[int, int]) -> Tensor:
    """Ids in official notation, -1 on positions of images and -2 on those of videos, in ours.

    input_ids: (..., seq); media_ids: `config.media_ids`.
    """
    image_id, video_id = media_ids
    return input_ids.masked_fill(input_ids == IMAGE_RUN, image_id).masked_fill(input_ids == VIDEO_RUN, video_id)


def count_runs(input_ids: list[int], media_id: int, tokens_per_media: int) -> int:
    """Media of one kind in a sequence; neighbours count by their length. Raises ValueError for a cut one."""
    lengths = [len(list(run)) for value, run in groupby(input_ids) if value == media_id]
    for length in lengths:
        if length % tokens_per_media:
            raise ValueError(f"expected {tokens_per_media} positions per medium, got a run of {length}")
    return sum(lengths) // tokens_per_media


def place(
    embeds: Tensor, where: Tensor, features: Tensor | None, per_media: int, kind: str, counts: Tensor | None = None
) -> Tensor:
    """Put features over the positions of their media, the k-th of a row over its k-th place.

    embeds: (batch, seq, dim); where: (batch, seq) bool; features: (count, per_media, dim) over the whole batch; counts:
    (batch,) media of each row where some may have lost their place, which are left out then. Raises ValueError, naming
    `kind`, where media and places do not agree.
    """
    places = where.sum(dim=1)
    given = 0 if features is None else len(features)
    if counts is not None and features is not None:
        kept = _with_place(places, counts, per_media)
        features, given = features[kept], len(kept)
    if int(places.sum()) != given * per_media:
        held = int(places.sum()) / per_media
        raise ValueError(
            f"expected one {kind} per placeholder, got {given} {kind}s for {held:g} placeholders of {per_media} "
            f"positions; pass as many {kind}s as the prompt has placeholders"
        )
    if features is None:
        return embeds
    return embeds.masked_scatter(where[..., None], features.flatten(0, 1).to(embeds.dtype))


def _with_place(places: Tensor, counts: Tensor, per_media: int) -> Tensor:
    """Indices of the media that have a place: the first ones of every row."""
    starts = counts.cumsum(0) - counts
    found = [
        torch.arange(int(start), int(start) + min(int(count), int(held) // per_media))
        for start, count, held in zip(starts, counts, places)
    ]
    return torch.cat(found).to(places.device)
