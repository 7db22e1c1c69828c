"""Masks as a set: every query says a class and a mask, queries are assigned to objects, and pairs are compared.

logits of classes and masks + objects -> costs at random points -> cheapest assignment -> cross entropy, mask, dice

Source: Mask2Former (arXiv 2112.01527), sections 3.3 and 4; specification ONE-PEACE, 8.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}
"""Of the losses, and of the costs of an assignment."""


def assign(costs: np.ndarray) -> np.ndarray:
    """A column of its own for every row, at the least cost in all (Hungarian method, by shortest paths).

    Args:
        costs: (rows, columns), finite, at least as many columns as rows.

    Returns:
        The column of every row, (rows,).

    Raises:
        ValueError: for fewer columns than rows, and costs that are not finite.

    Example:
        >>> assign(np.array([[1.0, 2.0, 9.0], [1.0, 4.0, 9.0]])).tolist()
        [1, 0]
    """
    rows, columns = costs.shape
    if rows > columns or not np.isfinite(costs).all():
        raise ValueError(f"expected finite costs of at most {columns} rows, got {rows}; take more queries")
    # Columns count from 1: column 0 stands for the row that is being placed.
    row_price, price = np.zeros(rows + 1), np.zeros(columns + 1)
    holder, before = np.zeros(columns + 1, int), np.zeros(columns + 1, int)
    for row in range(1, rows + 1):
        holder[0], column = row, 0
        least, seen = np.full(columns + 1, np.inf), np.zeros(columns + 1, bool)
        while holder[column]:
            seen[column] = True
            reduced = costs[holder[column] - 1] - row_price[holder[column]] - price[1:]
            better = ~seen[1:] & (reduced < least[1:])
            least[1:][better], before[1:][better] = reduced[better], column
            following = int(np.where(seen, np.inf, least).argmin())
            step = least[following]
            row_price[holder[seen]] += step
            price[seen] -= step
            least[~seen] -= step
            column = following
        while column:  # back along the path, each column takes the row of the one before
            holder[column], column = holder[before[column]], int(before[column])
    found = np.empty(rows, int)
    found[holder[1:][holder[1:] > 0] - 1] = np.flatnonzero(holder[1:])
    return found


def read_points(maps: Tensor, points: Tensor) -> Tensor:
    """Maps read bilinearly. maps: (n, height, width); points: (n, p, 2) as (x, y) in [0, 1] -> (n, p)."""
    read = F.grid_sample(maps[:, None], 2 * points[:, :, None] - 1, mode="bilinear", align_corners=False)
    return read[:, 0, :, 0]


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum p + sum t + 1) of every row; logits, targets: (n, p) -> (n,)."""
    shares = logits.sigmoid()
    return 1 - (2 * (shares * targets).sum(-1) + 1) / (shares.sum(-1) + targets.sum(-1) + 1)


@torch.no_grad()
def matched_queries(class_logits: Tensor, mask_logits: Tensor, classes: Tensor, masks: Tensor, points: int) -> Tensor:
    """The query of every object of one image.

    Args:
        class_logits: (queries, classes + 1). mask_logits: (queries, height, width).
        classes: (objects,). masks: (objects, ...) at any size, float.
        points: random ones, shared by all queries and objects, at which masks are compared.

    Returns:
        (objects,).
    """
    where = torch.rand(1, points, 2, device=mask_logits.device)
    said = read_points(mask_logits.float(), where.expand(len(mask_logits), -1, -1))
    right = read_points(masks.float(), where.expand(len(masks), -1, -1))
    # Cross entropy of all pairs as two products: log p where the mask is, log (1 - p) elsewhere.
    entropy = (F.softplus(-said) @ right.T + F.softplus(said) @ (1 - right).T) / points
    shares = said.sigmoid()
    overlap = 1 - (2 * shares @ right.T + 1) / (shares.sum(-1)[:, None] + right.sum(-1) + 1)
    likely = class_logits.float().softmax(-1)[:, classes]
    costs = WEIGHTS["mask"] * entropy + WEIGHTS["dice"] * overlap - WEIGHTS["class"] * likely
    return torch.from_numpy(assign(costs.T.cpu().numpy())).to(classes.device)


def mask_set_losses(
    class_logits: Tensor,
    mask_logits: Tensor,
    classes: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    points: int = 12544,
    oversample: int = 3,
    importance: float = 0.75,
    no_object: float = 0.1,
) -> dict[str, Tensor]:
    """Weighted losses of one prediction of a mask transformer.

    Args:
        class_logits: (batch, queries, classes + 1), the last for "no object".
        mask_logits: (batch, queries, height, width).
        classes, masks: per image (objects,) and (objects, ...) bool, at any size.
        points: at which masks are compared; of `oversample` times as many random ones the most uncertain, a share
            `importance`, the rest anew.
        no_object: weight of "no object" in the cross entropy.

    Returns:
        class, mask and dice, each times its weight.
    """
    targets = torch.full(class_logits.shape[:2], class_logits.shape[-1] - 1, device=class_logits.device)
    said, right = [], []
    for i, (own, shapes) in enumerate(zip(classes, masks, strict=True)):
        if not len(own):
            continue
        queries = matched_queries(class_logits[i], mask_logits[i], own, shapes, points)
        targets[i, queries] = own
        said.append(mask_logits[i, queries].float())
        # Each object's mask keeps its own size; sampled at once below, so all of a picture at a time.
        right.append(shapes.float())
    weights = class_logits.new_ones(class_logits.shape[-1], dtype=torch.float32)
    weights[-1] = no_object
    losses = {"class": F.cross_entropy(class_logits.float().transpose(1, 2), targets, weights)}
    # Without objects 0 with a gradient: every process issues the same collectives.
    entropy, overlap = ([mask_logits.flatten()[:1] * 0] for _ in range(2)) if not said else ([], [])
    for logits, shapes in zip(said, right, strict=True):
        with torch.no_grad():
            many = torch.rand(len(logits), oversample * points, 2, device=logits.device)
            sure = read_points(logits, many).abs()
            chosen = sure.topk(int(importance * points), dim=1, largest=False).indices
            unsure = many.gather(1, chosen[..., None].expand(-1, -1, 2))
            rest = torch.rand(len(logits), points - unsure.shape[1], 2, device=logits.device)
            where = torch.cat([unsure, rest], dim=1)
            wanted = read_points(shapes, where)
        found = read_points(logits, where)
        entropy.append(F.binary_cross_entropy_with_logits(found, wanted, reduction="none").mean(1))
        overlap.append(dice(found, wanted))
    losses |= {"mask": torch.cat(entropy).mean(), "dice": torch.cat(overlap).mean()}
    return {name: WEIGHTS[name] * loss for name, loss in losses.items()}
