"""Retrieval between two media, both ways, many captions per item: similarities -> ranks -> R@K, median and mean rank.

A rank is 1-based: 1 + the number of wrong items that score at least as much as the best right one, so ties count
against the model. Rows are ranked in chunks, so 25,000 x 5,000 needs little beside the similarities themselves.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.metrics.retrieval import ranks

Array = npt.NDArray[Any]
Ranks = npt.NDArray[np.int64]
CHUNK = 1024
"""Rows ranked at a time."""
RECALLS = (1, 5, 10)


def owner_ranks(
    similarity: Array, query_owners: Sequence[Hashable], item_owners: Sequence[Hashable], chunk: int = CHUNK
) -> Ranks:
    """Rank of the best item that has the owner of the query, for every query.

    Args:
        similarity: (queries, items), larger is closer.
        query_owners, item_owners: what belongs together, such as the image of a caption.
        chunk: rows ranked at a time; the result does not depend on it.

    Returns:
        int64 (queries,), 1-based.

    Raises:
        ValueError: where lengths differ, a query has no item or a chunk has no row.
    """
    similarity = np.asarray(similarity)
    owners, wanted = _numbered(query_owners, item_owners)
    if similarity.shape != (owners.size, wanted.size):
        raise ValueError(
            f"expected similarities ({owners.size}, {wanted.size}), got {similarity.shape}; give one owner per row "
            "and per column"
        )
    found = [ranks(similarity[rows], owners[rows, None] == wanted) for rows in _chunks(owners.size, chunk)]
    return np.concatenate(found)


def vector_ranks(
    queries: Array, items: Array, query_owners: Sequence[Hashable], item_owners: Sequence[Hashable]
) -> Ranks:
    """`owner_ranks` of dot products, without ever holding all of them.

    Args:
        queries: (q, dim).
        items: (g, dim).
        query_owners, item_owners: q and g owners.

    Returns:
        int64 (q,), 1-based.
    """
    owners, wanted = _numbered(query_owners, item_owners)
    queries, columns = np.asarray(queries), np.ascontiguousarray(np.asarray(items).T)
    if owners.size != len(queries) or wanted.size != columns.shape[1]:
        raise ValueError(f"expected owners of {len(queries)} queries and {columns.shape[1]} items")
    padded = np.zeros(
        (CHUNK, queries.shape[1]), queries.dtype
    )  # one shape, so that rounding is the same in every chunk
    found = []
    for rows in _chunks(owners.size, CHUNK):
        count = rows.stop - rows.start
        padded[:count] = queries[rows]
        found.append(ranks((padded @ columns)[:count], owners[rows, None] == wanted))
    return np.concatenate(found)


def rank_scores(found: Ranks) -> dict[str, float]:
    """R@1, R@5 and R@10 in percent, median (numpy's) and mean of ranks.

    Args:
        found: (q,) 1-based ranks.

    Example:
        >>> rank_scores(np.array([1, 1, 3, 11]))["r@5"]
        75.0
    """
    recalls = {f"r@{k}": 100.0 * float((found <= k).mean()) for k in RECALLS}
    return recalls | {"median_rank": float(np.median(found)), "mean_rank": float(found.mean())}


def lower_median(found: Ranks) -> float:
    """The lower of the two middle ranks where their number is even (MSVD, VATEX)."""
    return float(np.sort(found)[(len(found) - 1) // 2])


def mean_recall(scores: dict[str, float]) -> float:
    """Mean of R@1, R@5 and R@10 of one direction, in percent.

    scores: of `rank_scores`.
    """
    return float(np.mean([scores[f"r@{k}"] for k in RECALLS]))


def image_text_scores(
    similarity: Array, image_ids: Sequence[Hashable], text_image_ids: Sequence[Hashable]
) -> dict[str, Any]:
    """Both directions between images (or audio) and their captions.

    Args:
        similarity: (images, texts).
        image_ids: one per row.
        text_image_ids: per column the id of its image. An image finds any of its captions, a
            caption its one image.

    Returns:
        `image_to_text` and `text_to_image` with recalls in percent and `ranks`, the mean recall
        of each, and `mean_recall` of both.
    """
    similarity = np.asarray(similarity)
    to_text = owner_ranks(similarity, image_ids, text_image_ids)
    to_image = owner_ranks(similarity.T, text_image_ids, image_ids)
    scores = {"image_to_text": rank_scores(to_text), "text_to_image": rank_scores(to_image)}
    means = {f"{direction}_mean": mean_recall(found) for direction, found in scores.items()}
    listed = {"image_to_text": to_text.tolist(), "text_to_image": to_image.tolist()}
    return {
        **{direction: {**found, "ranks": listed[direction]} for direction, found in scores.items()},
        **means,
        "mean_recall": float(np.mean(list(means.values()))),
    }


def video_text_scores(similarity: Array) -> dict[str, Any]:
    """One text per video (MSRVTT 1k-A, DiDeMo, LSMDC), both directions.

    Args:
        similarity: (texts, videos), right pairs on the diagonal.

    Returns:
        `text_to_video` and `video_to_text`, each as `rank_scores` with `ranks`.

    Raises:
        ValueError: where it is not square.
    """
    similarity = np.asarray(similarity)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"expected a square (texts, videos), got {similarity.shape}; use several_text_scores")
    order = range(len(similarity))
    both = {
        "text_to_video": owner_ranks(similarity, order, order),
        "video_to_text": owner_ranks(similarity.T, order, order),
    }
    return {direction: {**rank_scores(found), "ranks": found.tolist()} for direction, found in both.items()}


def several_text_scores(similarity: Array, text_video: Sequence[int]) -> dict[str, Any]:
    """Several texts per video (MSVD, VATEX), both directions.

    Text to video ranks every text, with the lower median. Video to text ranks groups: a video's
    similarity to the texts of another is the highest among them, as the video releases do.

    Args:
        similarity: (texts, videos).
        text_video: column of every text's video.

    Raises:
        ValueError: for a video without a text.
    """
    similarity = np.asarray(similarity)
    videos = range(similarity.shape[1])
    owners = np.asarray(text_video, dtype=np.int64)
    if missing := set(videos) - set(owners.tolist()):
        raise ValueError(f"expected a text for every video, got none for video {min(missing)}")
    to_video = owner_ranks(similarity, owners.tolist(), videos)
    # the best text speaks for a video: its other captions cannot push it back
    groups = np.stack([similarity[owners == video].max(axis=0) for video in videos], axis=1)  # (videos, groups)
    forward = rank_scores(to_video)
    # only one median is reported, under the name that says which
    del forward["median_rank"]
    return {
        "text_to_video": forward | {"median_rank_lower": lower_median(to_video)},
        "video_to_text_max_over_captions": rank_scores(owner_ranks(groups, videos, videos)),
    }


def _numbered(queries: Sequence[Hashable], items: Sequence[Hashable]) -> tuple[Ranks, Ranks]:
    """Owners of queries and items as numbers, equal where the owners are, for numpy to compare."""
    numbers = {owner: i for i, owner in enumerate(dict.fromkeys([*queries, *items]))}
    return np.array([numbers[owner] for owner in queries]), np.array([numbers[owner] for owner in items])


def _chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` rows that cover `count`. Raises ValueError for an empty chunk."""
    if size < 1:
        raise ValueError(f"expected a chunk of at least one row, got {size}")
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
