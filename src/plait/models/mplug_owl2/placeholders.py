"""Batches in the official notation, where one id -200 stands for an image, to sequences with every position in place.

input_ids with -200, images -> image_token_id on every position of an image, mask and labels grown where it stands
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IMAGE_PLACEHOLDER = -200
IGNORED = -100


@dataclass(frozen=True)
class Expanded:
    """A batch as the model takes it, right-padded to its longest row.

    input_ids, attention_mask, labels: (batch, seq); pixel_values: (images, 3, side, side), only images that have a
    placeholder; added: (batch, seq) bool, True on the padding that expansion added.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    labels: Tensor | None
    pixel_values: Tensor | None
    added: Tensor


def expand_placeholders(
    input_ids: Tensor,
    images: Tensor | Sequence[Tensor] | None,
    *,
    tokens_per_image: int,
    image_token_id: int,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    pad_token_id: int = 0,
) -> Expanded:
    """Expand a batch of official ids.

    images: (images, 3, side, side), one for each placeholder in reading order; or a list of (k, 3, side, side) (or one
    tensor of five dimensions), all k for one placeholder. A row without placeholder may own an entry too, a dummy.
    Raises ValueError where placeholders and images do not agree.
    """
    if images is None:
        if bool((input_ids == IMAGE_PLACEHOLDER).any()):
            raise ValueError("expected images for the placeholders, got none; pass one image per placeholder")
        return Expanded(input_ids, attention_mask, labels, None, torch.zeros_like(input_ids, dtype=torch.bool))
    blocks = [image[None] for image in images] if getattr(images, "ndim", 5) == 4 else list(images)
    owners = _owners(input_ids, len(blocks))
    rows = []
    for i, ids in enumerate(input_ids):
        sizes = [len(blocks[j]) * tokens_per_image for j in owners[i]]
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask[i]
        targets = torch.full_like(ids, IGNORED) if labels is None else labels[i]
        rows.append(_expand_row(ids, mask, targets, sizes, image_token_id))
    length = max(len(row[0]) for row in rows)
    columns = [_padded([row[k] for row in rows], length, fill) for k, fill in enumerate((pad_token_id, 0, IGNORED))]
    added = torch.stack([torch.arange(length, device=input_ids.device) >= len(row[0]) for row in rows])
    used = [blocks[j] for owned in owners for j in owned]
    return Expanded(
        columns[0],
        None if attention_mask is None and not bool(added.any()) else columns[1],
        None if labels is None else columns[2],
        torch.cat(used) if used else None,
        added,
    )


def _owners(input_ids: Tensor, entries: int) -> list[list[int]]:
    """The entries of the image list that each row's placeholders take."""
    counts = (input_ids == IMAGE_PLACEHOLDER).sum(dim=1).tolist()
    needed = sum(max(count, 1) for count in counts)
    with_dummies = needed == entries
    if not with_dummies and sum(counts) != entries:
        raise ValueError(
            f"expected {sum(counts)} images for {sum(counts)} placeholders (or {needed} with a dummy for every row of "
            f"text), got {entries}; pass one image per placeholder"
        )
    owners, start = [], 0
    for count in counts:
        owners.append(list(range(start, start + count)))
        start += max(count, 1) if with_dummies else count
    return owners


def _expand_row(
    ids: Tensor, mask: Tensor, labels: Tensor, sizes: list[int], image_token_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    repeats = torch.ones_like(ids)
    is_image = ids == IMAGE_PLACEHOLDER
    repeats[is_image] = torch.tensor(sizes, dtype=ids.dtype, device=ids.device)
    ids, labels = ids.masked_fill(is_image, image_token_id), labels.masked_fill(is_image, IGNORED)
    return ids.repeat_interleave(repeats), mask.repeat_interleave(repeats), labels.repeat_interleave(repeats)


def _padded(rows: list[Tensor], length: int, fill: int) -> Tensor:
    return torch.stack([torch.nn.functional.pad(row, (0, length - len(row)), value=fill) for row in rows])
