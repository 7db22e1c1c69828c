"""The order of training samples: neighbours of one modality and of similar length (specification, section 10.3).

lengths (negative: text only) -> shuffled -> megabatches sorted by length -> even chunks per process -> interleaved
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def length_grouped(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """A shuffled order; global batches of world_size * batch_size hold what was shuffled together, longest first."""
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    order = []
    for mega in _cut(shuffled, world_size * batch_size):
        mega = sorted(mega, key=lambda i: lengths[i], reverse=True)
        order += [i for chunk in even_chunks(mega, lengths, world_size) for i in chunk]
    return order


def modality_grouped(
    lengths: Sequence[int], batch_size: int, world_size: int, generator: torch.Generator | None = None
) -> list[int]:
    """`length_grouped` for each modality, full global batches of both mixed at random, the two incomplete ones last.

    lengths: positive with an image, negative without. Raises ValueError for a length of 0.
    """
    if not all(lengths):
        raise ValueError(f"expected lengths other than 0, got 0 at {list(lengths).index(0)}; drop empty samples")
    groups = [[i for i, n in enumerate(lengths) if (n > 0) is with_image] for with_image in (True, False)]
    if not all(groups):
        return length_grouped([abs(n) for n in lengths], batch_size, world_size, generator)
    full: list[list[int]] = []
    last: list[int] = []
    for group in groups:
        order = length_grouped([abs(lengths[i]) for i in group], batch_size, world_size, generator)
        megas = _cut([group[i] for i in order], world_size * batch_size)
        full, last = full + megas[:-1], last + megas[-1]
    mixed = [full[i] for i in torch.randperm(len(full), generator=generator).tolist()]
    return [i for mega in [*mixed, sorted(last)] for i in mega]


def even_chunks(indices: Sequence[int], lengths: Sequence[int], num_chunks: int) -> list[list[int]]:
    """Deal sorted indices to chunks of equal size and nearly equal length; every n-th where sizes cannot agree."""
    if len(indices) % num_chunks:
        return [list(indices[i::num_chunks]) for i in range(num_chunks)]
    size = len(indices) // num_chunks
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    totals: list[float] = [0.0] * num_chunks
    for index in indices:
        shortest = totals.index(min(totals))
        chunks[shortest].append(index)
        totals[shortest] += lengths[index]
        if len(chunks[shortest]) == size:
            totals[shortest] = float("inf")
    return chunks


def _cut(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
